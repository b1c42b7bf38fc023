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
//	S4  A saved state never overwrites one that the last checkpoint knows: every
//	    state that is written gets a place that neither it nor a reader needs.
//	    What comes back is what was written, by its checksum, or the run ends.
//	S5  Each query chunk's pairs are applied in schedule order.
//
// S1 to S3 are event dependencies, set where the steps are submitted. S5 holds
// because one queue applies batches in order.
//
// # The journal
//
// A run with a Journal can be continued by another process after it ended in any way. The
// journal tells what is where, each with the checksum of it:
//
//	state       a query chunk's state, with so many pairs in it, is in a place of the store
//	done        a query chunk's results are in the outputs
//	checkpoint  all that this shard told before is on the disk: states, outputs and the
//	            journal were synced first, then this is written, then the journal is synced
//
// That is written down as it happens, so that the death of the process loses only what was
// in slots; checkpoints, which save that too, are for the loss of power. Whoever continues
// believes nothing: every state and every row of results is read and compared with its
// checksum, the newest that holds counts, and a chunk of which nothing does begins anew.
// As the order of a query chunk's pairs is the schedule's, how many of them are in is all
// that there is to know, and resumed bits are those of a run that was never stopped.
//
// After a sync that failed nothing more is told: what it should have written may be taken for
// clean, so that it reads well and the next sync, with nothing to do, succeeds. So whoever
// continues writes again, as it is, what holds and no checkpoint came after.
//
// The file, little-endian:
//
//	header   0  "scqsajnl"  8  format: u32 = 1  12  n: u32  16  id: u64  24  crc: u32  28  0: u32
//	        32  n bytes of JSON (Header), then zeros up to a multiple of 64
//	record   0  crc: u32  4  kind: u8  5  0  6  shard: u16  8  number: u64
//	        16  head group, query chunk, pairs, place, sum, pid: u32 each
//	        40  time: i64, ns since 1970  48  pairs done: f64  56  seconds: f64
//
// A session record has the host's name from 48 on, a state record its bytes at 56 as i64.
// Checksums are CRC-32C. A record's covers bytes 4 to 63 and begins with that of the
// journal's random id; its number is its index. The first record that is not whole ends
// the journal, unless a checkpoint follows it: then what was on the disk is damaged, which
// is an error. When the names of the outputs are on the disk, in whatever directories, a
// journal is written beside its name and renamed. When a run is continued its new journal begins
// with one record for each chunk of which something holds, the session, and a checkpoint for
// each shard.
//
// # What must hold
//
// A place that no checkpoint knows is free as soon as a newer state of its chunk is on its
// way to another place, and that is before the newer one is told. What the journal tells of
// it may then be in the middle of being overwritten, and no harm is done:
//
//   - Of all that was told of a chunk before the last checkpoint of its shard, the newest
//     holds, unless something newer does. Where neither does, what was safe is damaged.
//   - What was told later holds after the death of the process, but for such a state, and
//     need not hold after a loss of power. The chunk is then as the checkpoint knew it or,
//     if none did, begins anew.
//   - Of all else nothing is asked. Once all results are told to be complete, they hold.
//
// Only the first is damage, to a run that goes on (Report.Recomputed) as to Check.
package stream
