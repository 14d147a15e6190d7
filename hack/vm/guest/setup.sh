#!/bin/sh
# Run once in the machine's tree, before it becomes a disk.
set -eu

echo berth-vm >/etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 berth-vm\n' >/etc/hosts
echo 'nameserver 10.0.2.3' >/etc/resolv.conf
echo '/dev/vda / ext4 defaults,errors=remount-ro 0 1' >/etc/fstab
passwd -d root

# QEMU's user network: the host's loopback is 10.0.2.2. By hand: systemd-networkd now and then never takes up a link of
# an emulated machine that is renamed while it starts.
cat >/etc/systemd/system/vm-network.service <<-UNIT
	[Unit]
	DefaultDependencies=no
	Wants=network.target
	Before=network.target
	[Service]
	Type=oneshot
	RemainAfterExit=yes
	ExecStart=/bin/sh -ec 'until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done; \
		ip link set eth0 up; ip address replace 10.0.2.15/24 dev eth0; ip route replace default via 10.0.2.2'
	[Install]
	WantedBy=multi-user.target
UNIT
systemctl enable vm-network.service
ssh-keygen -A
printf 'PermitRootLogin prohibit-password\nUseDNS no\nAcceptEnv BERTH_* CI\nMaxSessions 50\n' >/etc/ssh/sshd_config.d/berth.conf

# What an emulated machine spends its first minute on, and no test looks at.
systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
	fstrim.timer man-db.timer logrotate.timer systemd-timesyncd.service docker-registry.service \
	systemd-random-seed.service getty@tty1.service
# The journal survives a reset only if it is on the disk.
mkdir -p /var/log/journal
# The profiles of a hundred programs that are not here: a third of an emulated boot. Berth loads its own.
find /etc/apparmor.d -maxdepth 1 -type f -delete
