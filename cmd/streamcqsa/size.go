package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// size is a number of bytes given on the command line.
type size struct {
	bytes   int64
	percent float64 // of the memory limit, when > 0
	auto    bool
}

var units = map[string]float64{
	"k": 1 << 10, "ki": 1 << 10, "kib": 1 << 10, "kb": 1e3,
	"m": 1 << 20, "mi": 1 << 20, "mib": 1 << 20, "mb": 1e6,
	"g": 1 << 30, "gi": 1 << 30, "gib": 1 << 30, "gb": 1e9,
	"t": 1 << 40, "ti": 1 << 40, "tib": 1 << 40, "tb": 1e12,
	"b": 1,
}

// Set parses 2GiB, 2Gi, 2G (all 2^31), 2GB (2*10^9), 512B, 80%, auto. A bare
// number is refused: tools disagree on what it means.
func (s *size) Set(text string) error {
	t := strings.ToLower(strings.TrimSpace(text))
	if t == "auto" {
		*s = size{auto: true}
		return nil
	}
	digits := strings.TrimRight(t, "abcdefghijklmnopqrstuvwxyz%")
	unit := t[len(digits):]
	n, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
	if err != nil || math.IsNaN(n) || math.IsInf(n, 0) || n < 0 || strings.ContainsAny(digits, "ex_") {
		return fmt.Errorf("%q is not a size: want a number and a unit, as in 2GiB, 500MB or 80%%, or auto", text)
	}
	if unit == "%" {
		if n <= 0 || n > 100 {
			return fmt.Errorf("%q: want a percentage above 0 and at most 100", text)
		}
		*s = size{percent: n}
		return nil
	}
	if unit == "" {
		return fmt.Errorf("%q has no unit: say %sB for bytes, %sMiB or %sGiB", text, digits, digits, digits)
	}
	f, ok := units[unit]
	if !ok {
		return fmt.Errorf("%q: unknown unit %q: want B, KiB, MiB, GiB, TiB (binary; also K, M, G, T), or KB, MB, GB, TB (decimal)", text, unit)
	}
	if n *= f; n >= math.MaxInt64 {
		return fmt.Errorf("%q is too large", text)
	}
	*s = size{bytes: int64(n)}
	return nil
}

// String is the value as it can be given again.
func (s *size) String() string {
	switch {
	case s.auto:
		return "auto"
	case s.percent > 0:
		return strconv.FormatFloat(s.percent, 'g', -1, 64) + "%"
	}
	return fmt.Sprintf("%dB", s.bytes)
}

// Type names the value in help texts.
func (s *size) Type() string { return "size" }

// sizeText writes bytes for people: 1.5 GiB.
func sizeText(n int64) string {
	const names = "KMGTPE"
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for f >= 1023.95 && i+1 < len(names) {
		f, i = f/1024, i+1
	}
	digits := 1
	if f == math.Trunc(f) {
		digits = 0
	}
	return fmt.Sprintf("%.*f %ciB", digits, f, names[i])
}

// grouped writes an integer with thousands separated: 17,179,869,184.
func grouped(n int64) string {
	s := strconv.FormatInt(n, 10)
	neg := strings.HasPrefix(s, "-")
	s = strings.TrimPrefix(s, "-")
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	if neg {
		return "-" + s
	}
	return s
}
