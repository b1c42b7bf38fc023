// Package attention says what is computed: the problem and its numerics, a
// float64 oracle for chosen rows, and the words in which the streaming engine
// and the devices talk to each other.
//
// # The problem
//
// For every batch entry b, query head h and query row i
//
//	O[b,h,i,:] = sum_j p_ij V[b,h',j,:],  p_ij = exp(s_ij - lse_i),
//	s_ij = Scale * sum_d Q[b,h,i,d] K[b,h',j,d],  lse_i = ln sum_j exp(s_ij),
//
// where h' = h / (Hq/Hkv) is the KV head that query head h shares, and j runs
// over the keys that the mask lets row i see. A row that may see no key has
// O = 0 and lse = -inf.
//
// # State
//
// While its pairs are being applied a query row owns a state (acc[Dv], m, l):
// the numerator sum_j exp(s_ij - m) v_j, the largest score so far, and the
// denominator sum_j exp(s_ij - m). Two states merge by re-basing both on the
// larger m; exp(lse) is never formed. How a device stores its states is its
// own affair: to the engine they are bytes.
//
// # Words shared with devices
//
// A head group is a run of KV heads together with all query heads that share
// them. A device holds chunks of one head group in slots: KV slots (K and V of
// one key chunk) and query slots (Q and state of one query chunk). Geometry
// fixes the pool, Rows point at tensor rows in host memory, and Work lists what
// to apply to one query slot, in order.
package attention
