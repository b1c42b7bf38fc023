//go:build unix

package cpu

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"unsafe"
)

// forPairTiers is forLaneTiers for those with bfloat16 weights.
func forPairTiers(t *testing.T, f func(t *testing.T, k laneKernels)) {
	forLaneTiers(t, func(t *testing.T, k laneKernels) {
		if k.softmaxPairs == nil || k.valuesPairs == nil || k.pairValues == nil {
			t.Skip("no bfloat16 dot products")
		}
		f(t, k)
	})
}

func laneBF16(bits uint32) float32 { return math.Float32frombits(bits << 16) }

// laneWeight is weight j of lane i.
func laneWeight(p []uint32, lanes, j, i int) float32 {
	return laneBF16(p[j/2*lanes+i] >> (16 * (j & 1)) & 0xFFFF)
}

func TestLanePairValues(t *testing.T) {
	forPairTiers(t, func(t *testing.T, k laneKernels) {
		rng := rand.New(rand.NewPCG(15, 16))
		gt, gv := newLanePages(t, 1<<14), newLanePages(t, 1<<14)
		for dv := 1; dv <= 70; dv++ {
			for _, keys := range []int{1, 2, 3, 4, 7, 10} {
				for _, atEnd := range []bool{false, true} {
					shift, stride := rng.IntN(40), dv+rng.IntN(3)
					in := make([]uint16, keys*dv)
					for i := range in {
						in[i] = uint16(rng.Uint32())
					}
					pairs := (keys + 1) / 2
					v, _ := lanePlace(gv, atEnd, shift, laneRows(in, keys, dv, stride))
					to, ok := lanePlace(gt, atEnd, shift, laneFill(pairs*dv, uint32(0xDEADBEEF)))
					k.pairValues(&to[0], &v[0], 2*stride, keys, dv)
					ok(t)
					for j := range 2 * pairs {
						for x := range dv {
							var want uint16
							if j < keys {
								want = in[j*dv+x]
							}
							if got := uint16(to[j/2*dv+x] >> (16 * (j & 1))); got != want {
								t.Fatalf("dv %d, %d keys: [%d][%d] = %#x, want %#x", dv, keys, j, x, got, want)
							}
						}
					}
				}
			}
		}
	})
}

func TestLaneSoftmaxPairs(t *testing.T) {
	forPairTiers(t, func(t *testing.T, k laneKernels) {
		rng := rand.New(rand.NewPCG(17, 18))
		gs, gp, gl, gb := newLanePages(t, 1<<14), newLanePages(t, 1<<13), newLanePages(t, 4096), newLanePages(t, 4096)
		for _, lanes := range laneCounts {
			for keys := 1; keys < 20; keys++ {
				hi, lo := float32(0.18), float32(1e-9)
				in := make([]float32, keys*lanes)
				for i := range in {
					in[i] = float32(rng.NormFloat64() * 20)
				}
				in[lanes-1], in[len(in)-3] = float32(math.Inf(-1)), float32(math.Inf(-1))
				baseIn, lIn, alpha := make([]float32, lanes), make([]float64, lanes), make([]float64, lanes)
				for i := range lanes {
					baseIn[i], lIn[i], alpha[i] = float32(12+rng.IntN(5)), rng.Float64(), math.Ldexp(1, -rng.IntN(4))
				}
				atEnd, shift, pairs := keys&2 == 0, rng.IntN(16), (keys+1)/2
				for _, alias := range []bool{false, true} {
					s, okS := lanePlace(gs, atEnd, shift, in)
					l, okL := lanePlace(gl, atEnd, shift, lIn)
					base, _ := lanePlace(gb, atEnd, shift, baseIn)
					p, okP := lanePlace(gp, atEnd, shift, make([]uint32, pairs*lanes))
					if alias {
						p = unsafe.Slice((*uint32)(unsafe.Pointer(&s[0])), pairs*lanes)
					}
					k.softmaxPairs(&p[0], &s[0], lanes, keys, &base[0], hi, lo, &l[0], &alpha[0])
					okS(t)
					okP(t)
					okL(t)
					what := fmt.Sprintf("%d lanes, %d keys, alias %v", lanes, keys, alias)
					for i := range lanes {
						want := lIn[i] * alpha[i]
						for j := range keys {
							exact := math.Exp2(float64(in[j*lanes+i])*(float64(hi)+float64(lo)) - float64(base[i]))
							got := laneWeight(p, lanes, j, i)
							if math.Abs(float64(got)-exact) > (0x1p-8+1.1e-4)*exact {
								t.Fatalf("%s: weight [%d][%d] = %v, want %v", what, j, i, got, exact)
							}
							want += float64(got)
						}
						if keys&1 == 1 && laneWeight(p, lanes, keys, i) != 0 {
							t.Fatalf("%s: the missing key of lane %d weighs %v", what, i, laneWeight(p, lanes, keys, i))
						}
						if math.Abs(l[i]-want) > 2e-6*want {
							t.Fatalf("%s: l[%d] = %v, want %v", what, i, l[i], want)
						}
					}
					for i := pairs * lanes; alias && i < len(in); i++ {
						if s[i] != in[i] {
							t.Fatalf("%s: s[%d] is overwritten", what, i)
						}
					}
				}
			}
		}
	})
}

// lanePairExp2 is what a lane's weight and its sum become, for keys of one score.
func lanePairExp2(k laneKernels, keys int, s, hi, lo, base float32) (w []float32, l float64) {
	const lanes = 16
	in, p := laneFill(keys*lanes, s), make([]uint32, (keys+1)/2*lanes)
	b, sum, alpha := laneFill(lanes, base), make([]float64, lanes), laneFill(lanes, 1.0)
	k.softmaxPairs(&p[0], &in[0], lanes, keys, &b[0], hi, lo, &sum[0], &alpha[0])
	for j := range keys {
		w = append(w, laneWeight(p, lanes, j, 5))
	}
	return w, sum[5]
}

// Rounding to nearest of a value within 1e-4 of 2^t: half an ulp and a little, and
// no bias.
func TestLanePairExp2Error(t *testing.T) {
	forPairTiers(t, func(t *testing.T, k laneKernels) {
		rng := rand.New(rand.NewPCG(19, 20))
		const lanes, keys = 48, 2000
		for _, r := range [][2]float64{{-125, -64}, {-64, -8}, {-8, 0}, {-1e-3, 1e-3}, {0, 2}} {
			in := make([]float32, lanes*keys)
			for i := range in {
				in[i] = float32(r[0] + (r[1]-r[0])*rng.Float64())
			}
			p, base, l, alpha := make([]uint32, len(in)/2), make([]float32, lanes), make([]float64, lanes), laneFill(lanes, 1.0)
			k.softmaxPairs(&p[0], &in[0], lanes, keys, &base[0], 1, 0, &l[0], &alpha[0])
			worst, bias := 0.0, 0.0
			for i, x := range in {
				exact := math.Exp2(float64(x))
				got := float64(laneWeight(p, lanes, i/lanes, i%lanes))
				unit := math.Ldexp(1, math.Ilogb(exact)-7)
				worst = max(worst, math.Abs(got-exact)/unit)
				bias += (got/exact - 1) / float64(len(in))
			}
			t.Logf("2^t for t in [%g, %g]: at most %.4f ulp of bfloat16, on average %.1e", r[0], r[1], worst, bias)
			if worst > 0.5+2*1.1e-4*128 {
				t.Errorf("2^t for t in [%g, %g] is wrong by %.4f ulp", r[0], r[1], worst)
			}
			if r[1]-r[0] > 1 && math.Abs(bias) > 1e-4 {
				t.Errorf("2^t for t in [%g, %g] is wrong by %.2g on average", r[0], r[1], bias)
			}
		}
	})
}

func TestLanePairExp2Special(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	poisoned := func(x float32) bool { return x != x || x == inf }
	zero := func(x float32) bool { return x == 0 }
	tiny := func(x float32) bool { return x >= 0 && x <= 0x1p-126 }
	forPairTiers(t, func(t *testing.T, k laneKernels) {
		for _, c := range []struct {
			s, hi, lo, base float32
			ok              func(float32) bool
		}{
			{-inf, 1, 0, 0, zero}, {-inf, 1, 1e-9, 5, zero}, {-inf, 1, -1e-9, 0, zero}, {-inf, 0, 0, 0, zero}, {-inf, 1e-38, 0, -3, zero},
			{inf, 1, 0, 0, poisoned}, {inf, 1, 1e-9, inf, poisoned}, {inf, 1, -1e-9, 3, poisoned}, {inf, 1, 0, inf, poisoned},
			{nan, 1, 0, 0, poisoned}, {nan, 1, 1e-9, -7, poisoned}, {-nan, 1, 0, 0, poisoned}, {1, 1, 0, inf, zero}, {-3e38, 2, 0, 0, zero}, {3e38, 2, 0, 0, poisoned},
			{math.Float32frombits(0x7F800001), 1, 0, 0, poisoned}, {math.Float32frombits(0xFFBFFFFF), 1, 0, 0, poisoned},
			{-126.5, 1, 0, 0, tiny}, {-127.3, 1, 0, 0, tiny}, {-140.2, 1, 0, 0, tiny}, {-149.9, 1, 0, 0, tiny}, {-151, 1, 0, 0, tiny},
			{-254, 1, 0, 0, tiny}, {-255.7, 1, 0, 0, tiny}, {-256, 1, 0, 0, tiny}, {-1e4, 1, 0, 0, tiny}, {-3e9, 1, 0, 0, tiny}, {-3e38, 1, 0, 0, tiny},
			{127.7, 1, 0, 0, func(x float32) bool { return x > 0x1p127 && x < inf }}, {129, 1, 0, 0, poisoned}, {300, 1, 0, 0, poisoned}, {3e9, 1, 0, 0, poisoned},
			{0, 1, 0, 0, func(x float32) bool { return x == 1 }}, {-126, 1, 0, 0, func(x float32) bool { return x == 0x1p-126 }},
			{-2, 0, 0, 0, func(x float32) bool { return x == 1 }}, {3e38, 0, 0, 1, func(x float32) bool { return x == 0.5 }},
		} {
			for keys := 1; keys <= 5; keys++ {
				w, l := lanePairExp2(k, keys, c.s, c.hi, c.lo, c.base)
				for _, x := range w {
					if !c.ok(x) {
						t.Errorf("score %v, hi %v, lo %v, base %v: weights %v", c.s, c.hi, c.lo, c.base, w)
					}
				}
				one := float64(w[0])
				if one < 0x1p-126 {
					one = 0
				}
				if want := float32(one * float64(keys)); !laneSame(float32(l), want) {
					t.Errorf("score %v, hi %v, lo %v, base %v: l %v, want %v", c.s, c.hi, c.lo, c.base, l, want)
				}
			}
		}
		// A subnormal weight leaves its partner alone.
		in, p := make([]float32, 32), make([]uint32, 16)
		for i := range 16 {
			in[i], in[16+i] = -1, -126.3-float32(i)
		}
		b, sum, alpha := make([]float32, 16), make([]float64, 16), laneFill(16, 1.0)
		k.softmaxPairs(&p[0], &in[0], 16, 2, &b[0], 1, 0, &sum[0], &alpha[0])
		for i := range 16 {
			if laneWeight(p, 16, 0, i) != 0.5 || sum[i] != 0.5 {
				t.Errorf("beside 2^%v: weight %v, sum %v", in[16+i], laneWeight(p, 16, 0, i), sum[i])
			}
		}
	})
}

func TestLaneValuesPairs(t *testing.T) {
	forPairTiers(t, func(t *testing.T, k laneKernels) {
		rng := rand.New(rand.NewPCG(21, 22))
		ga, gp, gv, gw := newLanePages(t, 1<<16), newLanePages(t, 1<<14), newLanePages(t, 1<<14), newLanePages(t, 4096)
		for _, lanes := range laneCounts {
			for _, pairs := range []int{1, 2, 3, 4, 5, 8, 9, 17, 33} {
				for dv := 1; dv <= 50; dv++ {
					atEnd, shift := dv&1 == 0, rng.IntN(16)
					in, w := laneInts[float64](rng, dv*lanes), make([]float64, lanes)
					for i := range w {
						w[i] = math.Ldexp(1, -rng.IntN(3))
					}
					pIn, vIn := laneInts[float32](rng, 2*pairs*lanes), laneInts[float32](rng, 2*pairs*dv)
					p, _ := lanePlace(gp, atEnd, shift, lanePairs(pIn, 2*pairs, lanes))
					v, _ := lanePlace(gv, atEnd, shift, lanePairs(vIn, 2*pairs, dv))
					alpha, _ := lanePlace(gw, atEnd, shift, w)
					acc, ok := lanePlace(ga, atEnd, shift, in)
					k.valuesPairs(&acc[0], &alpha[0], lanes, &p[0], pairs, &v[0], dv)
					ok(t)
					for x := range dv {
						for i := range lanes {
							want := in[x*lanes+i] * w[i]
							for j := range 2 * pairs {
								want += float64(pIn[j*lanes+i]) * float64(vIn[j*dv+x])
							}
							if got := acc[x*lanes+i]; got != want {
								t.Fatalf("%d lanes, %d pairs, dv %d: acc[%d][%d] = %v, want %v", lanes, pairs, dv, x, i, got, want)
							}
						}
					}
				}
			}
		}
	})
}

// NaN and infinities of V reach the columns of every row, however small the
// weights; the zero beside an odd last key meets a zero.
func TestLaneValuesPairsSpecial(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	forPairTiers(t, func(t *testing.T, k laneKernels) {
		for _, lanes := range laneCounts {
			for _, c := range []struct {
				p, v []float32
				want float64
			}{
				{[]float32{1, 0}, []float32{2, nan}, math.NaN()}, {[]float32{0}, []float32{nan}, math.NaN()},
				{[]float32{0, 1}, []float32{inf, 1}, math.NaN()}, {[]float32{0.5, 1}, []float32{inf, 1}, math.Inf(1)},
				{[]float32{0.5}, []float32{-inf}, math.Inf(-1)}, {[]float32{1, 1, 1}, []float32{inf, 2, -inf}, math.NaN()},
				{[]float32{nan, 0}, []float32{0, 0}, math.NaN()}, {[]float32{inf}, []float32{2}, math.Inf(1)}, {[]float32{1, 2, 3}, []float32{1, 2, 3}, 14},
			} {
				p, keys := []float32{}, len(c.p)
				for _, x := range c.p {
					p = append(p, laneFill(lanes, x)...)
				}
				pairs := (keys + 1) / 2
				p = append(p, make([]float32, 2*pairs*lanes-len(p))...)
				pp, short, v := lanePairs(p, 2*pairs, lanes), laneTruncate(c.v), make([]uint32, pairs)
				k.pairValues(&v[0], &short[0], 2, keys, 1)
				acc, alpha := make([]float64, lanes), laneFill(lanes, 1.0)
				k.valuesPairs(&acc[0], &alpha[0], lanes, &pp[0], pairs, &v[0], 1)
				for _, got := range acc {
					if !laneSame(got, c.want) {
						t.Fatalf("%d lanes, %v times %v: %v, want %v", lanes, c.p, c.v, got, c.want)
					}
				}
			}
		}
	})
}

// The three kernels together, tile after tile: where V is constant so is the
// output, because the weights that are summed are those that V is multiplied by;
// and elsewhere their rounding averages out.
func TestLanePairsAttention(t *testing.T) {
	forPairTiers(t, func(t *testing.T, k laneKernels) {
		rng := rand.New(rand.NewPCG(23, 24))
		const d, dv = 64, 19
		for _, lanes := range laneCounts {
			for _, keyTiles := range [][]int{{1}, {37, 5}, {256, 255, 1, 128}} {
				q := make([]float32, d*lanes)
				for i := range q {
					q[i] = float32(rng.NormFloat64() * 2)
				}
				qPairs := lanePairs(q, d, lanes)
				c := math.Log2E / math.Sqrt(d)
				hi := float32(c)
				inf := math.Inf(1)
				m, l, acc, alpha := laneFill(lanes, -inf), make([]float64, lanes), make([]float64, dv*lanes), make([]float64, lanes)
				base := make([]float32, lanes)
				var exact [][]float64 // weights, from the scores in float64
				var values [][]uint16
				for _, keys := range keyTiles {
					ks, vs := make([]uint16, keys*d), make([]uint16, keys*dv)
					for i := range ks {
						ks[i] = laneTruncate([]float32{float32(rng.NormFloat64())})[0]
					}
					for i := range vs {
						vs[i] = laneTruncate([]float32{float32(rng.NormFloat64())})[0]
						if i%dv == 7 {
							vs[i] = 0x3F80
						}
					}
					for j := range keys {
						row := make([]float64, lanes)
						for i := range lanes {
							for x := range d {
								qx := laneBF16(math.Float32bits(q[x*lanes+i]) >> 16)
								row[i] += float64(laneBF16(uint32(ks[j*d+x]))) * float64(qx)
							}
							row[i] = math.Exp2(row[i] * c)
						}
						exact, values = append(exact, row), append(values, vs[j*dv:][:dv])
					}
					s, top := make([]float32, keys*lanes), laneFill(lanes, float32(-inf))
					pairs := (keys + 1) / 2
					v := make([]uint32, pairs*dv)
					p := (*uint32)(unsafe.Pointer(&s[0]))
					k.scoresBF16(&s[0], &top[0], &qPairs[0], d, lanes, &ks[0], 2*d, keys)
					k.rebase(&m[0], &alpha[0], &base[0], &top[0], lanes, c)
					k.pairValues(&v[0], &vs[0], 2*dv, keys, dv)
					k.softmaxPairs(p, &s[0], lanes, keys, &base[0], hi, float32(c-float64(hi)), &l[0], &alpha[0])
					k.valuesPairs(&acc[0], &alpha[0], lanes, p, pairs, &v[0], dv)
				}
				var wrong, size float64
				for i := range lanes {
					if one := acc[7*lanes+i] / l[i]; math.Abs(one-1) > 1e-6 {
						t.Errorf("%d lanes, keys %v: the mean of ones is %v", lanes, keyTiles, one)
					}
					for x := range dv {
						var sum, total float64
						for j, row := range exact {
							sum += row[i] * float64(laneBF16(uint32(values[j][x])))
							total += row[i]
						}
						e := acc[x*lanes+i]/l[i] - sum/total
						wrong, size = wrong+e*e, size+sum/total*(sum/total)
					}
				}
				t.Logf("%d lanes, keys %v: relative error %.1e", lanes, keyTiles, math.Sqrt(wrong/size))
				if wrong > size*4e-3*4e-3 {
					t.Errorf("%d lanes, keys %v: relative error %.2g", lanes, keyTiles, math.Sqrt(wrong/size))
				}
			}
		}
	})
}
