package meshgrpc_test

import (
	"context"
	"io"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/meshgrpc"
)

// What observers of a server add to its responses keeps no client from retrying: an error that is all of a response stays that.
func TestErrorsAreRetriedThoughObserversSetHeaders(t *testing.T) {
	leak.Check(t)
	server := meshtest.New(t, "", mesh.WithObserver(mesh.Observer{InboundStart: func(ctx context.Context, in *mesh.Inbound) context.Context {
		in.ResponseHeader["X-Observed"] = []string{"yes"}
		return ctx
	}}))
	var tries atomic.Int32
	fail := func() error {
		if tries.Add(1)%3 != 0 {
			return status.Error(codes.Unavailable, "not yet")
		}
		return nil
	}
	ln := rawtest.Listen(t)
	grpctest.ServeOn(t, server.Listen(ln), &grpctest.Service{
		Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			switch in.ResponseSize {
			case 1:
				return nil, status.Error(codes.NotFound, "none")
			case 2:
				return &grpctest.Response{}, grpc.SendHeader(ctx, metadata.Pairs("own", "1"))
			}
			return &grpctest.Response{}, fail()
		},
		Output: func(in *grpctest.In, s grpctest.OutServer) error {
			switch in.ResponseParameters[0].Size {
			case 1:
				return status.Error(codes.NotFound, "none")
			case 2:
				return s.SendHeader(metadata.Pairs("own", "1"))
			case 3:
				return nil
			}
			if err := fail(); err != nil {
				return err
			}
			return s.Send(&grpctest.Out{})
		},
	}, meshgrpc.ServerOptions(server)...)
	e := meshtest.EndpointOf(t, ln.Addr().String())
	m := meshtest.New(t, threeTries, mesh.WithDiscovery(discovery.Static{"echo": {e}}))
	client := grpctest.NewClient(connect(t, m, "mesh:///echo"))

	for _, test := range []struct {
		name            string
		kind            int32
		tries           int32
		code            codes.Code
		header, trailer bool // have what the observer has set
	}{
		{"errors, then a response", 0, 3, codes.OK, true, false},
		{"an error that is not retried", 1, 0, codes.NotFound, false, true},
		{"the handler sends a header", 2, 0, codes.OK, true, false},
		{"a response without a message", 3, 0, codes.OK, true, false},
	} {
		if test.kind < 3 {
			tries.Store(0)
			var header, trailer metadata.MD
			_, err := client.UnaryCall(bounded(t), &grpctest.Request{ResponseSize: test.kind}, grpc.Header(&header), grpc.Trailer(&trailer))
			inHeader := test.header && test.kind != 2 // it went without it
			if n := tries.Load(); n != test.tries || status.Code(err) != test.code ||
				(header["x-observed"] != nil) != inHeader || (trailer["x-observed"] != nil) == inHeader {
				t.Errorf("unary, %s: %v after %d tries, header %v, trailer %v", test.name, err, n, header, trailer)
			}
		}
		tries.Store(0)
		stream, err := client.StreamingOutputCall(bounded(t), &grpctest.In{ResponseParameters: []*grpctest.Parameters{{Size: test.kind}}})
		for err == nil {
			_, err = stream.Recv()
		}
		header, _ := stream.Header()
		trailer := stream.Trailer()
		if err == io.EOF {
			err = nil
		}
		if n := tries.Load(); n != test.tries || status.Code(err) != test.code ||
			(header["x-observed"] != nil) != test.header || (trailer["x-observed"] != nil) != test.trailer {
			t.Errorf("stream, %s: %v after %d tries, header %v, trailer %v", test.name, err, n, header, trailer)
		}
	}
}
