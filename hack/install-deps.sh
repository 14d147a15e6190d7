#!/bin/sh
# Installs what is missing from the distribution (Debian or Ubuntu), and says how to get what it does not have.
#
#   hack/install-deps.sh [build|demo|test|vm]     default: test; each is what the ones before it need, and more
set -eu

here=$(cd "$(dirname "$0")" && pwd)
. "$here/versions.env"
what=${1:-test}

say() { printf '%s\n' "install-deps: $*" >&2; }

# what for, package, and a file or program that shows that it is there
needs() {
	cat <<-LIST
		build gcc gcc
		build make make
		build ca-certificates /etc/ssl/certs/ca-certificates.crt
		demo busybox-static busybox
		demo curl curl
		demo iproute2 ip
		demo nftables nft
		test pkg-config pkg-config
		test libseccomp-dev /usr/include/seccomp.h
		test libc6-dev /usr/include/stdio.h
		test docker-registry docker-registry
		test openssl openssl
		test apparmor apparmor_parser
		test iptables iptables
		test kmod modprobe
		test util-linux ipcmk
		test conntrack conntrack
		test bzip2 bzip2
		test xz-utils xz
		test patch patch
		test dpkg-dev dpkg-source
		test vagrant vagrant
		test libpcre2-8-0 *libpcre2-8.so.0
		test libssl3 *libssl.so.3
		test libcrypt1 *libcrypt.so.1
		test zlib1g *libz.so.1
		vm debootstrap debootstrap
		vm qemu-system-x86 qemu-system-x86_64
		vm qemu-utils qemu-img
		vm e2fsprogs mkfs.ext4
		vm openssh-client ssh
		vm socat socat
	LIST
}

wanted() {
	case $what in
	build) [ "$1" = build ] ;;
	demo) [ "$1" = build ] || [ "$1" = demo ] ;;
	test) [ "$1" != vm ] ;;
	*) true ;;
	esac
}

present() {
	case $1 in
	/*) [ -e "$1" ] ;;
	\**) ldconfig -p 2>/dev/null | grep -qF "${1#\*}" ;;
	*) command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ] ;;
	esac
}

missing=$(needs | while read -r for package proof; do
	wanted "$for" || continue
	present "$proof" || printf '%s ' "$package"
done)
if [ -n "$missing" ]; then
	command -v apt-get >/dev/null || { say "no apt-get here; install: $missing"; exit 1; }
	[ "$(id -u)" = 0 ] || { say "not root; run: apt-get install $missing"; exit 1; }
	say "installing $missing"
	export DEBIAN_FRONTEND=noninteractive
	apt-get -qq update
	# Some releases of Ubuntu do not have it, and only `make check` asks for it.
	apt-cache show vagrant >/dev/null 2>&1 || {
		say "the distribution has no vagrant: 'make check' needs it, see https://developer.hashicorp.com/vagrant/install"
		missing=$(printf '%s' "$missing" | sed 's/vagrant //')
	}
	# docker-registry must not start a service of its own on a test machine.
	[ -e /usr/sbin/policy-rc.d ] || { printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d && made=1; }
	# shellcheck disable=SC2086
	apt-get -qq install -y --no-install-recommends $missing >/dev/null
	[ -z "${made:-}" ] || rm -f /usr/sbin/policy-rc.d
fi

# at_least FOUND WANTED: whether a version is as new as another.
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]; }

channel=$(sed -n 's/^channel *= *"\(.*\)"/\1/p' "$here/../rust-toolchain.toml")
target=$(uname -m)-unknown-linux-musl
if command -v rustup >/dev/null; then
	(cd "$here/.." && rustup toolchain list | grep -q "^$channel" || rustup toolchain install "$channel" --profile minimal -c rustfmt -c clippy)
	(cd "$here/.." && rustup target list --installed | grep -qx "$target" || rustup target add "$target")
elif ! command -v cargo >/dev/null || ! at_least "$(cargo --version | cut -d' ' -f2)" "$channel"; then
	say "Rust $channel is needed, and the distribution has none or an older one: install rustup as https://rustup.rs says, then run this again."
	exit 1
elif [ ! -d "$(rustc --print sysroot)/lib/rustlib/$target" ]; then
	say "Rust's target $target is missing: install rustup as https://rustup.rs says, which brings it."
	exit 1
fi
if [ "$what" != build ]; then
	go=$(command -v go >/dev/null && go env GOVERSION | sed 's/^go//' || echo 0)
	at_least "$go" "$GO_MINIMUM" || {
		say "Go $GO_MINIMUM or newer is needed, and here is ${go:-none}: unpack the archive from https://go.dev/dl to /usr/local/go and put /usr/local/go/bin into PATH."
		exit 1
	}
fi
say "everything that '$what' needs is here"
