package meshgrpc_test

import (
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/orca"
)

// TestLoadReportsInTrailers: a gRPC server tells callers with an identity its load in the trailer.
func TestLoadReportsInTrailers(t *testing.T) {
	w := newTown(t)
	w.serve(t, w.member(t, "echo", strict, mesh.WithServer(mesh.ServerConfig{ReportLoad: true})), "echo", &grpctest.Service{Unary: grpctest.Echo})
	client := grpctest.NewClient(connect(t, w.member(t, "web", strict), "echo"))
	for began := time.Now(); time.Since(began) < 20*time.Second; {
		var trailer metadata.MD
		if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}, grpc.Trailer(&trailer)); err != nil {
			t.Fatal(err)
		}
		if load, ok := orca.FromMetadata(trailer); ok {
			if load.Requests <= 0 || load.Utilization <= 0 || load.Errors > 0 {
				t.Errorf("the report is %+v", load)
			}
			return
		}
	}
	t.Error("no report in 20 seconds")
}
