package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/cpu"
	"github.com/streamcqsa/streamcqsa/pkg/stream"
)

// svgPlan plans a problem of n queries and nk keys.
func svgPlan(t testing.TB, kind string, chunks, depth, nq, nk int, causal attention.Causal) *stream.Plan {
	t.Helper()
	p := attention.Problem{
		B: 1, Hq: 4, Hkv: 2, Nq: nq, Nk: nk, D: 64, Dv: 64,
		DType: attention.BF16, OutDType: attention.F32, Layout: attention.BHND, Scale: 0.125, Causal: causal,
	}
	plan, _, err := stream.New(stream.Request{
		Problem: p, Budget: 1 << 30, Divide: kind, Chunks: chunks, Depth: depth,
		Host: stream.Host{Cache: 1 << 34, Disk: 1e9},
	}, cpu.New(2))
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

func planSVG(t testing.TB, p *stream.Plan) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := writePlanSVG(&out, p); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// svgTexts checks that the document is well formed and needs nothing else, and
// returns its texts.
func svgTexts(t testing.TB, doc []byte) []string {
	t.Helper()
	var texts []string
	inText := false
	for d := xml.NewDecoder(bytes.NewReader(doc)); ; {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return texts
		}
		if err != nil {
			t.Fatalf("not well formed: %v", err)
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			inText = tok.Name.Local == "text"
			if n := tok.Name.Local; n == "script" || n == "image" || n == "style" || n == "foreignObject" {
				t.Errorf("has a %s", n)
			}
			for _, a := range tok.Attr {
				if a.Name.Local == "href" || strings.Contains(a.Value, "NaN") || strings.Contains(a.Value, "Inf") {
					t.Errorf("%s has %s=%q", tok.Name.Local, a.Name.Local, a.Value)
				}
			}
		case xml.EndElement:
			inText = false
		case xml.CharData:
			if inText {
				texts = append(texts, string(tok))
			}
		}
	}
}

func TestPlanSVGIsWellFormed(t *testing.T) {
	for _, p := range []*stream.Plan{
		svgPlan(t, "cqs", 1, 1, 1000, 1000, attention.NonCausal),
		svgPlan(t, "cqs", 7, 1, 1000, 1000, attention.TopLeft),
		svgPlan(t, "cqs", 13, 1, 4, 100000, attention.BottomRight), // fewer queries than chunks
		svgPlan(t, "cqs", 7, 2, 1000, 1000, attention.NonCausal),
		svgPlan(t, "rows", 16, 1, 1000, 9000, attention.NonCausal),
		svgPlan(t, "rows", 16, 1, 9000, 1000, attention.BottomRight), // rows that see no key
	} {
		svgTexts(t, planSVG(t, p))
	}
	if got := svgEscape(`<a & "b">`); strings.ContainsAny(got, `<>"`) {
		t.Errorf("escaped to %s", got)
	}
}

func TestPlanSVGSays(t *testing.T) {
	texts := strings.Join(svgTexts(t, planSVG(t, svgPlan(t, "cqs", 13, 1, 26000, 26001, attention.BottomRight))), "\n")
	for _, want := range []string{
		"B 1, H 4, Hkv 2, Nq 26,000, Nk 26,001, D 64, Dv 64, bf16 to f32, causal bottom-right",
		"cqs: c = 13, l = 4, set {0,1,3,9}",
		"Queries: 13 chunks of 2,000 tokens", "Keys: 13 chunks of up to 2,001 tokens",
		"of a budget of 1 GiB", "KV slots", "query slots", "not used",
		"host to device", "device to host", "disk", "bound by kernel",
	} {
		if !strings.Contains(texts, want) {
			t.Errorf("want %q in\n%s", want, texts)
		}
	}
	if rows := string(planSVG(t, svgPlan(t, "rows", 16, 1, 1600, 1600, attention.NonCausal))); !strings.Contains(rows, "rows: 16 query chunks, each against ") {
		t.Error("rows: the division is not named")
	}
}

var (
	svgPairPath = regexp.MustCompile(`<path fill="(#[0-9a-f]{6})" d="([^"]*)"><title>subproblem (\d+)</title></path>`)
	svgPairCell = regexp.MustCompile(`M(\d+) (\d+)(h1v1h-1z|v1h1z)`)
)

// Every pair that the mask leaves is drawn once, whole or in part as it is
// masked, in the colour of the subproblem that owns it.
func TestPlanSVGOwners(t *testing.T) {
	for _, tc := range []struct {
		kind          string
		chunks, depth int
		nq, nk        int
		causal        attention.Causal
	}{
		{"cqs", 1, 1, 100, 100, attention.TopLeft},
		{"cqs", 3, 1, 100, 100, attention.NonCausal},
		{"cqs", 7, 1, 100, 100, attention.TopLeft},
		{"cqs", 8, 1, 100, 100, attention.NonCausal},
		{"cqs", 13, 1, 5, 700, attention.BottomRight},
		{"cqs", 13, 1, 700, 50, attention.BottomRight},
		{"cqs", 31, 1, 310, 310, attention.TopLeft},
		{"cqs", 7, 2, 490, 490, attention.TopLeft},
		{"rows", 16, 1, 1600, 1600, attention.TopLeft},
	} {
		p := svgPlan(t, tc.kind, tc.chunks, tc.depth, tc.nq, tc.nk, tc.causal)
		type cell struct {
			owner int
			whole bool
		}
		drawn := map[[2]int]cell{}
		for _, path := range svgPairPath.FindAllStringSubmatch(string(planSVG(t, p)), -1) {
			owner, _ := strconv.Atoi(path[3])
			if path[1] != svgOwnerColour(owner) {
				t.Errorf("%v: subproblem %d is %s, want %s", tc, owner, path[1], svgOwnerColour(owner))
			}
			if rest := svgPairCell.ReplaceAllString(path[2], ""); rest != "" {
				t.Errorf("%v: subproblem %d: path has %q", tc, owner, rest)
			}
			for _, m := range svgPairCell.FindAllStringSubmatch(path[2], -1) {
				key, _ := strconv.Atoi(m[1])
				query, _ := strconv.Atoi(m[2])
				if _, twice := drawn[[2]int{query, key}]; twice {
					t.Errorf("%v: pair (%d,%d) is drawn twice", tc, query, key)
				}
				drawn[[2]int{query, key}] = cell{owner, m[3] != "v1h1z"}
			}
		}
		d := p.Division()
		for query := range d.QueryChunks() {
			for key := range d.KeyChunks() {
				q0, q1 := p.QueryAxis.Range(query)
				k0, k1 := p.KeyAxis.Range(key)
				got, ok := drawn[[2]int{query, key}]
				// Counted, not asked of the mask that the drawing asks too.
				pairs, all := p.Problem.PairsIn(q0, q1, k0, k1), float64(q1-q0)*float64(k1-k0)
				if ok != (pairs > 0) {
					t.Errorf("%v: pair (%d,%d) has %v of %v pairs, drawn: %v", tc, query, key, pairs, all, ok)
				} else if want := (cell{d.Owner(query, key), pairs == all}); ok && got != want {
					t.Errorf("%v: pair (%d,%d) is drawn as %v, want %v", tc, query, key, got, want)
				}
			}
		}
	}
}

// Of many chunks, cells stand for several: the grid is covered all the same,
// and the drawing says so.
func TestPlanSVGSampled(t *testing.T) {
	doc := planSVG(t, svgPlan(t, "cqs", 73, 1, 73000, 73000, attention.NonCausal))
	area, cells := 0, 0
	for _, path := range svgPairPath.FindAllStringSubmatch(string(doc), -1) {
		for _, m := range regexp.MustCompile(`h(\d+)v(\d+)h`).FindAllStringSubmatch(path[2], -1) {
			w, _ := strconv.Atoi(m[1])
			h, _ := strconv.Atoi(m[2])
			area += w * h
			cells++
		}
	}
	if area != 73*73 || cells != 37*37 {
		t.Errorf("%d cells cover %d chunk pairs, want %d and %d", cells, area, 37*37, 73*73)
	}
	if !strings.Contains(string(doc), "Sampled: a cell stands for 2 query chunks by 2 key chunks") {
		t.Error("does not say that it is sampled")
	}
	if len(doc) > 1<<20 {
		t.Errorf("%d bytes", len(doc))
	}
}

func TestSVGColours(t *testing.T) {
	seen := map[string]int{}
	for i := range 133 {
		c := svgOwnerColour(i)
		if j, ok := seen[c]; ok {
			t.Errorf("subproblems %d and %d are both %s", j, i, c)
		}
		seen[c] = i
	}
}

func TestSVGNumbers(t *testing.T) {
	for _, tc := range []struct{ got, want string }{
		{svgBytes(0), "0 B"}, {svgBytes(1023), "1023 B"}, {svgBytes(1024), "1 KiB"}, {svgBytes(1536), "1.50 KiB"},
		{svgBytes(1<<30 - 1), "1.00 GiB"}, {svgBytes(1 << 62), "4 EiB"}, {svgBytes(123 << 19), "61.5 MiB"},
		{svgSeconds(0), "0 s"}, {svgSeconds(1.5e-9), "1.50 ns"}, {svgSeconds(0.25), "250 ms"}, {svgSeconds(12.345), "12.3 s"},
		{svgSeconds(660), "11 min"}, {svgSeconds(7200), "2 h"}, {svgSeconds(36e6), "10000 h"},
		{svgCount(-1234567), "-1,234,567"}, {svgCount(999), "999"}, {svgCount(-100), "-100"},
		{svgPlural(1, "pair"), "1 pair"}, {svgPlural(1000, "pair"), "1,000 pairs"},
		{fmt.Sprint(svgNum(1.0 / 3)), "0.33"},
	} {
		if tc.got != tc.want {
			t.Errorf("got %q, want %q", tc.got, tc.want)
		}
	}
}
