package attention

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
)

func valid() Problem {
	return Problem{B: 2, Hq: 4, Hkv: 2, Nq: 5, Nk: 7, D: 8, Dv: 16, DType: F16, OutDType: F32, Layout: BNHD, Scale: 1}
}

func TestValidate(t *testing.T) {
	if err := valid().Validate(); err != nil {
		t.Errorf("a good problem: %v", err)
	}
	tests := []struct {
		change func(*Problem)
		want   []string // one fragment per violation
	}{
		{func(p *Problem) { p.B = 0 }, []string{"B is 0"}},
		{func(p *Problem) { p.Hq, p.Nq, p.Nk = 0, -1, 0 }, []string{"Hq is 0", "Nq is -1", "Nk is 0"}},
		{func(p *Problem) { p.Hkv = 0 }, []string{"Hkv is 0"}},
		{func(p *Problem) { p.Hkv = 3 }, []string{"4 query heads cannot share 3"}},
		{func(p *Problem) { p.D, p.Dv = 0, maxRow+1 }, []string{"D is 0", "Dv=4097"}},
		{func(p *Problem) { p.D = maxRow + 1 }, []string{"D=4097"}},
		{func(p *Problem) { p.DType, p.OutDType = 0, 9 }, []string{"input type", "output type"}},
		{func(p *Problem) { p.Layout = 0 }, []string{"layout"}},
		{func(p *Problem) { p.Layout = ND + 1 }, []string{"layout"}},
		{func(p *Problem) { p.Layout = HND }, []string{"no batch axis"}},
		{func(p *Problem) { p.Layout = ND }, []string{"no batch axis", "no head axis"}},
		{func(p *Problem) { p.Layout, p.B = ND, 1 }, []string{"no head axis"}},
		{func(p *Problem) { p.Scale = math.NaN() }, []string{"scale"}},
		{func(p *Problem) { p.Scale = math.Inf(-1) }, []string{"scale"}},
		{func(p *Problem) { p.Causal = 3 }, []string{"causal"}},
		{func(p *Problem) { p.B, p.Nq = 1<<30, 1<<28 }, []string{"Q of B="}},
		{func(p *Problem) { p.B, p.Nk = 1<<30, 1<<28 }, []string{"K of B="}},
		{func(p *Problem) { *p = Problem{Causal: 7, Scale: math.Inf(1)} }, []string{"B is", "Hq is", "Hkv is", "Nq is", "Nk is", "D is", "Dv is",
			"input type", "output type", "layout", "scale", "causal"}},
	}
	for _, test := range tests {
		p := valid()
		test.change(&p)
		err := p.Validate()
		if err == nil {
			t.Errorf("%+v: no error, want %q", p, test.want)
			continue
		}
		if lines := strings.Split(err.Error(), "\n"); len(lines) != len(test.want) {
			t.Errorf("%+v: %d violations reported, want %d:\n%v", p, len(lines), len(test.want), err)
		}
		for _, want := range test.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%+v: error %q does not mention %q", p, err, want)
			}
		}
	}
}

// sees is the causal rule by its definition.
func sees(p Problem, i, j int) bool {
	switch p.Causal {
	case TopLeft:
		return j <= i
	case BottomRight:
		return j-(p.Nk-1) <= i-(p.Nq-1) // the last query sees the last key
	}
	return true
}

func TestMaskAgainstBruteForce(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	kinds := make(map[MaskKind]int)
	for range 4000 {
		p := Problem{B: 1 + rng.IntN(2), Hq: 2, Hkv: 1, Nq: 1 + rng.IntN(9), Nk: 1 + rng.IntN(9), D: 3, Dv: 5, Causal: Causal(rng.IntN(3))}
		total := 0
		for i := range p.Nq {
			n := 0
			for j := range p.Nk {
				if sees(p, i, j) {
					n++
				}
			}
			if p.Visible(i) != n {
				t.Fatalf("%v Nq=%d Nk=%d: row %d sees %d keys, want %d", p.Causal, p.Nq, p.Nk, i, p.Visible(i), n)
			}
			total += n
		}
		if p.Pairs() != float64(total) {
			t.Fatalf("%v Nq=%d Nk=%d: %v pairs, want %d", p.Causal, p.Nq, p.Nk, p.Pairs(), total)
		}
		if want := float64(total * p.B * p.Hq * 2 * (3 + 5)); p.FLOPs() != want {
			t.Fatalf("%v FLOPs, want %v", p.FLOPs(), want)
		}

		q0, k0 := rng.IntN(p.Nq), rng.IntN(p.Nk)
		q1, k1 := q0+rng.IntN(p.Nq-q0+1), k0+rng.IntN(p.Nk-k0+1)
		kinds[checkMask(t, p, q0, q1, k0, k1)]++
	}
	for _, k := range []MaskKind{Empty, Full, Diagonal, Partial} {
		if kinds[k] < 50 {
			t.Errorf("only %d masks were %v: the test has lost its teeth", kinds[k], k)
		}
	}
}

func checkMask(t *testing.T, p Problem, q0, q1, k0, k1 int) MaskKind {
	t.Helper()
	kind, shift := p.Mask(q0, q1, k0, k1)
	pairs := 0
	for i := range q1 - q0 {
		for j := range k1 - k0 {
			want := sees(p, q0+i, k0+j)
			if want {
				pairs++
			}
			var got bool
			switch kind {
			case Full:
				got = true
			case Diagonal, Partial:
				got = j <= i+shift
			}
			if got != want {
				t.Fatalf("%v Nq=%d Nk=%d [%d,%d)x[%d,%d): %v %d: pair (%d,%d) visible: %v", p.Causal, p.Nq, p.Nk, q0, q1, k0, k1, kind, shift, i, j, got)
			}
		}
	}
	// The kind must be the cheapest that is right, and Diagonal what it says.
	switch area := (q1 - q0) * (k1 - k0); {
	case pairs == 0 && kind != Empty, pairs > 0 && pairs == area && kind != Full, (kind == Diagonal) != (shift == 0 && pairs > 0 && pairs < area):
		t.Fatalf("%v Nq=%d Nk=%d [%d,%d)x[%d,%d): %v %d for %d of %d pairs", p.Causal, p.Nq, p.Nk, q0, q1, k0, k1, kind, shift, pairs, area)
	}
	if got := p.PairsIn(q0, q1, k0, k1); got != float64(pairs) {
		t.Fatalf("%v Nq=%d Nk=%d: %v pairs in [%d,%d)x[%d,%d), want %d", p.Causal, p.Nq, p.Nk, got, q0, q1, k0, k1, pairs)
	}
	return kind
}

func TestPairsOfHugeProblems(t *testing.T) {
	const n = 1 << 31
	p := Problem{Nq: n, Nk: n}
	if got := p.Pairs(); got != 0x1p62 {
		t.Errorf("%v pairs, want 2^62", got)
	}
	p.Causal = TopLeft
	if got, want := p.Pairs(), 0x1p61+0x1p30; !(math.Abs(got-want) <= 1e-15*want) {
		t.Errorf("%v causal pairs, want %v", got, want)
	}
}

func TestHeads(t *testing.T) {
	p := valid()
	if p.Group() != 2 || p.KVHeads() != 4 {
		t.Errorf("group %d, KV heads %d", p.Group(), p.KVHeads())
	}
	if got := DefaultScale(64); got != 0.125 {
		t.Errorf("DefaultScale(64) = %v", got)
	}
}

func TestNamesOfUnknownValues(t *testing.T) {
	for got, want := range map[string]string{
		DType(9).String(): "DType(9)", Layout(9).String(): "Layout(9)", Causal(9).String(): "Causal(9)", MaskKind(9).String(): "MaskKind(9)",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
