// Package divide is the combinatorics of CQS Divide (Stream-CQSA, arXiv
// 2604.20819): how attention over a sequence is cut into subproblems that
// together compute every query-key pair exactly once, while each of them
// touches only a small part of the tokens. It does no I/O and knows no tensors.
//
// # Interest sets
//
// An [InterestSet] of c chunks is a difference cover S of Z_c: every residue
// mod c is a difference of two members. It is perfect when every non-zero
// residue is one exactly once; then c = l(l-1)+1 for l members. [Cover] returns
// the set to use for c chunks, [Singer] constructs the perfect set of
// c = q^2+q+1 chunks for a prime power q, [NewInterestSet] takes any other set
// and checks that it covers.
//
// # Division
//
// A sequence is cut into c contiguous chunks (an [Axis]). Subproblem o, the
// subproblem that chunk o owns, sees the chunks of its quorum
// {(o+s) mod c : s in S}. Because S is a cover, every two chunks meet in some
// quorum. Which of the quorums computes a pair is settled by rule:
//
// For every residue r one representation r = s_r - t_r with s_r and t_r in S is
// fixed; s_0 = t_0 = 0. The ordered pair (x, y), query chunk x and key chunk y,
// with r = (x-y) mod c belongs to subproblem (x - s_r) mod c. In that
// subproblem x is chunk o+s_r and y is chunk o+t_r, both of its quorum.
//
// So subproblem o is exactly {(o+s_r, o+t_r) : r in Z_c}: c ordered pairs, and
// every ordered pair is in exactly one subproblem, whether S is perfect or not
// and whether c is odd or even. When S is perfect there is no choice to make.
// The diagonal pair (x, x) belongs to subproblem x. r and -r get mirrored
// representations, so (x, y) and (y, x) lie in the same subproblem, except for
// r = c/2 of an even c, where they are two pairs of one residue. Under a causal
// mask each subproblem therefore keeps the same number of pairs, (c+1)/2, when
// c is odd, and c/2 or c/2+1 when c is even.
//
// # Worked example
//
// c = 7, S = {0,1,3}. The non-zero residues are 1=1-0, 2=3-1, 3=3-0, 4=0-3,
// 5=1-3, 6=0-1, each exactly once: S is perfect. The quorums are
//
//	owner    0      1      2      3      4      5      6
//	chunks  0 1 3  1 2 4  2 3 5  3 4 6  0 4 5  1 5 6  0 2 6
//
// Query chunk 6 and key chunk 2 differ by r = 4 = 0-3, so they belong to
// subproblem 6-0 = 6. Subproblem 4 sees the chunks 0, 4 and 5 and computes
// (0,4) (0,5) (4,0) (4,4) (4,5) (5,0) (5,4): everything between its chunks but
// (0,0) and (5,5), which the subproblems 0 and 5 do. Causal, it keeps
// (4,0) (4,4) (5,0) (5,4). Seven subproblems of seven pairs are the 49 pairs.
//
// # Depth
//
// [CQS] of depth d > 1 divides the token sequence of a subproblem again, as it
// stands: the chunks of the quorum one after the other in ascending order,
// which are cut into c new pieces, and so on. So that the pieces of all
// subproblems line up, the sequence is cut into c^d atoms from the start, and an
// atom is the chunk that a [Subproblem] names. At level k a piece is
// l^(k-1) * c^(d-k) atoms. The leaf that the owners o1, ..., od lead to has
// index o1*c^(d-1) + ... + od and sees l^d atoms; a pair of atoms belongs to it
// when at every level k the pair of pieces that hold them belongs to o_k. When
// the number of tokens is a multiple of c^d this is the recursion of the paper
// token by token; otherwise the two place their cuts some tokens apart, and both
// are exact.
//
// [Rows] is the other division, one query chunk against all key chunks.
//
// Both are a [Division]: [Division.Subproblem] computes subproblem i from i
// alone and [Division.Owner] is its inverse, so a schedule is never stored: a
// division by CQS holds 4c bytes at any depth, one by rows nothing.
package divide
