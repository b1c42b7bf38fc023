package cpu

import (
	"math"
	"unsafe"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

const (
	tileLanes = 48  // query rows of a tile
	laneStep  = 16  // the last tile of a head has a multiple of it
	keyTile   = 256 // keys between two updates of the state
)

// lanesOf is how many lanes hold that many query rows.
func lanesOf(rows int) int { return (rows + laneStep - 1) / laneStep * laneStep }

func ceilDiv(a, b int) int { return (a + b - 1) / b }

// kvSlot holds one key chunk of a head group: K and V of each head as rows of
// the tensor's own type, and what the vector kernels must know of each tile of
// keys. For few queries it only tells where the rows are.
type kvSlot struct {
	k, v         []byte
	norm, peak   []float32 // per head and tile: largest |k|^2, largest |v|
	kRows, vRows []attention.Rows
	heads        int
	rows         int
}

func kvBytes(g attention.Geometry) int {
	if fewQueries(g) {
		return 0
	}
	return g.KVHeads * (roundUp8(g.KeyRows*g.D*g.DType.Size()) + roundUp8(g.KeyRows*g.Dv*g.DType.Size()) + 8*ceilDiv(g.KeyRows, keyTile))
}

func roundUp8(n int) int  { return (n + 7) &^ 7 }
func roundUp64(n int) int { return (n + 63) &^ 63 }

func newKVSlot(g attention.Geometry, b []byte) (s kvSlot) {
	if fewQueries(g) {
		return s
	}
	k, v := g.KVHeads*roundUp8(g.KeyRows*g.D*g.DType.Size()), g.KVHeads*roundUp8(g.KeyRows*g.Dv*g.DType.Size())
	s.k, s.v = b[:k:k], b[k:k+v:k+v]
	tiles := g.KVHeads * ceilDiv(g.KeyRows, keyTile)
	f := floats[float32](b[k+v:][:8*tiles])
	s.norm, s.peak = f[:tiles], f[tiles:]
	return s
}

// keys are rows of one head of a key chunk, from key first on, a multiple of
// keyTile, to key n.
type keys struct {
	first, n   int
	k, v       []byte
	norm, peak []float32
	// Of few queries: how far after a row in work, in bytes, is one that will be wanted next.
	kAhead, vAhead int
}

// kFrom and vFrom are the rows of K and V from a key on.
func (kv keys) kFrom(key, rowBytes int) []byte { return kv.k[(key-kv.first)*rowBytes:] }
func (kv keys) vFrom(key, rowBytes int) []byte { return kv.v[(key-kv.first)*rowBytes:] }

// bounds are the largest |k|^2 and |v| of the tiles in which keys [k0,k1) are.
func (kv keys) bounds(k0, k1 int) (k, v float32) {
	for i := k0 / keyTile; i*keyTile < k1; i++ {
		at := i - kv.first/keyTile
		k, v = max(k, kv.norm[at]), max(v, kv.peak[at])
	}
	return k, v
}

func (s *kvSlot) head(g attention.Geometry, h int) keys {
	kb, vb, nt := s.rows*g.D*g.DType.Size(), s.rows*g.Dv*g.DType.Size(), ceilDiv(s.rows, keyTile)
	return keys{n: s.rows, k: s.k[h*kb : (h+1)*kb], v: s.v[h*vb : (h+1)*vb], norm: s.norm[h*nt : (h+1)*nt], peak: s.peak[h*nt : (h+1)*nt]}
}

// querySlot holds one query chunk of a head group and its state. The rows of
// all query heads that share a KV head are one sequence, head after head; it is
// cut into tiles, and the rows of a tile lie in lanes: Q[head][tile][d][lane].
type querySlot struct {
	q     []float32
	pairs []uint32  // bfloat16 only: features 2x and 2x+1 in one word, [head][tile][x][lane]
	norm  []float32 // per head and tile: largest |q|^2
	state []float64 // [head][tile]: acc [dv][lane], m [lane], l [lane]
	heads int       // KV heads
	group int       // query heads of each
	rows  int       // of each query head
}

func queryBytes(g attention.Geometry) int {
	lanes := lanesOf(g.Group * g.QueryRows)
	return g.KVHeads * (lanes*((g.Dv+2)*8+roundUp8(g.D*4)+pairBytes(g)) + roundUp8(4*ceilDiv(lanes, tileLanes)))
}

// pairBytes is the size of one lane of pairs.
func pairBytes(g attention.Geometry) int {
	if g.DType != attention.BF16 {
		return 0
	}
	return roundUp8(4 * ((g.D + 1) / 2))
}

func newQuerySlot(g attention.Geometry, b []byte) (s querySlot) {
	lanes := g.KVHeads * lanesOf(g.Group*g.QueryRows)
	cut := func(n int) (part []byte) { part, b = b[:n:n], b[n:]; return part }
	s.state = floats[float64](cut(lanes * (g.Dv + 2) * 8))
	s.q = floats[float32](cut(lanes * roundUp8(g.D*4)))
	s.pairs = floats[uint32](cut(lanes * pairBytes(g)))
	s.norm = floats[float32](cut(g.KVHeads * roundUp8(4*ceilDiv(lanes/g.KVHeads, tileLanes))))
	return s
}

// shared is the number of query rows that share one KV head, and tiles how many
// tiles they fill.
func (s *querySlot) shared() int { return s.group * s.rows }
func (s *querySlot) tiles() int  { return ceilDiv(s.shared(), tileLanes) }

// used is the part of the state that the loaded chunk has.
func (s *querySlot) used(g attention.Geometry) []float64 {
	return s.state[:s.heads*lanesOf(s.shared())*(g.Dv+2)]
}

// state is that of one tile: acc is [dv][lane].
type state struct {
	acc, m, l []float64
	lanes     int
}

func newState(f []float64, lanes, dv int) state {
	return state{acc: f[:lanes*dv], m: f[lanes*dv : lanes*(dv+1)], l: f[lanes*(dv+1) : lanes*(dv+2)], lanes: lanes}
}

// clear makes the state that of no key.
func (s state) clear() {
	clear(s.acc)
	clear(s.l)
	for i := range s.m {
		s.m[i] = math.Inf(-1)
	}
}

// tile is a tile of query rows in work.
type tile struct {
	state
	rows  int
	q     []float32
	pairs []uint32
	norm  float32

	see         [tileLanes]int32 // how many keys of the chunk in work a row sees
	least, most int              // of them
	steep       bool             // the chunk in work has scores that float32 is too coarse for
}

// tile returns tile i of a KV head.
func (s *querySlot) tile(g attention.Geometry, head, i int, t *tile) {
	all := lanesOf(s.shared())
	at := head*all + i*tileLanes
	lanes := min(tileLanes, all-i*tileLanes)
	t.state = newState(s.state[at*(g.Dv+2):][:lanes*(g.Dv+2)], lanes, g.Dv)
	t.rows = min(tileLanes, s.shared()-i*tileLanes)
	t.q = s.q[at*g.D:][:lanes*g.D]
	if g.DType == attention.BF16 {
		words := (g.D + 1) / 2
		t.pairs = s.pairs[at*words:][:lanes*words]
	}
	t.norm = s.norm[head*s.tiles()+i]
}

// look sets how much of a chunk of n keys the rows of tile i see.
func (t *tile) look(s *querySlot, i int, ref attention.KVRef, n int) (pairs int) {
	t.steep = false
	if ref.Kind == attention.Full {
		for r := range t.rows {
			t.see[r] = int32(n)
		}
		t.least, t.most = n, n
		return t.rows * n
	}
	t.least, t.most = n, 0
	for r := range t.rows {
		see := min(max((i*tileLanes+r)%s.rows+ref.Offset+1, 0), n)
		t.see[r] = int32(see)
		t.least, t.most = min(t.least, see), max(t.most, see)
		pairs += see
	}
	return pairs
}

func floats[T float32 | float64 | uint32](b []byte) []T {
	if len(b) == 0 {
		return nil
	}
	return unsafe.Slice((*T)(unsafe.Pointer(&b[0])), len(b)/int(unsafe.Sizeof(T(0))))
}

func stateBytes(f []float64) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(f))), 8*len(f))
}
