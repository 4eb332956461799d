package fault_test

import (
	"math"
	"testing"
	"time"

	"github.com/nosidecar/mesh/policy/fault"
)

func TestConfig_Validate(t *testing.T) {
	for _, tt := range []struct {
		name   string
		config fault.Config
		ok     bool
	}{
		{"none", fault.Config{}, true},
		{"delay", fault.Config{Delay: fault.Delay{Fraction: 1e-6, Fixed: time.Second}}, true},
		{"negative delay", fault.Config{Delay: fault.Delay{Fraction: 1e-6, Fixed: -1}}, false},
		{"delay beyond all", fault.Config{Delay: fault.Delay{Fraction: 1.000001}}, false},
		{"less than no delays", fault.Config{Delay: fault.Delay{Fraction: -0.001}}, false},
		{"delay of no number", fault.Config{Delay: fault.Delay{Fraction: math.NaN()}}, false},
		{"delay of infinity", fault.Config{Delay: fault.Delay{Fraction: math.Inf(1)}}, false},
		{"delay of less than a millionth", fault.Config{Delay: fault.Delay{Fraction: 4e-7}}, false},
		{"HTTP abort", fault.Config{Abort: fault.Abort{Fraction: 1e-6, HTTPStatus: 503}}, true},
		{"lowest status", fault.Config{Abort: fault.Abort{Fraction: 1e-6, HTTPStatus: 200}}, true},
		{"status too low", fault.Config{Abort: fault.Abort{Fraction: 1e-6, HTTPStatus: 199}}, false},
		{"status too high", fault.Config{Abort: fault.Abort{Fraction: 1e-6, HTTPStatus: 600}}, false},
		{"abort beyond all", fault.Config{Abort: fault.Abort{Fraction: 1.000001, HTTPStatus: 503}}, false},
		{"gRPC abort", fault.Config{Abort: fault.Abort{Fraction: 1e-6, GRPCStatus: 14, IsGRPC: true}}, true},
		{"gRPC OK", fault.Config{Abort: fault.Abort{Fraction: 1e-6, IsGRPC: true}}, true},
		{"the last gRPC code", fault.Config{Abort: fault.Abort{Fraction: 1e-6, GRPCStatus: 16, IsGRPC: true}}, true},
		{"no such code", fault.Config{Abort: fault.Abort{Fraction: 1e-6, GRPCStatus: 17, IsGRPC: true}}, false},
		{"code without flag", fault.Config{Abort: fault.Abort{Fraction: 1e-6, HTTPStatus: 503, GRPCStatus: 14}}, false},
		{"both", fault.Config{Abort: fault.Abort{Fraction: 1e-6, HTTPStatus: 503, IsGRPC: true}}, false},
		{"abort with nothing", fault.Config{Abort: fault.Abort{Fraction: 1e-6}}, false},
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
		if n != 1_000_000 || len(values) == 0 {
			t.Fatalf("drew from %d with %d values left", n, len(values))
		}
		v := values[0]
		values = values[1:]
		return v
	}
}

func TestConfig_Decide(t *testing.T) {
	config := fault.Config{
		Delay: fault.Delay{Fraction: 500e-6, Fixed: time.Second},
		Abort: fault.Abort{Fraction: 100e-6, HTTPStatus: 503},
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
		{"gRPC", fault.Config{Abort: fault.Abort{Fraction: 1e-6, GRPCStatus: 14, IsGRPC: true}}, []uint32{0},
			fault.Decision{Abort: true, GRPCStatus: 14, IsGRPC: true}},
		{"all", fault.Config{Abort: fault.Abort{Fraction: 1, HTTPStatus: 503}},
			[]uint32{999_999}, abort},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.config.Decide(sequence(t, tt.draws...)); got != tt.want {
				t.Errorf("Decide = %+v, want %+v", got, tt.want)
			}
		})
	}
}
