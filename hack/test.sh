#!/bin/sh
# The tests one after the other, each whatever the others did, and one line at the end that says how many.
# Called by `make test`, which has built Berth and the tools.
set -u

cd "$(dirname "$0")/.." || exit 1
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
mkdir "$out/log" "$out/status" "$out/skips"
start=$(date +%s)
good=0

# run NAME COMMAND...: the command, its output shown and kept.
run() {
	name=$1 begin=$(date +%s)
	shift
	printf '\n== %s\n' "$name"
	{ BERTH_TEST_SKIPS="$out/skips/$name" "$@" 2>&1 && echo 0 >"$out/status/$name"; } | tee "$out/log/$name"
	[ -f "$out/status/$name" ] || good=1
	printf '== %s took %s s\n' "$name" "$(($(date +%s) - begin))"
}

run unit cargo test --locked --workspace --no-fail-fast
# Always of the whole workspace, or what it stands on is built again with fewer features.
run integration cargo test --locked -q --workspace --test integration
# Side by side: most of it is waiting, and nothing is shared.
critest() {
	cargo build --locked -q --workspace --bin critest-run || return
	target/debug/critest-run --net builtin >"$out/builtin" 2>&1 &
	builtin=$!
	target/debug/critest-run --net cni
	cni=$?
	wait $builtin
	both=$(($? + cni))
	cat "$out/builtin"
	return $both
}
run critest critest
# Always the same pods, so that a change answers for itself only; `make difftest` draws others.
difftest() {
	seed=${DIFFTEST_SEED:-$(cat tests/difftest/seed)}
	cargo build --locked -q --workspace --bin difftest && target/debug/difftest --seed "$seed"
}
run difftest difftest
# In continuous integration, the machine of production too; `make test-vm` is the whole of it.
[ -z "${BERTH_TEST_VM:-}" ] || run vm hack/vm/test.sh "$BERTH_TEST_VM"

# A unit test that found out that it cannot run was counted as passed; the others count theirs themselves.
# cargo's "test result: ok. 12 passed; 0 failed; 1 ignored; ..." and our own "integration: 80 passed, 0 failed, 2 skipped"
awk -v late="$(cat "$out/skips/unit" 2>/dev/null | wc -l)" '
	/^test result:/ { for (i = 1; i < NF; i++) { if ($(i + 1) ~ /^passed/) p += $i; if ($(i + 1) ~ /^failed/) f += $i; if ($(i + 1) ~ /^ignored/) s += $i } }
	/^(integration|critest|difftest): [0-9]+ passed/ { p += $2; f += $4; s += $6 }
	/^vm: [0-9]+ passed.* in total$/ { p += $2; f += $4; s += $6 }
	END { print p - late, f + 0, s + late }
' "$out"/log/* >"$out/sum"
read -r passed failed skipped <"$out/sum"
# Once more at the end, where it is read: of a long output often only the last lines are kept.
printf '\nnot run, and why:\n'
{
	cat "$out"/skips/* 2>/dev/null
	sed -n 's/^test \(.*\) \.\.\. ignored, /SKIP \1: /p' "$out/log/unit"
	grep '^waiting ' "$out/log/critest"
} | sed 's/^SKIP //' | sort
printf '\n'
for log in "$out"/log/*; do
	name=$(basename "$log")
	[ ! -f "$out/status/$name" ] || continue
	echo "$name failed:"
	{
		grep -E '^(FAILED |test .* FAILED$|[Ee]rror: )' "$log"
		grep -E -A 3 "^(FAIL |case [0-9]+: |thread '.* panicked at )" "$log"
	} | head -60
done
# A step that broke without a count is a failure too.
[ "$good" = 0 ] || [ "$failed" -gt 0 ] || failed=1
printf '\n%s s\n%s passed, %s failed, %s skipped\n' "$(($(date +%s) - start))" "$passed" "$failed" "$skipped"
exit "$good"
