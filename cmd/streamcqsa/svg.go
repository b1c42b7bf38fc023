package main

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
	"github.com/streamcqsa/streamcqsa/pkg/divide"
	"github.com/streamcqsa/streamcqsa/pkg/stream"
)

// The page is svgWidth wide. The grid of chunks is a square on the left, the
// bars are a column on the right.
const (
	svgWidth  = 1000.0
	svgHeight = 684.0

	svgGridX    = 84.0
	svgGridY    = 132.0
	svgGridSize = 440.0

	svgBarsX     = 592.0
	svgBarsWidth = svgWidth - 40 - svgBarsX
)

const svgBold = `font-weight="600"`

const (
	svgInk    = "#1c2430"
	svgMuted  = "#667085"
	svgFaint  = "#d5dae1"
	svgMasked = "#f1f3f5"
	svgBound  = "#c2410c"
	svgOther  = "#94a3b8"
)

// svgMaxCells is how many chunks of an axis are drawn. Of more, some are drawn
// for all.
const svgMaxCells = 64

// svgPage is a drawing in the making. Text is escaped, numbers are short.
type svgPage struct{ bytes.Buffer }

// writePlanSVG draws a plan as one self-contained SVG: who computes which pair
// of chunks, what the device's memory is for, and where the time goes.
func writePlanSVG(w io.Writer, p *stream.Plan) error {
	var s svgPage
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %[1]v %[2]v" width="%[1]v" height="%[2]v" role="img" font-family="system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif" font-size="12" fill="%[3]s">`+"\n", svgWidth, svgHeight, svgInk)
	fmt.Fprintf(&s, "<title>%s</title>\n", svgEscape("Plan: "+svgProblemLine(p.Problem)))
	s.WriteString(`<defs><pattern id="masked" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">` +
		`<rect width="6" height="6" fill="` + svgMasked + `"/><line x1="0" y1="0" x2="0" y2="6" stroke="` + svgFaint + `" stroke-width="2"/></pattern></defs>` + "\n")
	s.rect(0, 0, svgWidth, svgHeight, `fill="#fff"`)
	s.title(p)
	g := newSVGGrid(p)
	s.cells(p, g)
	s.quorum(g)
	s.axes(g)
	s.legend(p, g)
	y := s.memory(p, svgGridY-16)
	y = s.seconds(p, y+36)
	s.facts(p, y+36)
	s.WriteString("</svg>\n")
	_, err := w.Write(s.Bytes())
	return err
}

func svgEscape(text string) string {
	var b strings.Builder
	xml.EscapeText(&b, []byte(text)) // to a Builder, which can't fail
	return b.String()
}

// svgNum writes a coordinate to a hundredth of a pixel.
func svgNum(x float64) string {
	return strconv.FormatFloat(math.Round(x*100)/100, 'f', -1, 64)
}

func (s *svgPage) rect(x, y, w, h float64, attrs string) {
	fmt.Fprintf(s, `<rect x="%s" y="%s" width="%s" height="%s" %s/>`+"\n", svgNum(x), svgNum(y), svgNum(w), svgNum(h), attrs)
}

// text writes a line, smaller than size where it might not fit into width.
func (s *svgPage) text(x, y, width, size float64, attrs, text string) {
	// There are no metrics without a font. Letters and digits of the widest
	// common ones, Verdana's kin, are 0.6 as wide as they are high, 0.68 if bold.
	per := 0.6
	if strings.Contains(attrs, svgBold) {
		per = 0.68
	}
	size = min(size, math.Floor(20*width/per/float64(len([]rune(text))+1))/20)
	fmt.Fprintf(s, `<text x="%s" y="%s" font-size="%s" %s>%s</text>`+"\n", svgNum(x), svgNum(y), svgNum(size), attrs, svgEscape(text))
}

// title: the problem, and how it is divided.
func (s *svgPage) title(p *stream.Plan) {
	s.text(40, 42, svgWidth-80, 19, svgBold, svgProblemLine(p.Problem))
	s.text(40, 66, svgWidth-80, 14, `fill="`+svgMuted+`"`, svgDivisionLine(p))
	fmt.Fprintf(s, `<path d="M40 82H%v" stroke="%s"/>`+"\n", svgWidth-40, svgFaint)
}

func svgProblemLine(p attention.Problem) string {
	line := fmt.Sprintf("B %d, H %d, Hkv %d, Nq %s, Nk %s, D %d, Dv %d, %v", p.B, p.Hq, p.Hkv, svgCount(p.Nq), svgCount(p.Nk), p.D, p.Dv, p.DType)
	if p.OutDType != p.DType {
		line += fmt.Sprintf(" to %v", p.OutDType)
	}
	if p.Causal != attention.NonCausal {
		line += fmt.Sprintf(", causal %v", p.Causal)
	}
	return line
}

func svgDivisionLine(p *stream.Plan) string {
	d := p.Division()
	set, ok := d.Set()
	if !ok {
		return fmt.Sprintf("rows: %s query chunks, each against %s key chunks", svgCount(d.QueryChunks()), svgCount(d.KeyChunks()))
	}
	members := set.Members()
	const most = 12
	list := make([]string, 0, most+1)
	for i, m := range members {
		if i == most && len(members) > most+1 {
			list = append(list, "…")
			break
		}
		list = append(list, strconv.Itoa(m))
	}
	line := fmt.Sprintf("cqs: c = %s, l = %d, set {%s}", svgCount(set.Chunks()), set.Size(), strings.Join(list, ","))
	if d.Depth() > 1 {
		line += fmt.Sprintf(", depth %d", d.Depth())
	}
	return line
}

// svgGrid is which chunks are drawn where, and which subproblem is outlined.
type svgGrid struct {
	query, key svgAxis
	shown      divide.Subproblem
	pairs      []divide.Pair // of shown, those not masked, by query and key
}

// svgAxis draws every step-th chunk for its neighbours too.
type svgAxis struct {
	axis   divide.Axis
	step   int
	cells  int
	marked []int // chunks of the outlined subproblem
}

func newSVGAxis(a divide.Axis) svgAxis {
	step := (a.Chunks + svgMaxCells - 1) / svgMaxCells
	return svgAxis{axis: a, step: step, cells: (a.Chunks + step - 1) / step}
}

// at is the position of the border before a chunk, in pixels of the grid.
func (a svgAxis) at(chunk int) float64 {
	return float64(chunk) / float64(a.axis.Chunks) * svgGridSize
}

func newSVGGrid(p *stream.Plan) *svgGrid {
	g := &svgGrid{query: newSVGAxis(p.QueryAxis), key: newSVGAxis(p.KeyAxis)}
	// One that shows the pattern: of rows, the first has the fewest pairs when
	// causal; of CQS all have as many.
	d := p.Division()
	i := 0
	if d.Kind() == "rows" {
		i = d.Len() / 2
	}
	d.Subproblem(i, &g.shown)
	g.query.marked, g.key.marked = g.shown.Query, g.shown.Key
	for _, q := range g.shown.Pairs {
		if svgMask(p, q.Query, q.Key) != attention.Empty {
			g.pairs = append(g.pairs, q)
		}
	}
	slices.SortFunc(g.pairs, func(a, b divide.Pair) int {
		return cmp.Or(a.Query-b.Query, a.Key-b.Key)
	})
	return g
}

// svgMask says what of a pair of chunks is visible.
func svgMask(p *stream.Plan, query, key int) attention.MaskKind {
	q0, q1 := p.QueryAxis.Range(query)
	k0, k1 := p.KeyAxis.Range(key)
	if q0 == q1 || k0 == k1 {
		return attention.Empty
	}
	kind, _ := p.Problem.Mask(q0, q1, k0, k1)
	return kind
}

// cells draws the pairs, one path for each owner, on a hatched ground. A path is
// in chunks, x = key and y = query, and the transform makes it pixels.
func (s *svgPage) cells(p *stream.Plan, g *svgGrid) {
	masked := false
	paths := map[int]*strings.Builder{}
	var owners []int
	for i := range g.query.cells {
		for j := range g.key.cells {
			query, key := i*g.query.step, j*g.key.step
			w, h := min(g.key.step, p.KeyAxis.Chunks-key), min(g.query.step, p.QueryAxis.Chunks-query)
			kind := svgMask(p, query, key)
			square := fmt.Sprintf("M%d %dh%dv%dh%dz", key, query, w, h, -w)
			masked = masked || kind != attention.Full
			if kind == attention.Empty {
				continue
			}
			owner := p.Division().Owner(query, key)
			if paths[owner] == nil {
				paths[owner] = new(strings.Builder)
				owners = append(owners, owner)
			}
			if kind == attention.Full {
				paths[owner].WriteString(square)
			} else {
				fmt.Fprintf(paths[owner], "M%d %dv%dh%dz", key, query, h, w)
			}
		}
	}
	fmt.Fprintf(s, `<g transform="translate(%v %v)">`+"\n", svgGridX, svgGridY)
	sx, sy := svgGridSize/float64(p.KeyAxis.Chunks), svgGridSize/float64(p.QueryAxis.Chunks)
	if masked {
		// Under all cells, and not scaled, as its hatching would be too.
		s.rect(0, 0, svgGridSize, svgGridSize, `fill="url(#masked)"`)
	}
	fmt.Fprintf(s, `<g id="pairs" transform="scale(%v %v)">`+"\n", sx, sy)
	slices.Sort(owners)
	for _, o := range owners {
		fmt.Fprintf(s, `<path fill="%s" d="%s"><title>subproblem %d</title></path>`+"\n", svgOwnerColour(o), paths[o], o)
	}
	s.WriteString("</g>\n")
	var lines strings.Builder
	for i := 1; i < g.query.cells; i++ {
		fmt.Fprintf(&lines, "M0 %sH%v", svgNum(g.query.at(i*g.query.step)), svgGridSize)
	}
	for j := 1; j < g.key.cells; j++ {
		fmt.Fprintf(&lines, "M%s 0V%v", svgNum(g.key.at(j*g.key.step)), svgGridSize)
	}
	width := min(1.5, svgGridSize/float64(max(g.query.cells, g.key.cells))/10)
	fmt.Fprintf(s, `<path d="%s" stroke="#fff" stroke-width="%s" fill="none"/>`+"\n", lines.String(), svgNum(width))
	s.rect(0, 0, svgGridSize, svgGridSize, `fill="none" stroke="`+svgOther+`"`)
	s.WriteString("</g>\n")
}

// svgOwnerColour: hues by the golden angle, so that no two of the first dozens
// are near, and three lightnesses, so that neighbours in hue differ too.
func svgOwnerColour(owner int) string {
	hue := math.Mod(210+float64(owner)*137.50776, 360)
	light := [...]float64{0.66, 0.76, 0.56}[owner%3]
	const saturation = 0.58
	part := func(n float64) int {
		k := math.Mod(n+hue/30, 12)
		v := light - saturation*min(light, 1-light)*max(-1, min(k-3, 9-k, 1))
		return int(math.Round(v * 255))
	}
	return fmt.Sprintf("#%02x%02x%02x", part(0), part(8), part(4))
}

// svgMaxOutlines is more than which the outlines would cover the picture.
const svgMaxOutlines = 1500

// quorum outlines the pairs of one subproblem where they are, also when the
// cells stand for several chunks: a line wherever a pair has a neighbour that
// is not one of them.
func (s *svgPage) quorum(g *svgGrid) {
	if len(g.pairs) > svgMaxOutlines {
		return
	}
	mine := map[divide.Pair]bool{}
	for _, q := range g.pairs {
		mine[q] = true
	}
	var lines strings.Builder
	for _, q := range g.pairs {
		x0, x1 := svgNum(g.key.at(q.Key)), svgNum(g.key.at(q.Key+1))
		y0, y1 := svgNum(g.query.at(q.Query)), svgNum(g.query.at(q.Query+1))
		if !mine[divide.Pair{Query: q.Query - 1, Key: q.Key}] {
			fmt.Fprintf(&lines, "M%s %sH%s", x0, y0, x1)
		}
		if !mine[divide.Pair{Query: q.Query + 1, Key: q.Key}] {
			fmt.Fprintf(&lines, "M%s %sH%s", x0, y1, x1)
		}
		if !mine[divide.Pair{Query: q.Query, Key: q.Key - 1}] {
			fmt.Fprintf(&lines, "M%s %sV%s", x0, y0, y1)
		}
		if !mine[divide.Pair{Query: q.Query, Key: q.Key + 1}] {
			fmt.Fprintf(&lines, "M%s %sV%s", x1, y0, y1)
		}
	}
	cell := min(g.key.at(1), g.query.at(1))
	fmt.Fprintf(s, `<path id="outlined" transform="translate(%v %v)" d="%s" fill="none" stroke="%s" stroke-width="%s" stroke-linecap="square"/>`+"\n",
		svgGridX, svgGridY, lines.String(), svgInk, svgNum(max(1, min(2.5, cell/4))))
}

// mark is where n chunks from the first on lie: at least wide enough to be seen.
func (a svgAxis) mark(first, n int) (at, width float64) {
	const least = 4
	at, width = a.at(first), a.at(first+n)-a.at(first)
	if width < least {
		at = max(0, min(at-(least-width)/2, svgGridSize-least))
		width = least
	}
	return at, width
}

// runs are the marked chunks, neighbours together: first and count.
func (a svgAxis) runs() [][2]int {
	var runs [][2]int
	for _, c := range a.marked {
		if n := len(runs) - 1; n >= 0 && runs[n][0]+runs[n][1] == c {
			runs[n][1]++
			continue
		}
		runs = append(runs, [2]int{c, 1})
	}
	return runs
}

// axes numbers the chunks and marks those of the outlined subproblem.
func (s *svgPage) axes(g *svgGrid) {
	fmt.Fprintf(s, `<g id="axes" transform="translate(%v %v)">`+"\n", svgGridX, svgGridY)
	for _, r := range g.key.runs() {
		x, w := g.key.mark(r[0], r[1])
		s.rect(x, -7, w, 4, `fill="`+svgInk+`"`)
	}
	for _, r := range g.query.runs() {
		y, h := g.query.mark(r[0], r[1])
		s.rect(-7, y, 4, h, `fill="`+svgInk+`"`)
	}
	digits := float64(len(strconv.Itoa(g.key.axis.Chunks - 1)))
	for _, l := range g.key.labels(8 + 7*digits) {
		s.text(l.at, -12, 60, 11, `text-anchor="middle" `+l.style(), strconv.Itoa(l.chunk))
	}
	for _, l := range g.query.labels(15) {
		s.text(-12, l.at+4, 60, 11, `text-anchor="end" `+l.style(), strconv.Itoa(l.chunk))
	}
	s.text(0, -31, svgGridSize, 12, svgBold, "Keys: "+g.key.String())
	s.text(0, 0, svgGridSize, 12, svgBold+` text-anchor="end" transform="translate(-46 0) rotate(-90)"`, "Queries: "+g.query.String())
	s.WriteString("</g>\n")
}

func (a svgAxis) String() string {
	tokens := svgCount(a.axis.Longest()) + " tokens"
	switch {
	case a.axis.Chunks == 1:
		return "1 chunk of " + tokens
	case a.axis.N%a.axis.Chunks != 0:
		tokens = "up to " + tokens
	}
	return fmt.Sprintf("%s chunks of %s", svgCount(a.axis.Chunks), tokens)
}

type svgLabel struct {
	chunk  int
	at     float64
	marked bool
}

func (l svgLabel) style() string {
	if l.marked {
		return svgBold
	}
	return `fill="` + svgMuted + `"`
}

// labels are numbers at least apart pixels from each other: the marked chunks
// if there is room for all of them, then round numbers.
func (a svgAxis) labels(apart float64) []svgLabel {
	var labels []svgLabel
	add := func(chunk int, marked bool) bool {
		at := (a.at(chunk) + a.at(chunk+1)) / 2
		for _, l := range labels {
			if math.Abs(l.at-at) < apart {
				return false
			}
		}
		labels = append(labels, svgLabel{chunk, at, marked})
		return true
	}
	for _, c := range a.marked {
		if !add(c, true) && len(a.marked) == a.axis.Chunks {
			labels = nil // all are marked: nothing to tell apart
			break
		}
	}
	step := 1
	for _, f := 0, 0; float64(step)*svgGridSize/float64(a.axis.Chunks) < apart; f++ {
		step = [...]int{2, 5, 10}[f%3] * int(math.Pow10(f/3))
	}
	for c := 0; c < a.axis.Chunks; c += step {
		add(c, false)
	}
	return labels
}

// legend says what colours and lines mean.
func (s *svgPage) legend(p *stream.Plan, g *svgGrid) {
	const line, swatch = 21, 14
	y := svgGridY + svgGridSize + 14
	row := func(text string) {
		s.text(svgGridX+3*swatch+14, y+11, svgBarsX-svgGridX-3*swatch-14, 12, ``, text)
		y += line
	}
	d := p.Division()
	for i := range min(3, d.Len()) {
		s.rect(svgGridX+float64(i)*(swatch+3), y, swatch, swatch, `fill="`+svgOwnerColour(i)+`"`)
	}
	row("one colour: the pairs of chunks that one subproblem computes")
	s.rect(svgGridX+1, y+1, swatch-2, swatch-2, `fill="none" stroke="`+svgInk+`" stroke-width="2"`)
	row(fmt.Sprintf("subproblem %s: %s of %s and %s", svgCount(g.shown.Index), svgPlural(len(g.pairs), "pair"), svgPlural(len(g.shown.Query), "query chunk"), svgPlural(len(g.shown.Key), "key chunk")))
	if p.Problem.Causal != attention.NonCausal {
		x := svgGridX + swatch + 3
		s.rect(svgGridX, y, swatch, swatch, `fill="url(#masked)" stroke="`+svgFaint+`"`)
		s.rect(x, y, swatch, swatch, `fill="url(#masked)" stroke="`+svgFaint+`"`)
		fmt.Fprintf(s, `<path d="M%s %sv%dh%dz" fill="%s"/>`+"\n", svgNum(x), svgNum(y), swatch, swatch, svgOwnerColour(0))
		row("masked, and masked in part")
	}
	if n := max(g.query.step, g.key.step); n > 1 {
		var axes []string
		for _, a := range []struct {
			name string
			svgAxis
		}{{"query", g.query}, {"key", g.key}} {
			if a.step > 1 {
				axes = append(axes, fmt.Sprintf("%s %s chunks", svgCount(a.step), a.name))
			}
		}
		s.text(svgGridX, y+11, svgWidth-svgGridX-40, 12, `fill="`+svgMuted+`"`, "Sampled: a cell stands for "+strings.Join(axes, " by ")+", and shows the first; outlines are exact.")
	}
}

// The bars: a column of headings, bars and lists, each of which returns where
// it ended.

func (s *svgPage) heading(y float64, left, right string) {
	s.text(svgBarsX, y, 150, 14, svgBold, left)
	s.text(svgBarsX+svgBarsWidth, y, svgBarsWidth-130, 12, `text-anchor="end"`, right)
}

var svgPurposeColours = []string{"#2f6690", "#81a4cd", "#d9a441", "#7b9e6b", "#a06cd5", "#c06c5b", "#5c6b73"}

// memory draws the device's memory by purpose against the budget.
func (s *svgPage) memory(p *stream.Plan, y float64) float64 {
	total := p.Memory.Total()
	s.heading(y, "Memory of "+p.Device, fmt.Sprintf("%s of a budget of %s", svgBytes(total), svgBytes(p.Budget)))
	y += 12
	const height = 26
	per := svgBarsWidth / float64(max(total, p.Budget, 1))
	s.rect(svgBarsX, y, svgBarsWidth, height, `fill="`+svgMasked+`"`)
	x := svgBarsX
	for i, u := range p.Memory {
		w := float64(u.Bytes) * per
		s.rect(x, y, w, height, `fill="`+svgPurposeColours[i%len(svgPurposeColours)]+`"`)
		x += w
	}
	s.rect(svgBarsX, y, svgBarsWidth, height, `fill="none" stroke="`+svgOther+`"`)
	y += height + 8
	row := func(colour, name string, bytes int64) {
		s.rect(svgBarsX, y+1, 12, 12, `fill="`+colour+`" stroke="`+svgOther+`" stroke-width="0.5"`)
		s.text(svgBarsX+20, y+11, svgBarsWidth-110, 12, ``, name)
		s.text(svgBarsX+svgBarsWidth, y+11, 80, 12, `text-anchor="end"`, svgBytes(bytes))
		y += 20
	}
	for i, u := range p.Memory {
		row(svgPurposeColours[i%len(svgPurposeColours)], svgPurpose(p, u), u.Bytes)
	}
	if free := p.Budget - total; free > 0 {
		row(svgMasked, "not used", free)
	}
	return y
}

// svgPurpose words a purpose, with the number of slots if it is one of slots.
func svgPurpose(p *stream.Plan, u attention.Use) string {
	name := strings.ReplaceAll(u.Purpose, "_", " ")
	switch u.Purpose {
	case "kv_slots":
		return fmt.Sprintf("KV slots, %d of %s", p.Geometry.KVSlots, svgBytes(u.Bytes/int64(max(1, p.Geometry.KVSlots))))
	case "query_slots":
		return fmt.Sprintf("query slots, %d of %s", p.Geometry.QuerySlots, svgBytes(u.Bytes/int64(max(1, p.Geometry.QuerySlots))))
	}
	return name
}

// seconds draws the predicted time of each link, the one that bounds the run
// in a colour of its own.
func (s *svgPage) seconds(p *stream.Plan, y float64) float64 {
	links := []struct {
		id, name, amount string
		seconds          float64
	}{
		{"kernel", "kernel", svgUnits(p.FLOPs, 1000, "", "K", "M", "G", "T", "P", "E") + "FLOP", p.Seconds.Kernel},
		{"host_to_device", "host to device", svgBytes(p.Traffic.In), p.Seconds.In},
		{"device_to_host", "device to host", svgBytes(p.Traffic.Out), p.Seconds.Out},
		{"disk", "disk", svgBytes(p.Traffic.Disk), p.Seconds.Disk},
	}
	most, bound := 0.0, p.Seconds.Bound
	for _, l := range links {
		most = max(most, l.seconds)
		if l.id == p.Seconds.Bound {
			bound = l.name
		}
	}
	s.heading(y, "Predicted time", fmt.Sprintf("%s, bound by %s", svgSeconds(p.Seconds.Total), bound))
	y += 12
	const nameWidth, amountWidth, secondsWidth, height = 120, 80, 78, 14
	const barWidth = svgBarsWidth - nameWidth - amountWidth - secondsWidth
	for _, l := range links {
		colour, style := svgOther, `text-anchor="end"`
		weight := ""
		if l.id == p.Seconds.Bound {
			colour, weight = svgBound, svgBold
		}
		s.text(svgBarsX, y+11, nameWidth-2, 12, weight, l.name)
		if most > 0 && l.seconds > 0 {
			s.rect(svgBarsX+nameWidth, y, max(1, l.seconds/most*barWidth), height, `fill="`+colour+`"`)
		}
		right := svgBarsX + svgBarsWidth
		s.text(right-amountWidth, y+11, secondsWidth-2, 12, style+" "+weight, svgSeconds(l.seconds))
		s.text(right, y+11, amountWidth-4, 12, style+` fill="`+svgMuted+`"`, l.amount)
		y += 22
	}
	return y
}

// facts lists what has no picture.
func (s *svgPage) facts(p *stream.Plan, y float64) {
	s.heading(y, "Schedule", "")
	y += 12
	g := p.Geometry
	most, about := "", ""
	if p.Problem.KVHeads()%g.KVHeads != 0 {
		most = "up to "
	}
	if p.Traffic.Sampled {
		about = "about "
	}
	facts := [][2]string{
		{"head groups", fmt.Sprintf("%s of %s%s", svgCount(p.Groups), most, svgPlural(g.KVHeads, "KV head"))},
		{"subproblems of each", svgCount(p.Subproblems)},
		{"pairs of chunks", svgCount(int(p.ChunkPairs))},
		{"slots", fmt.Sprintf("%d query, %d KV", g.QuerySlots, g.KVSlots)},
		{"states moved in, out", fmt.Sprintf("%s%s, %s", about, svgBytes(p.Traffic.StateIn), svgBytes(p.Traffic.StateOut))},
		{"state file", svgBytes(p.KeptDisk())},
		{"output", svgBytes(p.OutputBytes + p.LSEBytes)},
	}
	for _, f := range facts {
		s.text(svgBarsX, y+11, 150, 12, `fill="`+svgMuted+`"`, f[0])
		s.text(svgBarsX+svgBarsWidth, y+11, svgBarsWidth-160, 12, `text-anchor="end"`, f[1])
		y += 20
	}
}

// svgCount writes an integer with separators.
func svgCount(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func svgPlural(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return svgCount(n) + " " + what
}

func svgBytes(n int64) string {
	return svgUnits(float64(n), 1024, "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
}

// svgUnits writes three digits and the unit that suits.
func svgUnits(x, base float64, units ...string) string {
	i := 0
	for ; x >= base*0.9995 && i < len(units)-1; i++ {
		x /= base
	}
	digits := 0
	if x != math.Trunc(x) {
		digits = max(0, 2-int(math.Floor(math.Log10(max(x, 0.01)))))
	}
	return strings.TrimSuffix(strconv.FormatFloat(x, 'f', min(digits, 2), 64)+" "+units[i], " ")
}

func svgSeconds(x float64) string {
	switch {
	case x == 0:
		return "0 s"
	case x < 1:
		return svgUnits(x*1e9, 1000, "ns", "µs", "ms", "s")
	case x < 600:
		return svgUnits(x, 1000, "s")
	case x < 2*3600:
		return svgUnits(math.Round(x/6)/10, 1000, "min")
	}
	return svgUnits(math.Round(x/360)/10, 10000, "h")
}
