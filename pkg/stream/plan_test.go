package stream

import (
	"errors"
	"fmt"
	"testing"

	"github.com/streamcqsa/streamcqsa/pkg/attention"
)

// sequence is one head of n tokens.
func sequence(n, d int, causal attention.Causal) attention.Problem {
	return attention.Problem{
		B: 1, Hq: 1, Hkv: 1, Nq: n, Nk: n, D: d, Dv: d, Causal: causal,
		DType: attention.BF16, OutDType: attention.BF16, Layout: attention.BHND, Scale: attention.DefaultScale(d),
	}
}

// billion are requests for 10^9 tokens.
func billion() []Request {
	var list []Request
	for _, budget := range []int64{8 << 30, 512 << 20, 64 << 20} {
		for _, d := range []int{64, 128} {
			for _, causal := range []attention.Causal{attention.NonCausal, attention.BottomRight} {
				for _, kind := range []string{"auto", "cqs", "rows"} {
					list = append(list, Request{
						Problem: sequence(1e9, d, causal), Budget: budget, Divide: kind,
						Host: Host{Cache: 64 << 30, Disk: 1.5e9},
					})
				}
			}
		}
	}
	return list
}

func name(r Request) string {
	return fmt.Sprintf("budget=%dMiB/d=%d/%v/%s", r.Budget>>20, r.Problem.D, r.Problem.Causal, r.Divide)
}

func BenchmarkPlanBillion(b *testing.B) {
	for _, req := range billion() {
		b.Run(name(req), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p, _, err := New(req, gpuLike)
				var no *NoFitError
				if err != nil && !errors.As(err, &no) {
					b.Fatal(err)
				}
				_ = p
			}
		})
	}
}
