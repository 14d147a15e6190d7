#!/bin/sh
# Builds the last version of Berth whose records have other forms than this one's, from this repository's history, and
# prints the folder with its programs. BERTH_OLD names another commit.
#
#   hack/old.sh           the programs
#   hack/old.sh deb       its package too, as berth.deb in the same folder
#   hack/old.sh known     nothing but whether the commit is there
set -eu

# The last that writes version 1.
commit=${BERTH_OLD:-4e0acb63b8c9a44cec747eda80ac95f91b9243f3}
cd "$(dirname "$0")/.."

git cat-file -e "$commit^{commit}" 2>/dev/null || {
	echo "commit $commit, the last that writes the records of the version before, is not in this clone:" \
		"'git fetch --unshallow' gets it" >&2
	exit 1
}
case ${1:-build} in
build) made=berth ;;
deb) made=berth.deb ;;
known) exit 0 ;;
*) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
mkdir -p "${BERTH_BUILD_DIR:-.build}"
build=$(cd "${BERTH_BUILD_DIR:-.build}" && pwd)
source=$build/src/berth-$commit
out=$build/berth-$commit
if [ ! -e "$out/$made" ]; then
	rm -rf "$source"
	mkdir -p "$source" "$out"
	git archive "$commit" | tar -C "$source" -xf -
	make -C "$source" "${1:-build}" BUILD_DIR="$build" DEB_FLAGS=--fast >&2
	# The one by which the folder is known to be whole comes last.
	for file in berth-worker berth-shim berth; do install -m 755 "$source/target/release/$file" "$out/"; done
	[ "$made" = berth ] || install -m 644 "$source"/target/debian/berth*.deb "$out/berth.deb"
	# What it was made from takes a gigabyte or two.
	rm -rf "$source"
fi
echo "$out"
