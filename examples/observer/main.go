// Command observer attaches an access log to a mesh. Metrics and traces attach in the same way.
package main

import (
	"context"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
)

const document = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop]
  http:
  - name: orders
    match: [{uri: {prefix: /orders}}]
    route: [{destination: {host: shop}}]
    retries: {attempts: 2, retryOn: 5xx}
  - name: front-page
    match: [{uri: {exact: /}}]
    redirect: {uri: /orders}
`

func main() {
	log.SetFlags(0)
	var requests atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1) == 1 {
			http.Error(w, "not yet", http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	addr := server.Listener.Addr().(*net.TCPAddr)

	m, err := mesh.New(context.Background(),
		mesh.WithPolicy(policy.Source{Name: "shop.yaml", Data: []byte(document)}),
		mesh.WithDiscovery(discovery.Static{"shop": {{Address: addr.IP.String(), Port: addr.Port}}}),
		mesh.WithObserver(accessLog(slog.New(slog.NewTextHandler(os.Stdout, nil)))),
		mesh.WithLogger(slog.New(slog.DiscardHandler)), // the observer logs it
	)
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()
	for _, path := range []string{"/orders/17", "/", "/nothing"} {
		resp, err := m.Client().Get("http://shop" + path)
		if err != nil {
			log.Fatal(err)
		}
		resp.Body.Close() // a call ends, and is logged, when its body does
	}
}

// accessLog returns an observer that logs calls, their attempts, and changes of state.
func accessLog(log *slog.Logger) mesh.Observer {
	return mesh.Observer{
		CallEnd: func(ctx context.Context, c *mesh.Call) {
			log.InfoContext(ctx, "call", "url", c.Request.URL.String(), "route", c.Route, "status", c.Status,
				"flags", c.Flags, "attempts", c.Attempts, "took", c.Duration.Round(time.Millisecond))
		},
		AttemptEnd: func(ctx context.Context, a *mesh.Attempt) {
			log.InfoContext(ctx, "attempt", "number", a.Number, "endpoint", a.Endpoint, "status", a.Status)
		},
		Endpoints: func(target route.Target, count int) {
			log.Info("endpoints changed", "host", target.Host, "count", count)
		},
		Ejection: func(target route.Target, event breaker.Event) {
			log.Info("ejection", "host", target.Host, "endpoint", event.Endpoint, "ejected", event.Ejected, "reason", event.Reason)
		},
		PolicyLoad: func(load mesh.PolicyLoad) {
			log.Info("documents loaded", "findings", len(load.Findings), "error", load.Err)
		},
	}
}
