#!/bin/sh
# Power cuts below the order of the disk: the writes of a machine at work are recorded by QEMU and replayed up to
# random points. Of what came after the last flush, half of the blocks are lost, whatever their order. Each such disk is
# booted and looked at.
#
#   hack/vm/replay.sh NAME TIMES          NAME is up and has Berth; it is switched off
set -u

here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd)
name=$1 times=$2
inside=$project/hack/vm/inside
replay=$project/target/debug/log-replay
build=${BERTH_BUILD_DIR:-$project/.build}
# How long the machine works, in seconds.
work_time=${BERTH_VM_WORK:-90}

vm() { "$here/vm.sh" "$@"; }
fail() { echo "FAIL vm::replay: $*"; echo "vm: 0 passed, 1 failed, 0 skipped"; exit 1; }

[ -x "$replay" ] || fail "$replay is missing: make vm-tests builds it"
work=$(mktemp -d "$build/vm/replay.XXXXXX")
trap 'vm down "$name-rec"; vm down "$name-cut"; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

random() { od -An -N4 -tu4 /dev/urandom | tr -d ' '; }

vm halt "$name" "$work/state" || fail "the machine does not stop"
BERTH_VM_DISK=$work/state BERTH_VM_LOG=$work/log vm up "$name-rec" || fail "the machine does not start with a log"
vm ssh "$name-rec" "sync; setsid sh '$inside/load.sh' </dev/null >/dev/null 2>&1 &" </dev/null
sleep 2
begin=$("$replay" count "$work/log") || fail "there is no log"
sleep "$work_time"
vm down "$name-rec"
end=$("$replay" count "$work/log")
echo "-- $((end - begin)) writes in $work_time s"
[ "$end" -gt $((begin + times)) ] || fail "the machine has written nothing"

points=$(for _ in $(seq "$times"); do echo $((begin + 1 + $(random) % (end - begin - 1))); done | sort -n)
applied=0
bad=0
for point in $points; do
	flushed=$("$replay" flushed "$work/log" "$point")
	seed=$(random)
	# What is durable goes to the common state, the rest to this machine's disk alone.
	[ "$flushed" -le "$applied" ] || "$replay" apply "$work/log" "$work/state" --from "$applied" --to "$flushed" || fail "apply"
	[ "$flushed" -le "$applied" ] || applied=$flushed
	cp --sparse=always "$work/state" "$work/disk"
	"$replay" apply "$work/log" "$work/disk" --from "$applied" --to "$point" --lose "$seed" || fail "apply"
	echo "-- entry $point, $((point - applied)) after the last flush, seed $seed"
	if BERTH_VM_DISK=$work/disk vm up "$name-cut"; then
		vm ssh "$name-cut" "sh '$inside/after.sh' replay_$point" </dev/null || bad=1
	else
		echo "FAIL vm::replay_$point::boots"
		echo "vm: 0 passed, 1 failed, 0 skipped"
		bad=1
	fi
	vm down "$name-cut"
done
exit $bad
