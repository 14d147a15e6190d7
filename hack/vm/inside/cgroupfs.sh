#!/bin/sh
# A second Berth, started by hand, that makes cgroups of v2 itself. Called by hack/vm/test.sh.
#
#   cgroupfs.sh ARCHIVE                 an OCI archive of busybox
set -u

. "$(dirname "$0")/lib.sh"
image=berth.test/busybox:vm
here=/var/tmp/cgroupfs
cgroup=/sys/fs/cgroup
mkdir -p $here
cat >$here/config.toml <<-TOML
	root = "$here/root"
	state = "/run/berth-two"
	instance = "berth-two"
	[network]
	builtin = "10.99.0.0/16"
	[cgroup]
	driver = "cgroupfs"
	shims = "berth-two-shims"
TOML
# What crictl of the other checks is told by its file.
printf 'runtime-endpoint: unix:///run/berth-two/berth.sock\nimage-endpoint: unix:///run/berth-two/berth.sock\ntimeout: 30\n' >$here/crictl.yaml
crictl() { command crictl --config $here/crictl.yaml "$@"; }

berth serve --config $here/config.toml </dev/null >$here/log 2>&1 &
daemon=$!
check cgroupfs::daemon_starts within 60 crictl version
check cgroupfs::image_is_loaded berth images load --config $here/config.toml "$1"
check cgroupfs::driver_is_told holds info "$(crictl info)" '"cgroupDriver": "cgroupfs"'
podname=two
pod=$(pod $podname '"cgroup_parent":"/two/burstable/podtwo"')
ctr=$(container "$pod" two 'exec sleep 10000' '"resources":{"cpu_shares":1024,"memory_limit_in_bytes":67108864,"unified":{"memory.high":"50331648"}}')
pid=$(crictl inspect --output go-template --template '{{.info.pid}}' "$ctr")
leaf=$cgroup/two/burstable/podtwo/$ctr
in_its_cgroup() { grep -qx "$pid" "$leaf/cgroup.procs" && equal memory.max "$(cat "$leaf/memory.max")" 67108864 && equal memory.high "$(cat "$leaf/memory.high")" 50331648; }
check cgroupfs::container_is_in_its_cgroup in_its_cgroup
check cgroupfs::exec equal said "$(crictl exec -s "$ctr" echo yes)" yes
killed() {
	kill -9 $daemon
	wait $daemon 2>/dev/null
	kill -0 "$pid" || return
	berth serve --config $here/config.toml </dev/null >>$here/log 2>&1 &
	daemon=$!
	within 60 crictl version >/dev/null && crictl inspect "$ctr" | grep -q CONTAINER_RUNNING
}
check cgroupfs::container_survives_the_daemon killed
removed() {
	crictl rmp -f "$pod" || return
	kill $daemon && wait $daemon
	equal cgroups "$(find $cgroup -type d \( -path "*two*" \))" ""
	equal links "$(grep -s . /sys/class/net/*two*/ifindex)" ""
}
check cgroupfs::nothing_is_left removed
[ $failed = 0 ] || tail -n 30 $here/log
rm -rf $here
summary
