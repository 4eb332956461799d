package fault_test

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/nosidecar/mesh/policy/fault"
)

func TestPerMillion(t *testing.T) {
	for _, tt := range []struct {
		percent float64
		want    uint32
	}{
		{0, 0},
		{0.1, 1000}, // a tenth of a percent, not ten percent
		{0.01, 100},
		{0.57, 5699}, // cut off: as a float64 it is 5699.999...
		{0.29, 2900},
		{0.0001, 1},
		{0.00009, 0},
		{10, 100_000},
		{99.99999, 999_999},
		{100, fault.PerMillion(100)},
	} {
		if got := fault.PerMillion(tt.percent); got != tt.want {
			t.Errorf("PerMillion(%v) = %d, want %d", tt.percent, got, tt.want)
		}
	}
	for _, percent := range []float64{-0.1, 100.1, math.NaN(), math.Inf(1)} {
		config := fault.Config{Delay: fault.Delay{PerMillion: fault.PerMillion(percent), Fixed: time.Second}}
		if config.Validate() == nil {
			t.Errorf("%v%% of calls is valid", percent)
		}
	}
}

func TestConfig_Validate(t *testing.T) {
	for _, tt := range []struct {
		name   string
		config fault.Config
		ok     bool
	}{
		{"none", fault.Config{}, true},
		{"delay", fault.Config{Delay: fault.Delay{PerMillion: 1, Fixed: time.Second}}, true},
		{"negative delay", fault.Config{Delay: fault.Delay{PerMillion: 1, Fixed: -1}}, false},
		{"delay beyond all", fault.Config{Delay: fault.Delay{PerMillion: fault.PerMillion(100) + 1}}, false},
		{"HTTP abort", fault.Config{Abort: fault.Abort{PerMillion: 1, HTTPStatus: 503}}, true},
		{"lowest status", fault.Config{Abort: fault.Abort{PerMillion: 1, HTTPStatus: 200}}, true},
		{"status too low", fault.Config{Abort: fault.Abort{PerMillion: 1, HTTPStatus: 199}}, false},
		{"status too high", fault.Config{Abort: fault.Abort{PerMillion: 1, HTTPStatus: 600}}, false},
		{"abort beyond all", fault.Config{Abort: fault.Abort{PerMillion: fault.PerMillion(100) + 1, HTTPStatus: 503}}, false},
		{"gRPC abort", fault.Config{Abort: fault.Abort{PerMillion: 1, GRPCStatus: 14, IsGRPC: true}}, true},
		{"gRPC OK", fault.Config{Abort: fault.Abort{PerMillion: 1, IsGRPC: true}}, true},
		{"no such code", fault.Config{Abort: fault.Abort{PerMillion: 1, GRPCStatus: 17, IsGRPC: true}}, false},
		{"code without flag", fault.Config{Abort: fault.Abort{PerMillion: 1, HTTPStatus: 503, GRPCStatus: 14}}, false},
		{"both", fault.Config{Abort: fault.Abort{PerMillion: 1, HTTPStatus: 503, IsGRPC: true}}, false},
		{"abort with nothing", fault.Config{Abort: fault.Abort{PerMillion: 1}}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.config.Validate(); (err == nil) != tt.ok {
				t.Errorf("Validate = %v, want an error: %t", err, !tt.ok)
			}
		})
	}
}

// sequence returns the values given, one after the other, and fails when there are no more.
func sequence(t *testing.T, values ...uint32) func(uint32) uint32 {
	return func(n uint32) uint32 {
		if n != fault.PerMillion(100) || len(values) == 0 {
			t.Fatalf("drew from %d with %d values left", n, len(values))
		}
		v := values[0]
		values = values[1:]
		return v
	}
}

func TestConfig_Decide(t *testing.T) {
	config := fault.Config{
		Delay: fault.Delay{PerMillion: 500, Fixed: time.Second},
		Abort: fault.Abort{PerMillion: 100, HTTPStatus: 503},
	}
	abort := fault.Decision{Abort: true, HTTPStatus: 503}
	both := abort
	both.Delay = time.Second
	for _, tt := range []struct {
		name   string
		config fault.Config
		draws  []uint32
		want   fault.Decision
	}{
		{"neither", config, []uint32{500, 100}, fault.Decision{}},
		{"delay", config, []uint32{499, 100}, fault.Decision{Delay: time.Second}},
		{"abort", config, []uint32{500, 99}, abort},
		{"both, drawn apart", config, []uint32{499, 99}, both},
		{"nothing to draw", fault.Config{}, nil, fault.Decision{}},
		{"gRPC", fault.Config{Abort: fault.Abort{PerMillion: 1, GRPCStatus: 14, IsGRPC: true}}, []uint32{0},
			fault.Decision{Abort: true, GRPCStatus: 14, IsGRPC: true}},
		{"all", fault.Config{Abort: fault.Abort{PerMillion: fault.PerMillion(100), HTTPStatus: 503}},
			[]uint32{fault.PerMillion(100) - 1}, abort},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.config.Decide(sequence(t, tt.draws...)); got != tt.want {
				t.Errorf("Decide = %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestConfig_DecideShares(t *testing.T) {
	const calls = 100_000
	config := fault.Config{
		Delay: fault.Delay{PerMillion: fault.PerMillion(50), Fixed: time.Second},
		Abort: fault.Abort{PerMillion: fault.PerMillion(20), HTTPStatus: 503},
	}
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	var delays, aborts, both int
	for range calls {
		d := config.Decide(random.Uint32N)
		if d.Delay > 0 {
			delays++
		}
		if d.Abort {
			aborts++
			if d.Delay > 0 {
				both++
			}
		}
	}
	// Beyond five standard deviations: less than one run in a million.
	for _, tt := range []struct {
		name  string
		count int
		share float64
	}{{"delays", delays, 0.5}, {"aborts", aborts, 0.2}, {"both", both, 0.1}} {
		mean, deviation := tt.share*calls, math.Sqrt(calls*tt.share*(1-tt.share))
		if math.Abs(float64(tt.count)-mean) > 5*deviation {
			t.Errorf("%s: %d of %d calls, want about %v (seed %d)", tt.name, tt.count, calls, mean, seed)
		}
	}
}
