#!/bin/sh
# Builds the disk of the test machine from Debian's own packages: Debian 13 with systemd, cgroup v2, AppArmor and
# OpenSSH. No loop device and no ready image. Leaves base.ext4, vmlinuz, initrd and an SSH key in $BERTH_BUILD_DIR/vm;
# does nothing when they are there and made by this very script.
#
#   hack/vm/image.sh            as root
set -eu

here=$(cd "$(dirname "$0")" && pwd)
out=${BERTH_BUILD_DIR:-$here/../../.build}/vm
mirror=${BERTH_DEBIAN_MIRROR:-http://deb.debian.org/debian}
suite=trixie
disk=8G

# What the tests run inside, beside the base: the rest of what Berth needs comes with its package.
packages=systemd-sysv,dbus,udev,kmod,openssh-server,apparmor,iproute2,nftables,iptables,procps,sudo,ca-certificates
packages=$packages,curl,conntrack,e2fsprogs,util-linux,util-linux-extra,gcc,libc6-dev,docker-registry,libseccomp2,initramfs-tools,zstd,bash-completion

say() { printf '%s\n' "vm image: $*" >&2; }
die() { say "$*"; exit 1; }

[ "$(id -u)" = 0 ] || die "needs root: debootstrap makes device nodes and files of other users"
for tool in debootstrap mkfs.ext4 ssh-keygen; do
	command -v $tool >/dev/null || die "$tool is missing: run hack/install-deps.sh vm"
done

stamp=$(cat "$here/image.sh" "$here/guest/"* | sha256sum | cut -d' ' -f1)
[ "$(cat "$out/stamp" 2>/dev/null)" != "$stamp" ] || exit 0
begin=$(date +%s)
mkdir -p "$out"
rm -f "$out/stamp"
tree=$(mktemp -d "$out/tree.XXXXXX")
chmod 755 "$tree"
unmount() { for at in proc sys dev; do mountpoint -q "$tree/$at" && umount -R "$tree/$at" || true; done; }
trap 'unmount; rm -rf --one-file-system "$tree"' EXIT
trap 'exit 1' INT TERM

say "Debian $suite from $mirror"
debootstrap --variant=minbase --include="$packages" "$suite" "$tree" "$mirror" >"$out/debootstrap.log" 2>&1 ||
	die "debootstrap failed; the end of its log:
$(tail -n 5 "$out/debootstrap.log")"

# Only what the disk needs: an initrd of everything takes an emulated machine seconds to unpack.
printf 'MODULES=list\nCOMPRESS=zstd\nCOMPRESSLEVEL=1\n' >"$tree/etc/initramfs-tools/conf.d/berth"
printf 'virtio_pci\nvirtio_blk\nvirtio_net\next4\n' >>"$tree/etc/initramfs-tools/modules"
mount -t proc proc "$tree/proc"
say "kernel"
DEBIAN_FRONTEND=noninteractive chroot "$tree" apt-get -qq install -y --no-install-recommends linux-image-amd64 \
	>"$out/kernel.log" 2>&1 || die "the kernel could not be installed; the end of the log:
$(tail -n 5 "$out/kernel.log")"
unmount

say "settings"
cp -a "$here/guest/." "$tree/opt/berth-guest"
chroot "$tree" sh /opt/berth-guest/setup.sh >"$out/setup.log" 2>&1 || die "setup failed: $(tail -n 5 "$out/setup.log")"
rm -f "$out/key" "$out/key.pub"
ssh-keygen -q -t ed25519 -N '' -C berth-vm -f "$out/key"
install -D -m 600 "$out/key.pub" "$tree/root/.ssh/authorized_keys"
cp "$tree"/boot/vmlinuz-* "$out/vmlinuz"
cp "$tree"/boot/initrd.img-* "$out/initrd"
rm -rf "$tree"/var/cache/apt/*.bin "$tree"/var/cache/apt/archives/*.deb "$tree"/usr/share/doc "$tree"/usr/share/locale \
	"$tree"/boot/System.map-* "$tree"/opt/berth-guest

say "file system"
rm -f "$out/base.ext4"
truncate -s $disk "$out/base.ext4"
mkfs.ext4 -q -L berth-vm -E lazy_itable_init=1,lazy_journal_init=1 -d "$tree" "$out/base.ext4"
echo "$stamp" >"$out/stamp"
say "built in $(($(date +%s) - begin)) s: $(du -h "$out/base.ext4" | cut -f1) in $out"
