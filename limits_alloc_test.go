//go:build !race

// The race detector makes sync.Pool, which holds ended calls, drop what it is given.

package mesh_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy"
)

// Over a real connection, timeouts make net/http wait for a context. What that needs is there from earlier calls.
func TestAllocationsOfTimeouts(t *testing.T) {
	noLeaks(t)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }))
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetHTTP1(true)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Start()
	defer srv.Close()
	var registry discovery.Memory
	registry.Set("user-service", endpointOf(t, srv.Listener.Addr().String()))
	parent, cancel := context.WithCancel(t.Context())
	defer cancel()
	before := anHour{parent}
	for _, protocol := range []string{"", "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: user-service}\n" +
		"spec: {host: user-service, trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: UPGRADE}}}}\n"} {
		var allocs []float64
		var hurried float64
		for _, timeouts := range [][2]string{{"", ""}, {"", "timeout: 5s"}, {", perTryTimeout: 2s", "timeout: 5s"}} {
			m, err := mesh.New(t.Context(), mesh.WithDiscovery(&registry), mesh.WithPolicy(policy.Source{Name: "routes.yaml", Data: fmt.Appendf(nil, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: user-service}
spec:
  hosts: [user-service]
  http:
  - route: [{destination: {host: user-service}}]
    retries: {attempts: 2%s}
    %s
%s`, timeouts[0], timeouts[1], protocol)}))
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			allocs = append(allocs, allocationsOfGet(t, parent, m.Transport()))
			if timeouts[1] == "" {
				hurried = allocationsOfGet(t, before, m.Transport())
			}
		}
		t.Logf("allocations per call with both ends: %v; with a deadline of the caller: %v", allocs, hurried)
		// The limits, and two for the header that tells the server of them, there, or one there and one for its name in HTTP/2; none for that header
		// here, which calls without headers of their own share, and none to hear of the end of the caller's context, which all calls have in
		// common. The reader of the body is allocated with the limits.
		for i, most := range []float64{2, 2} {
			if more := allocs[i+1] - allocs[0]; more > most {
				t.Errorf("%v allocations per call more with timeouts, want at most %v: %v", more, most, allocs)
			}
		}
		// Two for that header at the server, or one there and one for its name in HTTP/2. The request is allocated with the reader of the body.
		if more := hurried - allocs[0]; more > 2 {
			t.Errorf("%v allocations per call more with a deadline of the caller, want at most 2", more)
		}
	}
}

// anHour is a context that has an hour left whenever it is asked. With less from call to call, calls would tell the server another number of
// milliseconds each where they take one, as on a busy machine, and each number is allocated once.
type anHour struct{ context.Context }

func (anHour) Deadline() (time.Time, bool) {
	return time.Now().Add(time.Hour + time.Millisecond/2), true
}

// allocationsOfGet returns the number of allocations of a call with ctx.
func allocationsOfGet(t *testing.T, ctx context.Context, rt http.RoundTripper) float64 {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://user-service/", nil)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 512)
	return testing.AllocsPerRun(500, func() {
		resp, err := rt.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = resp.Body.Read(buf)
		}
		if resp.Body.Close(); err != io.EOF {
			t.Error(err)
		}
	})
}
