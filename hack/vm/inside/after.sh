#!/bin/sh
# After a power cut: what was promised of a disk that was left at any moment. Called by hack/vm/cut.sh and replay.sh.
#
#   after.sh NAME               how the checks are called
set -u

. "$(dirname "$0")/lib.sh"
cut=$1
image=registry.k8s.io/e2e-test-images/busybox:1.29-2

answers() { within 60 crictl version >/dev/null || { journalctl --no-pager -n 30 -u berth; return 1; }; }
check "$cut::daemon_starts" answers
check "$cut::no_container_is_reported_running" equal running "$(crictl ps -q)" ""
check "$cut::no_pod_is_reported_ready" equal ready "$(crictl pods -q --state ready)" ""
check "$cut::store_is_whole" berth images check
check "$cut::no_record_was_damaged" equal log "$(journalctl -b --no-pager -u berth -p warning -q | grep -i 'cannot be read\|can be read')" ""

# Every image that is listed is whole: a container of it reads all its files.
whole() {
	number=0
	for id in $(crictl images -q); do
		crictl inspecti "$id" >/dev/null || return
		name=$(crictl inspecti --output go-template --template '{{index .status.repoTags 0}}' "$id")
		number=$((number + 1))
		podname=whole-$cut-$number
		pod=$(pod "$podname") || return
		sum=$(image=$name container "$pod" whole 'exec sleep 1000') || { echo "$name: $sum"; return 1; }
		crictl exec -s "$sum" sh -c 'find / -xdev -type f -exec cat {} + >/dev/null' || { echo "$name has files that cannot be read"; return 1; }
		crictl rmp -f "$pod" || return
	done
}
check "$cut::listed_images_are_whole" whole
# A name of its own for each cut: that the last one's pod was removed need not have reached the disk.
again() { crictl pull "$image" && podname=again-$cut && pod=$(pod "$podname") && id=$(container "$pod" again 'exec sleep 1000') && crictl exec -s "$id" true && crictl rmp -f "$pod"; }
check "$cut::pods_run_again" again
check "$cut::store_is_whole_after_pulls" berth images check
clean() {
	for pod in $(crictl pods -q); do crictl rmp -f "$pod" || return; done
	equal units "$(systemctl list-units --all --no-legend 'berth-*.scope' | grep -v berth-shims)" ""
	equal netns "$(ls /run/netns 2>/dev/null | grep berth-)" ""
	equal mounts "$(grep -c /run/berth/containers /proc/self/mountinfo)" 0
}
check "$cut::everything_can_be_removed" clean
summary
