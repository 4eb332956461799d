package meshgrpc_test

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
)

// The HTTP status of a gRPC call is 200, however it ends. Observers are told the gRPC status too.
func TestObserversSeeTheStatusOfGRPC(t *testing.T) {
	leak.Check(t)
	var registry discovery.Memory
	registry.Set("echo", serve(t, &grpctest.Service{
		Unary: func(_ context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			return &grpctest.Response{}, status.Error(codes.Code(in.ResponseSize), "as asked for")
		},
		Output: func(in *grpctest.In, s grpctest.OutServer) error {
			if err := s.Send(&grpctest.Out{}); err != nil {
				return err
			}
			return status.Error(codes.Code(in.ResponseParameters[0].Size), "as asked for")
		},
	}))
	ended, attempts := make(chan mesh.Call, 1), make(chan mesh.Attempt, 1)
	m := meshtest.New(t, route("    retries: {attempts: 0}\n"), mesh.WithDiscovery(&registry), mesh.WithObserver(mesh.Observer{
		CallEnd:    func(_ context.Context, c *mesh.Call) { ended <- *c },
		AttemptEnd: func(_ context.Context, a *mesh.Attempt) { attempts <- *a },
	}))
	client := grpctest.NewClient(connect(t, m, "mesh:///echo"))
	for _, code := range []codes.Code{codes.OK, codes.NotFound, codes.Unavailable} {
		_, err := client.UnaryCall(bounded(t), &grpctest.Request{ResponseSize: int32(code)})
		if c, a := <-ended, <-attempts; status.Code(err) != code || c.Status != 200 || c.GRPCStatus != int(code) || a.Status != 200 || a.GRPCStatus != int(code) {
			t.Errorf("unary, %v: observers saw %d and %d, and %d and %d of the attempt (%v)", code, c.Status, c.GRPCStatus, a.Status, a.GRPCStatus, err)
		}
		in := &grpctest.In{ResponseParameters: []*grpctest.Parameters{{Size: int32(code)}}}
		stream, err := client.StreamingOutputCall(bounded(t), in)
		for err == nil {
			_, err = stream.Recv()
		}
		if c, a := <-ended, <-attempts; c.Status != 200 || c.GRPCStatus != int(code) || a.Status != 200 || a.GRPCStatus != int(code) {
			t.Errorf("stream, %v: observers saw %d and %d, and %d and %d of the attempt (%v)", code, c.Status, c.GRPCStatus, a.Status, a.GRPCStatus, err)
		}
	}
}

// A call that the mesh itself answers has a gRPC status too.
func TestObserversSeeTheStatusOfAnAnswerOfTheMesh(t *testing.T) {
	leak.Check(t)
	var registry discovery.Memory
	registry.Set("echo", serve(t, echoStreams))
	for _, test := range []struct {
		documents string
		status    int
		code      codes.Code
	}{
		{route("    fault: {abort: {grpcStatus: NOT_FOUND, percentage: {value: 100}}}\n"), 200, codes.NotFound},
		{strings.Replace(route(""), "route: [{destination: {host: echo}}]", "directResponse: {status: 503}", 1), 503, codes.Unavailable},
	} {
		ended := make(chan mesh.Call, 1)
		m := meshtest.New(t, test.documents, mesh.WithDiscovery(&registry), mesh.WithObserver(mesh.Observer{
			CallEnd: func(_ context.Context, c *mesh.Call) { ended <- *c },
		}))
		client := grpctest.NewClient(connect(t, m, "mesh:///echo"))
		_, err := client.UnaryCall(bounded(t), &grpctest.Request{})
		if c := <-ended; status.Code(err) != test.code || c.Status != test.status || c.GRPCStatus != int(test.code) {
			t.Errorf("%v: observers saw %d and %d (%v)", test.code, c.Status, c.GRPCStatus, err)
		}
	}
}
