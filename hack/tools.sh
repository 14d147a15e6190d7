#!/bin/sh
# Builds outside programs that the tests, the demo and the benchmark need, and keeps them.
#
#   hack/tools.sh NAME...      crictl critest cni containerd runc busybox nginx cargo-deny cargo-deb
#   hack/tools.sh --list       the names, with what pins the version of each
#
# Everything goes to $BERTH_BUILD_DIR (default: .build beside this folder); programs to its bin/. A program is built
# again only when the file that pins its version changed. Versions: hack/*/go.mod for Go modules, hack/versions.env
# for the rest. The Go and Cargo clients are used with the environment as it is.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
. "$here/versions.env"
build=${BERTH_BUILD_DIR:-$here/../.build}
mkdir -p "$build/bin" "$build/stamps" "$build/src"
build=$(cd "$build" && pwd)
bin=$build/bin

say() { printf '%s\n' "tools: $*" >&2; }

# stamped NAME SUM FILE...: true when NAME was built from SUM and each FILE is there.
stamped() {
	stamp=$build/stamps/$1 want=$2
	shift 2
	[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] || return 1
	for file in "$@"; do [ -e "$file" ] || return 1; done
}

sum() { cat "$@" | sha256sum | cut -d' ' -f1; }

timed() {
	name=$1 start=$(date +%s)
	shift
	say "building $name"
	"$@" || { say "building $name failed"; exit 1; }
	say "$name is ready after $(($(date +%s) - start)) s"
}

module_version() { (cd "$here/$1" && go list -m -f '{{.Version}}' "$2"); }

# go_tool FOLDER OUTPUT PACKAGE [FLAG...]: go build of one command of a pinned module.
go_tool() {
	folder=$here/$1 out=$2 package=$3
	shift 3
	(cd "$folder" && go build -mod=readonly -trimpath "$@" -o "$out.new" "$package") && mv "$out.new" "$out"
}

need_go() {
	command -v go >/dev/null || { say "Go is missing: run hack/install-deps.sh, which says how to get it"; exit 1; }
}

build_crictl() {
	version=$(module_version cri-tools sigs.k8s.io/cri-tools)
	CGO_ENABLED=0 go_tool cri-tools "$bin/crictl" sigs.k8s.io/cri-tools/cmd/crictl \
		-ldflags "-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version=$version"
}

build_critest() {
	(cd "$here/cri-tools" && CGO_ENABLED=0 go test -mod=readonly -trimpath -c -ldflags "-s -w" \
		-o "$bin/critest.new" sigs.k8s.io/cri-tools/cmd/critest) && mv "$bin/critest.new" "$bin/critest"
}

build_cni() {
	prefix=github.com/containernetworking/plugins/plugins
	version=$(module_version cni-plugins github.com/containernetworking/plugins)
	mkdir -p "$bin/cni"
	for plugin in main/bridge main/loopback ipam/host-local meta/portmap meta/firewall meta/bandwidth; do
		CGO_ENABLED=0 go_tool cni-plugins "$bin/cni/${plugin#*/}" "$prefix/$plugin" -ldflags \
			"-s -w -X github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion=$version" || return 1
	done
}

build_containerd() {
	prefix=github.com/containerd/containerd/v2
	version=$(module_version containerd "$prefix")
	for command in containerd containerd-shim-runc-v2 ctr; do
		CGO_ENABLED=0 go_tool containerd "$bin/$command" "$prefix/cmd/$command" -tags no_btrfs \
			-ldflags "-s -w -X $prefix/version.Version=$version" || return 1
	done
}

build_runc() {
	version=$(module_version runc github.com/opencontainers/runc)
	CGO_ENABLED=1 go_tool runc "$bin/runc" github.com/opencontainers/runc -tags seccomp -ldflags "-s -w -X main.version=$version"
}

# Debian's busybox-static lacks applets that critest calls (ipcs, brctl) and prefers its own over real programs.
build_busybox() {
	work=$build/src/busybox
	rm -rf "$work" && mkdir -p "$work" || return 1
	fetch_busybox "$work" || return 1
	(
		cd "$work"/busybox-*/ &&
			make defconfig >/dev/null &&
			# tc does not compile against current kernel headers, and nothing here calls it.
			sed -i -e 's/^# CONFIG_STATIC is not set/CONFIG_STATIC=y/' -e 's/^CONFIG_TC=y/# CONFIG_TC is not set/' .config &&
			(yes '' | make oldconfig >/dev/null) &&
			make -j"$(nproc)" SKIP_STRIP=n busybox >build.log 2>&1 || { tail -30 build.log >&2; exit 1; }
	) || return 1
	cp "$work"/busybox-*/busybox "$bin/busybox" && rm -rf "$work"
}

# The distribution's source package; where no deb-src line is configured, a private copy of the lists has one.
fetch_busybox() {
	(cd "$1" && apt-get -qq source --download-only busybox 2>/dev/null) || {
		private_source_lists "$1/apt"
		apt_source "$1/apt" update && (cd "$1" && apt_source "$1/apt" source --download-only busybox) || return 1
	}
	(cd "$1" && tar xf busybox_*.orig.tar.*)
}

apt_source() {
	apt=$1
	shift
	apt-get -qq -o "Dir::Etc::sourcelist=$apt/sources.list" -o "Dir::Etc::sourceparts=$apt/parts" \
		-o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root "$@"
}

private_source_lists() {
	mkdir -p "$1/lists/partial" "$1/cache/archives/partial" "$1/parts"
	: >"$1/sources.list"
	for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
		[ ! -f "$file" ] || sed -n '/debian/s/^deb /deb-src /p' "$file" >>"$1/sources.list"
	done
	for file in /etc/apt/sources.list.d/debian.sources; do
		[ ! -f "$file" ] || sed 's/^Types:.*/Types: deb-src/' "$file" >"$1/parts/$(basename "$file")"
	done
}

# nginx for critest's web specs: only the program is taken; the image builder adds the libraries that it links.
build_nginx() {
	work=$build/src/nginx
	rm -rf "$work" && mkdir -p "$work/root" || return 1
	(
		cd "$work" && apt-get -qq -o APT::Sandbox::User=root download nginx nginx-light &&
			for deb in *.deb; do dpkg-deb -x "$deb" root || exit 1; done
	) || return 1
	cp "$work/root/usr/sbin/nginx" "$bin/nginx" && rm -rf "$work"
}

# cargo_tool NAME VERSION: cargo install of one program, which runs for seconds: most of the time goes into its build.
cargo_tool() {
	CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
		CARGO_PROFILE_RELEASE_DEBUG=0 cargo install --locked --quiet --version "$2" --root "$build/cargo" --target-dir "$build/src/$1" "$1" &&
		cp "$build/cargo/bin/$1" "$bin/$1" && rm -rf "$build/src/$1"
}

# cargo_stamped NAME VERSION: builds NAME with cargo_tool unless it is current.
cargo_stamped() {
	stamped "$1" "$2" "$bin/$1" && return
	timed "$1" cargo_tool "$1" "$2"
	printf '%s' "$2" >"$build/stamps/$1"
}

# go_stamped NAME FOLDER FILE...: builds NAME with build_NAME unless it is current.
go_stamped() {
	name=$1 folder=$2
	shift 2
	need_go
	want=$(sum "$here/$folder/go.mod" "$here/$folder/go.sum")
	stamped "$name" "$want" "$@" && return
	timed "$name" "build_$name"
	printf '%s' "$want" >"$build/stamps/$name"
}

if [ "${1:-}" = --list ]; then
	for folder in cri-tools cni-plugins containerd runc; do
		printf '%-12s hack/%s/go.mod\n' "$folder" "$folder"
	done
	printf '%-12s %s\n' cargo-deny "$CARGO_DENY" cargo-deb "$CARGO_DEB" busybox "the distribution's source package" nginx "the distribution's package"
	exit
fi

for name in "$@"; do
	case $name in
	crictl) go_stamped crictl cri-tools "$bin/crictl" ;;
	critest) go_stamped critest cri-tools "$bin/critest" ;;
	cni) go_stamped cni cni-plugins "$bin/cni/bridge" "$bin/cni/portmap" "$bin/cni/host-local" ;;
	containerd) go_stamped containerd containerd "$bin/containerd" "$bin/containerd-shim-runc-v2" "$bin/ctr" ;;
	runc) go_stamped runc runc "$bin/runc" ;;
	busybox)
		stamped busybox "$BUSYBOX_RECIPE" "$bin/busybox" || {
			timed busybox build_busybox
			printf '%s' "$BUSYBOX_RECIPE" >"$build/stamps/busybox"
		}
		;;
	nginx)
		stamped nginx "$NGINX_RECIPE" "$bin/nginx" || {
			timed nginx build_nginx
			printf '%s' "$NGINX_RECIPE" >"$build/stamps/nginx"
		}
		;;
	cargo-deny) cargo_stamped cargo-deny "$CARGO_DENY" ;;
	cargo-deb) cargo_stamped cargo-deb "$CARGO_DEB" ;;
	*)
		say "unknown name $name: see the head of this script"
		exit 1
		;;
	esac
done
