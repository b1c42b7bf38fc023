package cuda

import (
	"os"
	"testing"

	"github.com/streamcqsa/streamcqsa/cuda/internal/unit"
)

func TestCompiledFromSources(t *testing.T) {
	if err := unit.Check(os.DirFS(".")); err != nil {
		t.Errorf("%v: run make cuda", err)
	}
}
