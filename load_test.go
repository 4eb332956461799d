package mesh_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/balancer"
)

// TestLoadReportsReachCallers: a caller with an identity is told once there is something to tell. One that balances by reports takes them
// for itself, so they do not leave the mesh through it.
func TestLoadReportsReachCallers(t *testing.T) {
	w := newTown(t)
	server := w.member(t, "payment-service", strict, mesh.WithServer(mesh.ServerConfig{ReportLoad: true}))
	w.serve(t, server, "payment-service", func(http.ResponseWriter, *http.Request) {})
	ask := func(client *http.Client, url string) string {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, "GET", url, nil)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		io.Copy(io.Discard, resp.Body)
		return resp.Header.Get("endpoint-load-metrics")
	}
	caller := w.member(t, "order-service", strict).Client()
	got := ""
	for began := time.Now(); got == "" && time.Since(began) < 20*time.Second; {
		got = ask(caller, "http://payment-service/")
	}
	if !strings.HasPrefix(got, "TEXT application_utilization=") || !strings.Contains(got, ",rps_fractional=") {
		t.Errorf("a caller is told %q", got)
	}
	weighs := w.member(t, "order-service", strict, mesh.WithProtection(mesh.Protection{Balancing: &balancer.Config{Algorithm: balancer.WeightedRoundRobin}})).Client()
	if got := ask(weighs, "http://payment-service/"); got != "" {
		t.Errorf("a caller that balances by reports shows %q", got)
	}
}

func TestUtilizationWithoutReports(t *testing.T) {
	_, err := mesh.New(t.Context(), mesh.WithEmptyPolicy(), mesh.WithServer(mesh.ServerConfig{Utilization: func() float64 { return 1 }}))
	if err == nil || !strings.Contains(err.Error(), "ReportLoad") {
		t.Errorf("New = %v, want an error that names ReportLoad", err)
	}
}
