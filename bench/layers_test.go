package bench

import (
	"net/http"
	"testing"
)

func newRequest(tb testing.TB) *http.Request {
	req, err := http.NewRequest(http.MethodGet, "http://user-service/users/42", nil)
	if err != nil {
		tb.Fatal(err)
	}
	return req
}

func BenchmarkLayers(b *testing.B) {
	for _, peer := range append([]Peer{Bare}, Layers()...) {
		b.Run(peer.Name, func(b *testing.B) {
			rt, req, buf := peer.Wrap(Noop{}), newRequest(b), make([]byte, 512)
			b.ReportAllocs()
			for b.Loop() {
				if err := Call(rt, req, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkLayersParallel shows what callers on several processors cost one another.
func BenchmarkLayersParallel(b *testing.B) {
	for _, peer := range append([]Peer{Bare}, Layers()...) {
		b.Run(peer.Name, func(b *testing.B) {
			rt := peer.Wrap(Noop{})
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				req, buf := newRequest(b), make([]byte, 512)
				for pb.Next() {
					if err := Call(rt, req, buf); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

func TestLayers_Allocations(t *testing.T) {
	req, buf := newRequest(t), make([]byte, 512)
	allocations := func(t *testing.T, peer Peer) float64 {
		rt := peer.Wrap(Noop{})
		return testing.AllocsPerRun(1000, func() {
			if err := Call(rt, req, buf); err != nil {
				t.Fatal(err)
			}
		})
	}
	budget := map[string]float64{ // beyond bare
		"retry":                                 0,
		"breaker":                               1,
		"retry, breaker":                        1,
		"retry with a per-try timeout, breaker": 2,
	}
	bare := allocations(t, Bare)
	for _, peer := range Layers() {
		limit, limited := budget[peer.Name]
		if !limited {
			continue // not ours
		}
		delete(budget, peer.Name)
		t.Run(peer.Name, func(t *testing.T) {
			if got := allocations(t, peer) - bare; got > limit {
				t.Errorf("%v allocations a call beyond the bare RoundTripper, want at most %v", got, limit)
			}
		})
	}
	for name := range budget {
		t.Errorf("no layer is called %q", name)
	}
}
