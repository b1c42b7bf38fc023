package stream

import (
	"slices"
	"sort"
)

// unionKeys is the ascending list of key chunks that any of the rows meets.
func unionKeys(rows []chunkWork) []int {
	if len(rows) == 0 {
		return nil
	}
	n := 0
	for _, r := range rows {
		n += len(r.refs)
	}
	keys := make([]int, 0, n)
	for _, r := range rows {
		for _, ref := range r.refs {
			keys = append(keys, ref.key)
		}
	}
	if len(rows) > 1 {
		slices.Sort(keys)
	}
	return slices.Compact(keys)
}

// cut takes the part of a block that lies in the given key chunks out of it: the
// first of those that are left, or the last ones, which are then reversed.
func cut(block []chunkWork, keys []int, last bool) []chunkWork {
	work := make([]chunkWork, 0, len(block))
	for i := range block {
		r := &block[i]
		part := chunkWork{query: r.query}
		if last {
			at := sort.Search(len(r.refs), func(j int) bool { return r.refs[j].key >= keys[0] })
			part.refs, r.refs = r.refs[at:], r.refs[:at]
			slices.Reverse(part.refs)
		} else {
			at := sort.Search(len(r.refs), func(j int) bool { return r.refs[j].key > keys[len(keys)-1] })
			part.refs, r.refs = r.refs[:at], r.refs[at:]
		}
		if len(part.refs) > 0 {
			work = append(work, part)
		}
	}
	return work
}
