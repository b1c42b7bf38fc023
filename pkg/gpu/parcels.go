//go:build cuda

package gpu

import (
	"iter"
	"unsafe"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// span is rows of one tensor that a load packs into a slot: of one head, or of heads
// that lie beside each other in every row.
type span struct {
	rows  attention.Rows // of all heads together
	head  int            // the first
	heads int
	value bool // of V
}

// piece is consecutive rows of a span on their way through a staging buffer.
type piece struct {
	span *span
	rows attention.Rows
	at   int64 // where they lie in the buffer
	tile int   // the tile that they begin
}

// spansOf makes spans of the rows of some heads. Heads whose rows are interleaved
// share one, while a tile of it fits into most bytes: a wide copy is faster than
// several narrow ones.
func spansOf(heads []attention.Rows, value bool, tileRows int, most int64) []span {
	var list []span
	for h, r := range heads {
		if n := len(list); n > 0 {
			s := &list[n-1]
			if besides(s.rows, r) && s.heads < mostJobs && int64(tileRows)*int64(s.rows.RowBytes()+r.RowBytes()) <= most {
				s.rows = widened(s.rows, r)
				s.heads++
				continue
			}
		}
		list = append(list, span{rows: r, head: h, heads: 1, value: value})
	}
	return list
}

// besides reports whether every row of b begins where that of a ends.
func besides(a, b attention.Rows) bool {
	if a.N != b.N || a.N == 0 || a.Stride != b.Stride || a.Stride < a.RowBytes()+b.RowBytes() {
		return false
	}
	start := func(r attention.Rows) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(r.Data))) }
	return start(b)-start(a) == uintptr(a.RowBytes()) && (a.File == nil || b.At-a.At == int64(a.RowBytes()))
}

// widened is a with b beside it. The two are parts of one mapping.
func widened(a, b attention.Rows) attention.Rows {
	n := (a.N-1)*a.Stride + a.RowBytes() + b.RowBytes()
	a.Data = unsafe.Slice(unsafe.SliceData(a.Data), n)
	a.Width += b.Width
	return a
}

// parcels cuts spans into loads of a staging buffer of so many bytes: whole tiles,
// except at the end of a chunk, for at most so many jobs of packing.
func parcels(spans []span, tileRows int, size int64, jobs int) iter.Seq[[]piece] {
	return func(yield func([]piece) bool) {
		var list []piece
		var used int64
		left := jobs
		flush := func() bool {
			full := list
			list, used, left = nil, 0, jobs
			return len(full) == 0 || yield(full)
		}
		for i := range spans {
			s := &spans[i]
			row := int64(s.rows.RowBytes())
			for lo := 0; lo < s.rows.N; {
				n := int(min((size-used)/row, int64(s.rows.N-lo)))
				if n < s.rows.N-lo {
					n = n / tileRows * tileRows
				}
				if n == 0 || left < s.heads {
					if !flush() {
						return
					}
					continue
				}
				list = append(list, piece{span: s, rows: s.rows.Slice(lo, lo+n), at: used, tile: lo / tileRows})
				used = align(used + int64(n)*row)
				left -= s.heads
				lo += n
			}
		}
		flush()
	}
}

// bytesOfRows is how much of a file they are.
func bytesOfRows(list []piece) (n int64) {
	for _, p := range list {
		n += int64(p.rows.N) * int64(p.rows.RowBytes())
	}
	return n
}

// bytesIn is how much of a buffer pieces reach over.
func bytesIn(list []piece) int64 {
	last := list[len(list)-1]
	return last.at + int64(last.rows.N)*int64(last.rows.RowBytes())
}

// gather copies those rows of pieces that begin in bytes [lo, hi) of a buffer to where
// they lie in it.
func gather(list []piece, buffer []byte, lo, hi int64) error {
	return attention.GuardFaults(func() error {
		for _, p := range list {
			row := p.rows.RowBytes()
			before := func(end int64) int { // rows of p that begin before it
				return int(max(0, min((end-p.at+int64(row)-1)/int64(row), int64(p.rows.N))))
			}
			from, to := before(lo), before(hi)
			if from == to {
				continue
			}
			if err := gatherRows(buffer[p.at+int64(from*row):p.at+int64(to*row)], p.rows.Slice(from, to)); err != nil {
				return err
			}
		}
		return nil
	})
}

// gatherRows copies rows, side by side. Those in the page cache come from the mapping:
// reading them copies page after page, and a processor that reads several at once waits
// less for memory.
func gatherRows(dst []byte, r attention.Rows) error {
	if r.Contiguous() && r.Mapping != nil && cached(r) {
		copyPages(dst, r.Data)
		return nil
	}
	return r.CopyTo(dst)
}

// copyPages copies src, as long as dst, some pages at once and a few cache lines of each
// in turn.
func copyPages(dst, src []byte) {
	const page, most, lines = 4 << 10, 16 << 10, 512
	for len(dst) >= most {
		d, s := (*[most]byte)(dst), (*[most]byte)(src)
		for line := 0; line < page; line += lines {
			for at := line; at < most; at += page {
				copy(d[at:at+lines], s[at:at+lines])
			}
		}
		dst, src = dst[most:], src[most:]
	}
	copy(dst, src)
}

// runs cuts n rows, at an offset in a mapping and so many bytes apart, into copies
// of which none crosses from one window of size bytes into the next: rows whole
// where they can be, and else parts of one. f gets the first row, how many, the
// offset in the mapping, the bytes of each, and those of the row that came before.
func runs(at, stride, width int64, n int, size int64, f func(row, rows int, from, bytes, skipped int64) error) error {
	for row := 0; row < n; {
		start := at + int64(row)*stride
		room := size - start%size
		if room >= width {
			k := int(min((room-width)/max(stride, 1)+1, int64(n-row)))
			if err := f(row, k, start, width, 0); err != nil {
				return err
			}
			row += k
			continue
		}
		for skipped := int64(0); skipped < width; {
			part := min(size-(start+skipped)%size, width-skipped)
			if err := f(row, 1, start+skipped, part, skipped); err != nil {
				return err
			}
			skipped += part
		}
		row++
	}
	return nil
}
