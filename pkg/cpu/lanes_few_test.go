//go:build unix

package cpu

import (
	"math"
	"math/rand/v2"
	"testing"
	"unsafe"
)

// eachFewTier goes over the kernels of few rows, of each element type of K and V.
func eachFewTier(t *testing.T, f func(t *testing.T, k laneKernels, e rowFormat)) {
	for _, k := range laneTiers() {
		if k.fewScores == nil || raceDetector {
			continue
		}
		for _, e := range rowFormats(rowTiers()[0]) {
			if e.name != "bf16" || k.fewScoresBF16 != nil {
				t.Run(k.name+"/"+e.name, func(t *testing.T) { f(t, k, e) })
			}
		}
	}
}

func fewLay(rows int) (w fewWay) {
	w.rows = rows
	w.lay()
	return w
}

// lanesOfKey calls f with the row of every lane of a key and its place in the scores.
func (w *fewWay) lanesOfKey(key int, f func(row, at int)) {
	for lane := range w.lanes {
		if int(w.key[lane]) == key%blockWords {
			f(int(w.row[lane]), key/blockWords*w.lanes+lane)
		}
	}
}

func fewScoresOf(k laneKernels, e rowFormat, s, top []float32, q []uint32, d, rows int, m matrix, keys int) {
	switch q32 := (*float32)(unsafe.Pointer(&q[0])); e.name {
	case "f32":
		k.fewScores(&s[0], &top[0], q32, d, rows, (*float32)(m.p), m.stride, keys, anyAhead)
	case "bf16":
		k.fewScoresBF16(&s[0], &top[0], &q[0], d, rows, (*uint16)(m.p), m.stride, keys, anyAhead)
	default:
		k.fewScoresF16(&s[0], &top[0], q32, d, rows, (*uint16)(m.p), m.stride, keys, anyAhead)
	}
}

func TestFewScores(t *testing.T) {
	eachFewTier(t, func(t *testing.T, k laneKernels, e rowFormat) {
		r := rand.New(rand.NewPCG(31, 32))
		fs, fq, fk := newFence(t, 1<<14), newFence(t, 1<<15), newFence(t, 1<<17)
		for _, rows := range []int{8, 16} {
			w := fewLay(rows)
			word := 1 // elements
			if e.name == "bf16" {
				word = 2
			}
			for _, d := range []int{8, 16, 24, 32, 64, 72, 80, 128, 136, 256} {
				for _, keys := range []int{1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 70} {
					end, gap := r.IntN(2) == 0, r.IntN(2)*r.IntN(9)
					values := make([]float32, rows*d) // exact in bfloat16
					for i := range values {
						values[i] = float32(r.IntN(255)-127) / 64
					}
					q := fenced[uint32](fq, rows*d/word, end)
					for i, v := range values {
						row, x := i/d, i%d/word
						bits := math.Float32bits(v)
						if at := &q[x/blockWords*w.lanes+row*blockWords+x%blockWords]; word == 1 {
							*at = bits
						} else if i%2 == 0 {
							*at = bits >> 16
						} else {
							*at |= bits & 0xffff0000
						}
					}
					m := newMatrix(r, fk, e, keys, d, gap, end)
					s := fenced[float32](fs, ceilDiv(keys, blockWords)*w.lanes, end)
					top := make([]float32, w.lanes)
					for i := range top {
						top[i] = float32(r.IntN(9) - 4)
					}
					want := append([]float32(nil), top...)
					fewScoresOf(k, e, s, top, q, d, rows, m, keys)
					for j := range ceilDiv(keys, blockWords) * blockWords {
						w.lanesOfKey(j, func(row, at int) {
							want[at%w.lanes] = max(want[at%w.lanes], s[at])
							var sum, size float64
							for x := range d {
								p := float64(values[row*d+x]) * m.value(min(j, keys-1), x)
								sum += p
								size += math.Abs(p)
							}
							if math.Abs(float64(s[at])-sum) > size*float64(d+8)*6e-8 {
								t.Fatalf("%d rows, d %d, %d keys: score of row %d and key %d is %g, not %g", rows, d, keys, row, j, s[at], sum)
							}
						})
					}
					for i := range top {
						if top[i] != want[i] {
							t.Fatalf("%d rows, d %d, %d keys: top[%d] = %g, want %g", rows, d, keys, i, top[i], want[i])
						}
					}
					unwritten[float32](t, fs, len(s), end)
				}
			}
		}
	})
}

// A NaN in K stays with its key, and raises no top.
func TestFewScoresNaN(t *testing.T) {
	eachFewTier(t, func(t *testing.T, k laneKernels, e rowFormat) {
		r := rand.New(rand.NewPCG(33, 34))
		fk := newFence(t, 1<<14)
		const d, keys = 16, 21
		q := make([]uint32, 16*d)
		for i := range q {
			q[i] = 0x3f803f80 // two ones, or one and a bit
		}
		for _, rows := range []int{8, 16} {
			w := fewLay(rows)
			for bad := range keys {
				m := newMatrix(r, fk, e, keys, d, 0, true)
				e.set(m.at(bad, r.IntN(d)), math.NaN())
				s, top := make([]float32, ceilDiv(keys, blockWords)*w.lanes), make([]float32, w.lanes)
				fewScoresOf(k, e, s, top, q, d, rows, m, keys)
				for j := range keys {
					w.lanesOfKey(j, func(row, at int) {
						if (s[at] != s[at]) != (j == bad) || top[at%w.lanes] != top[at%w.lanes] {
							t.Fatalf("%d rows: score %g at key %d with NaN at %d, top %g", rows, s[at], j, bad, top[at%w.lanes])
						}
					})
				}
			}
		}
	})
}

// Sums are one chain of FMAs, to the bit, whatever the rows and the columns beside.
func TestFewValues(t *testing.T) {
	eachFewTier(t, func(t *testing.T, k laneKernels, e rowFormat) {
		r := rand.New(rand.NewPCG(35, 36))
		fo, fp, fv := newFence(t, 1<<15), newFence(t, 1<<14), newFence(t, 1<<18)
		for _, rows := range []int{8, 16} {
			w := fewLay(rows)
			for _, dv := range []int{1, 5, 15, 16, 17, 31, 32, 33, 64, 79, 80, 128, 200} {
				for _, keys := range []int{1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 66, 67, 131} {
					end, gap := r.IntN(2) == 0, r.IntN(2)*r.IntN(9)
					p := fenced[float32](fp, ceilDiv(keys, blockWords)*w.lanes, end)
					nan := float32(math.NaN())
					for i := range p {
						p[i] = nan // of keys after the last
					}
					for j := range keys {
						w.lanesOfKey(j, func(_, at int) { p[at] = r.Float32() })
					}
					m := newMatrix(r, fv, e, keys, dv, gap, end)
					o := fenced[float32](fo, rows*dv, end)
					switch e.name {
					case "f32":
						k.fewValues(&o[0], &p[0], rows, keys, (*float32)(m.p), m.stride, dv, anyAhead)
					case "bf16":
						k.fewValuesBF16(&o[0], &p[0], rows, keys, (*uint16)(m.p), m.stride, dv, anyAhead)
					default:
						k.fewValuesF16(&o[0], &p[0], rows, keys, (*uint16)(m.p), m.stride, dv, anyAhead)
					}
					want := make([]float32, rows*dv)
					for j := range keys {
						w.lanesOfKey(j, func(row, at int) {
							for x := range dv {
								want[row*dv+x] = float32(math.FMA(float64(p[at]), m.value(j, x), float64(want[row*dv+x])))
							}
						})
					}
					for i := range o {
						if math.Float32bits(o[i]) != math.Float32bits(want[i]) {
							t.Fatalf("%d rows, dv %d, %d keys: o[%d][%d] = %g, want %g", rows, dv, keys, i/dv, i%dv, o[i], want[i])
						}
					}
					unwritten[float32](t, fo, len(o), end)
				}
			}
		}
	})
}

func TestRowAccumulate(t *testing.T) {
	for _, k := range testedRowTiers() {
		r := rand.New(rand.NewPCG(37, 38))
		fa, fo := newFence(t, 4096), newFence(t, 4096)
		for n := 1; n <= 70; n++ {
			end := r.IntN(2) == 0
			acc, o := fenced[float64](fa, n, end), fenced[float32](fo, n, end)
			randomFloats(r, o)
			want := make([]float64, n)
			for i := range acc {
				acc[i] = r.NormFloat64()
				want[i] = math.FMA(acc[i], 0.75, float64(o[i]))
			}
			k.accumulate(&acc[0], 0.75, &o[0], n)
			for i := range acc {
				if acc[i] != want[i] {
					t.Fatalf("%s: n %d: acc[%d] = %g, want %g", k.name, n, i, acc[i], want[i])
				}
			}
			unwritten[float64](t, fa, n, end)
		}
	}
}
