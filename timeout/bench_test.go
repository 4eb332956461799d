package timeout_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/nosidecar/mesh/timeout"
)

func BenchmarkTransport(b *testing.B) {
	ok := &http.Response{StatusCode: 200, Body: http.NoBody}
	base := roundTrip(func(*http.Request) (*http.Response, error) { return ok, nil })
	for _, bench := range []struct {
		name string
		rt   http.RoundTripper
	}{
		{"bare", base},
		{"none", &timeout.Transport{Base: base}},
		{"request", &timeout.Transport{Base: base, Config: timeout.Config{Request: time.Second, NoPropagation: true}}},
		{"request_header", &timeout.Transport{Base: base, Config: timeout.Config{Request: time.Second}}},
		{"request_header_idle", &timeout.Transport{Base: base,
			Config: timeout.Config{Request: time.Second, BodyIdle: time.Second}}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			req, err := http.NewRequest("GET", "http://service/", nil)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := bench.rt.RoundTrip(req); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
