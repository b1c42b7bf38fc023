package cpu

type laneKernels struct {
	flops       float64
	name        string
	scores      func(s, top, q *float32, d, lanes int, k *float32, stride, keys int)
	scoresBF16  func(s, top *float32, q *uint32, d, lanes int, k *uint16, stride, keys int)
	scoresWide  func(s, top, q *float64, d, lanes int, k *float32, stride, keys int)
	mask        func(s, top *float32, lanes, keys int, visible *int32)
	maskWide    func(s, top *float64, lanes, keys int, visible *int32)
	rebase      func(m, alpha *float64, base, top *float32, lanes int, c float64)
	rebaseWide  func(m, alpha, base, top *float64, lanes int, c float64)
	softmax     func(s *float32, lanes, keys int, base *float32, hi, lo float32, l, alpha *float64)
	softmaxWide func(p *float32, s *float64, lanes, keys int, base *float64, c float64, l, alpha *float64)
	values      func(acc, alpha *float64, lanes int, p *float32, keys int, v *float32, stride, dv int)
}

type rowKernels struct {
	name                                 string
	dotsF32                              func(s *float32, ldS int, top, q *float32, d, r int, k *float32, stride, keys int)
	dotsBF16, dotsF16                    func(s *float32, ldS int, top, q *float32, d, r int, k *uint16, stride, keys int)
	weights                              func(s *float32, n int, base, hi, lo float32) float32
	combineF32                           func(o, p *float32, ldP, r int, v *float32, stride, keys, dv int)
	combineBF16, combineF16              func(o, p *float32, ldP, r int, v *uint16, stride, keys, dv int)
	normF32, peakF32                     func(p *float32, stride, rows, d int) float32
	normBF16, peakBF16, normF16, peakF16 func(p *uint16, stride, rows, d int) float32
	widenBF16, widenF16                  func(dst *float32, src *uint16, n int)
}

func laneTiers() []laneKernels { return nil }
func rowTiers() []rowKernels   { return nil }
