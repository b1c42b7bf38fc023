package cpu

import (
	"testing"

	"github.com/streamcqsa/streamcqsa/pkg/stream"
	"github.com/streamcqsa/streamcqsa/pkg/stream/devicetest"
)

// TestConformance is what every device passes.
func TestConformance(t *testing.T) {
	devicetest.Run(t, devicetest.Subject{
		Open:   func(_ testing.TB, threads int) stream.Device { return New(threads) },
		Poison: func(_ testing.TB, d stream.Device) { poison(d.(*Device)) },
	})
}
