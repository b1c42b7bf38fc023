package divide

import "testing"

func BenchmarkSinger(b *testing.B) {
	for b.Loop() {
		if _, err := Singer(1009); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSubproblem(b *testing.B) {
	for name, d := range map[string]*Division{
		"c=57":          mustCQS(b, 57, 1),
		"c=995007":      mustCQS(b, 995_007, 1),
		"c=31,depth=2":  mustCQS(b, 31, 2),
		"rows,keys=128": mustRows(b, 128, 128),
	} {
		b.Run(name, func(b *testing.B) {
			var sub Subproblem
			d.Subproblem(0, &sub)
			for i := 0; b.Loop(); i++ {
				d.Subproblem(i%d.Len(), &sub)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(sub.Pairs)), "ns/pair")
		})
	}
}

func BenchmarkOwner(b *testing.B) {
	for name, d := range map[string]*Division{"c=995007": mustCQS(b, 995_007, 1), "c=31,depth=3": mustCQS(b, 31, 3)} {
		b.Run(name, func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				d.Owner(i%d.QueryChunks(), i*7919%d.KeyChunks())
			}
		})
	}
}
