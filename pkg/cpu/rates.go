package cpu

import (
	"cmp"
	"fmt"
	"math"
	"time"

	"github.com/edsrzf/mmap-go"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// Measurement is what a machine does with one kernel and a number of threads.
// Rates are per second, of all threads together unless they say otherwise.
type Measurement struct {
	CPU     string    `json:"cpu"`
	Kernel  string    `json:"kernel"`
	Threads int       `json:"threads"`
	Time    time.Time `json:"time"`

	Peak1 float64 `json:"peak_flops_1_thread"` // float32 multiply-adds in registers; 0 where there are no vector kernels
	Peak  float64 `json:"peak_flops"`
	Read1 float64 `json:"memory_read_bytes_1_thread"` // from memory, by vector loads; 0 likewise
	Read  float64 `json:"memory_read_bytes"`
	Disk  float64 `json:"disk_read_bytes,omitempty"` // a cold file; 0: not measured
	Start float64 `json:"start_seconds"`             // of a run, beside its work
	Touch float64 `json:"touch_bytes"`               // of memory that is used for the first time
	Sync  float64 `json:"sync_bytes"`                // of an output in the page cache
	Batch float64 `json:"batch_seconds"`             // of a batch, beside its work

	Many []KernelRate `json:"many_queries"`
	Few  []KernelRate `json:"few_queries"` // MeasuredFew
}

// MeasuredFew is how many queries the figures for few are of.
const MeasuredFew = 4

// KernelRate is how fast the kernel is for one type and head dimension. FLOPS are
// 2 (D + Dv) for a query-key pair.
type KernelRate struct {
	DType string  `json:"dtype"`
	D     int     `json:"d"`
	Fast  bool    `json:"fast,omitempty"`
	FLOPS float64 `json:"flops"`
	Bytes float64 `json:"kv_bytes"`    // of K and V that the kernel goes through
	Load  float64 `json:"load_bytes"`  // into slots; of few queries there is no such thing
	Store float64 `json:"store_bytes"` // of results
}

// Calibrate makes predictions count with a measurement of the same kernel, if
// there is a rate for everything in it. It changes no plan.
func (d *Device) Calibrate(m *Measurement) {
	if m != nil && m.Kernel == d.Kernel() && m.Threads > 0 && m.Start > 0 && m.Touch > 0 && m.Sync > 0 && m.Batch > 0 && usable(m.Many, manyRates) && usable(m.Few, fewRates) {
		d.measured = m
	}
}

// manyRates and fewRates are what predictions divide by.
func manyRates(r KernelRate) []float64 { return []float64{float64(r.D), r.FLOPS, r.Load, r.Store} }
func fewRates(r KernelRate) []float64  { return []float64{float64(r.D), r.Bytes} }

// usable says whether predictions can divide by all of these rates: a measurement comes
// from a file, which may hold anything.
func usable(list []KernelRate, rates func(KernelRate) []float64) bool {
	for _, r := range list {
		for _, x := range rates(r) {
			if !(x > 0) {
				return false
			}
		}
	}
	return len(list) > 0
}

// Measured is what Calibrate was given, if that was of this kernel; else nil.
func (d *Device) Measured() *Measurement { return d.measured }

// speed is what rates are made of.
type speed struct {
	threads   int
	flops     float64 // many queries
	few       float64 // bytes/s of K and V from the page cache, few queries
	fewRows   int     // so many at most; more cost what their FLOPs do. 0: any
	in, out   float64
	batch     float64 // seconds
	read1     float64 // share of what all threads read from memory that one can read
	inThreads int
}

// rates are those of a geometry. A batch with less than a task for each thread
// leaves threads idle, and lanes without a row do work for nothing.
func (s speed) rates(g attention.Geometry) attention.Rates {
	rows := g.Group * g.QueryRows
	flops, tasks := s.flops*float64(rows)/float64(lanesOf(rows)), g.KVHeads*ceilDiv(rows, tileLanes)
	last := min(rows, tileLanes) * g.KeyRows // pairs of the smallest task
	most := longest
	if fewQueries(g) {
		// 2 (D + Dv) FLOP a row for (D + Dv) elements.
		flops, tasks = s.few*2*float64(rows)/float64(g.DType.Size()), partsOf(g)
		if more := rows - s.fewRows; s.fewRows > 0 && more > 0 {
			flops = 1 / (1/flops + float64(more)/float64(rows)/s.flops)
		}
		flops = min(flops, s.flops)
		last = rows * min(g.KeyRows, partOf(g))
		most, s.inThreads = fewLongest, 0 // there is nothing to copy
	}
	r := attention.Rates{FLOPS: flops, In: s.in, Out: s.out, Launch: s.batch, Shared: min(1, float64(s.inThreads)/float64(s.threads)), Longest: most, InPlace: fewQueries(g)}
	switch share := float64(max(tasks, 1)) / float64(s.threads); {
	case share < 1:
		r.Idle, r.Launch = 1-share, s.batch*share // fewer to wake
		if fewQueries(g) {                        // a thread alone has more than its share of the memory
			share = max(share, min(1, share*float64(s.threads)*s.read1))
		}
		r.FLOPS *= share
	case s.threads > 1:
		// At the end of a batch the other threads wait for half a task on average.
		r.Launch += float64(last) * float64(g.D+g.Dv) * float64(s.threads) / flops
	}
	return r
}

// longest is how many seconds a batch should take at most: a run that is asked to stop
// ends when the batches that were submitted are done, which on one thread of an older
// machine takes ten times as long.
const longest = 0.5

// fewLongest is the same where K and V are read in place: what a batch reads is asked of
// the system at once, and should be a small part of the memory.
const fewLongest = 5e-3

// inPlace is the rate of a load that only tells where rows are.
const inPlace = 1e18

// nominal is four threads of a current server core.
const nominal = 4

func (d *Device) nominal(g attention.Geometry) speed {
	s := speed{threads: nominal, flops: nominal * 4e9, few: nominal * 3e9, in: nominal * 3e9, out: nominal * 0.5e9, batch: 50e-6, inThreads: nominal}
	if d.lane != nil {
		s.flops, s.few = nominal*100e9, nominal*6e9
		switch {
		case d.roundsWeights(g):
			s.flops = nominal * 170e9
		case g.DType == attention.BF16 && d.lane.scoresBF16 != nil:
			s.flops = nominal * 130e9
		}
	}
	if fewQueries(g) { // the kernel takes the time of the one load, but another costs as much again
		s.in = s.few
	}
	return s
}

// Rates are those of four threads of a current server core with the kernels that
// this machine has, whatever the number of threads.
func (d *Device) Rates(g attention.Geometry) attention.Rates { return d.nominal(g).rates(g) }

// Expected are the rates of the device's own threads, as measured if they were.
func (d *Device) Expected(g attention.Geometry) attention.Rates {
	s, m := d.nominal(g), d.measured
	if m == nil {
		scale := float64(d.threads) / nominal
		s.threads = d.threads
		s.flops, s.few, s.in, s.out = s.flops*scale, s.few*min(scale, 1), s.in*min(scale, 1), s.out*min(scale, 1)
		s.inThreads = min(d.threads, loadThreads)
		return s.rates(g)
	}
	many, few := nearest(m.Many, g.DType, g.D, g.Fast), nearest(m.Few, g.DType, g.D, false)
	scale := float64(d.threads) / float64(m.Threads)
	s = speed{threads: d.threads, flops: many.FLOPS * scale, few: few.Bytes * min(scale, 1), in: many.Load, out: many.Store, batch: m.Batch, read1: m.Read1 / max(m.Read, 1),
		inThreads: min(d.threads, loadThreads, 2*g.KVHeads)}
	if fewQueries(g) {
		s.batch, s.in, s.fewRows = 0, inPlace, MeasuredFew // batches were part of what was measured
	}
	return s.rates(g)
}

// nearest is the rate measured for a type at the head dimension closest to d.
func nearest(list []KernelRate, t attention.DType, d int, fast bool) KernelRate {
	best, distance := list[0], math.Inf(1)
	for _, r := range list {
		far := math.Abs(math.Log(float64(r.D) / float64(d)))
		if r.DType != t.String() {
			far += 100
		}
		if r.Fast != fast {
			far += 50
		}
		if far < distance {
			best, distance = r, far
		}
	}
	return best
}

// Peak is how many float32 FLOP/s that many threads reach in registers; 0 for the
// portable kernel.
func (d *Device) Peak(threads int, t time.Duration) float64 {
	run, flops := fmaPeak(d.Kernel())
	if run == nil {
		return 0
	}
	const n = 200_000
	return rate(threads, t, func(int) float64 { run(n); return n * float64(flops) })
}

// ReadRate is how many bytes a second that many threads read from memory like
// that of the slots; 0 for the portable kernel, or where there is no memory for it.
func (d *Device) ReadRate(threads int, t time.Duration) float64 {
	if d.row == nil {
		return 0
	}
	const size = 128 << 20 // each, far more than caches hold
	bufs := make([]mmap.MMap, threads)
	for i := range bufs {
		m, err := mmap.MapRegion(nil, size, mmap.COPY, mmap.ANON, 0)
		if err != nil {
			return 0
		}
		defer m.Unmap()
		preferHuge(m)
		for at := 0; at < size; at += 4096 { // an untouched page is no memory
			m[at] = 1
		}
		bufs[i] = m
	}
	return rate(threads, t, func(i int) float64 { d.row.readPeak(&bufs[i][0], size); return size })
}

// TouchRate is how many bytes a second of memory like that of the slots one thread
// uses for the first time: the system has to clear it.
func TouchRate() (float64, error) {
	const size = 64 << 20
	start := time.Now()
	m, err := mmap.MapRegion(nil, size, mmap.COPY, mmap.ANON, 0)
	if err != nil {
		return 0, fmt.Errorf("reserve %d bytes: %w", size, err)
	}
	preferHuge(m)
	for at := 0; at < size; at += 4096 {
		m[at] = 1
	}
	return size / time.Since(start).Seconds(), m.Unmap()
}

// BatchTime is how many seconds a batch takes that has nothing to do, one of many
// in a row.
func (d *Device) BatchTime() (float64, error) {
	g := attention.Geometry{D: 1, Dv: 1, DType: attention.F32, OutDType: attention.F32, Scale: 1, KVHeads: 1, Group: 1, QueryRows: fewRows + 1, KeyRows: 1, QuerySlots: 1, KVSlots: 1}
	if err := d.Reserve(g); err != nil {
		return 0, err
	}
	const batches = 500
	q := attention.Rows{Data: make([]byte, 4*g.QueryRows), Stride: 4, N: g.QueryRows, Width: 1, DType: g.DType}
	last := d.LoadQuery(0, []attention.Rows{q}, nil)
	err := last.Wait()
	start := time.Now()
	for range batches {
		last = d.Apply([]attention.Work{{Query: 0}})
	}
	err = cmp.Or(err, last.Wait())
	return time.Since(start).Seconds() / batches, cmp.Or(err, d.Release())
}

// rate runs work on some threads for about t and returns the best rate of all
// together in a few stretches.
func rate(threads int, t time.Duration, work func(thread int) float64) (best float64) {
	const stretches = 4
	team := newTeam(threads)
	defer team.close()
	rates := make([]float64, threads)
	for range stretches {
		start := time.Now()
		team.run(threads, func(i int) {
			var done float64
			for time.Since(start) < t/stretches {
				done += work(i)
			}
			rates[i] = done / time.Since(start).Seconds()
		})
		var sum float64
		for _, r := range rates {
			sum += r
		}
		best = max(best, sum)
	}
	return best
}
