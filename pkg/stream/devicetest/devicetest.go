// Package devicetest is the tests that every stream.Device passes: that results are
// what docs/numerics.md promises, against the float64 oracle, and that the contract of
// stream.Device holds.
package devicetest

import (
	"testing"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/stream"
)

// Subject is a kind of device.
type Subject struct {
	// Open returns a device that is not reserved, with that many threads if it has
	// any.
	Open func(t testing.TB, threads int) stream.Device
	// Poison fills what a device reserved with bytes that are NaN in every type. May
	// be nil.
	Poison func(t testing.TB, d stream.Device)
	// Finished looks at a device after each chunk of queries, none of which was
	// longer than queryRows and none of their chunks of keys longer than keyRows. May
	// be nil.
	Finished func(t testing.TB, d stream.Device, queryRows, keyRows int)
	// Done is called at the end of each test. May be nil.
	Done func(t testing.TB)
	// Once says that float32 results, too, are exact ones rounded once.
	Once bool
	// AnyBatch says that neither the split into batches nor the length of query
	// chunks changes a bit.
	AnyBatch bool
	// PerScore is the relative error of a float32 result for each unit, of log2, of
	// the largest score of its row, where that is more than numerics.md promises
	// everywhere.
	PerScore float64
}

type suite struct{ Subject }

// Run runs all tests.
func Run(t *testing.T, subject Subject) {
	s := suite{subject}
	tests := []struct {
		name string
		test func(*testing.T)
	}{
		{"Exact", s.exact},
		{"ExactTypesAndDimensions", s.exactTypesAndDimensions},
		{"ExactScores", s.exactScores},
		{"ExactScoresBF16", s.exactScoresBF16},
		{"ExactSteepScores", s.exactSteepScores},
		{"Fast", s.fast},
		{"RowsWithoutKeys", s.rowsWithoutKeys},
		{"ErrorDoesNotGrowWithLength", s.errorDoesNotGrowWithLength},
		{"SameBits", s.sameBits},
		{"ChunkingsAgree", s.chunkingsAgree},
		{"LongChunks", s.longChunks},
		{"ManyHeads", s.manyHeads},
		{"SpecialValues", s.specialValues},
		{"FarApart", s.farApart},
		{"LargestValues", s.largestValues},
		{"ValuesInStretches", s.valuesInStretches},
		{"NaNDoesNotCrossTheCausalEdge", s.nanDoesNotCrossTheCausalEdge},
		{"ScoresAllMinusInfinity", s.scoresAllMinusInfinity},
		{"InfinityTimesVanishingWeight", s.infinityTimesVanishingWeight},
		{"Footprint", s.footprint},
		{"Events", s.events},
		{"Stats", s.stats},
		{"Float64", s.float64},
		{"Interrupt", s.interrupt},
		{"States", s.states},
		{"ShortState", s.shortState},
		{"Sources", s.sources},
		{"Fault", s.fault},
	}
	for _, x := range tests {
		t.Run(x.name, func(t *testing.T) {
			x.test(t)
			if s.Done != nil {
				s.Done(t)
			}
		})
	}
}

// reserve opens a device, reserves it, and poisons its memory.
func (s Subject) reserve(t testing.TB, threads int, g attention.Geometry) stream.Device {
	t.Helper()
	d := s.Open(t, threads)
	must(t, d.Reserve(g))
	if s.Poison != nil {
		s.Poison(t, d)
	}
	return d
}
