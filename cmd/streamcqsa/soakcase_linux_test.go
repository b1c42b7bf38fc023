package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"syscall"
	"time"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/cpu"
)

// soakCase is a random problem and a random way to compute it. All of it follows from
// the seed, on machines with the same kernels.
type soakCase struct {
	seed uint64
	cuda bool // computed by a GPU
	attention.Problem
	statesScale bool
	kind        string    // of the numbers, as gen knows them
	special     int       // elements of each input that are replaced by special values
	formats     [3]string // of Q, K and V
	offsets     [3]int64  // of raw files
	alias       bool      // V is K's tensor
	outFormat   string
	lse         string // "", "own" for a file of its own, or "shared"

	kernel    string
	divide    string
	chunks    int
	depth     int
	slack     float64 // the budget, in units of the smallest that works; 0: auto
	hostCache string  // --host-mem-budget
	threads   int
	prefetch  int

	twin     bool // computed again, with other threads and prefetch
	verified bool // by the verify command too
	older    bool // there is an older result under the output's name
	state    string
	sessions []soakSession // that end before the run does; the last run follows them
}

// soakSession is a process that does not come to its end.
type soakSession struct {
	end     string  // kill, max-duration, or a signal that asks it to stop
	at      float64 // when, as a share of the time that the whole run takes
	every   string  // --checkpoint-every
	threads int
	damage  int // bytes of states and results to damage afterwards
}

var soakSignals = map[string]syscall.Signal{"kill": syscall.SIGKILL, "SIGINT": syscall.SIGINT, "SIGTERM": syscall.SIGTERM, "SIGUSR1": syscall.SIGUSR1}

// pick takes one of a list; entries that are listed twice are twice as likely.
func pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

// logUniform is between 1 and most, the logarithm evenly distributed.
func logUniform(r *rand.Rand, most float64) float64 { return math.Exp(r.Float64() * math.Log(most)) }

// newSoakCase draws a case, for a GPU or the CPU.
func newSoakCase(seed uint64, cuda bool) *soakCase {
	r := rand.New(rand.NewPCG(seed, 0x50a1))
	c := &soakCase{seed: seed, cuda: cuda}
	c.drawSessions(r)
	c.drawShape(r)
	c.drawValues(r)
	c.drawFiles(r)
	c.drawWay(r)
	return c
}

// soakWork is the most multiply-adds of a case, of one that portable kernels compute, and
// of one for a GPU.
const (
	soakWork         = 1.5e10
	soakWorkPortable = 6e8
	soakWorkGPU      = 6e11
)

func (c *soakCase) drawShape(r *rand.Rand) {
	p := &c.Problem
	p.Layout = pick(r, attention.BHND, attention.BHND, attention.BNHD, attention.BNHD, attention.HND, attention.NHD, attention.ND)
	p.B, p.Hq, p.Hkv = 1, 1, 1
	if p.Layout.Rank() == 4 {
		p.B = pick(r, 1, 1, 1, 2, 3)
	}
	if p.Layout.Rank() >= 3 {
		p.Hkv = pick(r, 1, 1, 2, 3, 4, 6)
		p.Hq = p.Hkv * pick(r, 1, 1, 2, 3, 4, 8, 17)
	}
	dim := func() int {
		if !c.cuda && r.IntN(40) == 0 {
			return 257 + r.IntN(800)
		}
		return pick(r, 1+r.IntN(16), 1+r.IntN(256), 16, 32, 64, 80, 96, 128, 192, 256)
	}
	p.D = dim()
	if p.Dv = p.D; r.IntN(3) == 0 {
		p.Dv = dim()
	}
	n := int(logUniform(r, 4000))
	p.Nq, p.Nk = n, n
	switch r.IntN(8) {
	case 0: // few queries, many keys
		p.Nq, p.Nk = 1+r.IntN(20), 1+int(logUniform(r, 60000))
	case 1:
		p.Nq, p.Nk = 1+int(logUniform(r, 60000)), 1+r.IntN(20)
	case 2, 3, 4:
		p.Nk = int(logUniform(r, 4000))
	}
	p.Causal = pick(r, attention.NonCausal, attention.NonCausal, attention.TopLeft, attention.BottomRight)
	c.kernel = pick(r, "auto", "auto", "auto", "auto", "portable", pick(r, cpu.Kernels()...))
	least, most := 0., soakWork
	switch {
	case c.cuda:
		most = soakWorkGPU
	case c.kernel == cpu.Portable:
		most = soakWorkPortable
	}
	if len(c.sessions) > 0 && r.IntN(4) > 0 { // long enough to have something to save
		least = most / 4
	}
	square := p.Nq == p.Nk
	resize := func(by float64) {
		if square {
			p.Nq = 1 + int(float64(p.Nq)*by)
			p.Nk = p.Nq
		} else if p.Nq < p.Nk == (by > 1) {
			p.Nq = 1 + int(float64(p.Nq)*by)
		} else {
			p.Nk = 1 + int(float64(p.Nk)*by)
		}
	}
	for c.macs() > most {
		resize(0.7)
	}
	for c.macs() < least && max(p.Nq, p.Nk) < 50000 {
		resize(1.2)
	}
	if p.Nq == p.Nk && p.Causal == attention.BottomRight {
		p.Causal = attention.TopLeft // one and the same
	}
}

// macs is the number of multiply-adds without a mask.
func (c *soakCase) macs() float64 {
	return float64(c.B) * float64(c.Hq) * float64(c.Nq) * float64(c.Nk) * float64(c.D+c.Dv)
}

// chunkPairs is about how many pairs of chunks there are, over all heads.
func (c *soakCase) chunkPairs() float64 {
	return math.Pow(float64(c.chunks), 2*float64(c.depth)) * float64(c.B*c.Hkv)
}

func (c *soakCase) drawValues(r *rand.Rand) {
	p := &c.Problem
	p.DType = pick(r, attention.F32, attention.F16, attention.BF16)
	if p.OutDType = p.DType; r.IntN(3) == 0 {
		p.OutDType = pick(r, attention.F32, attention.F16, attention.BF16)
	}
	p.Scale = attention.DefaultScale(p.D)
	if r.IntN(4) == 0 {
		c.statesScale = true
		p.Scale = pick(r, 1, 0, -1, p.Scale*logUniform(r, 100), p.Scale/logUniform(r, 100), -p.Scale)
	}
	c.kind = pick(r, "normal", "normal", "normal", "normal", "uniform", "large", "last", "mean1")
	if r.IntN(8) == 0 {
		c.special = 1 + r.IntN(3)
	}
	p.Fast = (p.DType == attention.BF16 || c.cuda && p.DType == attention.F16) && r.IntN(4) == 0
}

func (c *soakCase) drawFiles(r *rand.Rand) {
	formats := []string{"npy", "npy", "safetensors", "raw"}
	one := pick(r, formats...)
	for i := range c.formats {
		c.formats[i] = one
		if r.IntN(6) == 0 {
			c.formats[i] = pick(r, formats...)
		}
		if c.formats[i] == "raw" && r.IntN(2) == 0 {
			c.offsets[i] = int64(r.IntN(5000))
		}
	}
	c.alias = c.D == c.Dv && r.IntN(12) == 0
	c.outFormat = pick(r, formats...)
	c.lse = pick(r, "", "own", "shared")
	if c.lse == "shared" && c.outFormat != "safetensors" {
		c.lse = "own"
	}
	c.older = r.IntN(4) == 0
}

func (c *soakCase) drawWay(r *rand.Rand) {
	c.divide, c.depth = pick(r, "auto", "cqs", "cqs", "cqs", "rows", "rows"), 1
	switch c.divide {
	case "cqs":
		c.chunks = pick(r, 1+r.IntN(8), 1+r.IntN(60), 3, 7, 13, 21, 31, 57, 73, 111)
		for r.IntN(4) == 0 && c.depth < 3 && math.Pow(float64(c.chunks), float64(c.depth+1)) <= 130 {
			c.depth++
		}
	case "rows":
		c.chunks = 1 + int(logUniform(r, 100))
	}
	c.slack = pick(r, 1, 0, logUniform(r, 1.3), logUniform(r, 1.3), logUniform(r, 10), logUniform(r, 10))
	c.hostCache = pick(r, "", "", "1MiB", "1GiB")
	c.threads, c.prefetch = soakThreads(r), soakPrefetch(r)
	c.twin, c.verified = r.IntN(3) == 0, r.IntN(4) == 0
}

func soakThreads(r *rand.Rand) int { return pick(r, 1, 2, 2, 3, 5, 8) }

func soakPrefetch(r *rand.Rand) int { return pick(r, 0, 0, -1, 1, 5) }

func (c *soakCase) drawSessions(r *rand.Rand) {
	if r.IntN(2) == 0 {
		return
	}
	c.state = pick(r, "", "", "here", "elsewhere")
	for range 1 + r.IntN(4) {
		s := soakSession{end: pick(r, "kill", "kill", "kill", "kill", "SIGINT", "SIGTERM", "SIGUSR1", "max-duration"),
			at: 1.1 * r.Float64(), every: pick(r, "", "1ms", "1ms", "2ms", "5ms", "20ms"), threads: soakThreads(r)}
		if r.IntN(8) == 0 {
			s.damage = 1 + r.IntN(20)
		}
		c.sessions = append(c.sessions, s)
	}
}

func (c *soakCase) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%+v, %s", c.Problem, c.kind)
	if c.special > 0 {
		fmt.Fprintf(&b, ", %d special values", c.special)
	}
	fmt.Fprintf(&b, ", files %v to %s, lse %q, kernel %s, divide %s %d depth %d, budget x %.3g, %d threads, prefetch %d, twin %v, state %q",
		c.formats, c.outFormat, c.lse, c.kernel, c.divide, c.chunks, c.depth, c.slack, c.threads, c.prefetch, c.twin, c.state)
	for _, s := range c.sessions {
		fmt.Fprintf(&b, "; %+v", s)
	}
	return b.String()
}

// shape is --shape.
func (c *soakCase) shape() string {
	return fmt.Sprintf("%d,%d,%d,%d,%d,%d,%d", c.B, c.Hq, c.Hkv, c.Nq, c.Nk, c.D, c.Dv)
}

// problemArgs are the flags that state the problem, but for the files.
func (c *soakCase) problemArgs() []string {
	args := []string{"--layout", c.Layout.String(), "--dtype", c.DType.String(), "--shape", c.shape()}
	if c.offsets != [3]int64{} {
		args = append(args, "--offset", fmt.Sprintf("%d,%d,%d", c.offsets[0], c.offsets[1], c.offsets[2]))
	}
	if c.OutDType != c.DType {
		args = append(args, "--out-dtype", c.OutDType.String())
	}
	if c.statesScale {
		args = append(args, "--scale", fmt.Sprint(c.Scale))
	}
	if c.Causal != attention.NonCausal {
		args = append(args, "--causal", "--causal-align", c.Causal.String())
	}
	if c.Fast {
		args = append(args, "--precision", "fast")
	}
	return args
}

// wayArgs are the flags that say how it is computed, but for budget, threads and
// prefetch.
func (c *soakCase) wayArgs() []string {
	args := []string{"--kernel", c.kernel, "--divide", c.divide}
	if c.cuda {
		args = []string{"--device", "cuda", "--divide", c.divide}
	}
	if c.chunks > 0 {
		args = append(args, "--chunks", fmt.Sprint(c.chunks))
	}
	if c.depth > 1 {
		args = append(args, "--depth", fmt.Sprint(c.depth))
	}
	if c.hostCache != "" {
		args = append(args, "--host-mem-budget", c.hostCache)
	}
	return args
}

// after is when a session ends, of a run that takes so long.
func (s soakSession) after(full time.Duration) time.Duration {
	return time.Duration(s.at * float64(full))
}
