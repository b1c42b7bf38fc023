// Package cpu computes attention on the host's cores.
//
// # Memory
//
// Everything is reserved at once, outside the Go heap. With R query rows and C
// keys in the longest chunks, h KV heads in a head group, G query heads to each
// of them, elements of E bytes, and L = roundup(G*R, 16) lanes:
//
//	purpose         bytes
//	kv_slots        KVSlots * h * (C*D*E + C*Dv*E + C/256 * 8)
//	query_slots     QuerySlots * h * (L * (D*4 + (Dv+2)*8) + L/48 * 4)
//	scratch         Threads * (a tile of scores, of Q in float64, of K and V in float32)
//
// and for few queries, which have no kv_slots,
//
//	partial_states  KVSlots * h * C/P * G*R * (Dv+2) * 8, in parts of P keys
//
// quotients rounded up, each part to 8 bytes and each purpose to whole pages.
// bfloat16 has Q a second time, in pairs.
//
// # Slots
//
// A KV slot holds rows as the file does, head after head, side by side: loading
// is one read from the file into the slot, when the rows of a head lie side by
// side there, and else a copy from the mapping. Beside them, for each tile of 256
// keys, are the largest |k|^2 and the largest |v|.
//
// A query slot has query rows in vector lanes. The rows of the query heads that
// share a KV head are one sequence, head after head. It is cut into tiles of 48
// rows, the last of 16, 32 or 48 lanes:
//
//	Q[head][tile][d][lane]                       float32, times the sign of the scale
//	acc[head][tile][dv][lane], m[lane], l[lane]  float64
//
// # Arithmetic
//
// Weights are powers of two: 2^(c q.k - m) with c = |scale| log2(e). The running
// maximum m is rounded up to an integer, so that re-basing a state multiplies it
// by an exact power of two. A tile of 256 keys is applied to a tile of rows in one
// of three ways, by its content alone:
//
//	narrow  vector kernels in float32: scores, weights, and a sum over the tile
//	        from zero, which is then added to the state in float64
//	wide    the same with scores in float64, where |q||k| is so large that their
//	        rounding would show in the output
//	plain   the portable kernel, float64 throughout: where V has values that
//	        float32 sums can't take, where scores are so large that they have no
//	        fraction in float64, and where the machine has no vector kernels
//
// Few query rows over many keys (at most 16 to a KV head) take the time in which K
// and V come from memory: a slot then only tells where the rows are, and Apply reads them
// there. Keys are cut into parts of 2,048, or of a multiple of
// that which makes about 128 of a slot. Their partial states are merged in order. A part is
// walked in windows that leave the second-level cache room for the next one, which is
// fetched at the pace of the arithmetic. Vectors run along features and
// keys for one row, and hold 4 or 8 rows with several keys or features of each for more.
//
// # Queues and determinism
//
// Three queues (in, apply, out) run their operations in order of submission,
// each after the events it was given. Apply spreads tiles of query rows, or parts
// of keys, over the threads. What is computed for a tile or a part, and the order
// in which it is summed, depends on the plan and the data; neither the number of
// threads nor what shares a task can change a bit.
package cpu
