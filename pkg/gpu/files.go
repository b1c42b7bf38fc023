//go:build cuda

package gpu

import "github.com/streamcqsa/streamcqsa/pkg/attention"

// scatter copies rows that lie pitch bytes apart in b to where they belong.
func scatter(to attention.Rows, b []byte, pitch int) error {
	return attention.GuardFaults(func() error {
		w := to.RowBytes()
		if w == pitch && to.Contiguous() {
			copy(to.Data, b[:to.N*w])
			return nil
		}
		for i := range to.N {
			copy(to.Row(i), b[i*pitch:i*pitch+w])
		}
		return nil
	})
}

// within calls f for every segment of a concatenation that has some of its bytes
// [at, at+n): with the address, where they lie from at on, and how many there are.
func within(list []segment, at, n int64, f func(address uint64, from, bytes int64) error) error {
	start := int64(0) // of the segment
	for _, x := range list {
		lo, hi := max(start, at), min(start+x.bytes, at+n)
		if lo < hi {
			if err := f(x.at+uint64(lo-start), lo-at, hi-lo); err != nil {
				return err
			}
		}
		start += x.bytes
	}
	return nil
}
