package cpu

import (
	"io"
	"math"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

const (
	// loadThreads is how many threads fill one slot: as many as a few memory
	// channels feed, the other cores being busy with Apply.
	loadThreads = 4
	// loadBytes is about what is read, and then looked at while it is in the
	// second-level cache.
	loadBytes = 256 << 10
)

// LoadKV copies one key chunk into a KV slot: k and v have one entry per KV head.
// Each of their ranges is read from its start to its end by one thread, as the
// system's read-ahead expects. For few queries Apply reads the rows itself.
func (d *Device) LoadKV(slot int, k, v []attention.Rows, after ...attention.Event) attention.Event {
	return d.submit(d.in, after, func() error {
		s := &d.kv[slot]
		s.heads, s.rows = len(k), k[0].N
		if fewQueries(d.geo) {
			s.kRows, s.vRows = append(s.kRows[:0], k...), append(s.vRows[:0], v...)
			d.bookIn(k, v)
			return nil
		}
		nt := ceilDiv(s.rows, keyTile)
		err := d.spread(apart, min(d.threads, loadThreads), 2*s.heads, func(_, i int) error {
			h := i / 2
			if i%2 == 0 {
				return d.loadRows(s.k[h*s.rows*k[h].RowBytes():], k[h], s.norm[h*nt:], d.norm)
			}
			return d.loadRows(s.v[h*s.rows*v[h].RowBytes():], v[h], s.peak[h*nt:], d.peak)
		})
		if err != nil {
			return err
		}
		d.bookIn(k, v)
		return nil
	})
}

// bookIn counts keys and values that were loaded.
func (d *Device) bookIn(k, v []attention.Rows) {
	var bytes int64
	for h := range k {
		bytes += int64(k[h].N) * int64(k[h].RowBytes()+v[h].RowBytes())
	}
	d.book(func(st *attention.Stats) { st.InBytes += bytes })
}

// loadRows copies rows side by side and measures each tile of keys.
func (d *Device) loadRows(dst []byte, r attention.Rows, stat []float32, measure func(rows []byte, n, width int) float32) error {
	step := max(loadBytes/(keyTile*max(r.RowBytes(), 1)), 1) * keyTile
	for lo := 0; lo < r.N && !d.interrupted.Load(); lo += step {
		part := r.Slice(lo, min(lo+step, r.N))
		to := dst[lo*r.RowBytes():][:part.N*r.RowBytes()]
		if err := part.CopyTo(to); err != nil {
			return err
		}
		if d.row == nil {
			continue
		}
		for j := 0; j < part.N; j += keyTile {
			n := min(keyTile, part.N-j)
			stat[(lo+j)/keyTile] = measure(to[j*r.RowBytes():], n, r.Width)
		}
	}
	return nil
}

// norm is the largest |k|^2 and peak the largest |v| of rows in a slot, infinite
// if an element is not finite.
func (d *Device) norm(rows []byte, n, width int) float32 {
	return d.measure(rows, n, width, d.row.normF32, d.row.normF16, d.row.normBF16)
}

func (d *Device) peak(rows []byte, n, width int) float32 {
	return d.measure(rows, n, width, d.row.peakF32, d.row.peakF16, d.row.peakBF16)
}

func (d *Device) measure(rows []byte, n, width int, f32 func(*float32, int, int, int) float32, f16, bf16 func(*uint16, int, int, int) float32) float32 {
	stride := width * d.geo.DType.Size()
	switch d.geo.DType {
	case attention.F16:
		return f16(at[uint16](rows), stride, n, width)
	case attention.BF16:
		return bf16(at[uint16](rows), stride, n, width)
	}
	return f32(at[float32](rows), stride, n, width)
}

// LoadQuery loads one query chunk, one entry of q per query head, and its
// state: fresh if from is nil, else as SaveState wrote it.
func (d *Device) LoadQuery(slot int, q []attention.Rows, from io.ReaderAt, after ...attention.Event) attention.Event {
	return d.submit(d.in, after, func() error {
		s, g := &d.query[slot], d.geo
		s.heads, s.group, s.rows = len(q)/g.Group, g.Group, q[0].N
		var bytes int64
		for h := range q {
			bytes += int64(q[h].N) * int64(q[h].RowBytes())
		}
		err := d.spread(apart, min(d.threads, loadThreads), s.heads*s.tiles(), func(_, n int) error {
			head, i := n/s.tiles(), n%s.tiles()
			var t tile
			s.tile(g, head, i, &t)
			s.norm[n] = d.pack(&t, make([]float32, g.D), q[head*g.Group:], i*tileLanes, s.rows)
			if from == nil {
				t.clear()
			}
			return nil
		})
		if err != nil {
			return err
		}
		if from != nil {
			b := stateBytes(s.used(g))
			if err := attention.ReadFull(from, b, 0); err != nil {
				return err
			}
			bytes += int64(len(b))
		}
		d.book(func(st *attention.Stats) { st.InBytes += bytes })
		return nil
	})
}

// pack puts rows from first on, counted over the query heads in q, into the lanes
// of a tile, and returns the largest |q|^2. Lanes without a row are zero. A
// negative scale is folded into Q, so that the largest score is always that of
// the largest product.
func (d *Device) pack(t *tile, row []float32, q []attention.Rows, first, rows int) float32 {
	clear(t.q)
	clear(t.pairs)
	var norm float64
	for lane := range t.rows {
		src := q[(first+lane)/rows]
		src.DType.Widen(row, src.Row((first+lane)%rows))
		var sum float64
		for x, v := range row {
			v *= d.exp.sign
			sum += float64(v) * float64(v)
			t.q[x*t.lanes+lane] = v
			if t.pairs != nil {
				t.pairs[x/2*t.lanes+lane] |= math.Float32bits(v) >> 16 << (x % 2 * 16)
			}
		}
		if math.IsNaN(sum) {
			sum = math.Inf(1)
		}
		norm = max(norm, sum)
	}
	return float32(norm)
}
