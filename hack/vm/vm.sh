#!/bin/sh
# The test machines: started, entered, reset and ended. Each has a name (default: vm), its own disk over the common
# base, and its own SSH port on loopback.
#
#   hack/vm/vm.sh up [NAME]             builds the image if need be, boots, waits for SSH
#   hack/vm/vm.sh ssh NAME COMMAND...   runs a command inside, as root (`shell NAME` for a shell)
#   hack/vm/vm.sh reset NAME            pulls the plug and boots again: what the guest had not written is lost
#   hack/vm/vm.sh wait NAME             waits for SSH
#   hack/vm/vm.sh halt NAME FILE        shuts it down, keeps its disk as FILE and deletes the rest
#   hack/vm/vm.sh down [NAME]           ends it and deletes its disk
#   hack/vm/vm.sh list
#
# The project lies inside where it lies here, read-only. BERTH_VM_MEMORY (MiB, 3072) and BERTH_VM_CPUS (2) set the size.
# BERTH_VM_DISK is another raw image to start from; it is not written. BERTH_VM_LOG gets a log of all writes.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd)
build=$(cd "${BERTH_BUILD_DIR:-$project/.build}" 2>/dev/null && pwd -P || echo "$project/.build")
base=$build/vm

say() { printf '%s\n' "vm: $*" >&2; }
die() { say "$*"; exit 1; }

verb=${1:-}
name=${2:-vm}
case $name in *[!a-z0-9-]*) die "the name of a machine is of a-z, 0-9 and -, not \"$name\"" ;; esac
dir=$base/machines/$name

alive() { [ -f "$dir/pid" ] && kill -0 "$(cat "$dir/pid")" 2>/dev/null; }

inside() {
	# A connection that hangs says nothing; one that is cut says so in a minute.
	ssh -q -F none -i "$base/key" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o BatchMode=yes \
		-o ConnectTimeout=10 -o ServerAliveInterval=20 -o ServerAliveCountMax=6 -o SendEnv=BERTH_* \
		-p "$(cat "$dir/port")" root@127.0.0.1 "$@"
}

# Whether KVM works here: the device alone does not say so.
accelerator() {
	if [ -w /dev/kvm ] && timeout 5 qemu-system-x86_64 -accel kvm -machine none -nodefaults -display none \
		-monitor stdio </dev/null >/dev/null 2>&1; then
		echo kvm
	else
		echo tcg,thread=multi
	fi
}

free_port() {
	port=2222
	while ss -Hltn "sport = :$port" | grep -q . || grep -qsx $port "$base"/machines/*/port; do port=$((port + 1)); done
	echo $port
}

wait_ssh() {
	limit=$(($(date +%s) + ${BERTH_VM_BOOT_LIMIT:-300}))
	until inside true 2>/dev/null </dev/null; do
		alive || die "$name ended while it booted; the end of its console:
$(tail -n 15 "$dir/console")"
		[ "$(date +%s)" -lt $limit ] || die "$name does not answer; its console is $dir/console"
		sleep 1
	done
}

up() {
	"$here/image.sh"
	! alive || { say "$name is up already"; return; }
	mkdir -p "$dir"
	rm -f "$dir/disk" "$dir/console"
	qemu-img create -q -f qcow2 -b "$(realpath "${BERTH_VM_DISK:-$base/base.ext4}")" -F raw "$dir/disk"
	drive=disk
	if [ -n "${BERTH_VM_LOG:-}" ]; then
		: >"$BERTH_VM_LOG"
		drive=logged
	fi
	free_port >"$dir/port"
	begin=$(date +%s)
	accel=$(accelerator)
	qemu-system-x86_64 -name "berth-$name" -accel "$accel" -machine q35 -cpu max -smp "${BERTH_VM_CPUS:-2}" \
		-m "${BERTH_VM_MEMORY:-3072}" -nodefaults -display none -no-user-config \
		-kernel "$base/vmlinuz" -initrd "$base/initrd" \
		-append "root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet apparmor=1 security=apparmor swapaccount=1 panic=-1" \
		-blockdev "driver=qcow2,node-name=disk,discard=unmap,file.driver=file,file.filename=$dir/disk" \
		${BERTH_VM_LOG:+-blockdev "driver=blklogwrites,node-name=logged,discard=unmap,file=disk,log.driver=file,log.filename=$BERTH_VM_LOG"} \
		-device "virtio-blk-pci,drive=$drive,write-cache=on" \
		-netdev "user,id=net,hostfwd=tcp:127.0.0.1:$(cat "$dir/port")-:22" -device virtio-net-pci,netdev=net,romfile= \
		-virtfs "local,path=$project,mount_tag=project,security_model=none,readonly=on,multidevs=remap" \
		-virtfs "local,path=$build,mount_tag=build,security_model=none,readonly=on,multidevs=remap" \
		-device virtio-rng-pci -serial "file:$dir/console" \
		-monitor "unix:$dir/monitor,server,nowait" -daemonize -pidfile "$dir/pid"
	wait_ssh
	share
	say "$name is up after $(($(date +%s) - begin)) s ($accel): hack/vm/vm.sh shell $name"
}

# The project, read-only, where it lies on the host: programs of the tests have its path built in.
share() {
	inside "mkdir -p '$project' && mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose project '$project'
		mkdir -p /run/berth-build && mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose build /run/berth-build" \
		</dev/null || die "the project could not be mounted in $name"
}

monitor() { printf '%s\n' "$1" | timeout 10 socat -t 1 - "UNIX-CONNECT:$dir/monitor" >/dev/null; }

down() {
	if alive; then
		pid=$(cat "$dir/pid")
		kill "$pid"
		for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$pid" 2>/dev/null || break; sleep 0.2; done
		kill -9 "$pid" 2>/dev/null || true
	fi
	rm -rf "$dir"
}

halt() {
	inside systemctl poweroff </dev/null || true
	limit=$(($(date +%s) + 180))
	while alive; do
		[ "$(date +%s)" -lt $limit ] || die "$name does not shut down; its console is $dir/console"
		sleep 0.5
	done
	qemu-img convert -O raw "$dir/disk" "$1"
	rm -rf "$dir"
}

need() { alive || die "$name is not up: hack/vm/vm.sh up $name"; }

case $verb in
up) up ;;
ssh) need; shift 2; inside "$@" ;;
shell) need; inside -t ;;
wait) need; wait_ssh; share ;;
reset) need; monitor system_reset; sleep 1; wait_ssh; share ;;
halt) need; halt "${3:?the file of the disk}" ;;
down) down ;;
list) for at in "$base"/machines/*/; do [ -d "$at" ] && name=$(basename "$at") dir=$at && alive && echo "$name port $(cat "$at/port")"; done || true ;;
*) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
