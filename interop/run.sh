#!/usr/bin/env bash
# Tests the binary against what Python programs write and read.
#
#   interop/run.sh          NumPy, ml_dtypes, safetensors, and a transformer in NumPy
#   interop/run.sh torch    PyTorch; installs some 5 GB
#
# Needs Go and Python 3.9 or later. Packages come from pip, pinned, into an
# environment under .cache that is kept until the requirements change. More
# arguments go to unittest. STREAMCQSA=path tests that binary instead of
# building one, INTEROP_VENV=dir uses that environment.
set -euo pipefail
cd "$(dirname "$0")/.."

requirements=interop/requirements.txt
venv=${INTEROP_VENV:-.cache/interop-venv}
deps=--no-deps # all that is needed is listed
tests=(test_numpy test_safetensors test_attention test_transformer)
if [ "${1:-}" = torch ]; then
	shift
	requirements=interop/requirements-torch.txt
	venv=${INTEROP_VENV:-.cache/interop-venv-torch}
	deps=
	tests=(test_torch)
fi

python=
for p in python3 python3.13 python3.12 python3.11 python3.10 python3.9; do
	if "$p" -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; then
		python=$p
		break
	fi
done
if [ -z "$python" ]; then
	echo "interop: no Python 3.9 or later found" >&2
	exit 1
fi

stamp=$("$python" --version; cat "$requirements")
if [ "$(cat "$venv/interop-stamp" 2>/dev/null || true)" != "$stamp" ]; then
	echo "interop: installing $requirements into $venv" >&2
	rm -f "$venv/interop-stamp"
	if [ -z "${INTEROP_VENV:-}" ]; then
		"$python" -m venv --clear "$venv"
	elif [ ! -x "$venv/bin/python" ]; then
		"$python" -m venv "$venv"
	fi
	"$venv/bin/python" -m pip install --quiet --disable-pip-version-check $deps -r "$requirements"
	printf '%s\n' "$stamp" >"$venv/interop-stamp"
fi

if [ -z "${STREAMCQSA:-}" ]; then
	dir=$(mktemp -d)
	trap 'rm -rf "$dir"' EXIT
	go build -o "$dir/streamcqsa" ./cmd/streamcqsa
	STREAMCQSA=$dir/streamcqsa
fi
# The tests run elsewhere.
STREAMCQSA=$(cd "$(dirname "$STREAMCQSA")" && pwd)/$(basename "$STREAMCQSA")
export STREAMCQSA

venv=$(cd "$venv" && pwd)
cd interop
PYTHONDONTWRITEBYTECODE=1 "$venv/bin/python" -W error -m unittest "$@" "${tests[@]}"
