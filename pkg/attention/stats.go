package attention

import "time"

// Stats are what a device has done since Reserve. Seconds are those in which
// the queue of that direction was busy; the three overlap.
type Stats struct {
	InBytes, OutBytes int64 // moved from host memory into slots, and back

	InSeconds, ApplySeconds, OutSeconds float64

	Batches int64
	Pairs   float64 // (query row, key) pairs applied, over all query heads
	// Float64 is those of Pairs for which float32 would not do, and which took longer, on a
	// GPU by far; there it is those of query chunks that are finished.
	Float64 float64

	// Of devices with memory of their own.
	First  time.Time // when the first launch was submitted
	Path   string    // how inputs were fetched: registered, pinned ring, or both
	Pinned int64     // most bytes of host memory that were page-locked for it at once
}
