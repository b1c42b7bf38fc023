//go:build cuda

package gpu

import (
	"strings"
	"testing"

	"github.com/streamcqsa/streamcqsa/pkg/gpu/internal/driver"
	"github.com/streamcqsa/streamcqsa/pkg/gpu/internal/gputest"
)

func TestDevices(t *testing.T) {
	gputest.Need(t)
	list, err := Devices()
	if err != nil || len(list) == 0 {
		t.Fatalf("%d devices, %v", len(list), err)
	}
	free, total, err := Memory(0)
	if err != nil || free <= 0 || free > total || total > list[0].Memory {
		t.Errorf("%d of %d bytes free: %v", free, total, err)
	}
}

func TestNewEnough(t *testing.T) {
	for _, c := range []struct {
		have     driver.Version
		compiler string
		want     string
	}{
		{driver.Version{Major: 13, Minor: 0}, "13.0.88", ""},
		{driver.Version{Major: 13, Minor: 0}, "13.1.0", ""},
		{driver.Version{Major: 14, Minor: 2}, "13.0.88", ""},
		{driver.Version{Major: 12, Minor: 9}, "13.0.88", "CUDA 12.9"},
		{driver.Version{Major: 13, Minor: 0}, "", "unknown compiler"},
	} {
		err := newEnough(c.have, c.compiler)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("driver %v, compiler %q: %v", c.have, c.compiler, err)
		}
	}
}
