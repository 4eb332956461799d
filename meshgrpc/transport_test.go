package meshgrpc_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
)

// Failures without a status of the server, and the answers of proxies, are retried as for HTTP.
func TestTransportFailures(t *testing.T) {
	type answer = func(*grpctest.Frames, uint32) bool
	reset := func(code http2.ErrCode) answer {
		return func(f *grpctest.Frames, stream uint32) bool { f.Reset(stream, code); return true }
	}
	proxy := func(status string) answer {
		return func(f *grpctest.Frames, stream uint32) bool {
			f.Headers(stream, true, ":status", status, "content-type", "text/html")
			return true
		}
	}
	lost := func(*grpctest.Frames, uint32) bool { return false }
	for _, test := range []struct {
		name   string
		on     string
		answer answer
		calls  int64 // that the server sees
		code   codes.Code
	}{
		// gRPC itself sends a refused stream once more: each try is two.
		{"refused", "refused-stream", reset(http2.ErrCodeRefusedStream), 6, codes.Unavailable},
		{"refused, not retried", "unavailable", reset(http2.ErrCodeRefusedStream), 2, codes.Unavailable},
		{"reset", "reset", reset(http2.ErrCodeInternal), 3, codes.Internal},
		{"reset is no refusal", "refused-stream", reset(http2.ErrCodeInternal), 1, codes.Internal},
		{"reset is no status", "internal", reset(http2.ErrCodeInternal), 1, codes.Internal},
		{"connection lost", "reset", lost, 3, codes.Unavailable},
		{"connection lost is no status", "unavailable", lost, 1, codes.Unavailable},
		{"503 of a proxy", "gateway-error", proxy("503"), 3, codes.Unavailable},
		{"503 by its code", "503", proxy("503"), 3, codes.Unavailable},
		{"403 of a proxy", "5xx,reset", proxy("403"), 1, codes.PermissionDenied},
		{"headers, then reset", "5xx", func(f *grpctest.Frames, stream uint32) bool {
			f.Headers(stream, false, ":status", "200", "content-type", "application/grpc")
			f.Reset(stream, http2.ErrCodeInternal)
			return true
		}, 1, codes.Internal},
	} {
		for _, kind := range []string{"unary", "stream"} {
			t.Run(kind+" "+test.name, func(t *testing.T) {
				leak.Check(t)
				var calls, tries, ends atomic.Int64
				address := grpctest.ServeFrames(t, func(_ int, f *grpctest.Frames, stream uint32) bool {
					calls.Add(1)
					return test.answer(f, stream)
				})
				var registry discovery.Memory
				registry.Set("echo", meshtest.EndpointOf(t, address))
				m := meshtest.New(t, route(fmt.Sprintf("    retries: {attempts: 2, retryOn: %q, backoff: 1ms}\n", test.on)),
					mesh.WithDiscovery(&registry), mesh.WithObserver(mesh.Observer{
						AttemptEnd: func(context.Context, *mesh.Attempt) { tries.Add(1) },
					}))
				client := grpctest.NewClient(connect(t, m, "mesh:///echo"))
				finish := grpc.OnFinish(func(error) { ends.Add(1) })
				var err error
				if kind == "unary" {
					_, err = client.UnaryCall(t.Context(), &grpctest.Request{}, finish)
				} else {
					var stream grpc.ServerStreamingClient[grpctest.Out]
					if stream, err = client.StreamingOutputCall(t.Context(), &grpctest.In{}, finish); err == nil {
						_, err = stream.Recv()
					}
				}
				if status.Code(err) != test.code || calls.Load() != test.calls {
					t.Errorf("%d calls, %v (%v); want %d, %v", calls.Load(), err, status.Code(err), test.calls, test.code)
				}
				if tries.Load() == 0 || ends.Load() != 1 {
					t.Errorf("%d tries were observed, and %d ends; want some, and 1", tries.Load(), ends.Load())
				}
			})
		}
	}
}
