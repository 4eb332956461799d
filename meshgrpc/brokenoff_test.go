package meshgrpc_test

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/meshgrpc"
)

// A call whose answer has begun, and that its handler or its caller breaks off, is told from one that was never answered, and from one that
// gRPC itself has answered.
func TestObserversSeeHowInboundCallsAreBrokenOff(t *testing.T) {
	leak.Check(t)
	ends, arrived := make(chan mesh.Inbound, 1), make(chan struct{})
	server := newTown(t).member(t, "payment", "", mesh.WithObserver(mesh.Observer{InboundEnd: func(_ context.Context, in *mesh.Inbound) { ends <- *in }}))
	recovered := func(err *error) {
		if recover() != nil {
			*err = status.Error(codes.Internal, "panic")
		}
	}
	service := &grpctest.Service{
		Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			if in.ResponseSize == 0 {
				panic("unary")
			}
			arrived <- struct{}{}
			<-ctx.Done()
			return &grpctest.Response{Username: "too late"}, nil
		},
		Bidi: func(s grpctest.BidiServer) error {
			if err := s.Send(&grpctest.Out{}); err != nil {
				return err
			}
			in, err := s.Recv()
			if err == nil && in.Payload == nil {
				panic("stream")
			}
			return err
		},
	}
	client := grpctest.NewClient(grpctest.Dial(t, grpctest.Serve(t, service, append(meshgrpc.ServerOptions(server), grpc.MaxRecvMsgSize(100),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (_ any, err error) {
			defer recovered(&err)
			return next(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, s grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
			defer recovered(&err)
			return next(srv, s)
		}))...)))
	unary := func(size int32) func(context.Context, context.CancelFunc) codes.Code {
		return func(ctx context.Context, cancel context.CancelFunc) codes.Code {
			if size != 0 {
				go func() { <-arrived; cancel() }()
			}
			_, err := client.UnaryCall(ctx, &grpctest.Request{ResponseSize: size})
			return status.Code(err)
		}
	}
	stream := func(next func(grpc_testing.TestService_FullDuplexCallClient, context.CancelFunc)) func(context.Context, context.CancelFunc) codes.Code {
		return func(ctx context.Context, cancel context.CancelFunc) codes.Code {
			s, err := client.FullDuplexCall(ctx)
			if err == nil {
				_, err = s.Recv()
			}
			if err != nil {
				t.Fatal(err)
			}
			next(s, cancel)
			_, err = s.Recv()
			return status.Code(err)
		}
	}
	for name, test := range map[string]struct {
		call   func(context.Context, context.CancelFunc) codes.Code
		got    codes.Code // by the caller
		status int
		grpc   int
		flags  mesh.Flags
		sent   int64
	}{
		"panic":       {unary(0), codes.Internal, 0, -1, mesh.FlagRemoteReset, 0},
		"caller gone": {unary(1), codes.Canceled, 0, -1, mesh.FlagCallerGone, 0},
		"unary message that is too large": {func(ctx context.Context, _ context.CancelFunc) codes.Code { // gRPC does not say why it ends the call
			_, err := client.UnaryCall(ctx, &grpctest.Request{Payload: grpctest.Large('a')})
			return status.Code(err)
		}, codes.ResourceExhausted, 0, -1, mesh.FlagCallerGone, 0},
		"panic in a stream":      {stream(func(s grpc_testing.TestService_FullDuplexCallClient, _ context.CancelFunc) { s.Send(&grpctest.In{}) }), codes.Internal, 200, -1, mesh.FlagRemoteReset, 5},
		"caller leaves a stream": {stream(func(_ grpc_testing.TestService_FullDuplexCallClient, cancel context.CancelFunc) { cancel() }), codes.Canceled, 200, -1, mesh.FlagCallerGone, 5},
		"message that is too large": {stream(func(s grpc_testing.TestService_FullDuplexCallClient, _ context.CancelFunc) {
			s.Send(&grpctest.In{Payload: &grpc_testing.Payload{Body: make([]byte, 1000)}})
		}), codes.ResourceExhausted, 200, int(codes.ResourceExhausted), 0, 5},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(bounded(t))
			defer cancel()
			if got := test.call(ctx, cancel); got != test.got {
				t.Errorf("the caller got %v, want %v", got, test.got)
			}
			in := await.Receive(t, "observers to be told", ends)
			if in.Status != test.status || in.GRPCStatus != test.grpc || in.Flags != test.flags || in.BytesSent != test.sent {
				t.Errorf("observers saw %d, %d, %v and %d bytes; want %d, %d, %v and %d", in.Status, in.GRPCStatus, in.Flags, in.BytesSent,
					test.status, test.grpc, test.flags, test.sent)
			}
		})
	}
}
