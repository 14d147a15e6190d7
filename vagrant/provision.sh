#!/bin/sh
# Puts Berth from its package onto a machine with systemd, and looks whether it works.
#
#   provision.sh DIRECTORY      with berth*.deb and, perhaps, a crictl to install
#
# As root. Run again, it installs again (pods go on) and changes nothing else. BERTH_SUBNET is what the built-in
# network gets (default 10.85.0.0/16) on a machine that has no CNI configuration.
# Vagrantfile uses it, and so can anything else that makes machines.
set -eu

dir=${1:?the directory that holds berth*.deb}
subnet=${BERTH_SUBNET:-10.85.0.0/16}
socket=/run/berth/berth.sock
drop_in=/etc/berth/conf.d/50-builtin-network.toml
changed=

say() { printf '%s\n' "provision: $*" >&2; }
fail() { say "$*"; exit 1; }

# write FILE: standard input becomes the file; `changed` says whether it was different.
write() {
	mkdir -p "$(dirname "$1")"
	cat >"$1.new"
	if cmp -s "$1.new" "$1"; then rm "$1.new"; else mv "$1.new" "$1" && changed=1; fi
}

# A configuration file that somebody edited stays as it is.
install_package() {
	# By time, not by name: a version that is tried again has the same name.
	deb=$(ls -t "$dir"/berth*.deb 2>/dev/null | head -n 1)
	[ -n "$deb" ] || fail "there is no berth*.deb in $dir: make deb builds one in target/debian"
	say "installing $deb"
	export DEBIAN_FRONTEND=noninteractive
	# Without apt as long as nothing is missing: a test machine may have no network.
	dpkg --force-confold -i "$deb" && return
	apt-get -qq update
	apt-get -qq install -y -f -o Dpkg::Options::=--force-confold
}

install_crictl() {
	if [ -f "$dir/crictl" ]; then install -m 755 "$dir/crictl" /usr/local/bin/crictl; fi
	# The timeout is for emulated machines; crictl's own is two seconds.
	write /etc/crictl.yaml <<-YAML
		runtime-endpoint: unix://$socket
		image-endpoint: unix://$socket
		timeout: 30
	YAML
}

# A drop-in, not config.toml: that one belongs to the administrator, and dpkg would ask at each upgrade.
configure_network() {
	changed=
	if [ -n "$(find /etc/cni/net.d -name '*.conf' -o -name '*.conflist' -o -name '*.json' 2>/dev/null)" ]; then
		[ ! -e "$drop_in" ] || { rm "$drop_in" && changed=1; }
	else
		write "$drop_in" <<-TOML
			# Written because /etc/cni/net.d had no network.
			[network]
			builtin = "$subnet"
		TOML
	fi
	[ -z "$changed" ] || systemctl restart berth.service || true
}

check() {
	systemctl is-active --quiet berth.service || {
		journalctl --no-pager -n 20 -u berth.service >&2 || true
		fail "berth.service is not active: the log above says why"
	}
	if command -v crictl >/dev/null; then
		crictl info >/dev/null || fail "berth.service is active, but crictl info got no answer on $socket"
	else
		[ -S "$socket" ] || fail "berth.service is active, but there is no $socket"
		say "there is no crictl beside the package and none installed, so nothing was asked"
	fi
	say "$(berth --version) works"
}

[ "$(id -u)" = 0 ] || fail "not root: run it with sudo"
install_package
install_crictl
configure_network
check
