#!/bin/sh
# What only this machine shows: systemd's cgroup tree, cgroup v2, AppArmor, all capabilities. Berth is installed from
# its package. Called by hack/vm/test.sh.
#
#   smoke.sh ARCHIVE            an OCI archive of busybox, named berth.test/busybox:vm
set -u

. "$(dirname "$0")/lib.sh"
image=berth.test/busybox:vm
archive=$1
cgroup=/sys/fs/cgroup

# need WHAT: without it the rest says nothing.
need() {
	[ -n "$2" ] && return
	failed=$((failed + 1))
	echo "FAIL vm::$1"
	summary
	exit 1
}

check service_is_active systemctl is-active berth.service
check image_is_loaded berth images load "$archive"

check driver_is_systemd holds info "$(crictl info)" '"cgroupDriver": "systemd"'
daemon_in_its_slice() { equal slice "$(systemctl show -P ControlGroup berth.service)" /berth.slice/berth.service; }
check daemon_in_its_slice daemon_in_its_slice

podname=limits
pod=$(pod $podname '"cgroup_parent":"kubepods-burstable-podvm.slice"')
need pod_runs "$pod"
limits='"resources":{"cpu_shares":512,"cpu_quota":50000,"cpu_period":100000,"memory_limit_in_bytes":67108864,"oom_score_adj":-500,
	"hugepage_limits":[{"page_size":"2MB","limit":4194304}],"unified":{"memory.high":"50331648","memory.min":"1048576","memory.oom.group":"1","io.weight":"default 50"}}'
ctr=$(container "$pod" limited 'echo started; exec sleep 10000' "$limits")
need container_runs "$ctr"
slice=/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podvm.slice
scope=$slice/berth-$pod.scope
of() { cat "$cgroup$scope/$ctr/$1"; }

check pod_is_a_delegated_scope equal delegate "$(systemctl show -P Delegate "berth-$pod.scope")" yes
check scope_is_in_the_kubelets_slice equal slice "$(systemctl show -P Slice "berth-$pod.scope")" kubepods-burstable-podvm.slice
check container_is_a_child_of_the_scope test -d "$cgroup$scope/$ctr"
check pause_is_a_child_of_the_scope grep -q . "$cgroup$scope/$pod/cgroup.procs"
check scope_itself_is_empty equal processes "$(cat $cgroup$scope/cgroup.procs)" ""
check memory_limit equal memory.max "$(of memory.max)" 67108864
check no_swap equal memory.swap.max "$(of memory.swap.max)" 0
check unified_memory_high equal memory.high "$(of memory.high)" 50331648
check unified_memory_min equal memory.min "$(of memory.min)" 1048576
check unified_oom_group equal memory.oom.group "$(of memory.oom.group)" 1
check unified_io_weight holds io.weight "$(of io.weight)" "default 50"
check hugepage_limit equal hugetlb.2MB.max "$(of hugetlb.2MB.max)" 4194304
check cpu_weight equal cpu.weight "$(of cpu.weight)" 59
check cpu_quota equal cpu.max "$(of cpu.max)" "50000 100000"
pid=$(crictl inspect --output go-template --template '{{.info.pid}}' "$ctr")
check negative_oom_score equal oom_score_adj "$(cat "/proc/$pid/oom_score_adj")" -500
as_the_unit() {
	equal limit "$(crictl exec -s "$1" sh -c 'ulimit -Sn; ulimit -Hn' | tr '\n' :)" "$(systemctl show -P LimitNOFILESoft berth):$(systemctl show -P LimitNOFILE berth):"
	equal umask "$(crictl exec -s "$1" sh -c umask)" 0022
}
check limits_and_umask_are_the_units as_the_unit "$ctr"
check exec_has_the_containers_oom_score equal oom_score_adj "$(crictl exec -s "$ctr" cat /proc/self/oom_score_adj)" -500
with_swap() {
	id=$(container "$pod" swap 'exec sleep 10000' '"resources":{"memory_limit_in_bytes":33554432,"memory_swap_limit_in_bytes":50331648}') || return
	equal memory.swap.max "$(cat "$cgroup$scope/$id/memory.swap.max")" 16777216
}
check swap_limit with_swap
check pressure_is_reported holds cpu.pressure "$(of cpu.pressure)" some
monitors_in_their_scope() {
	equal slice "$(systemctl show -P ControlGroup berth-shims.scope)" /berth.slice/berth-shims.scope
	equal monitors "$(pgrep -cx berth-shim)" "$(wc -l <$cgroup/berth.slice/berth-shims.scope/cgroup.procs)"
}
check monitors_in_their_scope monitors_in_their_scope

sh_in() { crictl exec -s "$ctr" sh -c "$1"; }
device_is_denied() {
	sh_in 'mknod /tmp/disk b 254 0 2>/dev/null || mknod /disk b 254 0' &&
		! sh_in 'head -c 1 /disk || head -c 1 /tmp/disk'
}
check forbidden_device_cannot_be_opened device_is_denied
check allowed_device_can_be_opened sh_in 'head -c 1 /dev/zero >/dev/null'
check update crictl update --memory 134217728 "$ctr"
check update_is_in_force equal memory.max "$(of memory.max)" 134217728
survives_reload() {
	systemctl daemon-reload
	equal memory.max "$(of memory.max)" 134217728
	! sh_in 'head -c 1 /disk || head -c 1 /tmp/disk'
}
check limits_survive_daemon_reload survives_reload

label() { cat "/proc/$1/attr/apparmor/current" 2>/dev/null || cat "/proc/$1/attr/current"; }
apparmor_by_default() { holds label "$(label "$pid")" "berth-default (enforce)"; }
apparmor_denies() { ! sh_in 'echo 1 >/proc/sys/kernel/panic_on_oops' && ! sh_in 'echo x >/proc/sysrq-trigger'; }
apparmor_in_exec() { holds label "$(sh_in 'cat /proc/self/attr/current')" "berth-default (enforce)"; }
check apparmor_by_default apparmor_by_default
check apparmor_denies apparmor_denies
check apparmor_in_exec apparmor_in_exec
missing_profile() {
	out=$(container "$pod" missing 'exit 0' '"security_context":{"apparmor":{"profile_type":2,"localhost_ref":"no-such-profile"}}' 2>&1) &&
		{ echo "it was created: $out"; return 1; }
	holds error "$out" no-such-profile
}
check apparmor_missing_profile_is_named missing_profile
unconfined() {
	id=$(container "$pod" unconfined 'exec sleep 10000' '"security_context":{"apparmor":{"profile_type":1}}') || return
	holds label "$(label "$(crictl inspect --output go-template --template '{{.info.pid}}' "$id")")" unconfined
}
check apparmor_unconfined unconfined

oom() {
	id=$(container "$pod" hungry 'x=$(head -c 200000000 /dev/zero | tr \\\\0 x); sleep 1' '"resources":{"memory_limit_in_bytes":20971520}') || return
	within 60 sh -c "crictl inspect $id | grep -q CONTAINER_EXITED" || { echo "it does not end"; return 1; }
	holds reason "$(crictl inspect "$id")" OOMKilled
}
check oom_is_told oom

running() { crictl inspect "$ctr" | grep -q CONTAINER_RUNNING && kill -0 "$pid"; }
restart() { systemctl restart berth && within 30 crictl version >/dev/null && running; }
check containers_survive_a_restart restart
stopped() { systemctl stop berth && kill -0 "$pid" && systemctl start berth && within 30 crictl version >/dev/null && running; }
check containers_survive_a_stop stopped
reexec() { systemctl daemon-reexec && id=$(podname=after pod after) && crictl rmp -f "$id"; }
check pods_after_daemon_reexec reexec
new_bus() {
	systemctl kill -s KILL dbus.service
	within 10 systemctl is-active --quiet dbus.socket
	id=$(podname=newbus pod newbus) && crictl rmp -f "$id"
}
check pods_after_the_bus_was_killed new_bus
raised() {
	printf '[containers]\ndefault_ulimits = ["nofile=2048:1048570", "memlock=unlimited"]\n' >/etc/berth/conf.d/90-limits.toml
	systemctl restart berth && within 30 crictl version >/dev/null &&
		id=$(container "$pod" raised 'ulimit -Sn; ulimit -Hn; ulimit -l; exec sleep 10000') &&
		within 10 grep -q unlimited /tmp/logs-limits/raised.log && grep -q 'F 2048$' /tmp/logs-limits/raised.log && grep -q 'F 1048570$' /tmp/logs-limits/raised.log &&
		equal exec "$(crictl exec -s "$id" sh -c 'ulimit -Hn')" 1048570
	good=$?
	rm /etc/berth/conf.d/90-limits.toml
	return $good
}
check limits_are_raised raised
upgrade() { dpkg --force-confold -i "$(ls -t "$2"/berth*.deb | head -n 1)" && within 30 crictl version >/dev/null && running; }
[ -z "${2:-}" ] || check upgrade_under_a_running_pod upgrade "$@"

removed() {
	crictl rmp -f "$pod" || return
	[ ! -e "$cgroup$scope" ] || within 5 test ! -e "$cgroup$scope" || { ls "$cgroup$scope"; return 1; }
	equal units "$(systemctl list-units --all --no-legend 'berth-*.scope' | grep -v berth-shims)" ""
}
check nothing_is_left_of_a_pod removed
summary
