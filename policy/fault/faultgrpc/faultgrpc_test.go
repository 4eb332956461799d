package faultgrpc_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/policy/fault"
	"github.com/nosidecar/mesh/policy/fault/faultgrpc"
)

func TestFaults(t *testing.T) {
	delay := fault.Delay{Fraction: 1, Fixed: 2 * time.Second}
	for _, test := range []struct {
		name   string
		config fault.Config
		draw   uint32 // what Rand returns
		within time.Duration
		code   codes.Code
		after  time.Duration
	}{
		{name: "none"},
		{name: "delay", config: fault.Config{Delay: delay}, after: 2 * time.Second},
		{name: "delay, not this call", config: fault.Config{Delay: fault.Delay{Fraction: 10e-6, Fixed: time.Hour}}, draw: 10},
		{name: "out of time meanwhile", config: fault.Config{Delay: delay}, within: time.Second,
			code: codes.DeadlineExceeded, after: time.Second},
		{name: "abort", config: fault.Config{Abort: fault.Abort{Fraction: 1, IsGRPC: true, GRPCStatus: 8}},
			code: codes.ResourceExhausted},
		{name: "abort with OK", config: fault.Config{Abort: fault.Abort{Fraction: 1, IsGRPC: true}},
			code: codes.Internal},
		{name: "HTTP status", config: fault.Config{Abort: fault.Abort{Fraction: 1, HTTPStatus: 503}},
			code: codes.Unavailable},
		{name: "delay and abort", after: 2 * time.Second, code: codes.Unknown,
			config: fault.Config{Delay: delay, Abort: fault.Abort{Fraction: 1, HTTPStatus: 500}}},
		{name: "invalid", config: fault.Config{Delay: fault.Delay{Fixed: -1}}, code: codes.Internal},
	} {
		for _, kind := range []string{"unary", "stream"} {
			t.Run(test.name+"/"+kind, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					faults := &faultgrpc.Client{Config: test.config, Rand: func(uint32) uint32 { return test.draw }}
					client, stop := grpctest.Connect(t, &grpctest.Service{
						Unary: grpctest.Echo,
						Bidi:  func(s grpctest.BidiServer) error { return s.Send(&grpctest.Out{}) },
					}, faults.DialOptions()...)
					defer stop()
					ctx, cancel := context.WithCancel(t.Context())
					if test.within > 0 {
						ctx, cancel = context.WithTimeout(ctx, test.within)
					}
					defer cancel()
					began := time.Now()
					var err error
					if kind == "unary" {
						_, err = client.UnaryCall(ctx, &grpctest.Request{})
					} else if stream, failed := client.FullDuplexCall(ctx); failed != nil {
						err = failed
					} else {
						_, err = stream.Recv()
					}
					if status.Code(err) != test.code || time.Since(began) != test.after {
						t.Errorf("%v after %v, want %v after %v", err, time.Since(began), test.code, test.after)
					}
				})
			})
		}
	}
}
