package meshgrpc_test

import (
	"context"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/meshtest"
)

const accruing = "---\napiVersion: v1\nkind: Service\nmetadata: {name: echo, namespace: default, annotations: {balancer.linkerd.io/failure-accrual: consecutive, " +
	"balancer.linkerd.io/failure-accrual-consecutive-max-failures: '3', balancer.linkerd.io/failure-accrual-consecutive-min-penalty: 10s, " +
	"balancer.linkerd.io/failure-accrual-consecutive-jitter-ratio: '0'}}\nspec: {ports: [{port: 80, name: grpc}]}\n"

// TestLinkerd_FailureAccrual_Statuses: which statuses take an endpoint out after three calls. As with Linkerd, one that lacks a method stays in.
func TestLinkerd_FailureAccrual_Statuses(t *testing.T) {
	fail := []codes.Code{codes.Unknown, codes.DeadlineExceeded, codes.Internal, codes.Unavailable, codes.DataLoss}
	for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
		t.Run(code.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var arrived atomic.Int64
				_, at, transport := inMemory(t, &grpctest.Service{Unary: func(context.Context, *grpctest.Request) (*grpctest.Response, error) {
					arrived.Add(1)
					return nil, status.Error(code, "")
				}})
				// Without the default retries.
				conn := connect(t, meshtest.New(t, accruing+"---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: echo}\n"+
					"spec: {hosts: [echo], http: [{route: [{destination: {host: echo}}], retries: {attempts: 0}}]}\n", echoAt(at), transport), "mesh:///echo:80")
				for range 5 {
					_ = conn.Invoke(t.Context(), grpctest.UnaryMethod, &grpctest.Request{}, &grpctest.Response{})
				}
				want := int64(5)
				for _, c := range fail {
					if c == code {
						want = 3
					}
				}
				if arrived.Load() != want {
					t.Errorf("of 5 calls %d arrived, want %d", arrived.Load(), want)
				}
			})
		})
	}
}

// TestLinkerd_FailureAccrual_AStreamOnTrial: a stream counts when it ends. One that stays open keeps the endpoint out for no longer than a failure.
func TestLinkerd_FailureAccrual_AStreamOnTrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fails atomic.Bool
		fails.Store(true)
		_, at, transport := inMemory(t, &grpctest.Service{
			Unary: func(context.Context, *grpctest.Request) (*grpctest.Response, error) {
				if fails.Load() {
					return nil, status.Error(codes.Internal, "")
				}
				return &grpctest.Response{}, nil
			},
			Bidi: grpctest.EchoStream,
		})
		conn := connect(t, meshtest.New(t, accruing, echoAt(at), transport), "mesh:///echo:80")
		call := func(when string, want codes.Code) {
			t.Helper()
			if err := conn.Invoke(t.Context(), grpctest.UnaryMethod, &grpctest.Request{}, &grpctest.Response{}); status.Code(err) != want {
				t.Errorf("%s: %v, want %v", when, err, want)
			}
		}
		open := func() grpc.ClientStream {
			stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/grpc.testing.TestService/FullDuplexCall")
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.SendMsg(&grpctest.Request{}); err != nil {
				t.Fatal(err)
			}
			return stream
		}
		for range 3 {
			call("at first", codes.Internal)
		}
		call("out", codes.Unavailable)
		time.Sleep(10 * time.Second)
		fails.Store(false)
		first := open()
		call("on trial", codes.Unavailable)
		time.Sleep(20 * time.Second)
		second := open()
		call("on trial again", codes.Unavailable)
		if err := first.CloseSend(); err != nil {
			t.Fatal(err)
		}
		for err := error(nil); err != io.EOF; {
			if err = first.RecvMsg(&grpctest.Response{}); err != nil && err != io.EOF {
				t.Fatal(err)
			}
		}
		call("after the first stream", codes.OK)
		_ = second.CloseSend()
	})
}
