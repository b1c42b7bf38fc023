package cpu

import (
	"encoding/binary"
	"io"
	"math"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// SaveState writes the slot's state, in this machine's byte order.
func (d *Device) SaveState(slot int, to io.WriterAt, after ...attention.Event) attention.Event {
	return d.submit(d.out, after, func() error {
		b := stateBytes(d.query[slot].used(d.geo))
		if _, err := to.WriteAt(b, 0); err != nil {
			return err
		}
		d.book(func(st *attention.Stats) { st.OutBytes += int64(len(b)) })
		return nil
	})
}

// Finish writes the rows of a complete query chunk: O rounded once to its
// type, and lse (if wanted: lse may be nil) as float32. The first empty rows
// see no key.
func (d *Device) Finish(slot, empty int, out, lse []attention.Rows, after ...attention.Event) attention.Event {
	return d.submit(d.out, after, func() error {
		s, g := &d.query[slot], d.geo
		err := d.spread(apart, min(d.threads, loadThreads), s.heads*s.tiles(), func(_, i int) error {
			head, i := i/s.tiles(), i%s.tiles()
			var t tile
			s.tile(g, head, i, &t)
			for lane := range t.rows {
				h, row := head*g.Group+(i*tileLanes+lane)/s.rows, (i*tileLanes+lane)%s.rows
				finishRow(out[h].DType, out[h].Row(row), t.state, lane, row < empty)
				if lse != nil {
					attention.F32.Put(lse[h].Row(row), (t.m[lane]+math.Log2(t.l[lane]))*math.Ln2)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		var bytes int64
		for _, rows := range [][]attention.Rows{out, lse} {
			for h := range rows {
				bytes += int64(rows[h].N) * int64(rows[h].RowBytes())
			}
		}
		d.book(func(st *attention.Stats) { st.OutBytes += bytes })
		return nil
	})
}

func finishRow(t attention.DType, dst []byte, s state, lane int, empty bool) {
	if empty {
		clear(dst) // +0 in every type
		return
	}
	l, acc := s.l[lane], s.acc[lane:]
	if t == attention.F32 { // the usual one, and then nothing must be chosen for each element
		for i := 0; len(dst) >= 4; i += s.lanes {
			binary.LittleEndian.PutUint32(dst, math.Float32bits(float32(acc[i]/l)))
			dst = dst[4:]
		}
		return
	}
	for x, size := 0, t.Size(); x*size < len(dst); x++ {
		t.Put(dst[x*size:], acc[x*s.lanes]/l)
	}
}
