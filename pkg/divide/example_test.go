package divide_test

import (
	"fmt"
	"log"

	"github.com/streamcqsa/streamcqsa/pkg/divide"
)

func Example() {
	set, err := divide.Cover(7)
	if err != nil {
		log.Fatal(err)
	}
	d, err := divide.CQS(set, 1)
	if err != nil {
		log.Fatal(err)
	}
	axis := divide.Axis{N: 1000, Chunks: d.QueryChunks()}

	var sub divide.Subproblem // its slices are reused
	d.Subproblem(4, &sub)
	fmt.Println(set, "perfect:", set.Perfect())
	fmt.Println("chunks", sub.Query)
	for _, x := range sub.Query {
		lo, hi := axis.Range(x)
		fmt.Printf("chunk %d is tokens %d to %d\n", x, lo, hi-1)
	}
	fmt.Println("pairs", sub.Pairs)
	fmt.Println("pair {4 0} belongs to", d.Owner(4, 0))
	// Output:
	// {0,1,3} mod 7 perfect: true
	// chunks [0 4 5]
	// chunk 0 is tokens 0 to 142
	// chunk 4 is tokens 572 to 714
	// chunk 5 is tokens 715 to 857
	// pairs [{0 4} {0 5} {4 0} {4 4} {4 5} {5 0} {5 4}]
	// pair {4 0} belongs to 4
}

// The pairs above the diagonal have nothing to do under a causal mask. What is
// left is the same for every subproblem.
func ExampleDivision_All() {
	set, err := divide.Cover(7)
	if err != nil {
		log.Fatal(err)
	}
	d, err := divide.CQS(set, 1)
	if err != nil {
		log.Fatal(err)
	}
	for sub := range d.All() {
		var causal []divide.Pair
		for _, p := range sub.Pairs {
			if p.Key <= p.Query {
				causal = append(causal, p)
			}
		}
		fmt.Println(sub.Index, causal)
	}
	// Output:
	// 0 [{0 0} {1 0} {3 0} {3 1}]
	// 1 [{1 1} {2 1} {4 1} {4 2}]
	// 2 [{2 2} {3 2} {5 2} {5 3}]
	// 3 [{3 3} {4 3} {6 3} {6 4}]
	// 4 [{4 0} {4 4} {5 0} {5 4}]
	// 5 [{5 1} {5 5} {6 1} {6 5}]
	// 6 [{2 0} {6 0} {6 2} {6 6}]
}

func ExampleRows() {
	d, err := divide.Rows(2, 3)
	if err != nil {
		log.Fatal(err)
	}
	for sub := range d.All() {
		fmt.Println(sub.Pairs)
	}
	// Output:
	// [{0 0} {0 1} {0 2}]
	// [{1 2} {1 1} {1 0}]
}

func ExampleCover() {
	for _, c := range []int{8, 21, 112} {
		set, err := divide.Cover(c)
		if err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Printf("%v, %d members, perfect: %v\n", set, set.Size(), set.Perfect())
	}
	// Output:
	// {0,1,2,4} mod 8, 4 members, perfect: false
	// {0,1,4,14,16} mod 21, 5 members, perfect: true
	// interest set of 112 chunks: none is known, the nearest usable numbers are 111 and 133
}

func ExampleNewInterestSet() {
	_, err := divide.NewInterestSet(7, []int{0, 1, 2})
	fmt.Println(err)
	set, err := divide.NewInterestSet(7, []int{6, 3, 4})
	fmt.Println(set, err)
	// Output:
	// interest set {0,1,2} mod 7: residue 3 is no difference of two members, expected a difference cover
	// {0,1,3} mod 7 <nil>
}

func ExampleAxis() {
	a := divide.Axis{N: 10, Chunks: 4}
	for i := range a.Chunks {
		lo, hi := a.Range(i)
		fmt.Print(lo, "-", hi-1, " ")
	}
	fmt.Println("token 6 is in chunk", a.Find(6))
	// Output:
	// 0-2 3-5 6-7 8-9 token 6 is in chunk 2
}

func ExamplePerfectCounts() {
	fmt.Println(divide.PerfectCounts(100))
	// Output:
	// [1 3 7 13 21 31 57 73 91]
}
