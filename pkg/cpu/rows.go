package cpu

// rowKernels are the micro-kernels for few query rows over many keys, which are
// bound by memory. Their vectors run along features (dots) and along keys
// (weights). r is 1 to 4 query rows, strides and read sizes are in bytes, the ld
// of s and p in elements; keys, d, dv and rows are 1 or more. Scores that a call
// of dots writes, and the sums of combine, do not depend on what else is in the
// call.
type rowKernels struct {
	name string
	// Up to so many query rows leave the processor the time to foresee by itself what
	// memory they want next, and faster than by being told.
	foreseen int

	// s[i*ldS+j] = the dot product of q[i] and k[j]; top[i] is raised to the
	// greatest of its scores, and a NaN does not raise it. A bound on the sums of squares
	// of keys is returned; +Inf if an element is not finite.
	dotsF32           func(s *float32, ldS int, top, q *float32, d, r int, k *float32, stride, keys, ahead int) float32
	dotsBF16, dotsF16 func(s *float32, ldS int, top, q *float32, d, r int, k *uint16, stride, keys, ahead int) float32
	// s[j] becomes 2^(s[j]*hi + s[j]*lo - base), 0 for -Inf; the sum is returned.
	weights func(s *float32, n int, base, hi, lo float32) float32
	// o[i*dv+x] = the sum over j, ascending, of p[i*ldP+j]*v[j][x].
	combineF32              func(o, p *float32, ldP, r int, v *float32, stride, keys, dv, ahead int)
	combineBF16, combineF16 func(o, p *float32, ldP, r int, v *uint16, stride, keys, dv, ahead int)
	// acc[i] = acc[i]*alpha + o[i].
	accumulate func(acc *float64, alpha float64, o *float32, n int)
	// The greatest sum of squares of a row; +Inf if an element is not finite.
	normF32           func(p *float32, stride, rows, d int) float32
	normBF16, normF16 func(p *uint16, stride, rows, d int) float32
	// The greatest |x| of all rows; +Inf if an element is not finite.
	peakF32           func(p *float32, stride, rows, d int) float32
	peakBF16, peakF16 func(p *uint16, stride, rows, d int) float32
	// dst[i] = src[i], exactly.
	widenBF16, widenF16 func(dst *float32, src *uint16, n int)
	// Reads n bytes: what memory can deliver.
	readPeak func(p *byte, n int)
}
