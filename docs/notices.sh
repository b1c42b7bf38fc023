#!/usr/bin/env bash
# Prints the licence of every module that is linked into the binary.
set -euo pipefail
cd "$(dirname "$0")/.."

cat <<'HEAD'
Third-party notices of streamcqsa

The binary contains the Go standard library and the modules below, under their
own licences. This file is made by `make notices`.

The CUDA device will rest on gorgonia.org/cu, which is licensed under the Apache
License 2.0. Its README says that some of its files derive from a package without
a licence. It is not part of this binary.
HEAD

for os in linux darwin windows; do
  GOOS=$os go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}' ./cmd/streamcqsa
done | sort -u | while read -r path version dir; do
  for file in "$dir"/LICENSE* "$dir"/COPYING* "$dir"/NOTICE*; do
    [ -f "$file" ] || continue
    printf '\n%s\n%s %s: %s\n\n' "$(printf '=%.0s' {1..80})" "$path" "$version" "$(basename "$file")"
    cat "$file"
  done
done

printf '\n%s\nThe Go standard library: LICENSE\n\n' "$(printf '=%.0s' {1..80})"
cat "$(go env GOROOT)/LICENSE"
