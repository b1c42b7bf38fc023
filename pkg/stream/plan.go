package stream

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/divide"
)

// Request is what a plan is made for.
type Request struct {
	Problem attention.Problem
	LSE     bool  // write lse too
	Budget  int64 // bytes that the device may hold

	Devices int // of one kind that share the work, each with the budget; 0 means 1

	Divide string // auto, cqs or rows; empty means auto
	Chunks int    // chunks per axis at depth 1; 0 lets the planner choose
	Depth  int    // of CQS Divide, 1 to 3; 0 means 1
	Host   Host
}

// Host describes what lies between the files and the device.
type Host struct {
	State int64   // bytes of disk that states may take; 0: any number
	Cache int64   // bytes of page cache that the inputs may occupy
	Disk  float64 // sequential read rate, bytes/s; 0: reading takes no time

	// Only predicted seconds count with these, not the choice between plans.
	MeasuredDisk float64 // bytes/s; 0: Disk
	Resident     int64   // bytes of the inputs that are in the page cache
	Start        float64 // seconds that a run takes beside its work
	Touch        float64 // how fast memory becomes the device's own, bytes/s; 0: that takes no time
	Sync         float64 // how fast outputs reach the disk in the end, bytes/s; 0: that takes no time
}

// Active is how many chunks of each axis one batch uses; the other slots hold
// chunks that are coming or may be used again.
type Active struct {
	Query int
	KV    int
}

// Traffic is bytes moved over a whole run.
type Traffic struct {
	In       int64 // Q, K, V as stored, and states
	Out      int64 // states, O and lse
	Disk     int64 // of In, what the page cache cannot hold
	StateIn  int64 // of In
	StateOut int64 // of Out
	Sampled  bool  // extrapolated from a part of the schedule
}

// Prediction is predicted seconds.
type Prediction struct {
	Kernel float64
	In     float64
	Out    float64
	Disk   float64
	Total  float64
	Bound  string // kernel, host_to_device, device_to_host or disk
}

// Plan is a complete decision: what runs, where it lies, what it will cost.
type Plan struct {
	Problem attention.Problem
	Device  string
	Devices int
	Budget  int64

	Choice      Choice
	Divide      string             // cqs or rows
	Set         divide.InterestSet // of cqs
	Depth       int
	Groups      int
	Geometry    attention.Geometry
	Active      Active
	QueryAxis   divide.Axis
	KeyAxis     divide.Axis
	Subproblems int                 // of one head group
	ChunkPairs  float64             // over all head groups, masked ones left out
	Memory      attention.Footprint // on the device
	StateDisk   int64               // of all state stores, where states leave their slots; checkpoints use them too
	OutputBytes int64
	LSEBytes    int64
	Traffic     Traffic
	FLOPs       float64
	Seconds     Prediction

	// CheckpointDisk is the disk that checkpoints take where StateDisk is 0: from the first
	// one on that finds a query chunk in work.
	CheckpointDisk int64

	division *divide.Division
	cost     float64 // seconds by which plans are compared
	patient  bool    // a batch takes longer than it should
	fits     bool    // the page cache holds all inputs
	inPlace  bool    // the device reads K and V where they are
}

// Choice is all that a plan decided: with the same request it makes the same plan.
type Choice struct {
	Divide      string `json:"divide"`
	Chunks      int    `json:"set_chunks,omitempty"` // of the interest set of cqs
	Depth       int    `json:"depth"`
	KVHeads     int    `json:"kv_heads"` // of a head group
	QueryChunks int    `json:"query_chunks"`
	KeyChunks   int    `json:"key_chunks"`
	Slots       [4]int `json:"slots"` // query in work and ahead, KV in work and ahead
}

// asked says how a choice contradicts a request; empty if it does not.
func (c Choice) asked(req Request) string {
	chunks := c.Chunks
	if c.Divide == divideRows {
		chunks = c.KeyChunks
		req.Chunks = min(req.Chunks, req.Problem.Nk)
	}
	switch {
	case req.Divide != "" && req.Divide != "auto" && req.Divide != c.Divide:
		return fmt.Sprintf("divide: %s then, %s now", c.Divide, req.Divide)
	case req.Chunks != 0 && req.Chunks != chunks:
		return fmt.Sprintf("chunks: %d then, %d now", chunks, req.Chunks)
	case req.Depth != 0 && req.Depth != c.Depth:
		return fmt.Sprintf("depth: %d then, %d now", c.Depth, req.Depth)
	}
	return ""
}

// possible says whether it can be a choice at all: it may come from a file.
func (c Choice) possible() bool {
	return c.KVHeads >= 1 && c.QueryChunks >= 1 && c.KeyChunks >= 1 && slices.Min(c.Slots[:]) >= 0 && c.Slots[0] >= 1 && c.Slots[2] >= 1
}

// ErrMismatch marks what can't go on because it is not what was begun.
var ErrMismatch = errors.New("not the run that was begun")

// Again makes the plan that another run chose, whatever a new search would find. The
// error is an ErrMismatch where the request says otherwise, a NoFitError where its budget is
// smaller than what the plan holds, and a NoDiskError where the disk is.
func Again(req Request, dev Device, c Choice) (*Plan, error) {
	if diff := c.asked(req); diff != "" {
		return nil, fmt.Errorf("%w: %s", ErrMismatch, diff)
	}
	s, err := newSearch(Request{Problem: req.Problem, Divide: divideRows}, dev)
	if err != nil {
		return nil, err
	}
	s.req = req
	s.req.Depth = max(1, c.Depth)
	x := candidate{kind: c.Divide, heads: c.KVHeads, queryChunks: c.QueryChunks, keyChunks: c.KeyChunks,
		slots: slots{c.Slots[0], c.Slots[1], c.Slots[2], c.Slots[3]}}
	if !c.possible() {
		return nil, fmt.Errorf("%w: no plan is %+v", ErrMismatch, c)
	}
	if c.Divide == divideCQS {
		if x.set, err = divide.Cover(c.Chunks); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrMismatch, err)
		}
	}
	p, err := s.price(x)
	if err != nil {
		return nil, err
	}
	if p.Memory.Total() > req.Budget {
		return nil, &NoFitError{Budget: req.Budget, Smallest: p.Memory.Total()}
	}
	if !s.hasDisk(p) {
		return nil, &NoDiskError{Free: req.Host.State, Least: p.KeptDisk()}
	}
	return p, nil
}

// KeptDisk is the disk that states take, whether they leave their slots or are saved by
// checkpoints.
func (p *Plan) KeptDisk() int64 { return p.StateDisk + p.CheckpointDisk }

// Division is the division that the plan chose.
func (p *Plan) Division() *divide.Division { return p.division }

// headsOf is the number of KV heads of a head group: the last may be smaller.
func (p *Plan) headsOf(group int) int {
	n := p.Geometry.KVHeads
	return min(n, p.Problem.KVHeads()-group*n)
}

// kvHeads is the range of KV heads of a head group, over the whole batch.
func (p *Plan) kvHeads(group int) (lo, hi int) {
	lo = group * p.Geometry.KVHeads
	return lo, lo + p.headsOf(group)
}

// queryHeads is the range of query heads of a head group, over the whole batch.
func (p *Plan) queryHeads(group int) (lo, hi int) {
	lo, hi = p.kvHeads(group)
	return lo * p.Geometry.Group, hi * p.Geometry.Group
}

// NoFitError says that nothing fits, and what would.
type NoFitError struct {
	Budget   int64
	Smallest int64 // the smallest budget for which New succeeds
}

func (e *NoFitError) Error() string {
	return fmt.Sprintf("the problem does not fit a budget of %d bytes: the smallest that works is %d bytes", e.Budget, e.Smallest)
}

// NoDiskError says that with every plan within the budget, states and checkpoints take
// more disk than there is room for.
type NoDiskError struct {
	Free  int64
	Least int64 // what the most modest plan needs
}

func (e *NoDiskError) Error() string {
	return fmt.Sprintf("states of unfinished rows, or checkpoints of them, would take at least %d bytes of disk, %d are free: another budget or --divide rows may need less, and --state-dir puts them elsewhere", e.Least, e.Free)
}

// ErrRequest marks a request that no budget could satisfy.
var ErrRequest = errors.New("impossible request")

// New plans a request for a device: the fastest way that fits the budget by
// the device's own rates, and the best of each division for comparison, the
// chosen one first. It reads nothing and allocates nothing on the device.
func New(req Request, dev Device) (plan *Plan, others []*Plan, err error) {
	if err := req.Problem.Validate(); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	s, err := newSearch(req, dev)
	if err != nil {
		return nil, nil, err
	}
	var all []*Plan
	of := make(map[string][]*Plan)
	for _, kind := range s.kinds {
		if of[kind], err = s.plans(kind); err != nil {
			return nil, nil, err
		}
		all = append(all, of[kind]...)
	}
	if len(all) == 0 && s.leastState < math.MaxInt64 {
		return nil, nil, &NoDiskError{Free: req.Host.State, Least: s.leastState}
	}
	if len(all) == 0 {
		return nil, nil, &NoFitError{Budget: req.Budget, Smallest: s.smallest}
	}
	plan = choose(brisk(all))
	for _, kind := range s.kinds {
		if kind != plan.Divide && len(of[kind]) > 0 {
			others = append(others, choose(brisk(of[kind])))
		}
	}
	return plan, others, nil
}

// brisk is the plans of which no batch takes too long, if there are any.
func brisk(plans []*Plan) []*Plan {
	if list := slices.DeleteFunc(slices.Clone(plans), func(p *Plan) bool { return p.patient }); len(list) > 0 {
		return list
	}
	return plans
}

// choose returns the fastest plan. Predictions within 2% of it are equal to it, as far
// as the division goes: among equals one that needs no division comes first, then cqs
// before rows. Of plans that divide alike, within half a percent, the smallest is taken.
func choose(plans []*Plan) *Plan {
	within := func(list []*Plan, share float64) (equal []*Plan) {
		fastest := math.Inf(1)
		for _, p := range list {
			fastest = min(fastest, p.cost)
		}
		for _, p := range list {
			if p.cost <= fastest*share {
				equal = append(equal, p)
			}
		}
		return equal
	}
	rank := func(p *Plan) int {
		switch {
		case p.QueryAxis.Chunks == 1 && p.KeyAxis.Chunks == 1:
			return 0
		case p.Divide == divideCQS:
			return 1
		}
		return 2
	}
	list := within(plans, 1.02)
	first := slices.MinFunc(list, func(p, q *Plan) int { return cmp.Compare(rank(p), rank(q)) })
	list = slices.DeleteFunc(list, func(p *Plan) bool { return rank(p) != rank(first) })
	return slices.MinFunc(within(list, 1.005), func(p, q *Plan) int { return cmp.Compare(p.Memory.Total(), q.Memory.Total()) })
}

// Parts is the number of parts of the schedule that have nothing to do with each
// other: no two touch one state. Devices share them out.
func (p *Plan) Parts() int {
	if p.Divide == divideCQS {
		return p.Groups
	}
	return p.Groups * p.QueryAxis.Chunks
}

// places is how many states the store has room for: two of each chunk that may have to
// leave its slot or, where none has to, of each slot.
func (p *Plan) places() int {
	if p.StateDisk > 0 {
		return 2 * p.QueryAxis.Chunks
	}
	return 2 * p.Geometry.QuerySlots
}

// share is the part of the work that the busiest of the plan's devices has.
func (p *Plan) share() float64 {
	parts := p.Parts()
	return float64((parts+p.Devices-1)/p.Devices) / float64(parts)
}

const (
	divideCQS  = "cqs"
	divideRows = "rows"
)
