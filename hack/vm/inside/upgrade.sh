#!/bin/sh
# From the package of the last version whose records had other forms to this one, with ten pods that run; the way back,
# which must not cost them; and the way back of an empty node. Called by hack/vm/test.sh.
#
#   upgrade.sh ARCHIVE DIRECTORY OLD     an OCI archive of busybox, where berth*.deb lies, the older package
set -u

. "$(dirname "$0")/lib.sh"
image=berth.test/busybox:vm
archive=$1 dir=$2 old=$3
new=$(ls -t "$dir"/berth*.deb | head -n 1)
ids='' pids=''

answers() { within 60 crictl version >/dev/null; }
install() { dpkg --force-confold -i "$1" && answers; }

from_the_older() {
	dpkg -P berth >/dev/null 2>&1
	hosts=/var/tmp/vm/hosts
	install "$old" && cp -r "$hosts/." /etc/berth/certs.d/ && berth images load "$archive"
}

ten_pods() {
	for number in 0 1 2 3 4 5 6 7 8 9; do
		podname=old-$number
		pod=$(pod "$podname") && id=$(container "$pod" "old-$number" 'exec sleep 10000') || return
		ids="$ids $id"
		pids="$pids $(pid_of "$id")"
	done
}
pid_of() { crictl inspect --output go-template --template '{{.info.pid}}' "$1"; }
alive() { for pid in $pids; do kill -0 "$pid" || { echo "process $pid was ended"; return 1; }; done; }
monitors() { for pid in $pids; do cut -d' ' -f4 "/proc/$pid/stat"; done; }
all_run() {
	alive || return
	equal running "$(crictl ps -q --state running | sort)" "$(printf '%s\n' $ids | sort)" || return
	equal ready "$(crictl pods -q --state ready | wc -l)" 10 || return
	equal monitors "$(monitors)" "$before" || return
	for id in $ids; do
		equal exec "$(crictl exec -s "$id" echo yes)" yes || return
	done
}

# dpkg asks the older package's script after ours, and that one agrees.
down_with_pods() {
	out=$(dpkg --force-confold -i "$old" 2>&1)
	holds message "$out" "its daemon will not start while there are any" || return
	alive || return
	sleep 5
	! crictl --timeout 2s version >/dev/null 2>&1 || { echo "the older daemon serves"; return 1; }
	alive
}
empty() { crictl rmp -af && crictl rmi -a && equal images "$(crictl images -q)" ""; }
down() {
	out=$(install "$old" 2>&1) || { echo "$out"; return 1; }
	berth images load "$archive" && podname=back && pod=$(pod back) && ids=$(container "$pod" back 'exec sleep 10000') &&
		pids=$(pid_of "$ids") && crictl exec -s "$ids" true
}
and_up() { install "$new" && alive && crictl exec -s "$ids" true && crictl rmp -af; }

check upgrade::older_package_is_installed from_the_older
check upgrade::ten_pods ten_pods
before=$(monitors)
check upgrade::this_version_over_it install "$new"
check upgrade::every_container_runs_with_its_monitor all_run
check upgrade::going_back_is_refused_and_costs_no_pod down_with_pods
check upgrade::this_version_again install "$new"
check upgrade::every_container_still_runs all_run
check upgrade::all_is_stopped_and_removed empty
check upgrade::an_empty_node_goes_back down
check upgrade::and_up_again and_up
summary
