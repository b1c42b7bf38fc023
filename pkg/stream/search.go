package stream

import (
	"fmt"
	"math"
	"slices"
	"sort"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/divide"
)

const (
	// fineRows is the shortest chunk that the planner likes: below it kernels
	// and copies spend their time on edges. minRows is the shortest that it
	// takes when nothing else fits. Requests for more chunks are obeyed.
	fineRows = 1024
	minRows  = 64
	// maxChunks bounds the interest sets that the planner tries; finer divisions
	// move more bytes than a rows division of the same footprint. maxAtoms bounds
	// c^depth, which is also the pairs of one subproblem.
	maxChunks = 1100
	maxAtoms  = 1 << 18
	// Requests are obeyed up to limitPairs pairs in a subproblem, which are in
	// memory at once, and limitChunks chunks on an axis, which chunkID can name.
	limitPairs  = 1 << 22
	limitChunks = 1<<31 - 1
)

// slots is one way to share the budget out: chunks that a batch uses, and
// chunks that load ahead or are kept for later.
type slots struct {
	query, queryAhead, kv, kvAhead int
}

// candidate is a plan before it is priced.
type candidate struct {
	kind        string
	set         divide.InterestSet // of cqs
	heads       int                // KV heads per head group
	queryChunks int
	keyChunks   int
	slots       slots
}

// choice is what a journal says of a candidate.
func (c candidate) choice(depth int) Choice {
	ch := Choice{Divide: c.kind, Depth: depth, KVHeads: c.heads, QueryChunks: c.queryChunks, KeyChunks: c.keyChunks,
		Slots: [4]int{c.slots.query, c.slots.queryAhead, c.slots.kv, c.slots.kvAhead}}
	if c.kind == divideCQS {
		ch.Chunks = c.set.Chunks()
	}
	return ch
}

type search struct {
	req      Request
	dev      Device
	kinds    []string
	sets     []divide.InterestSet // ascending c
	shortest int                  // rows of the shortest chunk to try
	smallest int64                // footprint of the smallest candidate seen

	leastState int64      // least disk for states among plans refused for it
	spare      *sequencer // of the last candidate: its memory is used again
}

func newSearch(req Request, dev Device) (*search, error) {
	s := &search{req: req, dev: dev, smallest: math.MaxInt64, leastState: math.MaxInt64}
	switch req.Divide {
	case "", "auto":
		s.kinds = []string{divideCQS, divideRows}
	case divideCQS, divideRows:
		s.kinds = []string{req.Divide}
	default:
		return nil, fmt.Errorf("%w: division %q: want auto, cqs or rows", ErrRequest, req.Divide)
	}
	if req.Chunks < 0 || req.Chunks > limitChunks {
		return nil, fmt.Errorf("%w: %d chunks: want 1 to %d, or 0 to choose", ErrRequest, req.Chunks, limitChunks)
	}
	if req.Depth < 0 || req.Depth > 3 {
		return nil, fmt.Errorf("%w: depth %d: want 1 to 3", ErrRequest, req.Depth)
	}
	if s.req.Depth == 0 {
		s.req.Depth = 1
	}
	if s.req.Depth > 1 && s.req.Divide != divideCQS {
		s.kinds = []string{divideCQS}
		if req.Divide == divideRows {
			return nil, fmt.Errorf("%w: depth %d: only the cqs division has a depth", ErrRequest, req.Depth)
		}
	}
	return s, s.chooseSets()
}

// chooseSets lists the interest sets to try: the one asked for, or the perfect
// ones whose chunks are not too short.
func (s *search) chooseSets() error {
	if !slices.Contains(s.kinds, divideCQS) {
		return nil
	}
	if c := s.req.Chunks; c != 0 {
		set, err := divide.Cover(c)
		if err != nil {
			if s.req.Divide == divideCQS || s.req.Depth > 1 {
				return fmt.Errorf("%w: %w", ErrRequest, err)
			}
			s.kinds = []string{divideRows}
			return nil
		}
		if pairs := math.Pow(float64(c), float64(s.req.Depth)); pairs > limitPairs {
			if s.req.Divide != divideCQS && s.req.Depth == 1 {
				s.kinds = []string{divideRows}
				return nil
			}
			return fmt.Errorf("%w: %d chunks at depth %d: subproblems of %.0f pairs are longer than %d", ErrRequest, c, s.req.Depth, pairs, limitPairs)
		}
		s.sets = []divide.InterestSet{set}
		return nil
	}
	for _, c := range divide.PerfectCounts(maxChunks) {
		set, err := divide.Cover(c)
		if err != nil {
			return fmt.Errorf("build the interest set of %d chunks: %w", c, err)
		}
		if c > 1 && (s.rowsOf(set) < minRows || s.atoms(set) > maxAtoms) {
			break
		}
		s.sets = append(s.sets, set)
	}
	return nil
}

// atoms is the number of chunks of each axis, and rowsOf the rows of one.
func (s *search) atoms(set divide.InterestSet) float64 {
	return math.Pow(float64(set.Chunks()), float64(s.req.Depth))
}

func (s *search) rowsOf(set divide.InterestSet) float64 {
	return float64(max(s.req.Problem.Nq, s.req.Problem.Nk)) / s.atoms(set)
}

// plans are the candidates of one division that fit, priced. Short chunks are
// candidates only if nothing else fits.
func (s *search) plans(kind string) (list []*Plan, err error) {
	for _, s.shortest = range []int{fineRows, minRows} {
		if list, err = s.priced(kind); len(list) > 0 || err != nil {
			break
		}
	}
	return list, err
}

func (s *search) priced(kind string) ([]*Plan, error) {
	var list []*Plan
	for _, heads := range s.headChoices() {
		candidates := s.rows
		if kind == divideCQS {
			candidates = s.cqs
		}
		for _, c := range candidates(heads) {
			p, err := s.price(c)
			if err != nil {
				return nil, err
			}
			if !s.hasDisk(p) {
				s.leastState = min(s.leastState, p.KeptDisk())
				continue
			}
			list = append(list, p)
		}
	}
	return list, nil
}

// hasDisk says whether there is room for the states of a plan.
func (s *search) hasDisk(p *Plan) bool {
	limit := s.req.Host.State
	return limit == 0 || p.KeptDisk() <= limit
}

// headChoices are sizes of head groups: all KV heads, then halves, down to one.
func (s *search) headChoices() []int {
	var list []int
	for n := s.req.Problem.KVHeads(); ; n = (n + 1) / 2 {
		list = append(list, n)
		if n == 1 {
			return list
		}
	}
}

// cqs lists, for each way to share out the slots, the coarsest division that
// fits and the next finer ones.
func (s *search) cqs(heads int) []candidate {
	var list []candidate
	const finer = 3
	sets := s.sets
	if s.req.Chunks == 0 {
		tooShort := func(i int) bool { return i > 0 && s.rowsOf(sets[i]) < float64(s.shortest) }
		sets = sets[:sort.Search(len(sets), tooShort)]
	}
	for _, combo := range []func(l int) slots{
		func(l int) slots { return slots{1, 0, 1, 0} },
		func(l int) slots { return slots{1, 1, 1, 1} },
		func(l int) slots { return slots{1, 1, 2, 1} },
		func(l int) slots { return slots{1, 1, (l + 1) / 2, 1} },
		func(l int) slots { return slots{1, 1, l, 1} },
		func(l int) slots { return slots{1, 1, l, 1 + l/2} },
		func(l int) slots { return slots{l, 1, l, 1} },
	} {
		at := func(i int) candidate {
			set := sets[i]
			atoms := int(s.atoms(set))
			l := int(math.Pow(float64(set.Size()), float64(s.req.Depth)) + 0.5)
			return candidate{kind: divideCQS, set: set, heads: heads, queryChunks: atoms, keyChunks: atoms, slots: combo(l)}
		}
		first := sort.Search(len(sets), func(i int) bool { return s.fits(at(i)) })
		s.fits(at(len(sets) - 1)) // the finest counts for the smallest budget
		if brisk := sort.Search(len(sets), func(i int) bool { return s.patience(at(i)) <= 1 }); brisk < len(sets) {
			first = max(first, brisk)
		}
		for i := first; i < min(first+finer, len(sets)); i++ {
			if c := at(i); s.fits(c) {
				list = append(list, c)
			}
		}
	}
	return list
}

// rows lists divisions by key chunk length; for each, the longest query chunk
// that fits, and a shorter one.
func (s *search) rows(heads int) []candidate {
	p := s.req.Problem
	finest := func(n int) int { return min(max(1, n/s.shortest), limitChunks) }
	var keyCounts []int
	if s.req.Chunks != 0 {
		keyCounts = []int{min(s.req.Chunks, p.Nk)}
	} else {
		for c := 1; c < finest(p.Nk); c *= 2 {
			keyCounts = append(keyCounts, c)
		}
		keyCounts = append(keyCounts, finest(p.Nk))
	}
	var list []candidate
	for _, combo := range []slots{{1, 0, 1, 0}, {1, 0, 1, 1}, {1, 1, 1, 1}, {1, 1, 2, 2}} {
		for _, keys := range keyCounts {
			at := func(queries int) candidate {
				return candidate{kind: divideRows, heads: heads, queryChunks: queries, keyChunks: keys, slots: combo}
			}
			if s.req.Chunks != 0 {
				if c := at(min(keys, p.Nq)); s.fits(c) {
					list = append(list, c)
				}
				continue
			}
			most := finest(p.Nq)
			queries := 1 + sort.Search(most, func(i int) bool { return s.fits(at(i + 1)) })
			if queries > most {
				continue
			}
			if n := math.Ceil(float64(queries) * s.patience(at(queries))); n > float64(queries) {
				queries = int(min(n, float64(most)))
			}
			list = append(list, at(queries))
			if full := s.fullRounds(at(queries)); full > queries && full <= most {
				list = append(list, at(full))
			}
			if n := s.req.Devices; n > 1 { // as many chunks for each
				for _, q := range []int{queries, s.fullRounds(at(queries))} {
					if q = (q + n - 1) / n * n; q >= queries && q <= most {
						list = append(list, at(q))
					}
				}
			}
			// Where transfers set the pace, what nothing overlaps counts: the first
			// chunk in and the last one out.
			if finer := 8 * queries; finer <= most && combo.queryAhead > 0 {
				list = append(list, at(finer))
			}
		}
	}
	return list
}

// fullRounds is the number of query chunks, a little shorter than those of a
// candidate, of which each keeps all lanes of the device busy; 0 if that is not how the
// device works, or the chunks are too short for it.
func (s *search) fullRounds(c candidate) int {
	g := s.geometry(c)
	r := s.dev.Rates(g)
	if r.Lanes == 0 || r.Tasks <= r.Lanes {
		return 0
	}
	rows := int(int64(g.QueryRows) * int64(r.Tasks/r.Lanes*r.Lanes) / int64(r.Tasks))
	return (s.req.Problem.Nq + rows - 1) / rows
}

// patience is how long a batch of a candidate is, of what it should be.
func (s *search) patience(c candidate) float64 {
	g := s.geometry(c)
	return patience(g, min(c.slots.kv, g.KVSlots), s.dev.Rates(g))
}

// patience is that of a geometry with so many KV chunks in work.
func patience(g attention.Geometry, kv int, r attention.Rates) float64 {
	if r.Longest == 0 {
		return 0
	}
	flops := float64(g.QueryHeads()) * float64(g.QueryRows) * float64(g.KeyRows) * 2 * float64(g.D+g.Dv)
	return flops * float64(g.Works) * float64(kv) / (r.FLOPS * r.Longest)
}

// fits says whether the candidate's footprint is within the budget, and
// remembers the smallest footprint ever asked about.
func (s *search) fits(c candidate) bool {
	var total int64
	for _, u := range s.dev.Footprint(s.geometry(c)) {
		if total += u.Bytes; u.Bytes < 0 || total < 0 { // overflow: far beyond any budget
			return false
		}
	}
	s.smallest = min(s.smallest, total)
	return total <= s.req.Budget
}

func (s *search) geometry(c candidate) attention.Geometry {
	p := s.req.Problem
	qAxis, kAxis := divide.Axis{N: p.Nq, Chunks: c.queryChunks}, divide.Axis{N: p.Nk, Chunks: c.keyChunks}
	groups := (p.KVHeads() + c.heads - 1) / c.heads
	return attention.Geometry{
		D: p.D, Dv: p.Dv, DType: p.DType, OutDType: p.OutDType, Scale: p.Scale, Fast: p.Fast,
		KVHeads: c.heads, Group: p.Group(),
		QueryRows: qAxis.Longest(), KeyRows: kAxis.Longest(),
		// More slots than chunks in all head groups would stay unused.
		Works:      min(c.slots.query, groups*c.queryChunks),
		QuerySlots: min(c.slots.query+c.slots.queryAhead, groups*c.queryChunks),
		KVSlots:    min(c.slots.kv+c.slots.kvAhead, groups*c.keyChunks),
	}
}
