#!/bin/sh
# Makes the files by which runtime/src/record/golden.rs knows the forms of a version of the records, as root. They are
# made once for each version, and then never change: only a new version has new ones.
#
#   hack/golden.sh v1     by the build of the version before this one, which hack/old.sh makes
#   hack/golden.sh v2     by this one, after `make build`
#
# Then `INSTA_UPDATE=always cargo test -p berth --lib each_version_wrote_them`, and read what that wrote.
set -eu

cd "$(dirname "$0")/.."
version=${1:-}
case $version in
v1) bin=${BERTH_TEST_OLD:-$(hack/old.sh)} ;;
v2) bin=$PWD/target/release ;;
*) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
out=$PWD/runtime/tests/records/$version
rm -rf "$out"
BERTH_BIN_DIR=$bin BERTH_GOLDEN=$out cargo test --locked -q --workspace --test integration -- golden::
find "$out" -type f | sort
