package interop

import (
	"context"
	"io"
	"net/http"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/contrib/propagators/b3"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/metric"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/engine"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/metrics"
	"github.com/nosidecar/mesh/tracing"
	"github.com/nosidecar/mesh/tracing/tracingmesh"
)

// nothing answers at once, and keeps nothing.
type nothing struct{}

func (nothing) RoundTrip(req *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: 200, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Body: io.NopCloser(empty{}), Request: req}, nil
}

type empty struct{}

func (empty) Read([]byte) (int, error) { return 0, io.EOF }

func call(tb testing.TB, rt http.RoundTripper, req *http.Request, buf []byte) {
	resp, err := rt.RoundTrip(req)
	if err != nil {
		tb.Fatal(err)
	}
	for err == nil {
		_, err = resp.Body.Read(buf)
	}
	resp.Body.Close()
}

// request returns what an application sends: within a span that is sampled or not, with four headers.
func request(tb testing.TB, sampled bool) *http.Request {
	sampler := sdk.NeverSample()
	if sampled {
		sampler = sdk.AlwaysSample()
	}
	ctx, _ := sdk.NewTracerProvider(sdk.WithSampler(sampler)).Tracer("").Start(context.Background(), "handler")
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://orders/orders/42", nil)
	if err != nil {
		tb.Fatal(err)
	}
	req.Header = http.Header{"Accept": {"*/*"}, "User-Agent": {"web"}, "X-Tenant": {"blue"}, "Authorization": {"none"}}
	return req
}

func arriving(tb testing.TB, sampled bool) *http.Request {
	req := request(tb, sampled)
	sc := trace.SpanContextFromContext(req.Context())
	req = req.WithContext(context.Background())
	flags := "00"
	if sampled {
		flags = "01"
	}
	req.Header["Traceparent"] = []string{"00-" + sc.TraceID().String() + "-" + sc.SpanID().String() + "-" + flags}
	req.Host, req.RemoteAddr = "orders", "127.0.0.1:4711"
	return req
}

type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) WriteHeader(int)             {}
func (d discard) Write(b []byte) (int, error) { return len(b), nil }

// way is one way to make the same call, or to serve the same request.
type way struct {
	name string
	run  func()
}

// batch is how many calls of one way are made in a row: enough for the garbage of a way to be collected while it is measured.
const batch = 3000

// compare makes the same call in several ways, in turn, so that whatever else the machine does meanwhile concerns them all. The
// first way is the call without telemetry, the last one the call with otelhttp. What a way adds to the first is reported as the time
// of the processor, and as a share of what the last one adds: of the quickest of as many rounds as the benchmark runs, which the rest of the machine disturbs
// least.
func compare(b *testing.B, ways []way) {
	took := make([][]float64, len(ways))
	allocs := make([]float64, len(ways))
	for i, w := range ways {
		allocs[i] = testing.AllocsPerRun(100, w.run)
	}
	for b.Loop() {
		for i, w := range ways {
			before := processor()
			for range batch {
				w.run()
			}
			took[i] = append(took[i], float64(processor()-before)/batch)
		}
	}
	least := slices.Min(took[0])
	most := slices.Min(took[len(ways)-1]) - least
	for i, w := range ways[1:] {
		adds := slices.Min(took[i+1]) - least
		b.ReportMetric(adds, w.name+"-ns/op")
		b.ReportMetric(adds/most, w.name+"/otelhttp")
		b.ReportMetric(allocs[i+1]-allocs[0], w.name+"-allocs/op")
	}
	b.ReportMetric(0, "ns/op")
}

func processor() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// meshOf returns a mesh whose endpoints all are nothing.
func meshOf(b *testing.B, observers ...mesh.Observer) *mesh.Mesh {
	var registry discovery.Memory
	registry.Set("orders", discovery.Endpoint{Address: "10.0.0.1", Port: 8080}, discovery.Endpoint{Address: "10.0.0.2", Port: 8080})
	opts := []mesh.Option{mesh.WithDiscovery(&registry)}
	for _, o := range observers {
		opts = append(opts, mesh.WithObserver(o))
	}
	m := meshtest.New(b, "", opts...)
	m.Transport().(interface{ Engine() *engine.Engine }).Engine().Template().Replace(nothing{})
	return m
}

// suite is what is compared: everything samples nothing, or everything.
type suite struct {
	*testing.B
	sampled  bool
	provider *sdk.TracerProvider
}

func (s suite) traces(formats string) mesh.Observer {
	o, err := tracingmesh.Observer(tracing.Config{Provider: s.provider, Formats: formats})
	if err != nil {
		s.Fatal(err)
	}
	return o
}

func (s suite) metrics() mesh.Observer {
	m, err := metrics.New(metrics.Config{Registerer: prometheus.NewRegistry()})
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { m.Close() })
	return m.Observer()
}

// eachMesh calls f for a mesh without telemetry, and with more and more of it.
func (s suite) eachMesh(f func(name string, m *mesh.Mesh)) {
	f("none", meshOf(s.B))
	f("traces(W3C)", meshOf(s.B, s.traces("tracecontext")))
	f("traces", meshOf(s.B, s.traces("")))
	f("metrics", meshOf(s.B, s.metrics()))
	f("metrics+traces(W3C)", meshOf(s.B, s.metrics(), s.traces("tracecontext")))
	f("metrics+traces", meshOf(s.B, s.metrics(), s.traces("")))
}

// otel are the options of otelhttp: as it comes, with the headers of W3C, and with those of B3 and with metrics as well, as we have them.
func (s suite) otel(more bool) []otelhttp.Option {
	propagator, meters := propagation.TextMapPropagator(propagation.TraceContext{}), metric.NewMeterProvider()
	if more {
		propagator = propagation.NewCompositeTextMapPropagator(propagator, b3.New(b3.WithInjectEncoding(b3.B3MultipleHeader)))
		meters = metric.NewMeterProvider(metric.WithReader(metric.NewManualReader()))
	}
	options := []otelhttp.Option{otelhttp.WithTracerProvider(s.provider), otelhttp.WithPropagators(propagator)}
	if more {
		options = append(options, otelhttp.WithMeterProvider(meters))
	}
	return options
}

func (s suite) outbound(name string, rt http.RoundTripper) way {
	req, buf := request(s.B, s.sampled), make([]byte, 512)
	return way{name, func() { call(s.B, rt, req, buf) }}
}

func (s suite) withOtel(ways []way, rt http.RoundTripper) {
	compare(s.B, append(ways, s.outbound("otelhttp(more)", otelhttp.NewTransport(rt, s.otel(true)...)),
		s.outbound("otelhttp", otelhttp.NewTransport(rt, s.otel(false)...))))
}

func (s suite) inbound(name string, h http.Handler) way {
	req, w := arriving(s.B, s.sampled), discard{http.Header{}}
	return way{name, func() { h.ServeHTTP(w, req) }}
}

func (s suite) withOtelInside(ways []way, h http.Handler) {
	compare(s.B, append(ways, s.inbound("otelhttp(more)", otelhttp.NewHandler(h, "", s.otel(true)...)),
		s.inbound("otelhttp", otelhttp.NewHandler(h, "", s.otel(false)...))))
}

// BenchmarkCost is what telemetry costs on both ends: traces as a layer of their own, and traces and metrics of a mesh. otelhttp stands
// around the same RoundTripper or Handler.
func BenchmarkCost(b *testing.B) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusOK) })
	for _, sampled := range []bool{false, true} {
		suffix, sampler := "unsampled", sdk.NeverSample()
		if sampled {
			suffix, sampler = "sampled", sdk.AlwaysSample()
		}
		provider := sdk.NewTracerProvider(sdk.WithSampler(sampler))
		w3c, both := tracing.Config{Provider: provider, Formats: "tracecontext"}, tracing.Config{Provider: provider}
		run := func(name string, f func(s suite)) {
			b.Run(name+"/"+suffix, func(b *testing.B) { f(suite{b, sampled, provider}) })
		}
		run("outbound/layer", func(s suite) {
			s.withOtel([]way{
				s.outbound("none", nothing{}),
				s.outbound("traces(W3C)", &tracing.Transport{Config: w3c, Base: nothing{}}),
				s.outbound("traces", &tracing.Transport{Config: both, Base: nothing{}}),
			}, nothing{})
		})
		run("inbound/layer", func(s suite) {
			s.withOtelInside([]way{
				s.inbound("none", handler),
				s.inbound("traces(W3C)", &tracing.Handler{Config: w3c, Next: handler}),
				s.inbound("traces", &tracing.Handler{Config: both, Next: handler}),
			}, handler)
		})
		run("outbound/mesh", func(s suite) {
			var ways []way
			s.eachMesh(func(name string, m *mesh.Mesh) { ways = append(ways, s.outbound(name, m.Transport())) })
			s.withOtel(ways, meshOf(s.B).Transport())
		})
		run("inbound/mesh", func(s suite) {
			var ways []way
			s.eachMesh(func(name string, m *mesh.Mesh) { ways = append(ways, s.inbound(name, m.Handler(handler))) })
			s.withOtelInside(ways, meshOf(s.B).Handler(handler))
		})
	}
}

// A call that is not sampled costs its headers, also beside the mesh: at most 4 allocations with the headers of W3C, and 6 with
// the default ones. A request that arrives costs 6.
func TestAllocationsOfUnsampledCalls(t *testing.T) {
	for _, test := range []struct {
		formats string
		most    float64
	}{{"tracecontext", 4}, {"", 6}} {
		config := tracing.Config{Provider: sdk.NewTracerProvider(sdk.WithSampler(sdk.NeverSample())), Formats: test.formats}
		req, buf := request(t, false), make([]byte, 512)
		allocations := func(rt http.RoundTripper) float64 {
			return testing.AllocsPerRun(1000, func() { call(t, rt, req, buf) })
		}
		if got := allocations(&tracing.Transport{Config: config, Base: nothing{}}) - allocations(nothing{}); got > test.most {
			t.Errorf("a call with the headers %q: %v allocations, want at most %v", test.formats, got, test.most)
		}
		h := &tracing.Handler{Config: config, Next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusOK) })}
		arrived, w := arriving(t, false), discard{http.Header{}}
		if got := testing.AllocsPerRun(1000, func() { h.ServeHTTP(w, arrived) }); got > 6 {
			t.Errorf("a request that arrives, with the headers %q: %v allocations, want at most 6", test.formats, got)
		}
	}
}
