package cpu

import (
	"unsafe"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// scratch is the memory of one thread. The vector kernels, the portable kernel
// and the kernels for few queries use the same bytes, at different times.
type scratch struct {
	tiles [taskTiles]tile
	see   [tileLanes]int32

	top, base, alpha [tileLanes]float64
	top32, base32    [tileLanes]float32

	k0    int     // first key of the tile of keys in work
	keys  int     // and the most that it has
	holds content // what of its keys and values has been converted

	// vector kernels
	s      []float32 // keyTile x lanes: scores, then weights
	sWide  []float64 // the same memory: wideKeys x lanes
	q      []float64 // D x lanes
	k32    []float32 // keyTile x D, unless K is float32 itself
	v32    []float32 // keyTile x Dv, likewise
	narrow bool      // K and V have to be widened

	plain plainScratch
	few   fewScratch

	ran     [paths]int // tiles of keys
	float64 float64    // pairs of a task or part for which float32 would not do
}

// content says which of a tile's keys and values have been converted.
type content uint8

const (
	nothing content = 0
	k32     content = 1 << iota
	v32
	vPairs // in the place of v32
	kv64   // by the portable kernel, which shares the memory of the others
)

// next begins with another tile of keys.
func (sc *scratch) next(k0, keys int) { sc.k0, sc.keys, sc.holds = k0, keys, nothing }

// claim reports whether the scratch holds something already, and counts it as held
// from now on, in place of what shares its memory.
func (sc *scratch) claim(what content) (held bool) {
	held = sc.holds&what != 0
	switch what {
	case kv64:
		sc.holds = nothing
	case v32:
		sc.holds &^= kv64 | vPairs
	case vPairs:
		sc.holds &^= kv64 | v32
	default:
		sc.holds &^= kv64
	}
	sc.holds |= what
	return held
}

// carve takes n elements from the front of *b.
func carve[T float32 | float64](b *[]byte, n int) []T {
	size := roundUp8(n * int(unsafe.Sizeof(T(0))))
	part := (*b)[:size:size]
	*b = (*b)[size:]
	return floats[T](part)[:n]
}

// wideKeys is as many keys as have room for float64 scores where keyTile have for
// float32.
const wideKeys = keyTile / 2

func scratchBytes(g attention.Geometry) int { return sharedBytes(g) + partBytes(g) }

// sharedBytes is the size of what the kernels use at different times. It ends with a
// cache line, and so does what follows: a vector that lies in two of them takes longer.
func sharedBytes(g attention.Geometry) int {
	vector := keyTile*tileLanes*4 + g.D*tileLanes*8
	if g.DType != attention.F32 {
		vector += roundUp8(keyTile*g.D*4) + roundUp8(keyTile*g.Dv*4)
	}
	return roundUp64(max(vector, plainBytes(g)))
}

func newScratch(g attention.Geometry, b []byte) (sc scratch) {
	all := b[:scratchBytes(g)]
	sc.plain, sc.few = newPlainScratch(g, all), newFewScratch(g, all[sharedBytes(g):])
	sc.sWide = carve[float64](&all, wideKeys*tileLanes)
	sc.s = unsafe.Slice((*float32)(unsafe.Pointer(&sc.sWide[0])), keyTile*tileLanes)
	sc.q = carve[float64](&all, g.D*tileLanes)
	if sc.narrow = g.DType != attention.F32; sc.narrow {
		sc.k32, sc.v32 = carve[float32](&all, keyTile*g.D), carve[float32](&all, keyTile*g.Dv)
	}
	return sc
}

// at is the first element of b.
func at[T float32 | uint16](b []byte) *T { return (*T)(unsafe.Pointer(unsafe.SliceData(b))) }

// keys32 returns K from key k0 on as float32: where it is, or converted once for
// all tiles of a task, which is then a tile of keys.
func (sc *scratch) keys32(g attention.Geometry, kv keys, k0 int, row *rowKernels) *float32 {
	return sc.widened(k32, sc.k32, kv, keys.kFrom, g.DType, k0, g.D, row)
}

// values32 does the same for V.
func (sc *scratch) values32(g attention.Geometry, kv keys, k0 int, row *rowKernels) *float32 {
	return sc.widened(v32, sc.v32, kv, keys.vFrom, g.DType, k0, g.Dv, row)
}

func (sc *scratch) widened(what content, to []float32, kv keys, from func(keys, int, int) []byte, t attention.DType, key, width int, row *rowKernels) *float32 {
	if !sc.narrow {
		return at[float32](from(kv, key, width*t.Size()))
	}
	if !sc.claim(what) {
		rows, n := at[uint16](from(kv, sc.k0, width*t.Size())), min(sc.keys, kv.n-sc.k0)*width
		if t == attention.BF16 {
			row.widenBF16(&to[0], rows, n)
		} else {
			row.widenF16(&to[0], rows, n)
		}
	}
	return &to[(key-sc.k0)*width]
}

// valuePairs is the tile of V in bfloat16, two keys to a word.
func (sc *scratch) valuePairs(g attention.Geometry, kv keys, lane *laneKernels) *uint32 {
	to := (*uint32)(unsafe.Pointer(&sc.v32[0]))
	if !sc.claim(vPairs) {
		lane.pairValues(to, at[uint16](kv.vFrom(sc.k0, g.Dv*2)), g.Dv*2, min(sc.keys, kv.n-sc.k0), g.Dv)
	}
	return to
}

// wideQuery is the panel of a tile in float64.
func (sc *scratch) wideQuery(t *tile) []float64 {
	q := sc.q[:len(t.q)]
	for i, x := range t.q {
		q[i] = float64(x)
	}
	return q
}
