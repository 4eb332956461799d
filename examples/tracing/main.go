// Command tracing shows one trace across three services and two protocols, with a retried attempt in it. No service copies a
// header.
package main

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/tracing"
	"github.com/nosidecar/mesh/tracing/tracingmesh"
)

const document = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: payments}
spec:
  hosts: [payments]
  http:
  - name: pay
    route: [{destination: {host: payments}}]
    retries: {attempts: 2, retryOn: 5xx}
`

func main() {
	log.SetFlags(0)
	// A real service has an exporter instead: sdk.WithBatcher(exporter).
	spans := tracetest.NewSpanRecorder()
	provider := sdk.NewTracerProvider(sdk.WithSpanProcessor(spans))

	observer, err := tracingmesh.Observer(tracing.Config{Provider: provider})
	if err != nil {
		log.Fatal(err)
	}
	var registry discovery.Memory
	m, err := mesh.New(context.Background(),
		mesh.WithPolicy(policy.Source{Name: "payments.yaml", Data: []byte(document)}),
		mesh.WithDiscovery(&registry),
		mesh.WithObserver(observer),
		mesh.WithLogger(slog.New(slog.DiscardHandler)),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()

	var requests atomic.Int32
	defer serve(m, &registry, "payments", func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1) == 1 {
			http.Error(w, "not yet", http.StatusServiceUnavailable)
		}
	})()
	defer serve(m, &registry, "orders", func(w http.ResponseWriter, r *http.Request) {
		call(r.Context(), m, "http://payments/pay") // passing the context is all that is needed
	})()

	ctx, span := provider.Tracer("shop").Start(context.Background(), "checkout")
	call(ctx, m, "http://orders/orders")
	span.End()
	print(spans.Ended(), trace.SpanID{}, 0)
}

// serve runs a service behind the inbound side of m.
func serve(m *mesh.Mesh, registry *discovery.Memory, name string, h http.HandlerFunc) (stop func()) {
	server := httptest.NewServer(m.Handler(h))
	addr := server.Listener.Addr().(*net.TCPAddr)
	registry.Set(name, discovery.Endpoint{Address: addr.IP.String(), Port: addr.Port})
	return server.Close
}

func call(ctx context.Context, m *mesh.Mesh, url string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		log.Fatal(err)
	}
	resp, err := m.Client().Do(req)
	if err != nil {
		log.Fatal(err)
	}
	resp.Body.Close() // the span ends with the body
}

// print prints the spans below one as a tree.
func print(all []sdk.ReadOnlySpan, parent trace.SpanID, depth int) {
	for _, s := range all {
		if s.Parent().SpanID() != parent {
			continue
		}
		line := fmt.Sprint(strings.Repeat("  ", depth), s.SpanKind(), " ", s.Name())
		for _, kv := range s.Attributes() {
			switch kv.Key {
			case "server.address", "http.response.status_code", "http.request.resend_count":
				line += fmt.Sprintf(" %s=%s", kv.Key, kv.Value.String())
			}
		}
		fmt.Fprintln(os.Stdout, line)
		print(all, s.SpanContext().SpanID(), depth+1)
	}
}
