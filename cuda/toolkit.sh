#!/usr/bin/env bash
# Finds what building with CUDA needs; fetches it into .cache/cuda if the machine
# hasn't got it.
#
#	toolkit.sh nvcc      print the path of nvcc
#	toolkit.sh include   print the folder that has cuda.h
#	toolkit.sh env       print what `go build -tags cuda` needs in the environment:
#	                     eval "$(bash cuda/toolkit.sh env)"
#	toolkit.sh env12     the same, with a cuda.h of CUDA 12, always fetched
#
# nvcc is looked for on PATH; cuda.h beside that nvcc, then in $CUDA_HOME and in
# /usr/local/cuda. Fetching takes Python 3 with pip.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cache=$root/.cache/cuda

# The kernels in cuda/kernels were compiled with these.
compiler=(nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85)
headers=(nvidia-cuda-runtime==13.0.96)
headers12=(nvidia-cuda-runtime-cu12==12.0.146)

# fetch NAME PACKAGE... unpacks packages once, all or nothing.
fetch() {
  local name=$1
  shift
  [ -e "$cache/$name.done" ] && return
  mkdir -p "$cache"
  echo "fetching $* into .cache/cuda" >&2
  python3 -m pip install --quiet --root-user-action ignore --disable-pip-version-check --no-deps --only-binary :all: \
    --upgrade --target "$cache/$name" "$@" >&2
  touch "$cache/$name.done"
}

find_nvcc() {
  if type -P nvcc >/dev/null; then
    readlink -f "$(type -P nvcc)"
    return
  fi
  fetch toolkit "${compiler[@]}" "${headers[@]}"
  echo "$cache/toolkit/nvidia/cu13/bin/nvcc"
}

find_include() {
  local nvcc dir dirs=()
  nvcc=$(type -P nvcc || true)
  [ -z "$nvcc" ] || dirs+=("$(dirname "$(dirname "$(readlink -f "$nvcc")")")/include")
  [ -z "${CUDA_HOME:-}" ] || dirs+=("$CUDA_HOME/include")
  dirs+=(/usr/local/cuda/include "$cache/toolkit/nvidia/cu13/include")
  for dir in "${dirs[@]}"; do
    if [ -e "$dir/cuda.h" ]; then
      echo "$dir"
      return
    fi
  done
  fetch headers "${headers[@]}"
  echo "$cache/headers/nvidia/cu13/include"
}

# print_env INCLUDE
print_env() {
  local driver=$root/pkg/gpu/internal/driver
  echo "export CGO_ENABLED=1"
  echo "export CGO_CFLAGS='-O2 -g -I$driver/include -I$1'"
  echo "export CGO_LDFLAGS='-L$driver/lib'"
}

case ${1:-} in
nvcc) find_nvcc ;;
include) find_include ;;
env)
  dir=$(find_include)
  print_env "$dir"
  ;;
env12)
  fetch headers12 "${headers12[@]}"
  print_env "$cache/headers12/nvidia/cuda_runtime/include"
  ;;
*)
  echo "usage: toolkit.sh nvcc|include|env|env12" >&2
  exit 2
  ;;
esac
