#!/bin/sh
# The integration suite, with the programs of the package. Called by hack/vm/test.sh.
#
#   integration.sh PROJECT [TEST...]
set -eu

project=$1
shift
# What the tests build goes to a disk of the machine's own.
export BERTH_BUILD_DIR=/var/berth-build
mkdir -p $BERTH_BUILD_DIR /var/berth-bin
[ -d $BERTH_BUILD_DIR/bin ] || cp -a /run/berth-build/bin $BERTH_BUILD_DIR/
install -m 755 /usr/bin/berth /usr/libexec/berth/berth-shim /usr/libexec/berth/berth-worker /var/berth-bin/
export BERTH_BIN_DIR=/var/berth-bin
systemctl stop berth
cd "$project"
exec "$(ls -t "$project"/target/debug/deps/integration-* | grep -v '\.d$' | head -n 1)" "$@"
