package interop

import (
	"context"
	"io"
	"net/http"
	"syscall"
	"testing"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/propagation"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/nosidecar/mesh/tracing"
)

// nothing answers at once, and keeps nothing.
type nothing struct{}

func (nothing) RoundTrip(req *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: 200, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Body: io.NopCloser(empty{}), Request: req}, nil
}

type empty struct{}

func (empty) Read([]byte) (int, error) { return 0, io.EOF }

// side is one way to trace both ends of a call, with what it may cost.
type side struct {
	name    string
	client  func(http.RoundTripper) http.RoundTripper
	server  func(http.Handler) http.Handler
	sampled bool
}

func sides() []side {
	var all []side
	for _, sampled := range []bool{false, true} {
		suffix, sampler := ", unsampled", sdk.NeverSample()
		if sampled {
			suffix, sampler = ", sampled", sdk.AlwaysSample()
		}
		provider := sdk.NewTracerProvider(sdk.WithSampler(sampler))
		for name, formats := range map[string]string{"W3C": "tracecontext", "default headers": ""} {
			config := tracing.Config{Provider: provider, Formats: formats}
			all = append(all, side{name + suffix,
				func(rt http.RoundTripper) http.RoundTripper { return &tracing.Transport{Config: config, Base: rt} },
				func(h http.Handler) http.Handler { return &tracing.Handler{Config: config, Next: h} }, sampled})
		}
		opts := []otelhttp.Option{otelhttp.WithTracerProvider(provider), otelhttp.WithPropagators(propagation.TraceContext{})}
		all = append(all, side{"otelhttp" + suffix,
			func(rt http.RoundTripper) http.RoundTripper { return otelhttp.NewTransport(rt, opts...) },
			func(h http.Handler) http.Handler { return otelhttp.NewHandler(h, "", opts...) }, sampled})
	}
	return all
}

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

// measure reports the time that the processor had with it, too, which other processes change less.
func measure(b *testing.B, run func()) {
	b.ReportAllocs()
	before := processor()
	for b.Loop() {
		run()
	}
	b.ReportMetric(float64(processor()-before)/float64(b.N), "cpu-ns/op")
}

func processor() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkClient(b *testing.B) {
	run := func(name string, rt http.RoundTripper, sampled bool) {
		b.Run(name, func(b *testing.B) {
			req, buf := request(b, sampled), make([]byte, 512)
			measure(b, func() { call(b, rt, req, buf) })
		})
	}
	run("bare", nothing{}, false)
	for _, s := range sides() {
		run(s.name, s.client(nothing{}), s.sampled)
	}
}

func BenchmarkServer(b *testing.B) {
	run := func(name string, h http.Handler, sampled bool) {
		b.Run(name, func(b *testing.B) {
			req, w := arriving(b, sampled), discard{http.Header{}}
			measure(b, func() { h.ServeHTTP(w, req) })
		})
	}
	next := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusOK) })
	run("bare", next, false)
	for _, s := range sides() {
		run(s.name, s.server(next), s.sampled)
	}
}

// A call that is not sampled costs its headers, also beside the mesh: at most 6 allocations with the headers of W3C, and 9 with
// the default ones. So does a request that arrives.
func TestAllocationsOfUnsampledCalls(t *testing.T) {
	for _, test := range []struct {
		formats string
		most    float64
	}{{"tracecontext", 6}, {"", 9}} {
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
		if got := testing.AllocsPerRun(1000, func() { h.ServeHTTP(w, arrived) }); got > test.most {
			t.Errorf("a request that arrives, with the headers %q: %v allocations, want at most %v", test.formats, got, test.most)
		}
	}
}
