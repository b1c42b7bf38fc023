#!/usr/bin/env bash
# Prints the licence of every module that is linked into the binary.
set -euo pipefail
cd "$(dirname "$0")/.."

cat <<'HEAD'
Third-party notices of streamcqsa

The binary contains the Go standard library and the modules below, under their
own licences. This file is made by `make notices`.

gorgonia.org/cu, github.com/google/uuid and github.com/pkg/errors are only in
binaries built with the tag cuda. The licence file of gorgonia.org/cu is the Apache
License 2.0, of 2019. Its README calls the licence MIT-like, and says that
cgoflags.go is copied, and execution.go and memory.go are copied in part, from Arne
Vansteenkiste's package cu, which has no licence; to be safe it assumes one like the
GNU General Public License, under which mumax/3 is. The CUDA device uses functions
of the latter two. Who passes on a binary built with the tag cuda should weigh that;
a binary built without it contains nothing of gorgonia.org/cu.

That binary also contains this project's CUDA kernels, compiled by NVIDIA's nvcc. It
contains nothing of the CUDA driver, which it opens where it runs.
HEAD

format='{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}'
{
  for os in linux darwin windows; do
    GOOS=$os go list -deps -f "$format" ./cmd/streamcqsa
  done
  GOOS=linux CGO_ENABLED=1 go list -tags cuda -deps -f "$format" ./cmd/streamcqsa
} | sort -u | while read -r path version dir; do
  for file in "$dir"/LICENSE* "$dir"/COPYING* "$dir"/NOTICE*; do
    [ -f "$file" ] || continue
    printf '\n%s\n%s %s: %s\n\n' "$(printf '=%.0s' {1..80})" "$path" "$version" "$(basename "$file")"
    cat "$file"
  done
done

printf '\n%s\nThe Go standard library: LICENSE\n\n' "$(printf '=%.0s' {1..80})"
cat "$(go env GOROOT)/LICENSE"
