package cpu

import "slices"

// Portable is the kernel in Go, float64 throughout, that every machine has.
const Portable = "portable"

// tier is a set of vector kernels; the zero value is none.
type tier struct {
	lane *laneKernels
	row  *rowKernels
}

func (t tier) name() string {
	if t.lane == nil {
		return Portable
	}
	return t.lane.name
}

// tiers are those that this machine has, best first.
func tiers() []tier {
	var list []tier
	lanes, rows := laneTiers(), rowTiers()
	for i := range lanes {
		j := slices.IndexFunc(rows, func(r rowKernels) bool { return r.name == lanes[i].name })
		if j >= 0 {
			list = append(list, tier{&lanes[i], &rows[j]})
		}
	}
	return append(list, tier{})
}

// Kernels names the kernels that this machine can run, best first.
func Kernels() []string {
	var names []string
	for _, t := range tiers() {
		names = append(names, t.name())
	}
	return names
}
