package cpu

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/stream/devicetest"
)

// Every number of rows that keys in parts are for, and one more: exact, with the
// kernels that are meant for it, and the same bits from any number of threads.
func TestFewRows(t *testing.T) { eachKernel(t, testFewRows) }

func testFewRows(t *testing.T) {
	var ran [paths]int
	s, rng := subject(&ran), rand.New(rand.NewPCG(21, 22))
	for rows := 1; rows <= fewRows+1; rows++ {
		for i, typ := range dtypes {
			p := devicetest.Problem(rows, []int{64, 33, 128}[(rows+i)%3])
			p.Nk, p.Dv = 2*partKeys+77, p.D+rows%5
			p.DType, p.OutDType = typ, typ
			if i == 1 {
				p.Causal = attention.BottomRight
			}
			if rows%4 == 0 { // some of them as query heads of one KV head
				p.Hq, p.Nq = 2, rows/2
			}
			name := fmt.Sprintf("%d rows, %v, D = %d", rows, typ, p.D)
			x, before := devicetest.Random(p, rng), ran
			r := s.Compute(t, x, devicetest.Way{Threads: 1})
			s.Check(t, name, devicetest.Compare(t, x, r, rows), typ)
			meant := narrow
			if rows <= leastRows || kernel == "avx512" && rows <= fewRows && p.D != 33 {
				meant = few
			}
			if kernel != Portable && ran[meant] == before[meant] {
				t.Errorf("%s: other kernels ran", name)
			}
			for _, threads := range []int{2, 5} {
				if again := s.Compute(t, x, devicetest.Way{Threads: threads}); !bytes.Equal(again.O, r.O) || !bytes.Equal(again.LSE, r.LSE) {
					t.Errorf("%s: %d threads give other bits", name, threads)
				}
			}
		}
	}
}

// Scores that float32 is too coarse for, where |q||k| is within its bound, are
// computed in float64, but for rows so few that their sums are short.
func TestFewSteepScores(t *testing.T) {
	if lane := newDevice(1).lane; lane == nil || lane.fewScores == nil {
		t.Skip("no kernels for blocks of few rows")
	}
	for _, rows := range []int{1, 3, 4, 5, 8, 16} {
		var ran [paths]int
		s, rng := subject(&ran), rand.New(rand.NewPCG(23, 24))
		p := devicetest.Problem(rows, 64)
		p.Nk, p.Scale = partKeys+77, 24/math.Log2E/64
		x := devicetest.Random(p, rng)
		near := func(_, _, _, i int) float64 { return float64(i%2*2-1) + 0.1*rng.NormFloat64() } // one direction
		x.Q, x.K = devicetest.Fill(p, 1, p.Nq, p.D, near), devicetest.Fill(p, 1, p.Nk, p.D, near)
		s.Check(t, fmt.Sprintf("%d rows", rows), devicetest.Compare(t, x, s.Compute(t, x, devicetest.Way{}), rows), attention.F32)
		if short := rows <= leastRows; (ran[few] > 0) != short || (ran[wide] > 0) == short {
			t.Errorf("%d rows: %d tiles of keys by the kernels for few, %d wide", rows, ran[few], ran[wide])
		}
	}
}
