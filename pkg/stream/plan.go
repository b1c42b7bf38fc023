package stream

import (
	"errors"
	"fmt"
	"math"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/divide"
)

// Request is what a plan is made for.
type Request struct {
	Problem attention.Problem
	LSE     bool  // write lse too
	Budget  int64 // bytes that the device may hold

	Divide string // auto, cqs or rows; empty means auto
	Chunks int    // chunks per axis at depth 1; 0 lets the planner choose
	Depth  int    // of CQS Divide, 1 to 3; 0 means 1
	Host   Host
}

// Host describes what lies between the files and the device.
type Host struct {
	Cache int64   // bytes of page cache that the inputs may occupy
	Disk  float64 // sequential read rate, bytes/s; 0: reading takes no time
}

// Active is how many chunks of each axis one batch uses; the other slots hold
// chunks that are coming or may be used again.
type Active struct {
	Query int `json:"query"`
	KV    int `json:"kv"`
}

// Traffic is bytes moved over a whole run.
type Traffic struct {
	In       int64 `json:"host_to_device"` // Q, K, V as stored, and states
	Out      int64 `json:"device_to_host"` // states, O and lse
	Disk     int64 `json:"disk_read"`      // of In, what the page cache cannot hold
	StateIn  int64 `json:"state_in"`       // of In
	StateOut int64 `json:"state_out"`      // of Out
	Sampled  bool  `json:"sampled"`        // extrapolated from a part of the schedule
}

// Prediction is predicted seconds.
type Prediction struct {
	Kernel float64 `json:"kernel"`
	In     float64 `json:"host_to_device"`
	Out    float64 `json:"device_to_host"`
	Disk   float64 `json:"disk"`
	Total  float64 `json:"total"`
	Bound  string  `json:"bound"` // kernel, host_to_device, device_to_host or disk
}

// Plan is a complete decision: what runs, where it lies, what it will cost.
type Plan struct {
	Problem attention.Problem `json:"-"`
	Device  string            `json:"device"`
	Budget  int64             `json:"budget_bytes"`

	Divide      string              `json:"divide"` // cqs or rows
	Set         divide.InterestSet  `json:"-"`      // of cqs
	Depth       int                 `json:"depth"`
	Groups      int                 `json:"head_groups"`
	Geometry    attention.Geometry  `json:"-"`
	Active      Active              `json:"active_slots"`
	QueryAxis   divide.Axis         `json:"-"`
	KeyAxis     divide.Axis         `json:"-"`
	Subproblems int                 `json:"subproblems"` // of one head group
	ChunkPairs  float64             `json:"chunk_pairs"` // over all head groups, masked ones left out
	Memory      attention.Footprint `json:"memory"`      // on the device
	StateDisk   int64               `json:"state_disk_bytes"`
	OutputBytes int64               `json:"output_bytes"`
	LSEBytes    int64               `json:"lse_bytes"`
	Traffic     Traffic             `json:"traffic_bytes"`
	FLOPs       float64             `json:"flops"`
	Seconds     Prediction          `json:"seconds"`

	division *divide.Division
}

// Division is the division that the plan chose.
func (p *Plan) Division() *divide.Division { return p.division }

// headsOf is the number of KV heads of a head group: the last may be smaller.
func (p *Plan) headsOf(group int) int {
	n := p.Geometry.KVHeads
	return min(n, p.Problem.KVHeads()-group*n)
}

// NoFitError says that nothing fits, and what would.
type NoFitError struct {
	Budget   int64
	Smallest int64 // the smallest budget for which New succeeds
}

func (e *NoFitError) Error() string {
	return fmt.Sprintf("the problem does not fit a budget of %d bytes: the smallest that works is %d bytes", e.Budget, e.Smallest)
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
	if len(all) == 0 {
		return nil, nil, &NoFitError{Budget: req.Budget, Smallest: s.smallest}
	}
	plan = choose(all)
	for _, kind := range s.kinds {
		if kind != plan.Divide && len(of[kind]) > 0 {
			others = append(others, choose(of[kind]))
		}
	}
	return plan, others, nil
}

// choose returns the fastest plan. Predictions within 2% of it are equal to it;
// among equals cqs before rows, then the smaller footprint.
func choose(plans []*Plan) *Plan {
	const equal = 1.02
	fastest := math.Inf(1)
	for _, p := range plans {
		fastest = min(fastest, p.Seconds.Total)
	}
	var best *Plan
	for _, p := range plans {
		switch {
		case p.Seconds.Total > fastest*equal:
		case best == nil,
			p.Divide != best.Divide && p.Divide == divideCQS,
			p.Divide == best.Divide && p.Memory.Total() < best.Memory.Total():
			best = p
		}
	}
	return best
}

const (
	divideCQS  = "cqs"
	divideRows = "rows"
)
