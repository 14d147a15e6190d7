#!/bin/sh
# critest, with the programs of the package. Called by hack/vm/test.sh.
#
#   critest.sh PROJECT
set -eu

project=$1
export BERTH_BUILD_DIR=/var/berth-build BERTH_BIN_DIR=/var/berth-bin
cd "$project"
exec "$project/target/debug/critest-run" --net cni
