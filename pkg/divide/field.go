package divide

// field is the finite field GF(q) for a prime power q = p^k. Its elements are
// the integers 0..q-1: the base-p digits of an element are the coefficients of
// a polynomial in y over GF(p), reduced by a polynomial of which y is a
// primitive root. All arithmetic goes through logarithms to the base y, so
// prime fields and their extensions need no separate code.
type field struct {
	q       int
	exp     []int32 // exp[i] = y^i for 0 <= i < 2(q-1), so sums of two logs need no reduction
	log     []int32 // log[a] for a != 0
	plusOne []int32 // plusOne[a] = a + 1
}

// newField returns GF(q), and false when q is not a prime power. The search for
// the reducing polynomial tries them in order, so equal q give equal fields.
func newField(q int) (*field, bool) {
	p, k, ok := primePower(q)
	if !ok {
		return nil, false
	}
	f := &field{q: q, exp: make([]int32, 2*(q-1)), log: make([]int32, q), plusOne: make([]int32, q)}
	for a := range q {
		f.plusOne[a] = int32(a + 1)
		if a%p == p-1 {
			f.plusOne[a] = int32(a + 1 - p)
		}
	}
	// Of the polynomials y^k = (digits of tail), a fraction phi(q-1)/k/q is
	// primitive, and any other is recognised by y^i = 1 for some 0 < i < q-1 or
	// by y not being a unit.
	for tail := 1; tail < q; tail++ {
		if f.fillPowers(p, k, tail) {
			return f, true
		}
	}
	panic("divide: no primitive polynomial over a prime field, which is impossible")
}

// fillPowers fills exp and log with the powers of y for the reduction
// y^k = tail, and reports whether they are all q-1 units.
func (f *field) fillPowers(p, k, tail int) bool {
	top := 1 // p^(k-1), the weight of the leading digit
	for range k - 1 {
		top *= p
	}
	a := 1
	for i := range f.q - 1 {
		if a == 0 || i > 0 && a == 1 {
			return false
		}
		f.exp[i], f.exp[i+f.q-1] = int32(a), int32(a)
		f.log[a] = int32(i)
		// y*a shifts the digits; the one that leaves at the top comes back as a
		// multiple of tail.
		lead, shifted := a/top, a%top*p
		a = 0
		for w := 1; w < f.q; w *= p {
			a += (shifted/w%p + lead*(tail/w%p)) % p * w
		}
	}
	return a == 1
}

func (f *field) mul(a, b int32) int32 {
	if a == 0 || b == 0 {
		return 0
	}
	return f.exp[f.log[a]+f.log[b]]
}

// add uses a + b = a(1 + b/a).
func (f *field) add(a, b int32) int32 {
	if a == 0 {
		return b
	}
	if b == 0 {
		return a
	}
	quotient := f.log[b] - f.log[a]
	if quotient < 0 {
		quotient += int32(f.q - 1)
	}
	return f.mul(a, f.plusOne[f.exp[quotient]])
}

// primePower returns p and k with q = p^k, and false when there are none.
func primePower(q int) (p, k int, ok bool) {
	if q < 2 {
		return 0, 0, false
	}
	p = primeFactors(q)[0]
	for q%p == 0 {
		q /= p
		k++
	}
	return p, k, q == 1
}

// primeFactors returns the distinct prime factors of n >= 2, ascending.
func primeFactors(n int) []int {
	var factors []int
	for p := 2; p*p <= n; p++ {
		if n%p != 0 {
			continue
		}
		factors = append(factors, p)
		for n%p == 0 {
			n /= p
		}
	}
	if n > 1 {
		factors = append(factors, n)
	}
	return factors
}
