package stream

import (
	"cmp"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"sync"
	"sync/atomic"
)

// Checksums are CRC-32C: every error of up to three bits is detected in records, and
// every burst of up to 32 bits anywhere; other damage slips through once in 2^32.
const polynomial = crc32.Castagnoli

var castagnoli = crc32.MakeTable(polynomial)

// summer writes to a place and sums up what is written. Parts may come in any order
// and from several threads.
type summer struct {
	to io.WriterAt

	mu    sync.Mutex
	parts []summed
}

type summed struct {
	at, n int64
	sum   uint32
}

func (s *summer) WriteAt(b []byte, at int64) (int, error) {
	n, err := s.to.WriteAt(b, at)
	if err != nil {
		return n, err
	}
	s.add(b, at)
	return n, nil
}

func (s *summer) add(b []byte, at int64) {
	p := summed{at, int64(len(b)), crc32.Checksum(b, castagnoli)}
	s.mu.Lock()
	s.parts = append(s.parts, p)
	s.mu.Unlock()
}

// tell completes a record with the checksum and the number of the bytes written.
func (s *summer) tell(r *record) (err error) {
	r.sum, r.bytes, err = s.sum()
	return err
}

// sum is the checksum of all bytes from offset 0 on, and how many they are.
func (s *summer) sum() (sum uint32, n int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	slices.SortFunc(s.parts, func(a, b summed) int { return cmp.Compare(a.at, b.at) })
	for _, p := range s.parts {
		if p.at != n {
			return 0, 0, fmt.Errorf("a state was written with a gap or an overlap at byte %d", n)
		}
		sum = advance(sum, p.n) ^ p.sum
		n += p.n
	}
	return sum, n, nil
}

// checker reads back what a summer has written. Whoever reads the last of it, the parts in
// any order but each once, gets an error if it is not as it was.
type checker struct {
	from io.ReaderAt
	path string
	want func() summed // all that was written
	read summer
	n    atomic.Int64 // bytes read
}

// newChecker reads what written has when the first byte is read: by then, it is all.
func newChecker(from io.ReaderAt, path string, written *summer) *checker {
	return &checker{from: from, path: path, want: sync.OnceValue(func() summed {
		sum, n, err := written.sum()
		if err != nil {
			return summed{at: -1} // nothing is like it
		}
		return summed{0, n, sum}
	})}
}

func (c *checker) ReadAt(b []byte, at int64) (int, error) {
	n, err := c.from.ReadAt(b, at)
	if n < len(b) {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return n, fmt.Errorf("read a state in %s: %w", c.path, err)
	}
	c.read.add(b, at)
	want := c.want()
	if c.n.Add(int64(n)) < want.n {
		return n, nil
	}
	if got, n, err := c.read.sum(); err != nil || (summed{0, n, got}) != want {
		return 0, fmt.Errorf("a state in %s is not as it was written: others changed the file, or its disk failed", c.path)
	}
	return n, nil
}

// advance returns the checksum of data, followed by n zero bytes whose own is taken for
// zero: multiplied by x^8n modulo the polynomial, bits reflected.
func advance(sum uint32, n int64) uint32 {
	power := uint32(1) << 30 // x
	for bits := 8 * uint64(n); bits > 0; bits >>= 1 {
		if bits&1 == 1 {
			sum = multiply(sum, power)
		}
		power = multiply(power, power)
	}
	return sum
}

// multiply multiplies polynomials modulo the polynomial. The highest bit is the
// coefficient of x^0.
func multiply(a, b uint32) (p uint32) {
	for bit := uint32(1) << 31; bit > 0; bit >>= 1 {
		if a&bit != 0 {
			p ^= b
		}
		odd := b & 1
		b >>= 1
		if odd == 1 {
			b ^= polynomial
		}
	}
	return p
}

// sumOf reads n bytes and sums them up.
func sumOf(r io.ReaderAt, n int64) (uint32, error) {
	h := crc32.New(castagnoli)
	got, err := io.Copy(h, io.NewSectionReader(r, 0, n))
	if err == nil && got < n {
		err = io.ErrUnexpectedEOF
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return h.Sum32(), err
}
