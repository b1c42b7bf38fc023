// Package cpu computes attention on the host's cores.
//
// # Memory
//
// Everything is reserved at once, outside the Go heap. With R query rows and C
// keys in the longest chunks, h KV heads in a head group and G query heads to
// each of them:
//
//	purpose      bytes
//	kv_slots     KVSlots * h * (C*D + roundup(C, keyTile)*Dv) * 4
//	query_slots  QuerySlots * h*G * R * (D*4 + (Dv+2)*8)
//	scratch      Threads * ((rowTile+keyTile)*D + rowBlock*keyTile + (rowBlock+keyTile)*Dv) * 8
//
// each purpose rounded up to whole pages.
//
// # Slots
//
// Loading a KV slot widens K and V to float32, which is exact, and packs them
// once for all query rows and query heads: K stays in rows,
//
//	K[head][key][d]                    at (head*C + key)*D + d
//
// and V is transposed tile by tile,
//
//	V[head][tile][dv][key in tile]     at ((head*T + tile)*Dv + dv)*keyTile + key
//
// so that both products are dot products of contiguous rows and share one
// micro-kernel. A query slot holds Q in float32 rows and, per row, the state
// acc[Dv], m, l in float64.
//
// # Arithmetic
//
// Scores, weights and sums are float64: scalar float64 arithmetic costs what
// float32 costs, removes every error but the last rounding, and makes the result
// nearly independent of the division. Each tile of keys is summed from zero and
// then added to the state. A task of many rows widens a tile once for all of them.
//
// # Queues and determinism
//
// Three queues (in, apply, out) run their operations in order of submission,
// each after the events it was given. Apply spreads tiles of query rows over
// the threads; one thread applies all keys to its rows in the listed order, and
// every sum runs over the keys, or the features, in order, so neither the number
// of threads nor the rows that share a task can change a bit. Loads spread tiles
// of keys over a few threads.
package cpu
