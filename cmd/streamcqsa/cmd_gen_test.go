package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/tensorfile"
)

// genDefaults are the options of a gen command without flags.
func genDefaults(shape string) genOptions {
	return genOptions{shape: shape, dtype: "f32", layout: "bhnd", kind: "normal", format: "npy"}
}

// genTensors runs gen and returns q, k and v, each in the order b, h, n, d,
// however they lie in the file.
func genTensors(t *testing.T, opts genOptions) [3][]float32 {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "made")
	if err := runGen(context.Background(), opts, dir, new(bytes.Buffer)); err != nil {
		t.Fatal(err)
	}
	return readGenTensors(t, opts, dir)
}

func readGenTensors(t *testing.T, opts genOptions, dir string) [3][]float32 {
	t.Helper()
	g, err := newGenerator(opts, dir)
	if err != nil {
		t.Fatal(err)
	}
	var all [3][]float32
	for i, want := range g.tensors {
		l := g.problem.Layout
		spec := tensorfile.Spec{Path: want.path, Key: want.key, DType: g.problem.DType}
		if opts.format == "raw" {
			spec.Shape = l.Shape(want.b, want.h, want.n, want.d)
		}
		f, err := tensorfile.Open(spec)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if shape := l.Shape(want.b, want.h, want.n, want.d); !slices.Equal(f.Shape(), shape) {
			t.Fatalf("%s has shape %v, want %v", want.name, f.Shape(), shape)
		}
		stored := make([]float32, want.b*want.h*want.n*want.d)
		g.problem.DType.Widen(stored, f.Bytes())
		for b := range want.b {
			for h := range want.h {
				for n := range want.n {
					at := l.Offset(b, h, n, want.h, want.n, want.d)
					all[i] = append(all[i], stored[at:at+want.d]...)
				}
			}
		}
	}
	return all
}

// The numbers are part of the interface: people cite a seed.
func TestGenPinned(t *testing.T) {
	opts := genDefaults("2,4,2,33,70,16,24")
	opts.seed = 7
	h := sha256.New()
	for _, x := range genTensors(t, opts) {
		for _, v := range x {
			fmt.Fprintf(h, "%08x", math.Float32bits(v))
		}
	}
	const want = "9bbb158a5f0a885d3e38b8199601106f38077efdba41969b7423e5aeb898bb11"
	if got := fmt.Sprintf("%x", h.Sum(nil)); got != want {
		t.Errorf("seed 7 makes other numbers than it used to: %s, want %s", got, want)
	}
}

func TestGenSameNumbersEverywhere(t *testing.T) {
	for _, kind := range genKinds {
		opts := genDefaults("2,4,2,33,70,16,24")
		opts.seed, opts.kind = 1<<63+5, kind.name
		want := genTensors(t, opts)
		for _, format := range []string{"npy", "safetensors", "raw"} {
			for _, layout := range []string{"bhnd", "bnhd"} {
				for _, dtype := range []string{"f32", "f16", "bf16"} {
					opts.format, opts.layout, opts.dtype = format, layout, dtype
					got := genTensors(t, opts)
					for i := range want {
						compareRounded(t, fmt.Sprint(opts, " ", i), got[i], want[i], dtype)
					}
				}
			}
		}
	}
}

// compareRounded wants got to be want within the rounding of dtype. (It is
// rounded from float64, so that it need not be the rounding of the float32.)
func compareRounded(t *testing.T, what string, got, want []float32, dtype string) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d elements, want %d", what, len(got), len(want))
	}
	dt, _ := attention.ParseDType(dtype)
	for i := range want {
		tol := 0.0
		if dtype != "f32" {
			tol = max(dt.Epsilon()*math.Abs(float64(want[i])), 0x1p-24) * 0.5000001
		}
		if !(math.Abs(float64(got[i])-float64(want[i])) <= tol) {
			t.Fatalf("%s: element %d is %v, want %v", what, i, got[i], want[i])
		}
	}
}

func TestGenCores(t *testing.T) {
	opts := genDefaults("1,2,20000,32") // several blocks of each tensor
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	want := genTensors(t, opts)
	runtime.GOMAXPROCS(7)
	for i, got := range genTensors(t, opts) {
		if !slices.Equal(got, want[i]) {
			t.Errorf("tensor %d differs between 1 and 7 cores", i)
		}
	}
}

func TestGenLowRanks(t *testing.T) {
	want := genTensors(t, genDefaults("1,3,20,8"))
	for _, layout := range []string{"hnd", "nhd"} {
		opts := genDefaults("1,3,20,8")
		opts.layout = layout
		if got := genTensors(t, opts); !slices.Equal(got[0], want[0]) || !slices.Equal(got[2], want[2]) {
			t.Errorf("layout %s: other numbers than bhnd", layout)
		}
	}
	opts := genDefaults("1,1,20,8")
	opts.layout = "nd"
	if got := genTensors(t, opts); !slices.Equal(got[1], want[1][:len(got[1])]) {
		t.Error("layout nd: other numbers than the first head of bhnd")
	}
}

// A longer sequence begins like a shorter one, and q, k and v, heads and seeds
// have nothing in common.
func TestGenRowsAreTheirOwn(t *testing.T) {
	short, long := genTensors(t, genDefaults("1,2,50,8")), genTensors(t, genDefaults("1,2,90,8"))
	if !slices.Equal(short[0][:50*8], long[0][:50*8]) {
		t.Error("head 0 of q depends on the number of tokens")
	}
	opts := genDefaults("1,2,50,8")
	opts.seed = 1
	other := genTensors(t, opts)
	seen := map[float32]bool{}
	for _, x := range slices.Concat(short[0], short[1], short[2], other[0], other[1], other[2]) {
		seen[x] = true
	}
	if all := 6 * 2 * 50 * 8; len(seen) < all*99/100 {
		t.Errorf("%d different numbers among %d", len(seen), all)
	}
}

// moments are the first four of a sample: mean, deviation, skewness, kurtosis.
func moments(x []float32) (mean, sd, skew, kurt float64) {
	n := float64(len(x))
	for _, v := range x {
		mean += float64(v) / n
	}
	var m2, m3, m4 float64
	for _, v := range x {
		d := float64(v) - mean
		m2, m3, m4 = m2+d*d/n, m3+d*d*d/n, m4+d*d*d*d/n
	}
	sd = math.Sqrt(m2)
	return mean, sd, m3 / (sd * sd * sd), m4 / (m2 * m2)
}

func TestGenMoments(t *testing.T) {
	const shape = "1,2,4096,64"
	for _, tc := range []struct {
		kind   string
		tensor int
		mean   float64
		sd     float64
	}{
		{"normal", 0, 0, 1}, {"normal", 1, 0, 1}, {"normal", 2, 0, 1},
		{"uniform", 1, 0, 1}, {"large", 0, 0, 1000}, {"large", 1, 0, 1}, {"mean1", 2, 1, 1},
	} {
		opts := genDefaults(shape)
		opts.kind = tc.kind
		x := genTensors(t, opts)[tc.tensor]
		mean, sd, skew, kurt := moments(x)
		// Six standard errors; those of the moments of a normal sample.
		root := math.Sqrt(float64(len(x)))
		if math.Abs(mean-tc.mean) > 6*tc.sd/root || math.Abs(sd-tc.sd) > 6*tc.sd/(root*math.Sqrt2) ||
			math.Abs(skew) > 6*math.Sqrt(6)/root || math.Abs(kurt-3) > 6*math.Sqrt(24)/root {
			t.Errorf("%s: tensor %d has mean %v, deviation %v, skewness %v, kurtosis %v, want %v, %v, 0, 3", tc.kind, tc.tensor, mean, sd, skew, kurt, tc.mean, tc.sd)
		}
	}
}

// scores returns Q K^T / sqrt(D) of the only head.
func scores(q, k []float32, d int) [][]float64 {
	var rows [][]float64
	for i := 0; i < len(q); i += d {
		var row []float64
		for j := 0; j < len(k); j += d {
			var s float64
			for x := range d {
				s += float64(q[i+x]) * float64(k[j+x])
			}
			row = append(row, s*attention.DefaultScale(d))
		}
		rows = append(rows, row)
	}
	return rows
}

func TestGenScores(t *testing.T) {
	for _, dtype := range []string{"f32", "f16", "bf16"} {
		for _, d := range []int{1, 8, 64} {
			make := func(kind string) [][]float64 {
				opts := genDefaults(fmt.Sprintf("1,1,1,300,500,%d,4", d))
				opts.kind, opts.dtype = kind, dtype
				x := genTensors(t, opts)
				return scores(x[0], x[1], d)
			}
			for i, row := range make("uniform") {
				if slices.Max(row) != 0 || slices.Min(row) != 0 {
					t.Fatalf("uniform: row %d has scores from %v to %v", i, slices.Min(row), slices.Max(row))
				}
			}
			for i, row := range make("last") {
				// Of all keys, and of those that a causal row sees.
				for _, visible := range []int{len(row), len(row) / 2} {
					at := slices.Index(row[:visible], slices.Max(row[:visible]))
					if at < visible-len(row)/8 {
						t.Errorf("last, %s, D=%d: the largest score of row %d is that of key %d of %d", dtype, d, i, at, visible)
					}
				}
			}
			lo, hi := 0.0, 0.0
			for _, row := range make("large") {
				lo, hi = min(lo, slices.Min(row)), max(hi, slices.Max(row))
			}
			if hi < 3500 || hi > 15000 || lo > -3500 || lo < -15000 {
				t.Errorf("large, %s, D=%d: scores from %v to %v", dtype, d, lo, hi)
			}
		}
	}
}

func TestRoundNormal(t *testing.T) {
	rng := newGenRNG()
	check := func(x float64) (short int) {
		for _, x := range []float64{x, -x} {
			if h, ok := roundNormal(x, 42, 0x1p-14, 0x1p15); ok {
				short++
				if want := attention.Float64ToF16(x); h != want {
					t.Fatalf("f16 of %x is %#04x, want %#04x", x, h, want)
				}
			}
			if h, ok := roundNormal(x, 45, 0x1p-126, 0x1p127); ok {
				short++
				if want := attention.Float64ToBF16(x); h != want {
					t.Fatalf("bf16 of %x is %#04x, want %#04x", x, h, want)
				}
			}
		}
		return short
	}
	for _, x := range []float64{0, math.Inf(1), math.NaN(), 1, 1 + 0x1p-11, 1 + 0x3p-11, 1 + 0x1p-8, 1 + 0x3p-8, 65504, 65520, 32767.9, 0x1p-14, 0x1.ffffp-15, 0x1p-126, 0x1.ffffp-127, 0x1p127, 0x1.ffffp127, 0x1p128, 5e-324, math.MaxFloat64} {
		check(x)
	}
	for range 20000 {
		if check(rng.NormFloat64()+1e-3) == 0 {
			t.Fatal("the short cut was not taken")
		}
		check(math.Ldexp(rng.NormFloat64(), rng.IntN(300)-150))
		check(math.Float64frombits(rng.Uint64() &^ (1<<42 - 1))) // ties
	}
}

func TestGenReport(t *testing.T) {
	dir := t.TempDir()
	run := func(opts genOptions) string {
		t.Helper()
		var out bytes.Buffer
		if err := runGen(context.Background(), opts, dir, &out); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	opts := genDefaults("1,2,1,5,6,3,4")
	if got, want := run(opts), fmt.Sprintf("%[1]s/q.npy\n%[1]s/k.npy\n%[1]s/v.npy\n", dir); got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
	opts.format, opts.json, opts.seed, opts.kind, opts.dtype, opts.layout = "safetensors", true, 1<<64-1, "mean1", "bf16", "bnhd"
	var rep genReport
	if err := json.Unmarshal([]byte(run(opts)), &rep); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "qkv.safetensors")
	want := fmt.Sprint(genReport{1<<64 - 1, "mean1", "bf16", "bnhd", 2 * (2*5*3 + 6*3 + 6*4), []genReportTensor{
		{"q", path, "q", []int{1, 5, 2, 3}, 60}, {"k", path, "k", []int{1, 6, 1, 3}, 36}, {"v", path, "v", []int{1, 6, 1, 4}, 48},
	}})
	if got := fmt.Sprint(rep); got != want {
		t.Errorf("reported %s, want %s", got, want)
	}
	info, err := tensorfile.Inspect(path)
	if err != nil {
		t.Fatal(err)
	}
	if m := info.Metadata; m["seed"] != "18446744073709551615" || m["kind"] != "mean1" || m["layout"] != "bnhd" {
		t.Errorf("metadata %v", m)
	}
}

func TestGenKeepsFiles(t *testing.T) {
	dir := t.TempDir()
	old := filepath.Join(dir, "k.npy")
	if err := os.WriteFile(old, []byte("precious"), 0o666); err != nil {
		t.Fatal(err)
	}
	opts := genDefaults("1,1,4,4")
	err := runGen(context.Background(), opts, dir, new(bytes.Buffer))
	if err == nil || !strings.Contains(err.Error(), old) || !strings.Contains(err.Error(), "--force") {
		t.Errorf("error %v, want one that names %s and --force", err, old)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("directory has %v, want k.npy alone", entries)
	}
	if data, _ := os.ReadFile(old); string(data) != "precious" {
		t.Errorf("k.npy was touched: %q", data)
	}
	opts.force = true
	if err := runGen(context.Background(), opts, dir, new(bytes.Buffer)); err != nil {
		t.Fatal(err)
	}
	readGenTensors(t, opts, dir)
}

func TestGenInterrupted(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := runGen(ctx, genDefaults("1,1,4,4"), dir, new(bytes.Buffer)); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context canceled", err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("left %v", entries)
	}
}

func TestGenUsage(t *testing.T) {
	for _, tc := range []struct {
		change func(*genOptions)
		want   string
	}{
		{func(o *genOptions) { o.shape = "" }, "--shape"},
		{func(o *genOptions) { o.shape = "1,2,3" }, "shape"},
		{func(o *genOptions) { o.shape = "1,3,2,8,8,4,4" }, "3 query heads cannot share 2"},
		{func(o *genOptions) { o.shape = "1,1,0,4" }, "shape"},
		{func(o *genOptions) { o.dtype = "f64" }, `--dtype: element type "f64"`},
		{func(o *genOptions) { o.layout = "nd" }, "layout nd has no head axis"},
		{func(o *genOptions) { o.layout = "dhn" }, `--layout: layout "dhn"`},
		{func(o *genOptions) { o.kind = "odd" }, `--kind "odd": want normal, uniform, large, last or mean1`},
		{func(o *genOptions) { o.format = "csv" }, `--format "csv"`},
	} {
		opts := genDefaults("1,2,8,4")
		tc.change(&opts)
		dir := filepath.Join(t.TempDir(), "new")
		err := runGen(context.Background(), opts, dir, new(bytes.Buffer))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: error %v, want one with %q", opts, err, tc.want)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%+v: made the directory", opts)
		}
	}
}

func TestGenCommand(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	var out bytes.Buffer
	cmd := newGenCommand()
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"--shape", "1,1,8,4", "--dtype", "bf16", "--seed", "3", dir})
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	if strings.Count(out.String(), "\n") != 3 {
		t.Errorf("printed %q", out.String())
	}
	opts := genDefaults("1,1,8,4")
	opts.dtype, opts.seed = "bf16", 3
	got, want := readGenTensors(t, opts, dir), genTensors(t, opts)
	for i := range want {
		if !slices.Equal(got[i], want[i]) {
			t.Errorf("tensor %d is not that of the same options", i)
		}
	}
}

func BenchmarkGen(b *testing.B) {
	for _, dtype := range []string{"f32", "f16", "bf16"} {
		b.Run(dtype, func(b *testing.B) {
			opts := genDefaults("1,1,4096,128")
			opts.dtype = dtype
			g, err := newGenerator(opts, "")
			if err != nil {
				b.Fatal(err)
			}
			t := g.tensors[0]
			t.data = make([]byte, t.n*t.d*g.problem.DType.Size())
			rng, row := newGenRNG(), make([]float64, t.d)
			b.SetBytes(int64(len(t.data)))
			for b.Loop() {
				g.fillRows(rng, t, 0, t.n, row)
			}
		})
	}
}
