package fault_test

import (
	"testing"
	"time"

	"github.com/nosidecar/mesh/policy/fault"
)

var rare = fault.Config{
	Delay: fault.Delay{Fraction: 1e-6, Fixed: time.Nanosecond},
	Abort: fault.Abort{Fraction: 1e-6, HTTPStatus: 503},
}

func BenchmarkConfig_Decide(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		rare.Decide(nil)
	}
}

func BenchmarkTransport(b *testing.B) {
	req, _ := request(b.Context(), "GET")
	rt := &fault.Transport{Base: &base{}, Config: rare}
	b.ReportAllocs()
	for b.Loop() {
		rt.RoundTrip(req)
	}
}
