package stream

import (
	"cmp"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"sync"
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
	p := summed{at, int64(len(b)), crc32.Checksum(b, castagnoli)}
	s.mu.Lock()
	s.parts = append(s.parts, p)
	s.mu.Unlock()
	return n, nil
}

// tell completes a record with the checksum and the number of the bytes written.
func (s *summer) tell(r *record) (err error) {
	r.sum, r.bytes, err = s.sum()
	return err
}

// sum is the checksum of all bytes from offset 0 on, and how many they are.
func (s *summer) sum() (sum uint32, n int64, err error) {
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
