package limit_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy/limit"
)

var poolConfigs = []struct {
	name   string
	config limit.PoolConfig
}{
	{"none", limit.PoolConfig{}},
	{"requests", limit.PoolConfig{MaxRequests: 1 << 20}},
	{"connections", limit.PoolConfig{MaxConnections: 1 << 20, MaxRequests: 1 << 20}},
}

func TestAllocs(t *testing.T) {
	ctx := t.Context()
	for _, tt := range poolConfigs {
		pool := newPool(t, tt.config)
		n := testing.AllocsPerRun(100, func() {
			slot, err := pool.Acquire(ctx, http1)
			if err != nil {
				t.Error(err)
			}
			slot.Release()
		})
		if n != 0 {
			t.Errorf("limits %s: a slot costs %v allocations, want 0", tt.name, n)
		}
	}
	full := newPool(t, limit.PoolConfig{MaxRequests: 1})
	acquire(t, full, http1)
	if n := testing.AllocsPerRun(100, func() { full.Acquire(ctx, http1) }); n != 0 {
		t.Errorf("a refusal costs %v allocations, want 0", n)
	}
	rate, err := limit.NewRate(limit.RateConfig{PerSecond: 1, Burst: 10})
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() { rate.Allow() }); n != 0 {
		t.Errorf("a token costs %v allocations, want 0", n)
	}
}

func BenchmarkPool_Acquire(b *testing.B) {
	for _, tt := range poolConfigs {
		pool, err := limit.NewPool(tt.config)
		if err != nil {
			b.Fatal(err)
		}
		ctx := b.Context()
		b.Run(tt.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				slot, _ := pool.Acquire(ctx, http1)
				slot.Release()
			}
		})
		b.Run(tt.name+"/parallel", func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					slot, _ := pool.Acquire(ctx, http1)
					slot.Release()
				}
			})
		})
	}
}

func BenchmarkRate_Allow(b *testing.B) {
	rate, err := limit.NewRate(limit.RateConfig{PerSecond: 1e9, Burst: 1e9})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		rate.Allow()
	}
}

func BenchmarkTransport(b *testing.B) {
	resp := &http.Response{StatusCode: 204, Body: http.NoBody}
	bare := roundTripper(func(*http.Request) (*http.Response, error) { return resp, nil })
	req, _ := request(http.MethodGet)
	for _, tt := range []struct {
		name string
		rt   http.RoundTripper
	}{
		{"bare", bare},
		{"pool", &limit.Transport{Base: bare, Config: limit.PoolConfig{MaxConnections: 10, MaxRequests: 10}}},
		{"rate", &limit.RateTransport{Base: bare, Config: limit.RateConfig{PerSecond: 1e9}}},
	} {
		b.Run(tt.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				tt.rt.RoundTrip(req)
			}
		})
	}
}

// BenchmarkConns makes calls over loopback, with a body and without.
func BenchmarkConns(b *testing.B) {
	for _, protocol := range []string{plain, overTLS1, overTLS, clear} {
		for name, size := range map[string]int{"no body": 0, "body": 100} {
			b.Run(protocol+"/"+name, func(b *testing.B) {
				s := serve(b, protocol, hello)
				pool, err := limit.NewPool(limit.PoolConfig{})
				if err != nil {
					b.Fatal(err)
				}
				c, err := pool.Conns(s.template)
				if err != nil {
					b.Fatal(err)
				}
				defer c.Close()
				text := strings.Repeat("x", size)
				b.ReportAllocs()
				for b.Loop() {
					req, err := http.NewRequestWithContext(b.Context(), http.MethodPost, s.URL, strings.NewReader(text))
					if err != nil {
						b.Fatal(err)
					}
					resp, err := c.RoundTrip(req)
					if err != nil {
						b.Fatal(err)
					}
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			})
		}
	}
}
