//go:build !race

// The race detector makes sync.Pool drop what it is given.

package meshgrpc_test

import (
	"io"
	"runtime"
	"testing"

	"google.golang.org/grpc"

	"github.com/nosidecar/mesh/internal/grpctest"
)

// TestAllocationsBesideBare compares calls through the mesh, on one end and on both, with calls over bare gRPC with mTLS.
func TestAllocationsBesideBare(t *testing.T) {
	e := mutual(t)
	for _, kind := range []struct {
		name string
		call func(testing.TB, *grpc.ClientConn)
		most map[string]float64
	}{
		{"unary", callUnary, map[string]float64{"client": 1, "server": 4, "both ends": 5}},
		{"stream", callStream, map[string]float64{"client": 2, "server": 3, "both ends": 5}},
	} {
		allocations := func(conn *grpc.ClientConn) float64 {
			return testing.AllocsPerRun(300, func() { kind.call(t, conn) })
		}
		for _, end := range e.each()[1:] {
			// The figures include all that the process does, such as refilling pools after a collection, so the best of some rounds counts.
			var more float64
			for range 10 {
				if more = allocations(end.conn) - allocations(e.bare); more <= kind.most[end.name] {
					break
				}
			}
			if more > kind.most[end.name] {
				t.Errorf("%s, %s: %v allocations more than over bare gRPC, want at most %v", kind.name, end.name, more, kind.most[end.name])
			}
		}
	}
}

// A unary call of a client allocates few bytes more than over bare gRPC, since calls are reused.
func TestBytesBesideBare(t *testing.T) {
	e := mutual(t)
	measure := func(conn *grpc.ClientConn) float64 {
		const calls = 300
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range calls {
			callUnary(t, conn)
		}
		runtime.ReadMemStats(&after)
		return float64(after.TotalAlloc-before.TotalAlloc) / calls
	}
	const most = 300
	var more float64
	for range 20 { // as above
		if more = measure(e.client) - measure(e.bare); more <= most {
			return
		}
	}
	t.Errorf("%v bytes more than over bare gRPC, want at most %v", more, most)
}

// A message of a stream allocates no more than over bare gRPC.
func TestAllocationsOfMessages(t *testing.T) {
	e := mutual(t)
	measure := func(conn *grpc.ClientConn) float64 {
		stream, err := grpctest.NewClient(conn).FullDuplexCall(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		out := &grpctest.In{}
		n := testing.AllocsPerRun(300, func() {
			if err := stream.Send(out); err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
		})
		_ = stream.CloseSend()
		if _, err := stream.Recv(); err != io.EOF {
			t.Error(err)
		}
		return n
	}
	var more float64
	for range 10 { // as above
		if more = measure(e.both) - measure(e.bare); more <= 0 {
			return
		}
	}
	t.Errorf("%v allocations more than over bare gRPC, want none", more)
}
