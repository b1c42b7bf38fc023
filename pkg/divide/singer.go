package divide

import "fmt"

// Singer returns the perfect set of c = q^2+q+1 chunks with l = q+1 members, for
// a prime power q >= 2 with c <= [MaxChunks], that is q <= 4093. It is an error
// when q is anything else. O(q^2) time.
//
// The construction (J. Singer, A theorem in finite projective geometry and some
// applications to number theory, 1938): let x generate GF(q^3)* modulo GF(q)*, a
// cyclic group of order c. The powers of x that lie in a plane, a subspace of
// dimension 2 over GF(q), have exponents that form a perfect difference set mod
// c. Every plane is {y : Tr(by) = 0} for some b, so all planes give the same set
// up to a shift. Here it is the plane spanned by 1 and x, which puts 0 and 1
// into the set.
func Singer(q int) (InterestSet, error) {
	if q < 2 || q > MaxChunks || q*q+q+1 > MaxChunks {
		return InterestSet{}, fmt.Errorf("singer set of order %d: expected a prime power with 2 <= q and q^2+q+1 <= %d", q, MaxChunks)
	}
	gf, ok := newField(q)
	if !ok {
		return InterestSet{}, fmt.Errorf("singer set of order %d: found a number that is not a prime power, expected one", q)
	}
	c := q*q + q + 1
	e := generator(gf, c)
	members := make([]int, 0, q+1)
	power := element{1, 0, 0}
	for i := range c {
		if power[2] == 0 {
			members = append(members, i)
		}
		power = e.timesX(power)
	}
	set, err := NewInterestSet(c, members)
	if err != nil || !set.perfect {
		panic(fmt.Sprintf("divide: the singer set of order %d is not perfect (%v), which is impossible", q, err))
	}
	return set, nil
}

// element is a0 + a1*x + a2*x^2 over GF(q).
type element [3]int32

// extension is GF(q)[x] modulo x^3 = tail.
type extension struct {
	*field
	tail element
}

// timesX returns a*x.
func (e extension) timesX(a element) element {
	return element{
		e.mul(a[2], e.tail[0]),
		e.add(a[0], e.mul(a[2], e.tail[1])),
		e.add(a[1], e.mul(a[2], e.tail[2])),
	}
}

func (e extension) product(a, b element) element {
	var sum element
	for i := 2; i >= 0; i-- { // Horner in b
		sum = e.timesX(sum)
		for j := range sum {
			sum[j] = e.add(sum[j], e.mul(a[j], b[i]))
		}
	}
	return sum
}

// power returns x^n.
func (e extension) power(n int) element {
	result, square := element{1, 0, 0}, element{0, 1, 0}
	for ; n > 0; n >>= 1 {
		if n&1 == 1 {
			result = e.product(result, square)
		}
		square = e.product(square, square)
	}
	return result
}

// scalar reports whether a is in GF(q).
func scalar(a element) bool { return a[1] == 0 && a[2] == 0 }

// generator returns the first extension in which the order of x modulo scalars
// is c = q^2+q+1. In such an extension the cubic is irreducible, so that it is
// GF(q^3): the units of GF(q)[x] modulo a reducible cubic have at most q^2
// classes modulo scalars.
func generator(gf *field, c int) extension {
	factors := primeFactors(c)
	q := int32(gf.q)
	e := extension{field: gf}
	for e.tail[2] = 0; e.tail[2] < q; e.tail[2]++ {
		for e.tail[1] = 0; e.tail[1] < q; e.tail[1]++ {
			for e.tail[0] = 1; e.tail[0] < q; e.tail[0]++ {
				if e.orderOfX(c, factors) {
					return e
				}
			}
		}
	}
	panic("divide: GF(q^3) has no generator modulo GF(q), which is impossible")
}

// orderOfX reports whether the order of x modulo scalars is c; factors are the
// prime factors of c.
func (e extension) orderOfX(c int, factors []int) bool {
	if !scalar(e.power(c)) {
		return false
	}
	for _, p := range factors {
		if scalar(e.power(c / p)) {
			return false
		}
	}
	return true
}
