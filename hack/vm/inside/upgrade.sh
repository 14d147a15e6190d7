#!/bin/sh
# From the package of the last version whose records had other forms to this one, with ten pods that run; the way back,
# which must not cost them; and the way back of an empty node. Called by hack/vm/test.sh.
#
#   upgrade.sh ARCHIVE DIRECTORY OLD PROJECT     an OCI archive of busybox, where berth*.deb lies, where the older one does
set -u

. "$(dirname "$0")/lib.sh"
image=berth.test/busybox:vm
archive=$1 dir=$2 old=$3 project=$4
new=$(ls -t "$dir"/berth*.deb | head -n 1)
# Id, process and monitor of each container.
list=/var/tmp/upgrade
kept=$list.hosts

answers() { within 60 crictl version >/dev/null; }
install() { dpkg --force-confold -i "$1" && answers; }

from_the_older() {
	rm -rf $kept && cp -a /etc/berth/certs.d $kept && dpkg -P berth && mkdir -p /etc/berth && cp -a $kept /etc/berth/certs.d &&
		sh "$project/vagrant/provision.sh" "$old" && berth images load "$archive"
}

pid_of() { crictl inspect --output go-template --template '{{.info.pid}}' "$1"; }
monitor_of() { cut -d' ' -f4 "/proc/$1/stat"; }
# started NAME: a pod with a container, which is added to the list.
started() {
	podname=$1
	pod=$(pod "$1") && id=$(container "$pod" "$1" 'exec sleep 10000') && pid=$(pid_of "$id") && monitor=$(monitor_of "$pid") &&
		echo "$id $pid $monitor" >>$list
}
ten_pods() {
	: >$list
	for number in 0 1 2 3 4 5 6 7 8 9; do started "old-$number" || return; done
}
alive() {
	while read -r id pid monitor; do
		kill -0 "$pid" || { echo "process $pid was ended"; return 1; }
		equal monitor "$(monitor_of "$pid")" "$monitor" || return
	done <$list
}
all_run() {
	alive || return
	equal running "$(crictl ps -q --no-trunc --state running | sort)" "$(cut -d' ' -f1 $list | sort)" || return
	equal ready "$(crictl pods -q --state ready | wc -l)" "$(wc -l <$list)" || return
	for id in $(cut -d' ' -f1 $list); do
		equal exec "$(crictl exec -s "$id" echo yes)" yes || return
	done
}

# dpkg asks the older package's script after ours, and that one agrees.
down_with_pods() {
	out=$(dpkg --force-confold -i "$old"/berth*.deb 2>&1)
	holds message "$out" "its daemon will not start while there are any" || return
	alive || return
	sleep 5
	! crictl --timeout 2s version >/dev/null 2>&1 || { echo "the older daemon serves"; return 1; }
	alive
}
all_end() {
	for id in $(cut -d' ' -f1 $list); do crictl stop -t 1 "$id" || return; done
	alive 2>/dev/null | grep -q "was ended" || { echo "they live on"; return 1; }
	crictl rmp -af && crictl rmi -a && equal images "$(crictl images -q)" ""
}
down() {
	install "$old"/berth*.deb || return
	: >$list
	berth images load "$archive" && started back && all_run
}
and_up() { install "$new" && all_run && crictl rmp -af; }

check upgrade::older_package_is_installed from_the_older
check upgrade::ten_pods ten_pods
check upgrade::this_version_over_it install "$new"
check upgrade::every_container_runs_with_its_monitor all_run
check upgrade::going_back_is_refused_and_costs_no_pod down_with_pods
check upgrade::this_version_again install "$new"
check upgrade::every_container_still_runs all_run
check upgrade::all_is_stopped_and_removed all_end
check upgrade::an_empty_node_goes_back down
check upgrade::and_up_again and_up
summary
