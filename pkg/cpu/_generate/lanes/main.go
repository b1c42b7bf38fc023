// The lanes generator writes the kernels of pkg/cpu that keep query rows in
// vector lanes.
package main

import (
	"github.com/mmcloughlin/avo/attr"
	"github.com/mmcloughlin/avo/build"

	"github.com/streamcqsa/streamcqsa/pkg/cpu/_generate/emit"
)

const attrs = attr.NOSPLIT

func main() {
	for _, t := range []emit.Tier{emit.AVX512, emit.AVX2} {
		scores(t, f32)
		if t.Wide() {
			scores(t, bf16)
		}
		scores(t, f64)
		mask(t, f32)
		mask(t, f64)
		rebase(t, f32)
		rebase(t, f64)
		softmax(t, false)
		softmax(t, true)
		values(t, f32)
		if t.Wide() {
			softmaxPairs(t)
			values(t, bf16)
			pairValues(t)
		}
		fmaPeak(t)
	}
	for _, n := range []number{f32, bf16, half} {
		fewScores(n)
	}
	for _, n := range []number{f32, short, half} {
		fewValues(n)
	}
	maker()
	build.Generate()
}

// doc documents a function by its name and what it does.
func doc(name string, lines []string) {
	build.Doc(append([]string{name + ": " + lines[0]}, lines[1:]...)...)
}

// A tile has lanes query rows, 16, 32 or 48; panels are [x][lanes]. AVX2 may
// take the first 8 of 16 lanes alone.
var (
	scoresDoc = map[number][]string{
		f32: {
			"s[j][i] = the sum over x of k[j][x]*q[x][i],",
			"one chain of float32 FMAs from 0, features ascending. top[i] is raised to the",
			"greatest of its scores; a NaN does not raise it. stride is in bytes.",
		},
		bf16: {
			"the scores of bfloat16 keys, accumulated in float32 over pairs of features:",
			"q[x/2][i] holds feature x in its lower half and x+1 above. d is even.",
		},
		f64: {
			"the scores in float64, of keys that are widened exactly.",
		},
	}
	maskDoc = []string{
		"s[j][i] = -Inf where j >= visible[i]; top[i] is raised to the greatest of the",
		"others; a NaN does not raise it.",
	}
	rebaseDoc = []string{
		"the maximum m of each lane, in units of log2 and an integer, becomes",
		"n = max(m, ceil(top*c)), or stays when the product is NaN; alpha = 2^(m-n), by",
		"which sums are to be rescaled, which is exact; base = n, or 0 while n is -Inf.",
	}
	softmaxDoc = []string{
		"s = exp2(s*hi + s*lo - base) in place, 0 where s is -Inf;",
		"l[i] = l[i]*alpha[i] + the float32 sum of its weights.",
	}
	softmaxWideDoc = []string{
		"p = exp2(s*c - base), 0 where s is -Inf, the argument in float64;",
		"l[i] = l[i]*alpha[i] + the float32 sum of its weights. p may be s: rows are",
		"written front to back, after they were read.",
	}
	valuesDoc = []string{
		"acc[x][i] = acc[x][i]*alpha[i] + the sum over j of p[j][i]*v[j][x], for dv",
		"features: one chain of float32 FMAs from 0, keys ascending. stride is in bytes.",
	}
	softmaxPairsDoc = []string{
		"weights w = 2^(s*hi - base), 0 where s is -Inf, rounded to",
		"bfloat16 and in pairs of keys: p[j/2][i] holds w[j][i] in its lower half and",
		"w[j+1][i], or 0 after the last key, above. l[i] = l[i]*alpha[i] + the float32 sum of",
		"the rounded weights. p may be s: rows are written front to back, after they were read.",
	}
	valuesPairsDoc = []string{
		"acc[x][i] = acc[x][i]*alpha[i] + the sum over j of",
		"the products of pairs p[j][i] and v[j][x], for dv features: one chain of",
		"VDPBF16PS from 0, pairs ascending.",
	}
	fewScoresDoc = []string{
		"the scores of few rows, lanes of them: 8 or 16. For every two keys s has",
		"vectors of the rows' two scores; the last key takes the",
		"place of one after it. q[x/2][i][2] holds the words x of row i: floats, or",
		"pairs of bfloat16. top, of the same lanes, is raised to the greatest of the scores; a",
		"NaN does not raise it. stride is in bytes; a row has an even number of words. Memory is",
		"fetched ahead bytes after what is in work.",
	}
	fewValuesDoc = []string{
		"o[i][x] = the sum over j of p[j][i]*v[j][x] for dv features of few rows,",
		"lanes of them, with p in the order of fewScores: one chain of float32 FMAs from 0,",
		"keys ascending. stride is in bytes. Memory is fetched ahead bytes after what is in work.",
	}
	pairValuesDoc = []string{
		"to[j/2][x] = v[j][x] | v[j+1][x]<<16 for even j; after the last",
		"key comes 0. stride is in bytes.",
	}
)
