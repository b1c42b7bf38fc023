package cpu

// laneKernels are the kernels of one instruction set that keep query rows in
// vector lanes. A tile has lanes query rows, 16, 32 or 48; its panels are
// [x][lanes], where x counts features or keys. Strides are in bytes; keys, d and
// dv are at least 1. Nothing outside the stated ranges is read or written.
// Where least is 8, scores, softmax and values take 8 lanes too: the first 8 of 16, the
// others are left as they are.
//
// The kernels of a tile of keys are called in this order: scores, mask at the
// edge of a causal mask, rebase, softmax, values. Where a mask follows, scores
// must be given another top, and mask raises the right one.
type laneKernels struct {
	name   string
	chains int // of float32 sums that make a score
	keys   int // of a tile, at most keyTile: as many as run best
	least  int // lanes: 8 or 16

	// scores computes s[j][i], the sum over x of k[j][x]*q[x][i], in ascending
	// order by FMA from 0 in one chain or two, and raises top[i] to the greatest of its scores. A NaN
	// does not raise it.
	scores func(s, top *float32, q *float32, d, lanes int, k *float32, stride, keys int)

	// scoresBF16 is scores for bfloat16 keys and queries in pairs of features,
	// q[x/2][i] with feature x in the lower half; d is even. Subnormal numbers
	// count as 0. It is nil where the CPU has no such dot products.
	scoresBF16 func(s, top *float32, q *uint32, d, lanes int, k *uint16, stride, keys int)

	// scoresWide is scores in float64.
	scoresWide func(s, top *float64, q *float64, d, lanes int, k *float32, stride, keys int)

	// mask sets s[j][i] to -Inf where j >= visible[i] and raises top[i] to the
	// greatest of the others.
	mask     func(s, top *float32, lanes, keys int, visible *int32)
	maskWide func(s, top *float64, lanes, keys int, visible *int32)

	// rebase raises the running maximum m, in units of log2 and rounded up to an
	// integer, to n = max(m, ceil(top*c)); a NaN product does not raise it. alpha
	// is 2^(m-n), by which sums are to be rescaled, exactly (it may be 0 where
	// that is subnormal); base is n, or 0 while n is -Inf. c >= 0.
	rebase     func(m, alpha *float64, base *float32, top *float32, lanes int, c float64)
	rebaseWide func(m, alpha *float64, base *float64, top *float64, lanes int, c float64)

	// softmax turns scores into weights 2^t in place, t = s*hi + s*lo - base, and
	// sums them: l[i] = l[i]*alpha[i] + the float32 sum over j. A weight is within
	// 1.5 ulp of 2^t; what is below 2^-126 may be anything that is, and not negative;
	// a score of -Inf weighs 0. lo is at most half an ulp of hi >= 0; base, as rebase
	// leaves it, is not -Inf.
	softmax func(s *float32, lanes, keys int, base *float32, hi, lo float32, l, alpha *float64)

	// softmaxWide is softmax of float64 scores, t = s*c - base. p may be s.
	softmaxWide func(p *float32, s *float64, lanes, keys int, base *float64, c float64, l, alpha *float64)

	// values computes acc[x][i] = acc[x][i]*alpha[i] + the sum over j of
	// p[j][i]*v[j][x], in ascending order by float32 FMA from 0, for dv features.
	values func(acc, alpha *float64, lanes int, p *float32, keys int, v *float32, stride, dv int)

	// These three round weights to bfloat16, and multiply them by bfloat16 values
	// in pairs of keys. They are nil where scoresBF16 is.
	//
	// pairValues sets to[j/2][x] = v[j][x] | v[j+1][x]<<16 for even j, x < dv; after
	// the last key comes 0.
	pairValues func(to *uint32, v *uint16, stride, keys, dv int)

	// softmaxPairs is softmax with t = s*hi - base, within 1e-4 of 2^t before it is
	// rounded to nearest: p[j/2][i] holds w[j][i] in its lower half and w[j+1][i], or
	// 0 after the last key, above. lo, less than an ulp of hi, is too little to tell.
	// l sums the rounded weights, without subnormal numbers. p may be s.
	softmaxPairs func(p *uint32, s *float32, lanes, keys int, base *float32, hi, lo float32, l, alpha *float64)

	// valuesPairs is values for pairs of keys; v is [pairs][dv]. Subnormal numbers
	// count as 0.
	valuesPairs func(acc, alpha *float64, lanes int, p *uint32, pairs int, v *uint32, dv int)

	// Few rows: 8 or 16. For every two keys there are vectors of the rows' scores or
	// weights, in the order that fewWay.lay tells; what lies there for a key after the last
	// may be anything. They are nil where there is nothing better than 16 lanes.
	//
	// fewScores is scores of a panel q[x/2][i][2], where x counts words: features, or
	// pairs of them for fewScoresBF16; the number of words is even. top is of lanes.
	fewScores     func(s, top *float32, q *float32, d, rows int, k *float32, stride, keys, ahead int)
	fewScoresBF16 func(s, top *float32, q *uint32, d, rows int, k *uint16, stride, keys, ahead int)
	fewScoresF16  func(s, top *float32, q *float32, d, rows int, k *uint16, stride, keys, ahead int)

	// fewValues computes o[i][x], the sum over j of p[j][i]*v[j][x], in ascending order
	// by float32 FMA from 0, for dv features.
	fewValues     func(o, p *float32, rows, keys int, v *float32, stride, dv, ahead int)
	fewValuesBF16 func(o, p *float32, rows, keys int, v *uint16, stride, dv, ahead int)
	fewValuesF16  func(o, p *float32, rows, keys int, v *uint16, stride, dv, ahead int)
}
