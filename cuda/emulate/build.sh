#!/usr/bin/env bash
# Builds libraries of libcuda.cpp and the kernels, which run on the CPU then:
# FOLDER/sm_90/libcuda.so.1 and FOLDER/sm_80/libcuda.so.1.
#
#	build.sh FOLDER INCLUDE   INCLUDE has cuda.h
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
rm -rf "$1"
mkdir -p "$1"/{source,sm_80,sm_90}
out=$(cd "$1" && pwd)
include=$(cd "$2" && pwd)

cp "$here"/../*.cu "$here"/../*.cuh "$out/source"
cp "$here"/* "$out/source" # in place of those of the same names
cd "$out/source"
sed -i -E 's/extern __shared__ (\w+) dynamic\[\];/\1* dynamic = (\1*)emulate::shared;/' ./*.cu

compile() {
  ${CXX:-g++} -std=c++20 -O2 -march=x86-64-v3 -fPIC -Wno-unknown-pragmas -include emulate.h -I"$include" -c "$@"
}
for unit in attention_sm80 attention_sm90 pack wide finish; do
  compile -x c++ "$unit.cu" -o "$unit.o"
done
for major in 8 9; do
  compile -DMAJOR=$major libcuda.cpp -o libcuda.o
  ${CXX:-g++} -shared -Wl,-soname,libcuda.so.1 -o "$out/sm_${major}0/libcuda.so.1" "attention_sm${major}0.o" pack.o wide.o finish.o libcuda.o -ldl
done
