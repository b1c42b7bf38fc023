package stream

import (
	"cmp"
	"slices"
)

func sortRefs(refs []keyRef) {
	slices.SortFunc(refs, func(a, b keyRef) int { return cmp.Compare(a.key, b.key) })
}

// unionKeys is the ascending list of key chunks that any of the rows meets.
func unionKeys(rows []chunkWork) []int {
	var keys []int
	for _, r := range rows {
		for _, ref := range r.refs {
			keys = append(keys, ref.key)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// pick is the part of a block that lies in the given key chunks, which are a
// run of the block's ascending keys.
func pick(block []chunkWork, keys []int, backwards bool) []chunkWork {
	var work []chunkWork
	for _, r := range block {
		lo, _ := slices.BinarySearchFunc(r.refs, keys[0], func(ref keyRef, k int) int { return cmp.Compare(ref.key, k) })
		hi, found := slices.BinarySearchFunc(r.refs, keys[len(keys)-1], func(ref keyRef, k int) int { return cmp.Compare(ref.key, k) })
		if found {
			hi++
		}
		if lo >= hi {
			continue
		}
		refs := slices.Clone(r.refs[lo:hi])
		if backwards {
			slices.Reverse(refs)
		}
		work = append(work, chunkWork{query: r.query, refs: refs})
	}
	return work
}
