#!/usr/bin/env bash
# Builds the tests of the CUDA device into a folder that can be copied to a machine
# with a GPU. There it takes a driver and this machine's glibc or a newer one, and
# neither Go nor the repository:
#
#	bash run.sh [flags of the test binaries, such as -test.v]
#
# To be run with the environment that toolkit.sh makes: make gpu-tests.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$1

rm -rf "$out"
for pkg in cmd/streamcqsa $(cd pkg && find gpu -name '*_test.go' -printf 'pkg/%h\n' | sort -u); do
  mkdir -p "$out/$pkg"
  go test -c -tags cuda -trimpath -o "$out/$pkg/tests" "./$pkg"
  [ ! -d "$pkg/testdata" ] || cp -r "$pkg/testdata" "$out/$pkg"
done
cp -r testdata docs "$out" # what they read
cp pkg/gpu/internal/driver/symbols.h "$out/pkg/gpu/internal/driver"

cat > "$out/run.sh" <<'RUN'
#!/usr/bin/env bash
# Runs the tests on this machine's GPU. Arguments go to every test binary.
set -euo pipefail
cd "$(dirname "$0")"
export STREAMCQSA_TEST_GPU=1
status=0
for tests in $(find . -name tests -type f | sort); do
  echo "== $tests"
  (cd "$(dirname "$tests")" && ./tests "$@") || status=1
done
exit $status
RUN

echo "built for $(find "$out" -name tests -exec objdump -T {} + | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -1) and later:"
du -sh "$out"
