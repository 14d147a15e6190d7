#!/bin/sh
# Shows Berth at work on this machine, from nothing to nothing: `make demo`, as root.
#
# Installs what is missing, builds Berth and crictl, starts Berth on its built-in network with a throw-away root,
# loads a small image made on the spot, runs a pod of two containers through crictl, and takes everything away again.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/.." && pwd)
build=${BERTH_BUILD_DIR:-$top/.build}
instance=bdemo
bins=${BERTH_BIN_DIR:-$top/target/release}

say() { printf '\n== %s\n' "$*"; }
tell() { printf '   %s\n' "$*"; }
fail() {
	printf '\nThe demo failed: %s\n' "$*" >&2
	[ ! -f "${work:-/none}/berth.log" ] || { echo "The end of Berth's log:" >&2; tail -20 "$work/berth.log" >&2; }
	exit 1
}

[ "$(id -u)" = 0 ] || fail "it needs root: it makes namespaces, a bridge and cgroups"

say "Looking for what is missing on this machine"
"$here/install-deps.sh" demo

say "Building Berth (a few minutes the first time)"
[ -n "${BERTH_DEMO_NO_BUILD:-}" ] || make -C "$top" build
"$here/tools.sh" crictl
crictl=$build/bin/crictl

work=$(mktemp -d /tmp/berth-demo.XXXXXX)
daemon=
clean_up() {
	status=$?
	trap - EXIT INT TERM
	if [ -n "$daemon" ] && kill -0 "$daemon" 2>/dev/null; then
		for pod in $(cri pods -q 2>/dev/null); do cri rmp -f "$pod" >/dev/null 2>&1 || true; done
		kill "$daemon" 2>/dev/null || true
		wait "$daemon" 2>/dev/null || true
	fi
	rm -rf "$work"
	exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

cri() { "$crictl" --config "$work/crictl.yaml" "$@"; }

say "Making a small image: busybox and a web page, as a Docker archive"
make_image() {
	mkdir -p "$work/rootfs/bin" "$work/rootfs/www" "$work/rootfs/tmp" "$work/image/layer"
	cp "$(command -v busybox)" "$work/rootfs/bin/busybox"
	for applet in sh cat echo httpd ls sleep wget hostname id ps mkdir; do ln -sf busybox "$work/rootfs/bin/$applet"; done
	echo "Hello from a pod on Berth" >"$work/rootfs/www/index.html"
	tar --numeric-owner --owner=0 --group=0 -C "$work/rootfs" -cf "$work/image/layer/layer.tar" .
	layer=$(sha256sum "$work/image/layer/layer.tar" | cut -d' ' -f1)
	case $(uname -m) in x86_64) arch=amd64 ;; aarch64) arch=arm64 ;; *) arch=$(uname -m) ;; esac
	printf '{"architecture":"%s","os":"linux","config":{"Cmd":["sh"],"Env":["PATH=/bin"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
		"$arch" "$layer" >"$work/image/config.json"
	printf '[{"Config":"config.json","RepoTags":["berth.test/demo:1"],"Layers":["layer/layer.tar"]}]' \
		>"$work/image/manifest.json"
	tar -C "$work/image" -cf "$work/demo.tar" manifest.json config.json layer
}
make_image
tell "$(du -k "$work/demo.tar" | cut -f1) KiB: $work/demo.tar"

# A range that nobody on this machine has a route into, and at first one that no wider route, as a VPN's, has in it.
free_subnet() {
	for wider in "" wider; do
		for candidate in 10.88 10.85 10.89 10.90 10.101 10.111 10.121 10.131 10.141 10.151 172.20 172.25 172.29; do
			candidate=$candidate.0.0/16
			[ -z "$(ip -4 route show table all root "$candidate")" ] || continue
			[ -n "$wider" ] || ! ip -4 route show table all match "$candidate" | grep -qv default || continue
			echo "$candidate"
			return
		done
	done
	fail "no range of addresses is free for pods: see ip -4 route show table all"
}
subnet=$(free_subnet)

say "Starting Berth with the throw-away root $work/root and the built-in network $subnet"
cat >"$work/config.toml" <<-CONFIG
	root = "$work/root"
	state = "$work/state"
	listen = "$work/berth.sock"
	instance = "$instance"

	[network]
	builtin = "$subnet"
	netns_dir = "$work/netns"

	[cgroup]
	shims = "$instance-shims"
CONFIG
cat >"$work/crictl.yaml" <<-CONFIG
	runtime-endpoint: unix://$work/berth.sock
	image-endpoint: unix://$work/berth.sock
	timeout: 30
CONFIG
"$bins/berth" serve --config "$work/config.toml" >"$work/berth.log" 2>&1 &
daemon=$!
tries=0
until cri version >/dev/null 2>&1; do
	tries=$((tries + 1))
	kill -0 "$daemon" 2>/dev/null || fail "berth ended at once"
	[ "$tries" -lt 100 ] || fail "berth does not answer"
	sleep 0.1
done
cri version | sed 's/^/   /'
at_rest=$(awk '/^Pss:/ { print $2 }' "/proc/$daemon/smaps_rollup")

say "Loading the image"
"$bins/berth" images load --config "$work/config.toml" "$work/demo.tar" | sed 's/^/   /'
cri images | sed 's/^/   /'

say "Running a pod with two containers: a web server, and a writer that shares its localhost and its files"
mkdir -p "$work/empty" "$work/host" "$work/logs"
echo "a file of the host" >"$work/host/note"
cat >"$work/pod.json" <<-JSON
	{"metadata":{"name":"demo","uid":"demo-1","namespace":"default","attempt":0},"hostname":"demo",
	 "log_directory":"$work/logs","linux":{"cgroup_parent":"/$instance-pods"}}
JSON
cat >"$work/web.json" <<-JSON
	{"metadata":{"name":"web"},"image":{"image":"berth.test/demo:1"},"log_path":"web.log",
	 "command":["sh","-c","echo web: serving on port 80; exec httpd -f -v -p 80 -h /www"],
	 "mounts":[{"host_path":"$work/empty","container_path":"/www/shared"}],"linux":{}}
JSON
cat >"$work/writer.json" <<-JSON
	{"metadata":{"name":"writer"},"image":{"image":"berth.test/demo:1"},"log_path":"writer.log",
	 "command":["sh","-c","cat /host/note; echo written by the other container > /shared/page; sleep 1; wget -q -O - http://127.0.0.1/; exec sleep 3600"],
	 "mounts":[{"host_path":"$work/empty","container_path":"/shared"},
	           {"host_path":"$work/host","container_path":"/host","readonly":true}],"linux":{}}
JSON
pod=$(cri runp "$work/pod.json") || fail "the pod does not run"
web=$(cri create "$pod" "$work/web.json" "$work/pod.json")
writer=$(cri create "$pod" "$work/writer.json" "$work/pod.json")
cri start "$web" >/dev/null
cri start "$writer" >/dev/null
cri pods | sed 's/^/   /'
cri ps | sed 's/^/   /'

say "What the writer says (a hostPath, then the web server through the shared localhost)"
tries=0
until grep -q "Hello from a pod" "$work/logs/writer.log" 2>/dev/null; do
	tries=$((tries + 1))
	[ "$tries" -lt 100 ] || fail "the writer never saw the web page"
	sleep 0.1
done
cri logs "$writer" | sed 's/^/   /'

say "Running a command in the web server's container (crictl exec --sync)"
cri exec --sync "$web" hostname | sed 's/^/   /'

ip=$(cri inspectp --output go-template --template '{{.status.network.ip}}' "$pod")
say "Asking the pod's address $ip over HTTP from the host, for the page and for the file in the emptyDir"
curl -fsS --max-time 5 "http://$ip/" | sed 's/^/   /'
curl -fsS --max-time 5 "http://$ip/shared/page" | sed 's/^/   /'

say "Memory (PSS)"
growth=$(($(awk '/^Pss:/ { print $2 }' "/proc/$daemon/smaps_rollup") - at_rest))
rest=0
for process in /proc/[0-9]*; do
	[ "$(awk '/^PPid:/ { print $2 }' "$process/status" 2>/dev/null)" = "$daemon" ] ||
		{ [ "$(cat "$process/comm" 2>/dev/null)" = pause ] && grep -q "$instance-pods" "$process/cgroup"; } || continue
	pss=$(awk '/^Pss:/ { print $2 }' "$process/smaps_rollup" 2>/dev/null) || continue
	tell "$(cat "$process/comm"): ${pss:-0} KiB"
	rest=$((rest + ${pss:-0}))
done
tell "Berth at rest: $at_rest KiB; it grew by $growth KiB; with monitors and pause this pod takes $((rest + growth)) KiB"
tell "(alone: the text that all monitors share is counted once, so thirty pods take far less each)"

# The bridge's name does not have the instance's in it.
bridge=$(ip -o -4 route show "$subnet" | sed -n 's/.* dev \([^ ]*\).*/\1/p')

say "Taking everything away"
cri stopp "$pod" >/dev/null
cri rmp "$pod" >/dev/null
cri rmi berth.test/demo:1 >/dev/null
kill "$daemon"
wait "$daemon" || fail "berth did not end well"
daemon=

left=
note() { [ -z "$2" ] || left="$left
   $1: $2"; }
note process "$(for p in /proc/[0-9]*; do grep -qs "$instance-" "$p/cgroup" && ! grep -qs "^State:.Z" "$p/status" && cat "$p/comm" 2>/dev/null; done || true)"
note mount "$(grep -F "$work" /proc/self/mountinfo || true)"
note "network namespace" "$(ls "$work/netns" 2>/dev/null || true)"
note cgroup "$(find /sys/fs/cgroup -type d -name "*$instance*" 2>/dev/null || true)"
note "network link" "$(ip -o link show | grep -F -e "$instance" -e "${bridge:?no route to the pods}:" || true)"
note "nftables rule" "$(nft list ruleset 2>/dev/null | grep -F "$instance" || true)"
[ -z "$left" ] || fail "something is left behind:$left"
tell "Nothing is left: no process, mount, network namespace, cgroup, bridge or rule."
say "That was Berth."
