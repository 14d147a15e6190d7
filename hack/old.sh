#!/bin/sh
# Builds the last version of Berth whose records have other forms than this one's, with its package, from this
# repository's history, and prints the folder with its programs; the package is in ../debian. BERTH_OLD names another commit.
set -eu

# The last that writes version 1.
commit=${BERTH_OLD:-4e0acb63b8c9a44cec747eda80ac95f91b9243f3}
cd "$(dirname "$0")/.."
mkdir -p "${BERTH_BUILD_DIR:-.build}"
build=$(cd "${BERTH_BUILD_DIR:-.build}" && pwd)
source=$build/src/berth-$commit

git cat-file -e "$commit^{commit}" 2>/dev/null || {
	echo "commit $commit is not in this clone: git fetch --unshallow" >&2
	exit 1
}
if [ ! -e "$source/target/built" ]; then
	mkdir -p "$source"
	git archive "$commit" | tar -C "$source" -xf -
	make -C "$source" deb BUILD_DIR="$build" DEB_FLAGS=--fast >&2
	touch "$source/target/built"
fi
echo "$source/target/release"
