package meshgrpc_test

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
)

func TestUnary(t *testing.T) {
	leak.Check(t)
	var registry discovery.Memory
	registry.Set("echo", serve(t, &grpctest.Service{Unary: grpctest.Echo}))
	m := meshtest.New(t, "", mesh.WithDiscovery(&registry))
	client := grpctest.NewClient(connect(t, m, "mesh:///echo"))
	for range 3 {
		if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); err != nil {
			t.Fatal(err)
		}
	}
}

const threeTries = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: echo}
spec:
  hosts: [echo]
  http:
  - route: [{destination: {host: echo}}]
    retries: {attempts: 2, retryOn: "unavailable,connect-failure,refused-stream", backoff: 2ms}
`

func TestTwoBadOfThree(t *testing.T) {
	leak.Check(t)
	bad := serve(t, &grpctest.Service{Unary: func(context.Context, *grpctest.Request) (*grpctest.Response, error) {
		return nil, status.Error(codes.Unavailable, "bad")
	}})
	var registry discovery.Memory
	registry.Set("echo", serve(t, &grpctest.Service{Unary: grpctest.Echo}), bad, meshtest.Refusing(t))
	m := meshtest.New(t, threeTries, mesh.WithDiscovery(&registry))
	client := grpctest.NewClient(connect(t, m, "mesh:///echo"))
	var failed atomic.Int64
	var callers sync.WaitGroup
	for range 800 {
		callers.Go(func() {
			if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); err != nil {
				failed.Add(1)
				t.Log(err)
			}
		})
	}
	callers.Wait()
	if n := failed.Load(); n > 0 {
		t.Errorf("%d of 800 calls failed", n)
	}
}

func TestStreams(t *testing.T) {
	leak.Check(t)
	var registry discovery.Memory
	registry.Set("echo", serve(t, echoStreams), meshtest.Refusing(t))
	m := meshtest.New(t, threeTries, mesh.WithDiscovery(&registry))
	client := grpctest.NewClient(connect(t, m, "mesh:///echo"))
	for range 20 {
		bidi, err := client.FullDuplexCall(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := bidi.Send(&grpctest.In{}); err != nil {
				t.Fatal(err)
			}
			if _, err := bidi.Recv(); err != nil {
				t.Fatal(err)
			}
		}
		bidi.CloseSend()
		if _, err := bidi.Recv(); err != io.EOF {
			t.Fatalf("end of stream: %v", err)
		}
		up, err := client.StreamingInputCall(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := up.Send(&grpctest.Upload{}); err != nil {
				t.Fatal(err)
			}
		}
		if sum, err := up.CloseAndRecv(); err != nil || sum.AggregatedPayloadSize != 3 {
			t.Fatalf("upload: %v, %v", sum, err)
		}
	}
}

// echoStreams answers each message of a stream with one, and counts those of an upload.
var echoStreams = &grpctest.Service{
	Unary: grpctest.Echo,
	Bidi: func(stream grpctest.BidiServer) error {
		for {
			in, err := stream.Recv()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			if err := stream.Send(&grpctest.Out{Payload: in.GetPayload()}); err != nil {
				return err
			}
		}
	},
	Input: func(stream grpctest.UploadServer) error {
		n := int32(0)
		for {
			_, err := stream.Recv()
			if err == io.EOF {
				return stream.SendAndClose(&grpctest.Sum{AggregatedPayloadSize: n})
			}
			if err != nil {
				return err
			}
			n++
		}
	},
	Output: func(in *grpctest.In, stream grpctest.OutServer) error {
		for range in.GetResponseParameters() {
			if err := stream.Send(&grpctest.Out{Payload: in.GetPayload()}); err != nil {
				return err
			}
		}
		return nil
	},
}
