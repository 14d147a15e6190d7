#!/bin/sh
# Tests Berth in a machine of its own: installed from its package on Debian 13 with systemd, cgroup v2 and AppArmor.
#
#   hack/vm/test.sh smoke       what only such a machine shows, and two power cuts (CI, ten minutes at most)
#   hack/vm/test.sh full        that with twenty power cuts, the upgrade from the last version with other records where its
#                               commit is in this clone, and beside it, in a machine of its own, the integration suite,
#                               critest, and power cuts replayed from a log of the disk's writes
#   hack/vm/test.sh PART...     some of it: smoke cgroupfs package cuts upgrade integration critest replays
#
# BERTH_VM_TESTS names the integration tests that are run, if not all.
#
# The package and the tests must be built: `make vm-smoke` and `make test-vm` do that. The last line counts.
set -u

here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd)
name=test-$$
inside=$project/hack/vm/inside
cuts=20 replays=8
case "${*:-smoke}" in
smoke) parts="smoke cgroupfs package cuts" cuts=2 ;;
full) parts= ;;
*) parts=$* ;;
esac
for part in $parts; do
	case $part in
	smoke | cgroupfs | package | cuts | upgrade | integration | critest | replays) ;;
	*) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2 ;;
	esac
done

# Machines that start and machines that compute leave each other room: the whole takes little longer than its longer half.
full() {
	work=$(mktemp -d)
	one= two=
	trap 'kill $one $two 2>/dev/null; wait; rm -rf "$work"' EXIT
	trap 'exit 130' INT TERM
	# Built before there are machines that compute.
	upgrade=upgrade
	if ! why=$("$project/hack/old.sh" known 2>&1); then
		printf 'SKIP vm::upgrade: %s\nvm: 0 passed, 0 failed, 1 skipped\n' "$why" | tee "$work/0"
		upgrade=
	elif ! "$project/hack/old.sh" deb >/dev/null; then
		echo "vm test: the older version cannot be built" >&2
		printf 'vm: 0 passed, 1 failed, 0 skipped\n' >"$work/0"
		upgrade= broken=1
	fi
	mkfifo "$work/1.pipe" "$work/2.pipe"
	tee "$work/1" <"$work/1.pipe" | sed -u 's/^/1 /' &
	tee "$work/2" <"$work/2.pipe" | sed -u 's/^/2 /' &
	"$0" smoke cgroupfs package cuts $upgrade >"$work/1.pipe" 2>&1 & one=$!
	"$0" integration critest replays >"$work/2.pipe" 2>&1 & two=$!
	status=${broken:-0}
	wait $one || status=1
	wait $two || status=1
	wait
	printf '\n'
	grep -h '^== vm .* took' "$work/1" "$work/2"
	tail -qn1 "$work"/[012] | awk '{ p += $2; f += $4; s += $6 }
		END { printf "\nvm: %d passed, %d failed, %d skipped in total\n", p, f, s }'
	exit $status
}
[ -n "$parts" ] || full

vm() { "$here/vm.sh" "$@"; }
in_vm() { vm ssh "$name" "$@" </dev/null; }

work=$(mktemp -d)
registry=
clean_up() {
	[ -z "$registry" ] || kill "$registry" 2>/dev/null
	# A machine that was told to stay is there to be looked at.
	if [ -n "${BERTH_VM_KEEP:-}" ]; then echo "kept: hack/vm/vm.sh shell $name" >&2; else vm down "$name"; fi
	rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM
fail() { echo "vm test: $*" >&2; echo "vm: 0 passed, 1 failed, 0 skipped in total"; exit 1; }

images=$project/target/debug/berth-images
[ -x "$images" ] || fail "$images is missing: make vm-smoke builds it"
ls "$project"/target/debian/berth*.deb >/dev/null 2>&1 || fail "there is no package in target/debian: make deb"

old=
case " $parts " in
*" upgrade "*) old=$("$project/hack/old.sh" deb) || fail "the older version is not there" ;;
esac

# The host's registry: inside, the host's loopback is 10.0.2.2.
"$images" serve --store "$work/store" --hosts "$work/hosts" >"$work/registry" 2>&1 &
registry=$!
"$images" archive --name berth.test/busybox:vm "$work/busybox.tar" || fail "no image"

BERTH_VM_BOOT_LIMIT=400 vm up "$name" || fail "the machine does not start"
tries=0
until grep -q . "$work/registry"; do
	tries=$((tries + 1))
	kill -0 $registry 2>/dev/null && [ $tries -lt 600 ] || fail "the registry does not start: $(cat "$work/registry")"
	sleep 0.2
done
find "$work/hosts" -name hosts.toml -exec sed -i 's/127\.0\.0\.1/10.0.2.2/' {} +
take='mkdir -p /var/tmp/vm /etc/berth/certs.d && tar -C /var/tmp/vm -xf - && cp -r /var/tmp/vm/hosts/. /etc/berth/certs.d/'
tar -C "$work" -cf - hosts busybox.tar | vm ssh "$name" "$take" || fail "the machine takes no files"
in_vm "cp '$project'/target/debian/berth*.deb /run/berth-build/bin/crictl /var/tmp/vm/" || fail "no package inside"
[ -z "$old" ] || in_vm "mkdir /var/tmp/vm/old && cp '/run/berth-build/${old##*/}/berth.deb' /var/tmp/vm/old/" || fail "no older package inside"
in_vm "sh '$project/vagrant/provision.sh' /var/tmp/vm" || fail "the package cannot be installed"

status=0
# shown COMMAND...: its lines, kept for the sum.
shown() { { "$@" 2>&1 || echo "$*" >>"$work/broken"; } | tee -a "$work/out"; }
for part in $parts; do
	printf '\n== vm %s\n' "$part"
	begin=$(date +%s)
	case $part in
	smoke) shown in_vm "sh '$inside/smoke.sh' /var/tmp/vm/busybox.tar /var/tmp/vm" ;;
	cgroupfs) shown in_vm "sh '$inside/cgroupfs.sh' /var/tmp/vm/busybox.tar" ;;
	package) shown in_vm "sh '$inside/package.sh' /var/tmp/vm/busybox.tar /var/tmp/vm '$project'" ;;
	cuts) shown "$here/cut.sh" "$name" "$cuts" ;;
	upgrade) shown in_vm "sh '$inside/upgrade.sh' /var/tmp/vm/busybox.tar /var/tmp/vm /var/tmp/vm/old '$project'" ;;
	integration) shown in_vm "sh '$inside/integration.sh' '$project' ${BERTH_VM_TESTS:-}" ;;
	critest) shown in_vm "sh '$inside/critest.sh' '$project'" ;;
	replays) shown "$here/replay.sh" "$name" "$replays" ;;
	esac
	printf '== vm %s took %s s\n' "$part" "$(($(date +%s) - begin))"
done
awk '/^(vm|integration|critest): [0-9]+ passed/ { p += $2; f += $4; s += $6 } END { print p + 0, f + 0, s + 0 }' "$work/out" >"$work/sum"
read -r passed failed skipped <"$work/sum"
# A part that broke without a count is a failure too.
[ ! -f "$work/broken" ] || { status=1; [ "$failed" -gt 0 ] || failed=1; }
[ "$failed" = 0 ] || status=1
printf '\nvm: %s passed, %s failed, %s skipped in total\n' "$passed" "$failed" "$skipped"
exit $status
