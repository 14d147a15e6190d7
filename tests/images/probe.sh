#!/bin/sh
# What a container sees from inside, a line for each thing: KEY, a tab, VALUE. Lines of one key are told apart by their
# values. The name of the last argument is `exec` when another process than the first one looks.
p() { printf '%s\t%s\n' "$1" "$2"; }
lines() { while IFS= read -r line; do p "$1" "$line"; done; }
attempt() {
	name=$1
	shift
	if "$@" >/dev/null 2>&1; then p "can.$name" yes; else p "can.$name" no; fi
}

p argv "$0|$#|$*"
p pwd "$(pwd)"
p umask "$(umask)"
env | grep -vE '^(SHLVL|PWD|OLDPWD|_)=' | lines env
while read -r name value; do
	case $name in
	Uid: | Gid: | Groups: | Cap* | NoNewPrivs: | Seccomp: | SigIgn: | SigBlk:) p "status.${name%:}" "$value" ;;
	esac
done </proc/$$/status
tail -n +2 /proc/$$/limits | lines limits
p oom_score_adj "$(cat /proc/$$/oom_score_adj 2>/dev/null)"
for ns in cgroup ipc mnt net pid user uts; do p "ns.$ns" "$(readlink /proc/$$/ns/$ns)"; done
for fd in 0 1 2; do p "fd.$fd" "$(readlink /proc/$$/fd/$fd | sed 's/:\[.*//')"; done
fds=
fd=0
while [ $fd -lt 64 ]; do
	[ ! -L /proc/$$/fd/$fd ] || fds="$fds $fd"
	fd=$((fd + 1))
done
p fds "$fds"
p tty "$(tty 2>/dev/null) $(stty size 2>/dev/null)"
p hostname "$(hostname)"

lines mountinfo </proc/$$/mountinfo
find /dev 2>/dev/null | grep -vE '^/dev/pts/[0-9]|[.]probe' | sort | head -400 | while IFS= read -r file; do
	p "stat.$file" "$(stat -c '%F %a %u %g %t,%T' "$file" 2>/dev/null) $(readlink "$file")"
done
for file in / /proc /sys /etc /etc/hosts /etc/hostname /etc/resolv.conf /etc/localtime /tmp /run /srv /data /made /made/deep \
	/vol /vol/inner /relative /ro /nested /proc/kcore /proc/keys /proc/timer_list /proc/latency_stats /proc/acpi /proc/scsi \
	/sys/firmware /proc/asound /proc/interrupts /sys/devices/virtual/powercap /proc/sys /proc/irq /proc/bus /proc/fs \
	/proc/sysrq-trigger /alias /masked; do
	p "stat.$file" "$(stat -c '%F %a %u %g' "$file" 2>/dev/null)"
done
for folder in / /proc /proc/acpi /sys /sys/fs/cgroup /sys/firmware /etc /tmp /run /srv /data /data/sub /made /made/deep /vol /vol/inner \
	/relative /ro /nested /nested/inner /dev /dev/shm /dev/mqueue /dev/pts /alias /masked; do
	[ -d "$folder" ] || continue
	if (: >"$folder/.probe-$$") 2>/dev/null; then p "write.$folder" yes && rm -f "$folder/.probe-$$"; else p "write.$folder" no; fi
done
for file in /etc/hosts /etc/hostname /etc/resolv.conf /proc/sysrq-trigger /proc/sys/kernel/domainname /data/file /ro/file /file; do
	[ ! -e "$file" ] || if (: >>"$file") 2>/dev/null; then p "append.$file" yes; else p "append.$file" no; fi
done
for file in /proc/kcore /proc/keys /proc/timer_list /proc/latency_stats /proc/sched_debug /data/file /alias/file; do
	[ ! -e "$file" ] || p "read.$file" "$(head -c 1 "$file" 2>/dev/null | wc -c)"
done
for folder in /data /made/deep /vol /relative /ro /nested /srv /alias /masked; do
	[ ! -d "$folder" ] || find "$folder" 2>/dev/null | sort | head -100 | while IFS= read -r file; do
		p "tree.$file" "$(stat -c '%F %a %u %g' "$file" 2>/dev/null) $(readlink "$file")"
	done
done
for file in /etc/hosts /etc/hostname /etc/resolv.conf /etc/localtime /file; do
	[ ! -f "$file" ] || [ "$(stat -c %s "$file")" -gt 4096 ] || lines "text.$file" <"$file"
done

for name in net/ipv4/ip_unprivileged_port_start net/ipv4/ping_group_range net/ipv4/ip_local_port_range net/ipv4/tcp_rmem \
	net/core/somaxconn net/ipv4/conf/all/accept_redirects kernel/shm_rmid_forced kernel/msgmax kernel/sem fs/mqueue/msg_max; do
	p "sysctl.$name" "$(cat "/proc/sys/$name" 2>/dev/null)"
done
lines cgroup </proc/$$/cgroup
for file in memory/memory.limit_in_bytes memory/memory.memsw.limit_in_bytes cpu/cpu.shares cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us \
	cpuset/cpuset.cpus cpuset/cpuset.mems pids/pids.max hugetlb/hugetlb.2MB.limit_in_bytes; do
	p "limit.$file" "$(cat "/sys/fs/cgroup/$file" 2>/dev/null)"
done
[ ! -f /sys/fs/cgroup/devices/devices.list ] || lines device </sys/fs/cgroup/devices/devices.list
ls /sys/fs/cgroup 2>/dev/null | lines controller
# What the host has besides is not the container's.
[ "$(readlink /proc/$$/ns/net)" = "$HOST_NET_NAMESPACE" ] || {
	tail -n +3 /proc/net/dev | sed -e 's/^ *//' -e 's/:.*//' | lines interface
	ip -o -4 addr show 2>/dev/null | sed -e 's|^[0-9]*: ||' -e 's|@[^ ]*||' -e 's| *valid_lft.*||' | lines address
	ip route show 2>/dev/null | lines route
}
[ "$(readlink /proc/$$/ns/pid)" = "$HOST_PID_NAMESPACE" ] || cat /proc/[0-9]*/comm 2>/dev/null | grep -vE '^(sh|cat|grep|sort|sed|busybox)$' | sort -u | lines process

attempt chroot chroot / /bin/true
attempt mount mount -t tmpfs none /mnt
umount /mnt 2>/dev/null
attempt unshare_user unshare -U /bin/true
attempt unshare_mount unshare -m /bin/true
attempt nice nice -n -5 /bin/true
attempt dmesg dmesg
attempt ping ping -c 1 -W 1 127.0.0.1
for folder in /tmp /dev/shm; do
	rm -f "$folder/.probe"
	attempt "mknod_null.$folder" mknod "$folder/.probe" c 1 3
	attempt "open_null.$folder" head -c 0 "$folder/.probe"
	rm -f "$folder/.probe"
	attempt "mknod_tun.$folder" mknod "$folder/.probe" c 10 200
	rm -f "$folder/.probe"
	attempt "mknod_disk.$folder" mknod "$folder/.probe" b 7 77
	rm -f "$folder/.probe"
	(: >"$folder/.probe") 2>/dev/null && attempt "chown.$folder" chown 1:1 "$folder/.probe"
	rm -f "$folder/.probe"
done
attempt ptmx head -c 0 /dev/ptmx
attempt fuse head -c 0 /dev/fuse
attempt extra_device head -c 0 /dev/extra
attempt odd_device head -c 1 /srv/zero

for last; do :; done
[ "${last:-}" = exec ] && exit 3
trap 'echo stopped by TERM; exit 10' TERM
trap 'echo stopped by USR1; exit 11' USR1
trap 'echo stopped by QUIT; exit 12' QUIT
trap 'echo stopped by INT; exit 13' INT
echo "probe done"
sleep 120 &
wait $!
