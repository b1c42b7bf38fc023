package main

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/stream"
)

// The JSON documents. Fields are only ever added. Sizes are bytes, times
// seconds, rates per second.

type problemDoc struct {
	B        int     `json:"batch"`
	Hq       int     `json:"heads"`
	Hkv      int     `json:"kv_heads"`
	Nq       int     `json:"queries"`
	Nk       int     `json:"keys"`
	D        int     `json:"d"`
	Dv       int     `json:"dv"`
	DType    string  `json:"dtype"`
	OutDType string  `json:"out_dtype"`
	Layout   string  `json:"layout"`
	Scale    float64 `json:"scale"`
	Causal   string  `json:"causal"`
	FLOPs    float64 `json:"flops"`
	Fast     bool    `json:"fast,omitempty"` // weights may be rounded to bf16
}

func problemDocument(p attention.Problem) problemDoc {
	return problemDoc{p.B, p.Hq, p.Hkv, p.Nq, p.Nk, p.D, p.Dv, p.DType.String(), p.OutDType.String(),
		p.Layout.String(), p.Scale, p.Causal.String(), p.FLOPs(), p.Fast}
}

type divisionDoc struct {
	Kind        string  `json:"kind"` // cqs or rows
	Chunks      int     `json:"chunks,omitempty"`
	Set         []int   `json:"interest_set,omitempty"`
	Depth       int     `json:"depth,omitempty"`
	QueryChunks int     `json:"query_chunks"`
	KeyChunks   int     `json:"key_chunks"`
	QueryRows   int     `json:"query_chunk_tokens"`
	KeyRows     int     `json:"key_chunk_tokens"`
	Subproblems int     `json:"subproblems"`
	ChunkPairs  float64 `json:"chunk_pairs"`
	HeadGroups  int     `json:"head_groups"`
	GroupHeads  int     `json:"kv_heads_per_group"`
	QuerySlots  int     `json:"query_slots"`
	KVSlots     int     `json:"kv_slots"`
}

func divisionDocument(p *stream.Plan) divisionDoc {
	d := divisionDoc{
		Kind: p.Divide, QueryChunks: p.QueryAxis.Chunks, KeyChunks: p.KeyAxis.Chunks,
		QueryRows: p.Geometry.QueryRows, KeyRows: p.Geometry.KeyRows,
		Subproblems: p.Subproblems, ChunkPairs: p.ChunkPairs,
		HeadGroups: p.Groups, GroupHeads: p.Geometry.KVHeads,
		QuerySlots: p.Geometry.QuerySlots, KVSlots: p.Geometry.KVSlots,
	}
	if set, ok := p.Division().Set(); ok {
		d.Chunks, d.Set, d.Depth = set.Chunks(), set.Members(), p.Depth
	}
	return d
}

type diskDoc struct {
	State  int64 `json:"state"`
	Output int64 `json:"output"`
	LSE    int64 `json:"lse,omitempty"`

	Checkpoints int64 `json:"checkpoints"` // from the first one on; 0 where they use the room for states
}

type trafficDoc struct {
	Disk     int64 `json:"disk"`
	In       int64 `json:"host_to_device"`
	Out      int64 `json:"device_to_host"`
	StateIn  int64 `json:"state_in"`
	StateOut int64 `json:"state_out"`
	Sampled  bool  `json:"sampled"` // extrapolated from a part of a long schedule
}

type secondsDoc struct {
	Kernel float64 `json:"kernel"`
	In     float64 `json:"host_to_device"`
	Out    float64 `json:"device_to_host"`
	Disk   float64 `json:"disk"`
	Total  float64 `json:"total"`
	Bound  string  `json:"bound"`
}

type planDoc struct {
	Type     string          `json:"type"` // plan
	Problem  problemDoc      `json:"problem"`
	Device   string          `json:"device"`
	Kernel   string          `json:"kernel,omitempty"` // of the cpu device
	Threads  int             `json:"threads,omitempty"`
	Measured *time.Time      `json:"rates_measured,omitempty"` // by bench; predictions count with its rates
	Budget   int64           `json:"mem_budget"`
	Division divisionDoc     `json:"division"`
	Memory   []attention.Use `json:"memory"` // of the device, by purpose
	Total    int64           `json:"memory_total"`
	Disk     diskDoc         `json:"disk"`
	Traffic  trafficDoc      `json:"traffic"`
	Seconds  secondsDoc      `json:"seconds"`
	Others   []alternative   `json:"alternatives,omitempty"`
}

// alternative is the best plan of the division that was not chosen.
type alternative struct {
	Division divisionDoc `json:"division"`
	Total    int64       `json:"memory_total"`
	Traffic  trafficDoc  `json:"traffic"`
	Seconds  secondsDoc  `json:"seconds"`
}

func planDocument(p *stream.Plan, others []*stream.Plan, from basis) planDoc {
	d := planDoc{
		Type: "plan", Problem: problemDocument(p.Problem), Device: from.names, Budget: p.Budget,
		Division: divisionDocument(p), Memory: p.Memory, Total: p.Memory.Total(),
		Disk:    diskDoc{p.StateDisk, p.OutputBytes, p.LSEBytes, p.CheckpointDisk},
		Traffic: trafficDocument(p), Seconds: secondsDocument(p),
		Kernel: from.kernel, Threads: from.threads,
	}
	if !from.measured.IsZero() {
		d.Measured = &from.measured
	}
	for _, o := range others {
		d.Others = append(d.Others, alternative{divisionDocument(o), o.Memory.Total(), trafficDocument(o), secondsDocument(o)})
	}
	return d
}

func trafficDocument(p *stream.Plan) trafficDoc {
	t := p.Traffic
	return trafficDoc{t.Disk, t.In, t.Out, t.StateIn, t.StateOut, t.Sampled}
}

func secondsDocument(p *stream.Plan) secondsDoc {
	s := p.Seconds
	return secondsDoc{s.Kernel, s.In, s.Out, s.Disk, s.Total, s.Bound}
}

// writeJSON writes one document, indented for a reader.
func writeJSON(w io.Writer, doc any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	if err := e.Encode(doc); err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	return nil
}
