package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/semconv/v1.43.0"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/admin"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/metrics"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/tlsid"
	"github.com/nosidecar/mesh/tracing"
	"github.com/nosidecar/mesh/tracing/tracingmesh"
)

// member is a process of the mesh, with all that there is to see of it.
type member struct {
	*mesh.Mesh
	registry discovery.Memory // in real life that of Kubernetes or Consul
	private  http.Handler     // the page and the metrics
	close    func() error     // sends the last spans
}

// newMember makes a mesh that is known as name. Its spans go to the OTLP receiver at collector, if there is one.
func newMember(ctx context.Context, name, certs, collector string) (*member, error) {
	workload := policy.Workload{Namespace: "default", Labels: map[string]string{"app": name, "version": "v1"}}
	recorded, err := metrics.New(metrics.Config{Workload: workload, Name: name})
	if err != nil {
		return nil, err
	}
	// Every call is sampled. Production samples a part, with sdk.WithSampler or by a Telemetry document.
	spans := []sdk.TracerProviderOption{sdk.WithResource(resource.NewSchemaless(semconv.ServiceNameKey.String(name)))}
	if collector != "" {
		exporter, err := otlptracegrpc.New(ctx, otlptracegrpc.WithInsecure(), otlptracegrpc.WithEndpoint(collector))
		if err != nil {
			return nil, err
		}
		spans = append(spans, sdk.WithBatcher(exporter))
	}
	provider := sdk.NewTracerProvider(spans...)
	traces, err := tracingmesh.Observer(tracing.Config{Provider: provider})
	if err != nil {
		return nil, err
	}
	page := admin.New(admin.Config{Name: name, Slow: 100 * time.Millisecond})

	m := new(member)
	m.Mesh, err = mesh.New(ctx,
		mesh.WithPolicy(policy.Source{Name: "town.yaml", Data: documents}),
		mesh.WithIdentity(tlsid.Files{Dir: filepath.Join(certs, name)}),
		mesh.WithWorkload(workload), mesh.WithDiscovery(&m.registry),
		mesh.WithObserver(traces), mesh.WithObserver(recorded.Observer()), mesh.WithObserver(page.Observer()))
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/debug/mesh/", page)
	mux.Handle("GET /metrics", promhttp.HandlerFor(prometheus.DefaultGatherer, promhttp.HandlerOpts{
		EnableOpenMetrics: true, // has exemplars: the traces of some calls
	}))
	m.private = mux
	m.close = func() error {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		err := errors.Join(m.Mesh.Close(), provider.Shutdown(ending), recorded.Close())
		page.Close()
		return err
	}
	return m, nil
}

// know tells discovery where the services are.
func (m *member) know(services map[string]string) error {
	for name, address := range services {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(port)
		if err != nil {
			return err
		}
		m.registry.Set(name+".default.svc.cluster.local", discovery.Endpoint{Address: host, Port: n,
			ServiceAccount: "default/" + name, Labels: map[string]string{"app": name, "version": "v1"}})
	}
	return nil
}

// call calls another service for a request. It passes on the context of that request, and no header.
func (m *member) call(ctx context.Context, method, url string) error {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return err
	}
	resp, err := m.Client().Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode >= http.StatusBadRequest {
		return errors.New(resp.Status)
	}
	return nil
}

// services are the chain: what each serves, and what it calls for that.
var services = map[string]func(*member) http.Handler{
	"user-service": func(m *member) http.Handler {
		return route("GET /users/{id}", func(r *http.Request) error {
			return m.call(r.Context(), http.MethodGet, "http://order-service/orders?userId="+r.PathValue("id"))
		})
	},
	"order-service": func(m *member) http.Handler {
		return route("GET /orders", func(r *http.Request) error {
			return m.call(r.Context(), http.MethodPost, "http://payment-service/v1/charge")
		})
	},
	"payment-service": func(*member) http.Handler { // fails now and then, and is slow now and then
		return route("POST /v1/charge", func(*http.Request) error {
			switch n := rand.IntN(100); {
			case n < 15:
				return errors.New("the bank does not answer")
			case n < 20:
				time.Sleep(150 * time.Millisecond)
			}
			return nil
		})
	},
}

func route(pattern string, serve func(*http.Request) error) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		if err := serve(r); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
	return mux
}

// started is what a service prints: where it serves, and where its page and its metrics are.
type started struct{ Service, Private string }

// serve is a process of the chain. It prints where it is, reads where the others are, and serves until its input ends.
func serve(ctx context.Context, name, certs, collector string) (err error) {
	m, err := newMember(ctx, name, certs, collector)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	public, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	private, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	served := &http.Server{Handler: m.Handler(services[name](m)), ReadHeaderTimeout: 5 * time.Second}
	seen := &http.Server{Handler: m.private, ReadHeaderTimeout: 5 * time.Second}
	var serving sync.WaitGroup
	serving.Go(func() { _ = served.Serve(m.Listen(public)) })
	serving.Go(func() { _ = seen.Serve(private) })
	if err := json.NewEncoder(os.Stdout).Encode(started{public.Addr().String(), private.Addr().String()}); err != nil {
		return err
	}
	input := json.NewDecoder(os.Stdin)
	for {
		var others map[string]string
		if err = input.Decode(&others); err != nil {
			break
		}
		if err = m.know(others); err != nil {
			break
		}
	}
	if err == io.EOF {
		err = nil
	}
	ending, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	err = errors.Join(err, served.Shutdown(ending), seen.Close()) // requests in flight are answered, open pages are cut off
	serving.Wait()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
