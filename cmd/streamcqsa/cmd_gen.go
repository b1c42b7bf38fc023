package main

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/tensorfile"
)

// genOptions are the flags of gen.
type genOptions struct {
	shape  string
	dtype  string
	layout string
	seed   uint64
	kind   string
	format string
	force  bool
	json   bool
}

func newGenCommand() *cobra.Command {
	var opts genOptions
	cmd := &cobra.Command{
		Use:   "gen --shape B,H,N,D [flags] DIR",
		Short: "Write synthetic Q, K and V",
		Long: `Gen writes a Q, a K and a V of any size into DIR, which it makes if need be: as
q.npy, k.npy and v.npy, as q.bin, k.bin and v.bin (--format raw), or as the keys
q, k and v of qkv.safetensors. It prints the paths that it wrote.

An element depends on the seed, its tensor and its place (batch, head, token,
feature) alone. So two files of one seed hold the same numbers, each rounded to
its type, whatever their format and layout and the machine that wrote them, and
a longer sequence begins like a shorter one (except with the kind last).

Kinds, with the scores of the default scale, 1/sqrt(D):

` + genKindHelp() + `
NumPy has no bfloat16: .npy files of bf16 hold two-byte elements of type V2, and
every command that reads them must be told --dtype bf16. Safetensors files say
it themselves.`,
		Example: `  # a million tokens, 32 query heads that share 8 KV heads
  streamcqsa gen --shape 1,32,8,1048576,1048576,128,128 --dtype bf16 --format safetensors --seed 7 data

  # scores of about +-5,000: exp overflows in any type, the softmax must not
  streamcqsa gen --shape 1,2,4096,64 --kind large --seed 1 large`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("gen needs one directory to write to, found %d arguments", len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return runGen(cmd.Context(), opts, args[0], cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&opts.shape, "shape", "", "extents `B,H,N,D`, or B,H,Hkv,Nq,Nk,D,Dv")
	f.StringVar(&opts.dtype, "dtype", "f32", "element `type`: f32, f16 or bf16")
	f.StringVar(&opts.layout, "layout", "bhnd", "storage order of the axes: bhnd, bnhd, hnd, nhd or nd")
	f.Uint64Var(&opts.seed, "seed", 0, "same seed, same numbers")
	f.StringVar(&opts.kind, "kind", "normal", "what the numbers are like: "+genKindNames())
	f.StringVar(&opts.format, "format", "npy", "file format: npy, safetensors or raw")
	f.BoolVar(&opts.force, "force", false, "replace files that exist")
	f.BoolVar(&opts.json, "json", false, "describe what was written as one JSON document")
	return cmd
}

// genKind is a recipe: how to make a row of N(0,1) into what is wanted.
type genKind struct {
	name  string
	help  string
	shape func(g *generator, t *genTensor, n int, row []float64)
}

// lastRise is by how much the kind last raises the scores from the first key
// to the last one: enough that noise of +-1 moves no maximum out of the last
// eighth, where the rise is 8.
const lastRise = 64

var genKinds = []genKind{
	{"normal", "Q, K and V from N(0,1). Scores from N(0,1): the ordinary case.", nil},
	{"uniform", "Q = 0, so that all scores are 0: O is the mean of the V that a row sees, and\nlse the logarithm of their number. A wrong mask or a lost key shows at once.",
		func(_ *generator, t *genTensor, _ int, row []float64) {
			if t.name == "q" {
				clear(row)
			}
		}},
	{"large", "Q from N(0,1000^2). Scores reach about +-5,000, where exp overflows: only a\nsoftmax that subtracts the maximum everywhere survives.",
		func(_ *generator, t *genTensor, _ int, row []float64) {
			if t.name == "q" {
				for i := range row {
					row[i] *= 1000
				}
			}
		}},
	{"last", "Scores rise with the key's position, by 64 in all: the largest of a row is among\nthe last keys that it sees, and whatever was summed before must be rescaled.",
		func(g *generator, t *genTensor, n int, row []float64) {
			// Score = (sqrt(D) a)(b t)/sqrt(D) + noise, with a b = lastRise
			// and t from 0 to 1 along the keys.
			switch t.name {
			case "q":
				row[0] = 4 * math.Sqrt(float64(g.problem.D))
			case "k":
				row[0] = lastRise / 4 * float64(n+1) / float64(t.n)
			}
		}},
	{"mean1", "V from 1 + N(0,1): O is near 1 everywhere. A sum over many keys that drifts, as\nthose of low-precision accumulators do, is off by more than noise.",
		func(_ *generator, t *genTensor, _ int, row []float64) {
			if t.name == "v" {
				for i := range row {
					row[i]++
				}
			}
		}},
}

func genKindHelp() string {
	var b strings.Builder
	for _, k := range genKinds {
		fmt.Fprintf(&b, "  %-9s%s\n", k.name, strings.ReplaceAll(k.help, "\n", "\n           "))
	}
	return b.String()
}

func genKindNames() string {
	var names []string
	for _, k := range genKinds {
		names = append(names, k.name)
	}
	return strings.Join(names[:len(names)-1], ", ") + " or " + names[len(names)-1]
}

// generator makes the tensors of one command.
type generator struct {
	problem attention.Problem
	seed    uint64
	kind    genKind
	tensors []*genTensor
	outputs []*tensorfile.Output
}

// genTensor is q, k or v.
type genTensor struct {
	id         uint64 // part of the seed of every row
	name       string
	b, h, n, d int
	path, key  string
	out        *tensorfile.Output
	data       []byte
}

func runGen(ctx context.Context, opts genOptions, dir string, stdout io.Writer) error {
	g, err := newGenerator(opts, dir)
	if err != nil {
		return err
	}
	if !opts.force {
		if err := g.refuseExisting(); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return outputError(err)
	}
	defer func() {
		for _, o := range g.outputs {
			_ = o.Abort() // after Commit this does nothing; else the first error is the one to report
		}
	}()
	if err := g.create(); err != nil {
		return err
	}
	if err := g.fill(ctx); err != nil {
		return fmt.Errorf("generate %s: %w", dir, err)
	}
	for _, o := range g.outputs {
		if err := o.Commit(); err != nil {
			return err
		}
	}
	return g.report(opts, stdout)
}

// newGenerator checks the flags.
func newGenerator(opts genOptions, dir string) (*generator, error) {
	if opts.shape == "" {
		return nil, usagef("gen needs --shape B,H,N,D or B,H,Hkv,Nq,Nk,D,Dv")
	}
	p, err := parseProblemShape(opts.shape)
	if err != nil {
		return nil, err
	}
	if p.DType, err = attention.ParseDType(opts.dtype); err != nil {
		return nil, usagef("--dtype: %w", err)
	}
	if p.Layout, err = attention.ParseLayout(opts.layout); err != nil {
		return nil, usagef("--layout: %w", err)
	}
	p.OutDType, p.Scale = p.DType, 1
	if err := p.Validate(); err != nil {
		return nil, usagef("--shape %s: %w", opts.shape, err)
	}
	g := &generator{problem: p, seed: opts.seed}
	for _, k := range genKinds {
		if k.name == opts.kind {
			g.kind = k
		}
	}
	if g.kind.name == "" {
		return nil, usagef("--kind %q: want %s", opts.kind, genKindNames())
	}
	g.tensors = []*genTensor{
		{id: 1, name: "q", b: p.B, h: p.Hq, n: p.Nq, d: p.D},
		{id: 2, name: "k", b: p.B, h: p.Hkv, n: p.Nk, d: p.D},
		{id: 3, name: "v", b: p.B, h: p.Hkv, n: p.Nk, d: p.Dv},
	}
	for _, t := range g.tensors {
		switch opts.format {
		case "npy":
			t.path = filepath.Join(dir, t.name+".npy")
		case "raw":
			t.path = filepath.Join(dir, t.name+".bin")
		case "safetensors":
			t.path, t.key = filepath.Join(dir, "qkv.safetensors"), t.name
		default:
			return nil, usagef("--format %q: want npy, safetensors or raw", opts.format)
		}
	}
	return g, nil
}

// paths of the files, each once.
func (g *generator) paths() []string {
	var paths []string
	for _, t := range g.tensors {
		if len(paths) == 0 || paths[len(paths)-1] != t.path {
			paths = append(paths, t.path)
		}
	}
	return paths
}

func (g *generator) refuseExisting() error {
	for _, path := range g.paths() {
		switch _, err := os.Lstat(path); {
		case err == nil:
			return usagef("write %s: it exists; --force replaces it", path)
		case !errors.Is(err, fs.ErrNotExist):
			return outputError(err)
		}
	}
	return nil
}

// create makes all files before anything is computed, so that a full disk is
// an error now.
func (g *generator) create() error {
	for _, path := range g.paths() {
		var specs []tensorfile.OutSpec
		var tensors []*genTensor
		for _, t := range g.tensors {
			if t.path != path {
				continue
			}
			spec := tensorfile.OutSpec{
				Path: path, Key: t.key, DType: g.problem.DType,
				Shape: g.problem.Layout.Shape(t.b, t.h, t.n, t.d),
			}
			if t.key != "" {
				spec.Metadata = map[string]string{
					"layout": g.problem.Layout.String(),
					"kind":   g.kind.name,
					"seed":   strconv.FormatUint(g.seed, 10),
				}
			}
			specs, tensors = append(specs, spec), append(tensors, t)
		}
		out, err := tensorfile.Create(specs...)
		if err != nil {
			return outputError(err)
		}
		g.outputs = append(g.outputs, out)
		for i, t := range tensors {
			t.out, t.data = out, out.BytesOf(i)
		}
	}
	return nil
}

// genBlock is about how many bytes a goroutine writes at a time.
const genBlock = 1 << 20

// fill computes all elements on all cores. Blocks are runs of rows in storage
// order, so that every goroutine writes whole pages one after the other; the
// numbers of a row do not depend on the block that it is in.
func (g *generator) fill(ctx context.Context) error {
	type block struct {
		t      *genTensor
		lo, hi int // rows in storage order
	}
	var next atomic.Int64
	blockAt := func(i int) (block, bool) {
		for _, t := range g.tensors {
			rows := t.b * t.h * t.n
			size := max(1, genBlock/(t.d*g.problem.DType.Size()))
			count := (rows + size - 1) / size
			if i < count {
				return block{t, i * size, min((i+1)*size, rows)}, true
			}
			i -= count
		}
		return block{}, false
	}
	var wg sync.WaitGroup
	errs := make([]error, runtime.GOMAXPROCS(0))
	for w := range errs {
		wg.Go(func() {
			rng := newGenRNG()
			row := make([]float64, max(g.problem.D, g.problem.Dv))
			for ctx.Err() == nil {
				b, ok := blockAt(int(next.Add(1) - 1))
				if !ok {
					return
				}
				errs[w] = tensorfile.Guard(func() error {
					g.fillRows(rng, b.t, b.lo, b.hi, row[:b.t.d])
					return nil
				}, b.t.out)
				if errs[w] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	if err := cmp.Or(errs...); err != nil { // of a disk that fails, all threads say so
		return err
	}
	return context.Cause(ctx)
}

// fillRows computes rows lo to hi, in storage order.
func (g *generator) fillRows(rng *genRNG, t *genTensor, lo, hi int, row []float64) {
	width := t.d * g.problem.DType.Size()
	for r := lo; r < hi; r++ {
		b, h, n := t.place(g.problem.Layout, r)
		rng.seed(g.seed, t.id, uint64(b), uint64(h), uint64(n))
		for i := range row {
			row[i] = rng.NormFloat64()
		}
		if g.kind.shape != nil {
			g.kind.shape(g, t, n, row)
		}
		putGenRow(g.problem.DType, t.data[r*width:(r+1)*width], row)
	}
}

// place is the batch entry, head and token of a row in storage order.
func (t *genTensor) place(l attention.Layout, row int) (b, h, n int) {
	if l == attention.BNHD || l == attention.NHD {
		return row / t.h / t.n, row % t.h, row / t.h % t.n
	}
	return row / t.n / t.h, row / t.n % t.h, row % t.n
}

// putGenRow rounds a row into dst: as DType.Put does, but a whole row at a time,
// and with a short cut for the numbers that nearly all are.
func putGenRow(dtype attention.DType, dst []byte, row []float64) {
	switch dtype {
	case attention.F32:
		for i, x := range row {
			binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(float32(x)))
		}
	case attention.F16:
		for i, x := range row {
			h, ok := roundNormal(x, 42, 0x1p-14, 0x1p15)
			if !ok {
				h = attention.Float64ToF16(x)
			}
			binary.LittleEndian.PutUint16(dst[2*i:], h)
		}
	case attention.BF16:
		for i, x := range row {
			h, ok := roundNormal(x, 45, 0x1p-126, 0x1p127)
			if !ok {
				h = attention.Float64ToBF16(x)
			}
			binary.LittleEndian.PutUint16(dst[2*i:], h)
		}
	}
}

// roundNormal rounds x, to nearest, ties to even, to a 16-bit format that has
// drop bits less than a float64's fraction and whose normal numbers begin at
// lo. It is false outside of lo to hi, from where a carry could lead to
// infinity. Much of the time of gen goes here, so it is small enough to inline.
func roundNormal(x float64, drop uint, lo, hi float64) (uint16, bool) {
	bits := math.Float64bits(x)
	mag := bits &^ (1 << 63)
	first := math.Float64bits(lo)
	if mag-first >= math.Float64bits(hi)-first { // unsigned: below lo wraps
		return 0, false
	}
	// The exponent of lo becomes 1.
	mag += 1<<52 - first + 1<<(drop-1) - 1 + mag>>drop&1
	return uint16(bits>>63<<15 | mag>>drop), true
}

// genRNG draws the numbers of one row after the other, each row from a
// generator of its own. Seeding a PCG costs nothing, which is why a row can
// have one, and its period of 2^128 is why rows do not overlap.
type genRNG struct {
	*rand.Rand
	pcg *rand.PCG
}

func newGenRNG() *genRNG {
	pcg := rand.NewPCG(0, 0)
	return &genRNG{rand.New(pcg), pcg}
}

// seed hashes the words: seeds of a PCG that differ in few bits begin alike.
func (r *genRNG) seed(words ...uint64) {
	var x uint64
	for _, w := range words {
		x = genMix(x + 0x9e3779b97f4a7c15 + w)
	}
	r.pcg.Seed(x, genMix(x+0x9e3779b97f4a7c15))
}

// genMix is the output function of SplitMix64, a bijection that avalanches.
func genMix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// genReport is what --json prints.
type genReport struct {
	Seed    uint64            `json:"seed"`
	Kind    string            `json:"kind"`
	DType   string            `json:"dtype"`
	Layout  string            `json:"layout"`
	Bytes   int64             `json:"bytes"` // of all elements
	Tensors []genReportTensor `json:"tensors"`
}

type genReportTensor struct {
	Name  string `json:"name"`
	Path  string `json:"path"`
	Key   string `json:"key,omitempty"`
	Shape []int  `json:"shape"`
	Bytes int64  `json:"bytes"`
}

func (g *generator) report(opts genOptions, stdout io.Writer) error {
	if !opts.json {
		_, err := fmt.Fprintln(stdout, strings.Join(g.paths(), "\n"))
		return err
	}
	rep := genReport{Seed: g.seed, Kind: g.kind.name, DType: g.problem.DType.String(), Layout: g.problem.Layout.String()}
	for _, t := range g.tensors {
		bytes := int64(t.b) * int64(t.h) * int64(t.n) * int64(t.d) * int64(g.problem.DType.Size())
		rep.Bytes += bytes
		rep.Tensors = append(rep.Tensors, genReportTensor{
			Name: t.name, Path: t.path, Key: t.key,
			Shape: g.problem.Layout.Shape(t.b, t.h, t.n, t.d), Bytes: bytes,
		})
	}
	e := json.NewEncoder(stdout)
	e.SetIndent("", "  ")
	return e.Encode(rep)
}
