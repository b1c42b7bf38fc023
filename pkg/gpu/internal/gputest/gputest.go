//go:build cuda

// Package gputest opens devices for tests.
package gputest

import (
	"errors"
	"os"
	"testing"

	"github.com/streamcqsa/streamcqsa/pkg/gpu/internal/driver"
)

// Expected is the name of an environment variable. Where it is 1, a test that finds
// no driver fails; elsewhere it is skipped. A driver that doesn't work fails it
// everywhere.
const Expected = "STREAMCQSA_TEST_GPU"

// Need skips or fails the test unless there is a driver that works.
func Need(t testing.TB) {
	t.Helper()
	err := driver.Load()
	switch {
	case err == nil:
	case errors.Is(err, driver.ErrNoDriver) && os.Getenv(Expected) != "1":
		t.Skip(err)
	default:
		t.Fatal(err)
	}
}

// Open opens the first device, current to the test's goroutine until the test ends.
func Open(t testing.TB) *driver.Context {
	t.Helper()
	Need(t)
	c, err := driver.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	release, err := c.Bind()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		release()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}
