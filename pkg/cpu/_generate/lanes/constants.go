package main

import (
	"fmt"
	"math"

	"github.com/mmcloughlin/avo/attr"
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
)

var constants = map[string]Mem{}

// data is a read-only array, emitted when it is first asked for.
func data(name string, n int, entry func(i int) Constant) Mem {
	if _, ok := constants[name]; !ok {
		constants[name] = GLOBL(name, attr.RODATA|attr.NOPTR)
		for i := range n {
			e := entry(i)
			DATA(i*e.Bytes(), e)
		}
	}
	return constants[name]
}

// constant is a 32-byte vector of one float32, so that it may also be an operand.
func constant(x float32) Mem {
	bits := U32(math.Float32bits(x))
	return data(fmt.Sprintf("lanesF32_%08x", uint32(bits)), 8, func(int) Constant { return bits })
}

// constant64 is a single float64.
func constant64(x float64) Mem {
	bits := U64(math.Float64bits(x))
	return data(fmt.Sprintf("lanesF64_%016x", uint64(bits)), 1, func(int) Constant { return bits })
}

// one32 and one64 are the integer 1.
func one32() Mem { return data("lanesOne32", 1, func(int) Constant { return U32(1) }) }
func one64() Mem { return data("lanesOne64", 1, func(int) Constant { return U64(1) }) }

// bits32 are 32 bits.
func bits32(x uint32) Mem {
	return data(fmt.Sprintf("lanesBits_%08x", x), 1, func(int) Constant { return U32(x) })
}

// powersOf16 is 2^(i/16).
func powersOf16() Mem {
	return data("lanesPowers16", 16, func(i int) Constant {
		return U32(math.Float32bits(float32(math.Exp2(float64(i) / 16))))
	})
}

// powersOf8 is 2^(i/8), less what i itself amounts to where it is shifted into
// the exponent together with the integer above it.
func powersOf8() Mem {
	return data("lanesPowers8", 8, func(i int) Constant {
		return U32(math.Float32bits(float32(math.Exp2(float64(i)/8))) - uint32(i)<<20)
	})
}
