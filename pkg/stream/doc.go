// Package stream divides an attention problem, plans it for a memory budget,
// and streams its chunks through a device.
//
// # From problem to bits
//
//	Problem + Budget + Device  --New-->     Plan       what to do, what it costs
//	Plan                       --schedule-> batches    which pairs, in which order
//	batches                    --sequencer-> steps     which slot, which eviction
//	steps                      --Run-->     Device     events, tensors, state store
//
// A Plan is a value: the same request gives the same plan. The schedule is a
// function of the plan alone and is never stored: subproblem i is computed from
// i. Only the order of the pairs of each query chunk reaches the result's bits,
// and that order is the schedule's; slots, prefetch, threads and timing cannot
// change it.
//
// # Invariants of the pipeline
//
//	S1  A slot is loaded only after every Apply, SaveState and Finish that used
//	    what it held before.
//	S2  A pair is applied only after both of its slots are loaded.
//	S3  A saved state is read back only after its SaveState is done.
//	S4  A saved state never overwrites the state that was committed before it:
//	    every query chunk has two places in the store and alternates.
//	S5  Each query chunk's pairs are applied in schedule order.
//
// S1 to S3 are event dependencies, set where the steps are submitted. S5 holds
// because one queue applies batches in order.
package stream
