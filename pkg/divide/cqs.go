package divide

import "slices"

// level is one application of CQS Divide to a local sequence.
type level struct {
	piece int // atoms of one of its c pieces: l^(k-1) * c^(depth-k) at level k
	index int // weight of its owner in the subproblem index: c^(depth-k)
}

// levels returns the levels 1..depth; atoms is c^depth. Nothing overflows,
// because l <= c.
func levels(set InterestSet, depth, atoms int) []level {
	result := make([]level, depth)
	gathered, weight := 1, atoms
	for k := range result {
		weight /= set.c
		result[k] = level{piece: gathered * weight, index: weight}
		gathered *= set.Size()
	}
	return result
}

// representations returns, for every residue r, the s_r of the canonical
// representation r = s_r - t_r: s_0 = 0; of r and -r the smaller one has the
// smallest possible s_r, and the other one the mirror image, s_-r = t_r.
func representations(set InterestSet) []int32 {
	c := set.c
	s := make([]int32, c)
	for r := range s {
		s[r] = -1
	}
	s[0] = 0
	for _, a := range set.members {
		for _, b := range set.members {
			r := sub(a, b, c)
			if r <= c-r && s[r] < 0 {
				s[c-r] = int32(b) // first, so that r = c/2 keeps its own
				s[r] = int32(a)
			}
		}
	}
	return s
}

// sub returns (a-b) mod c for a and b in 0..c-1.
func sub(a, b, c int) int {
	if a < b {
		return a - b + c
	}
	return a - b
}

// wrapped returns how many members s have owner+s >= c. Those wrap around to the
// chunks below the owner, so the quorum in ascending order is the members
// rotated by this number.
func (s InterestSet) wrapped(owner int) int {
	first, _ := slices.BinarySearch(s.members, s.c-owner)
	return len(s.members) - first
}

// at returns the member that is the i-th, in ascending order of chunks, of a
// quorum of which the given number wraps around.
func (s InterestSet) at(i, wrapped int) int {
	if i < wrapped {
		return s.members[i-wrapped+len(s.members)]
	}
	return s.members[i-wrapped]
}

// place returns at which place of the owner's quorum a chunk of it stands.
func (s InterestSet) place(owner, chunk int) int {
	i, ok := slices.BinarySearch(s.members, sub(chunk, owner, s.c))
	if !ok {
		panic("divide: chunk is outside of its owner's quorum, which is impossible")
	}
	i += s.wrapped(owner)
	if i >= len(s.members) {
		i -= len(s.members)
	}
	return i
}

// owner returns the owner of the ordered pair of pieces of one level.
func (d *Division) owner(query, key int) int {
	c := d.set.c
	return sub(query, int(d.ownMember[sub(query, key, c)]), c)
}

// cqsOwner descends: at each level the pieces that hold the two atoms determine
// the owner, and then the atoms' positions in the owner's local sequence.
func (d *Division) cqsOwner(query, key int) int {
	index := 0
	for k, lev := range d.levels {
		x, y := query/lev.piece, key/lev.piece
		o := d.owner(x, y)
		index += o * lev.index
		if k == len(d.levels)-1 {
			break
		}
		query = d.set.place(o, x)*lev.piece + query%lev.piece
		key = d.set.place(o, y)*lev.piece + key%lev.piece
	}
	return index
}

// cqsSubproblem fills dst from dst.Index.
func (d *Division) cqsSubproblem(dst *Subproblem) {
	rest := dst.Index
	leaf := 1 // atoms of the leaf
	for _, lev := range d.levels {
		dst.Path = append(dst.Path, rest/lev.index)
		rest %= lev.index
		leaf *= d.set.Size()
	}
	depth := len(d.levels)
	dst.members = slices.Grow(dst.members[:0], leaf*depth)[:leaf*depth]
	for position := range leaf {
		atom := d.trace(dst.Path, position, dst.members[position*depth:][:depth])
		dst.Query = append(dst.Query, atom)
	}
	dst.Key = append(dst.Key, dst.Query...)
	dst.Pairs = slices.Grow(dst.Pairs, d.subs) // the mean number; at depth 1 the number
	for i, query := range dst.Query {
		for j, key := range dst.Key {
			if d.responsible(dst.members[i*depth:][:depth], dst.members[j*depth:][:depth]) {
				dst.Pairs = append(dst.Pairs, Pair{Query: query, Key: key})
			}
		}
	}
}

// trace returns the atom at a position of the leaf's local sequence. On the way
// up it notes which member of the interest set put it there at each level.
func (d *Division) trace(path []int, position int, members []int32) (atom int) {
	for k := len(d.levels) - 1; k >= 0; k-- {
		o, piece := path[k], d.levels[k].piece
		member := d.set.at(position/piece, d.set.wrapped(o))
		members[k] = int32(member)
		position = (o+member)%d.set.c*piece + position%piece
	}
	return position
}

// responsible reports whether the leaf is responsible for the pair of two of its
// atoms: at every level their members must be the canonical representation of
// their difference.
func (d *Division) responsible(query, key []int32) bool {
	for k, s := range query {
		if d.ownMember[sub(int(s), int(key[k]), d.set.c)] != s {
			return false
		}
	}
	return true
}
