//go:build cuda

package driver_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/streamcqsa/streamcqsa/pkg/gpu/internal/driver"
)

// withLibrary runs one test of this binary in a process that finds a library for
// tests where libcuda.so.1 is looked for.
func withLibrary(t *testing.T, test string, env ...string) {
	t.Helper()
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("needs a C compiler")
	}
	dir := t.TempDir()
	args := append(strings.Fields(os.Getenv("CGO_CFLAGS")), "-shared", "-fPIC", "-o", filepath.Join(dir, "libcuda.so.1"), filepath.Join("testdata", "libcuda.c"))
	if out, err := exec.Command(cc, args...).CombinedOutput(); err != nil {
		if strings.Contains(string(out), "cuda.h") {
			t.Skip("needs cuda.h")
		}
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+test+"$", "-test.v")
	cmd.Env = append(append(os.Environ(), "LD_LIBRARY_PATH="+dir, "WITH_FAKE=1"), env...)
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: "+test) {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestShim(t *testing.T) { withLibrary(t, "TestWithFake") }

func TestInitFails(t *testing.T) { withLibrary(t, "TestWithFakeThatFails", "FAKE_INIT=100") }

func TestWithFakeThatFails(t *testing.T) {
	if os.Getenv("WITH_FAKE") == "" {
		t.Skip("runs in TestInitFails")
	}
	err := driver.Load()
	if !errors.Is(err, driver.NoDevice) || err.Error() != "cuda: initialise the driver: CUDA_ERROR_NO_DEVICE (no device)" {
		t.Errorf("Load: %v", err)
	}
}

// Arguments arrive as they were passed, and functions that the library lacks say so.
func TestWithFake(t *testing.T) {
	if os.Getenv("WITH_FAKE") == "" {
		t.Skip("runs in TestShim")
	}
	list := must(driver.Devices())(t)
	if len(list) != 1 || list[0].Name != "Fake" || list[0].Memory != 3<<30 || list[0].SMs != 16 || list[0].Driver != (driver.Version{Major: 12, Minor: 4}) {
		t.Errorf("devices: %+v", list)
	}
	c := must(driver.Open(0))(t)
	release := must(c.Bind())(t)
	s := must(c.NewStream(-3))(t)
	m := must(c.LoadModule([]byte("i\x00mage")))(t)
	k := must(m.Kernel("f"))(t)
	check(t, k.SetMaxShared(99))
	check(t, k.Launch(s, driver.Dim{X: 2, Y: 3}, driver.Dim{X: 5, Y: 6, Z: 7}, 8,
		driver.ArgPtr(0x123456789a), driver.ArgInt(-2), driver.ArgFloat(1.5)))
	host := []byte("host..!")
	check(t, s.CopyIn2D(0x50, 8, host, 4, driver.Rows{N: 2, Width: 3}))
	check(t, s.CopyOut2D(host, 4, 0x50, 8, driver.Rows{N: 2, Width: 3}))
	check(t, c.RegisterHost(host, true))
	if err := s.Synchronize(); !errors.Is(err, driver.NotSupported) || err.Error() != "cuda:0: wait for a stream: CUDA_ERROR_SOME (some)" {
		t.Errorf("a function that the library lacks: %v", err)
	}
	if _, err := driver.Open(1); !errors.Is(err, driver.InvalidDevice) {
		t.Errorf("a device that isn't there: %v", err)
	}
	release()
	check(t, c.Close())
}
