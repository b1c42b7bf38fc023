#!/usr/bin/env bash
# Runs conformance tests of the CUDA device in emulation. The environment is that of
# toolkit.sh env.
#
#	test.sh FOLDER INCLUDE PATTERN   as build.sh; PATTERN says which tests
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bash "$here/build.sh" "$1" "$2"
out=$(cd "$1" && pwd)
cd "$here/../../pkg/gpu"
go test -tags cuda -c -o "$out/tests" .

conformance() {
  LD_LIBRARY_PATH=$out/$1 STREAMCQSA_TEST_GPU=1 "$out/tests" -test.short -test.run "Conformance/$2/($3)"
}
conformance sm_80 sm_80 "$3" &
conformance sm_90 ring "$3"
wait $!
