#!/bin/sh
# Pulls the plug of a machine at random moments while it works, and looks at what it is after the boot.
#
#   hack/vm/cut.sh NAME TIMES
set -u

here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd)
name=$1 times=$2
inside=$project/hack/vm/inside

for n in $(seq "$times"); do
	"$here/vm.sh" ssh "$name" "setsid sh '$inside/load.sh' </dev/null >/dev/null 2>&1 &" </dev/null
	# Half a second to twenty: from the first bytes of a pull to containers at work.
	tenths=$(($(od -An -N4 -tu4 /dev/urandom) % 196 + 5))
	pause=$((tenths / 10)).$((tenths % 10))
	sleep "$pause"
	echo "-- cut $n after $pause s"
	"$here/vm.sh" reset "$name" || { echo "FAIL vm::cut_$n::boots"; echo "vm: 0 passed, 1 failed, 0 skipped"; exit 1; }
	"$here/vm.sh" ssh "$name" "sh '$inside/after.sh' cut_$n" </dev/null || bad=1
done
exit "${bad:-0}"
