package gpu

import (
	"errors"
	"strings"
	"testing"
)

func TestTarget(t *testing.T) {
	for _, c := range []struct {
		major, minor int
		want         string
	}{
		{7, 5, ""}, {8, 0, "sm_80"}, {8, 9, "sm_80"}, {9, 0, "sm_90a"}, {10, 0, "sm_80"}, {12, 0, "sm_80"},
	} {
		got, err := Target(Info{Ordinal: 3, Name: "X", Major: c.major, Minor: c.minor})
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%d.%d: %q, %v", c.major, c.minor, got, err)
		}
		if err != nil && !strings.Contains(err.Error(), "cuda:3 (X)") {
			t.Errorf("the error names no device: %v", err)
		}
	}
}

func TestNotBuilt(t *testing.T) {
	if Built {
		t.Skip("CUDA is built in")
	}
	_, err := Devices()
	if !errors.Is(err, ErrNotBuilt) || Hash() != "" {
		t.Errorf("Devices: %v, Hash: %q", err, Hash())
	}
	if _, _, err := Memory(0); !errors.Is(err, ErrNotBuilt) {
		t.Errorf("Memory: %v", err)
	}
}
