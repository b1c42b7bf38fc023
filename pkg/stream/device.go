package stream

import (
	"io"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// Device applies pairs of chunks that it holds in slots.
//
// Footprint, StateBytes, Rates and Expected are pure: the planner calls them for many
// geometries. Reserve takes all memory, exactly what Footprint said; nothing is
// allocated later. LoadKV, LoadQuery, Apply, SaveState and Finish are submitted
// by one goroutine and return at once; the device runs them in three queues
// (loads; applies; saves and finishes), each in order of submission and each
// operation after the events it is given. An operation that depends on one that
// failed fails with the same error.
//
// Host memory passed to an operation must stay valid until its event is done; that of
// LoadKV until the last Apply that uses the slot is: it may be read then.
type Device interface {
	// Name identifies the device to people: cpu, cuda:0.
	Name() string
	// Signature is all that, beside a plan, the bits of results and of states depend on:
	// kernels, and the hardware where they adapt to it.
	Signature(attention.Geometry) string
	// Rates choose between plans. They must not depend on what changes from run
	// to run, or a plan, and with it the bits of a result, would too.
	Rates(attention.Geometry) attention.Rates
	// Expected are the rates that predicted seconds count with: as good as is
	// known.
	Expected(attention.Geometry) attention.Rates
	// Footprint is the memory that Reserve would take, by purpose.
	Footprint(attention.Geometry) attention.Footprint
	// StateBytes is the most that SaveState writes for one query slot.
	StateBytes(attention.Geometry) int64

	// Reserve takes the memory of a geometry. Call it once before Release.
	Reserve(attention.Geometry) error
	// Allocated is the memory that Reserve took.
	Allocated() attention.Footprint

	// LoadKV fills a KV slot with one key chunk: one entry of k and of v per
	// KV head of the head group.
	LoadKV(slot int, k, v []attention.Rows, after ...attention.Event) attention.Event
	// LoadQuery fills a query slot with one query chunk, one entry of q per
	// query head, and its state: empty if state is nil, else as SaveState
	// wrote it.
	LoadQuery(slot int, q []attention.Rows, state io.ReaderAt, after ...attention.Event) attention.Event
	// Apply applies work to query slots, each of which occurs once.
	Apply(work []attention.Work, after ...attention.Event) attention.Event
	// SaveState writes the state of a query slot from offset 0.
	SaveState(slot int, to io.WriterAt, after ...attention.Event) attention.Event
	// Finish writes the results of a query slot: one entry of out, and of lse
	// unless it is nil, per query head. The first empty rows of the chunk see
	// no key: O = 0, lse = -inf.
	Finish(slot, empty int, out, lse []attention.Rows, after ...attention.Event) attention.Event

	// Stats is what was done since Reserve; it may be called at any time.
	Stats() attention.Stats
	// Interrupt makes all operations end soon, with attention.ErrInterrupted.
	Interrupt()
	// Release waits for all operations and gives everything back.
	Release() error
}
