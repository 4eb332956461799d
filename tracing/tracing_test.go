package tracing_test

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/retry"
	"github.com/nosidecar/mesh/tracing"
)

func TestMain(m *testing.M) { os.Exit(leak.Run(m)) }

// recorder is a provider whose spans are kept.
func recorder(opts ...sdk.TracerProviderOption) (*sdk.TracerProvider, *tracetest.SpanRecorder) {
	spans := tracetest.NewSpanRecorder()
	return sdk.NewTracerProvider(append(opts, sdk.WithSpanProcessor(spans))...), spans
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// answer returns a RoundTripper that answers with these statuses, the last of them for ever, and keeps the headers it has seen.
func answer(seen *[]http.Header, statuses ...int) http.RoundTripper {
	return roundTrip(func(req *http.Request) (*http.Response, error) {
		status := statuses[0]
		if len(statuses) > 1 {
			statuses = statuses[1:]
		}
		if seen != nil {
			*seen = append(*seen, req.Header)
		}
		return &http.Response{StatusCode: status, ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Request: req,
			Body: io.NopCloser(strings.NewReader("hello"))}, nil
	})
}

func get(t *testing.T, ctx context.Context, rt http.RoundTripper, url string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: rt}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	return resp
}

// attributes returns the attributes of a span as text.
func attributes(s sdk.ReadOnlySpan) map[string]string {
	all := map[string]string{}
	for _, kv := range s.Attributes() {
		all[string(kv.Key)] = kv.Value.String()
	}
	return all
}

// wantAttributes checks some attributes of a span; "" says that there is none.
func wantAttributes(t *testing.T, s sdk.ReadOnlySpan, want map[string]string) {
	t.Helper()
	got := attributes(s)
	for key, value := range want {
		if got[key] != value {
			t.Errorf("%s %s: %s = %q, want %q", s.SpanKind(), s.Name(), key, got[key], value)
		}
	}
}

// serve runs a server with HTTP/1.1 or HTTP/2 and returns its URL and a transport for it.
func serve(t *testing.T, http2 bool, h http.Handler) (string, http.RoundTripper) {
	t.Helper()
	server := httptest.NewUnstartedServer(h)
	server.EnableHTTP2 = http2
	if http2 {
		server.StartTLS()
	} else {
		server.Start()
	}
	t.Cleanup(server.Close)
	return server.URL, server.Client().Transport
}

// Three services in a row, none of which copies a header: each span is the child of the one before, and everything else that
// belongs to the trace arrives.
func TestTraceAcrossServices(t *testing.T) {
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			for _, formats := range []string{"", "tracecontext", "b3", "b3multi"} {
				provider, spans := recorder()
				config := tracing.Config{Provider: provider, Formats: formats, Forward: []string{"x-tenant"}}
				var last http.Header
				var id string
				paymentURL, toPayment := serve(t, http2, &tracing.Handler{Config: config, Next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					last, id = r.Header, tracing.RequestID(r.Context())
					if got := tracing.Baggage(r.Context()).Member("user").Value(); got != "7" {
						t.Errorf("formats %q: baggage %q", formats, got)
					}
				})})
				orders := http.NewServeMux()
				orders.HandleFunc("GET /orders/{id}", func(w http.ResponseWriter, r *http.Request) {
					get(t, r.Context(), &tracing.Transport{Config: config, Base: toPayment}, paymentURL+"/pay?sig=secret")
				})
				orderURL, toOrders := serve(t, http2, &tracing.Handler{Config: config, Next: orders})

				ctx, root := provider.Tracer("").Start(context.Background(), "root")
				req, _ := http.NewRequestWithContext(ctx, http.MethodGet, orderURL+"/orders/42", nil)
				req.Header = http.Header{"X-Tenant": {"blue"}, "X-Request-Id": {"request-1"}, "Baggage": {"user=7,a=b"}}
				before := maps.Clone(req.Header)
				resp, err := (&tracing.Transport{Config: config, Base: toOrders}).RoundTrip(req)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				root.End()
				if !maps.EqualFunc(req.Header, before, slices.Equal) || resp.Request != req {
					t.Errorf("the caller's request was changed: %v", req.Header)
				}
				if last.Get("X-Tenant") != "blue" || last.Get("X-Request-Id") != "request-1" || id != "request-1" || last.Get("Baggage") != "user=7,a=b" {
					t.Errorf("formats %q: the last service got %v and the id %q", formats, last, id)
				}
				for header, want := range map[string]bool{
					"Traceparent": formats == "" || formats == "tracecontext", "B3": formats == "b3",
					"X-B3-Traceid": formats == "" || formats == "b3multi",
				} {
					if got := last[header] != nil; got != want {
						t.Errorf("formats %q: %s was sent: %t", formats, header, got)
					}
				}
				checkChain(t, spans.Ended(), name == "HTTP/2")
			}
		})
	}
}

func checkChain(t *testing.T, ended []sdk.ReadOnlySpan, http2 bool) {
	t.Helper()
	var names []string
	parent := trace.SpanContext{}
	byParent := map[trace.SpanID]sdk.ReadOnlySpan{}
	for _, s := range ended {
		byParent[s.Parent().SpanID()] = s
	}
	for s := byParent[trace.SpanID{}]; s != nil; s = byParent[parent.SpanID()] {
		if parent.IsValid() && s.SpanContext().TraceID() != parent.TraceID() {
			t.Errorf("%s is of another trace", s.Name())
		}
		parent = s.SpanContext()
		names = append(names, s.SpanKind().String()+" "+s.Name())
		version := "1.1"
		if http2 {
			version = "2"
		}
		switch s.SpanKind() {
		case trace.SpanKindClient:
			wantAttributes(t, s, map[string]string{"http.request.method": "GET", "server.address": "127.0.0.1", "http.response.status_code": "200",
				"network.protocol.version": version, "http.request.resend_count": ""})
			if full := attributes(s)["url.full"]; strings.Contains(full, "secret") || !strings.HasPrefix(full, "http") {
				t.Errorf("url.full is %q", full)
			}
		case trace.SpanKindServer:
			wantAttributes(t, s, map[string]string{"http.request.method": "GET", "http.response.status_code": "200",
				"network.protocol.version": version, "network.peer.address": "127.0.0.1"})
		}
	}
	want := []string{"internal root", "client GET", "server GET /orders/{id}", "client GET", "server GET"}
	if !slices.Equal(names, want) || len(ended) != len(want) {
		t.Errorf("%d spans, of which a chain %q, want %q", len(ended), names, want)
	}
}

func TestRetriesAreOneTrace(t *testing.T) {
	for name, withParent := range map[string]bool{"below a span": true, "without a span": false} {
		t.Run(name, func(t *testing.T) {
			provider, spans := recorder()
			config := tracing.Config{Provider: provider}
			ctx, above := context.Background(), trace.Span(nil)
			if withParent {
				ctx, above = provider.Tracer("").Start(ctx, "above")
			}
			var seen []http.Header
			rt := &tracing.Calls{Config: config, Base: &retry.Transport{
				Config: retry.Config{Retries: 2, Backoff: -1},
				Base:   &tracing.Transport{Config: config, Base: answer(&seen, 503, 503, 200)},
			}}
			resp := get(t, ctx, rt, "http://orders/")
			if resp.StatusCode != 200 {
				t.Fatal(resp.Status)
			}
			var attempts []sdk.ReadOnlySpan
			var whole sdk.ReadOnlySpan
			for _, s := range spans.Ended() {
				if s.SpanKind() == trace.SpanKindClient {
					attempts = append(attempts, s)
				} else {
					whole = s
				}
			}
			if len(attempts) != 3 || whole == nil || len(spans.Ended()) != 4 {
				t.Fatalf("%d spans, of which %d attempts", len(spans.Ended()), len(attempts))
			}
			if withParent {
				if whole.Parent().SpanID() != above.SpanContext().SpanID() || attempts[0].Parent().SpanID() != above.SpanContext().SpanID() {
					t.Error("the call and its first attempt are no children of the span above")
				}
				if links := whole.Links(); len(links) != 1 || links[0].SpanContext.SpanID() != attempts[0].SpanContext().SpanID() {
					t.Errorf("links %v, want one to the first attempt", links)
				}
				if whole.StartTime().After(attempts[0].StartTime()) {
					t.Error("the call begins after its first attempt")
				}
			} else if whole.Parent().IsValid() || attempts[0].Parent().SpanID() != whole.SpanContext().SpanID() {
				t.Error("the first attempt is no child of the call")
			}
			for i, s := range attempts {
				if i > 0 && s.Parent().SpanID() != whole.SpanContext().SpanID() {
					t.Errorf("attempt %d is no child of the call", i+1)
				}
				want := []map[string]string{
					{"http.request.resend_count": "", "http.response.status_code": "503", "error.type": "503"},
					{"http.request.resend_count": "1", "http.response.status_code": "503", "error.type": "503"},
					{"http.request.resend_count": "2", "http.response.status_code": "200", "error.type": ""},
				}[i]
				wantAttributes(t, s, want)
				if got := seen[i].Get("Traceparent"); got != "00-"+whole.SpanContext().TraceID().String()+"-"+s.SpanContext().SpanID().String()+got[52:] {
					t.Errorf("attempt %d, which is %s, sent %s", i+1, s.SpanContext().SpanID(), got)
				}
				if id := seen[i].Get("X-Request-Id"); len(id) != 36 || id != seen[0].Get("X-Request-Id") {
					t.Errorf("attempt %d has the request id %q", i+1, id)
				}
			}
			wantAttributes(t, whole, map[string]string{"http.response.status_code": "200", "error.type": ""})
		})
	}
}

func TestCallSpans(t *testing.T) {
	provider, spans := recorder()
	config := tracing.Config{Provider: provider, CallSpans: true}
	ctx, above := provider.Tracer("").Start(context.Background(), "above")
	get(t, ctx, &tracing.Transport{Config: config, Base: answer(nil, 200)}, "http://orders/")
	ended := spans.Ended()
	if len(ended) != 2 || ended[0].SpanKind() != trace.SpanKindClient || ended[0].Parent().SpanID() != ended[1].SpanContext().SpanID() ||
		ended[1].Parent().SpanID() != above.SpanContext().SpanID() {
		t.Errorf("spans %v", ended)
	}
}

// A span ends once, and not before the body: read, closed early, failed, empty or missing.
func TestSpansEndWithTheBody(t *testing.T) {
	for name, b := range map[string]io.ReadCloser{
		"read": io.NopCloser(strings.NewReader("hello")), "none": http.NoBody, "nil": nil,
		"failing": io.NopCloser(io.MultiReader(strings.NewReader("he"), failing{})),
	} {
		t.Run(name, func(t *testing.T) {
			provider, spans := recorder()
			ctx, above := provider.Tracer("").Start(context.Background(), "above")
			defer above.End()
			rt := &tracing.Transport{Config: tracing.Config{Provider: provider}, Base: roundTrip(func(req *http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: 200, Body: b, Header: http.Header{}, Request: req}, nil
			})}
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://orders/", nil)
			resp, err := rt.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			early := b == nil || b == http.NoBody
			if got := len(spans.Ended()) == 1; got != early {
				t.Errorf("ended before the body: %t", got)
			}
			if resp.Body != nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				resp.Body.Close()
			}
			ended := spans.Ended()
			if len(ended) != 1 {
				t.Fatalf("%d spans ended, want 1", len(ended))
			}
			if failed := ended[0].Status().Code == codes.Error; failed != (name == "failing") {
				t.Errorf("status %v", ended[0].Status())
			}
		})
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("cut off") }

func TestStatusOfSpans(t *testing.T) {
	for _, test := range []struct {
		status         int
		client, server codes.Code
	}{{200, codes.Unset, codes.Unset}, {302, codes.Unset, codes.Unset}, {404, codes.Error, codes.Unset}, {500, codes.Error, codes.Error}} {
		provider, spans := recorder()
		config := tracing.Config{Provider: provider}
		h := &tracing.Handler{Config: config, Next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(test.status) })}
		rt := &tracing.Transport{Config: config, Base: roundTrip(func(req *http.Request) (*http.Response, error) {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, req.WithContext(context.Background()))
			return w.Result(), nil
		})}
		ctx, above := provider.Tracer("").Start(context.Background(), "above")
		req, _ := http.NewRequestWithContext(ctx, "BREW", "http://user:pw@pots:8080/1?a=b&sig=x&access_token=y", nil)
		resp, err := rt.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		above.End()
		for _, s := range spans.Ended()[:2] {
			want := test.client
			if s.SpanKind() == trace.SpanKindServer {
				want = test.server
			} else {
				wantAttributes(t, s, map[string]string{"url.full": "http://REDACTED:REDACTED@pots:8080/1?a=b&sig=REDACTED&access_token=REDACTED", "server.address": "pots", "server.port": "8080"})
			}
			if s.Status().Code != want || s.Name() != "HTTP" {
				t.Errorf("%d: %s %s: %v, want %v", test.status, s.SpanKind(), s.Name(), s.Status().Code, want)
			}
			wantAttributes(t, s, map[string]string{"http.request.method": "_OTHER", "http.request.method_original": "BREW"})
		}
	}
}

func TestErrorsOfCalls(t *testing.T) {
	broken := errors.New("broken")
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	for _, test := range []struct {
		name string
		ctx  context.Context
		err  error
		want codes.Code
	}{
		{"a failure", context.Background(), broken, codes.Error},
		{"the caller gave up", canceled, context.Canceled, codes.Unset},
		{"somebody else gave up", context.Background(), context.Canceled, codes.Error},
		{"too slow", context.Background(), context.DeadlineExceeded, codes.Error},
	} {
		provider, spans := recorder()
		ctx, above := provider.Tracer("").Start(test.ctx, "above")
		rt := &tracing.Transport{Config: tracing.Config{Provider: provider}, Base: roundTrip(func(*http.Request) (*http.Response, error) { return nil, test.err })}
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://orders/", nil)
		if _, err := rt.RoundTrip(req); err != test.err {
			t.Errorf("%s: %v, want %v", test.name, err, test.err)
		}
		above.End()
		if got := spans.Ended(); len(got) != 2 || got[0].Status().Code != test.want {
			t.Errorf("%s: %d spans, %v", test.name, len(got), got[0].Status())
		}
	}
}

func TestPanics(t *testing.T) {
	provider, spans := recorder()
	config := tracing.Config{Provider: provider}
	ctx, above := provider.Tracer("").Start(context.Background(), "above")
	defer above.End()
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://orders/", nil)
	for name, run := range map[string]func(){
		"client": func() {
			_, _ = (&tracing.Transport{Config: config, Base: roundTrip(func(*http.Request) (*http.Response, error) { panic("ouch") })}).RoundTrip(req)
		},
		"server": func() {
			h := &tracing.Handler{Config: config, Next: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("ouch") })}
			h.ServeHTTP(httptest.NewRecorder(), req.WithContext(context.Background()))
		},
		"server that has begun to answer": func() {
			h := &tracing.Handler{Config: config, Next: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusOK)
				panic("ouch")
			})}
			h.ServeHTTP(httptest.NewRecorder(), req.WithContext(context.Background()))
		},
	} {
		before := len(spans.Ended())
		func() {
			defer func() {
				if got := recover(); got != "ouch" {
					t.Errorf("%s: the panic became %v", name, got)
				}
			}()
			run()
		}()
		if ended := spans.Ended(); len(ended) != before+1 || ended[before].Status().Code != codes.Error {
			t.Errorf("%s: the span of a panic has not ended as an error", name)
		}
	}
}

// A proxy panics if its caller is gone. That is no error of the server.
func TestCallersThatAreGone(t *testing.T) {
	provider, spans := recorder()
	h := &tracing.Handler{Config: tracing.Config{Provider: provider}, Next: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		panic(http.ErrAbortHandler)
	})}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, contentType := range []string{"", "application/grpc"} {
		req := httptest.NewRequestWithContext(ctx, http.MethodPost, "/a.B/C", nil)
		req.ProtoMajor = 2
		req.Header.Set("Content-Type", contentType)
		func() {
			defer func() { _ = recover() }()
			h.ServeHTTP(httptest.NewRecorder(), req)
		}()
	}
	for _, s := range spans.Ended() {
		if s.Status().Code != codes.Unset {
			t.Errorf("%s: %v, %v", s.Name(), s.Status(), s.Attributes())
		}
	}
	wantAttributes(t, spans.Ended()[1], map[string]string{"rpc.response.status_code": "CANCELLED", "error.type": ""})
}

// counting counts the spans that are started.
type counting struct {
	trace.TracerProvider
	n *int
}

type countingTracer struct {
	trace.Tracer
	n *int
}

func (c counting) Tracer(name string, opts ...trace.TracerOption) trace.Tracer {
	return countingTracer{c.TracerProvider.Tracer(name, opts...), c.n}
}

func (c countingTracer) Start(ctx context.Context, name string, opts ...trace.SpanStartOption) (context.Context, trace.Span) {
	*c.n++
	return c.Tracer.Start(ctx, name, opts...)
}

// values is a provider whose spans are values that cannot be compared, as those of other SDKs may be.
type values struct{ counting }

type valuesTracer struct{ trace.Tracer }

type valuesSpan struct {
	trace.Span
	_ []int
}

func (v values) Tracer(name string, opts ...trace.TracerOption) trace.Tracer {
	return valuesTracer{v.counting.Tracer(name, opts...)}
}

func (v valuesTracer) Start(ctx context.Context, name string, opts ...trace.SpanStartOption) (context.Context, trace.Span) {
	ctx, span := v.Tracer.Start(ctx, name, opts...)
	span = valuesSpan{Span: span}
	return trace.ContextWithSpan(ctx, span), span
}

func TestSpansThatCannotBeCompared(t *testing.T) {
	provider, spans := recorder()
	n := 0
	config := tracing.Config{Provider: values{counting{provider, &n}}}
	var sent []http.Header
	get(t, t.Context(), &tracing.Calls{Config: config, Base: &tracing.Transport{Config: config, Base: answer(&sent, 200)}}, "http://orders/")
	if got := spans.Ended(); len(got) != 2 || n != 2 || got[0].Parent().SpanID() != got[1].SpanContext().SpanID() {
		t.Errorf("%d spans were started, and %d have ended, want 2 of a call and its attempt", n, len(got))
	}
}

func TestUnsampledCallsStartNoSpans(t *testing.T) {
	var n int
	provider := counting{sdk.NewTracerProvider(sdk.WithSampler(sdk.ParentBased(sdk.NeverSample()))), &n}
	config := tracing.Config{Provider: provider}
	var seen []http.Header
	rt := &tracing.Calls{Config: config, Base: &retry.Transport{
		Config: retry.Config{Retries: 2, Backoff: -1},
		Base:   &tracing.Transport{Config: config, Base: answer(&seen, 503, 503, 200)},
	}}
	get(t, context.Background(), rt, "http://orders/")
	if n != 1 {
		t.Errorf("a call that begins a trace started %d spans, want 1", n)
	}
	traces, ids := map[string]bool{}, map[string]bool{}
	for _, h := range seen {
		parent := h.Get("Traceparent")
		traces[parent[:35]], ids[parent[36:52]] = true, true
	}
	if len(traces) != 1 || len(ids) != 3 {
		t.Errorf("3 attempts are of %d traces and have %d ids, want 1 and 3", len(traces), len(ids))
	}
	h := &tracing.Handler{Config: config, Next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n = 0
		get(t, r.Context(), rt, "http://orders/")
	})}
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil))
	if n != 0 {
		t.Errorf("a call below a span that does not record started %d spans, want 0", n)
	}
}

func TestUntrustedRequestsBeginTraces(t *testing.T) {
	const parent = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"
	provider, spans := recorder()
	var sent []http.Header
	h := &tracing.Handler{
		Config:    tracing.Config{Provider: provider},
		Untrusted: func(r *http.Request) bool { return r.Header.Get("X-Inside") == "" },
		Next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("X-Inside") == "" && (r.Header["Traceparent"] != nil || r.Header["Baggage"] != nil || r.Header["X-Request-Id"] != nil) {
				t.Errorf("the handler sees %v", r.Header)
			}
			get(t, r.Context(), &tracing.Transport{Config: tracing.Config{Provider: provider}, Base: answer(&sent, 200)}, "http://orders/")
		}),
	}
	for _, inside := range []bool{false, true} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header = http.Header{"Traceparent": {parent}, "Baggage": {"a=b"}, "X-Request-Id": {"theirs"}}
		if inside {
			r.Header["X-Inside"] = []string{"yes"}
		}
		before := len(spans.Ended())
		h.ServeHTTP(httptest.NewRecorder(), r)
		server, last := spans.Ended()[before+1], sent[len(sent)-1]
		if got := server.SpanContext().TraceID().String() == parent[3:35]; got != inside {
			t.Errorf("inside %t: the trace goes on: %t", inside, got)
		}
		if got := last.Get("X-Request-Id") == "theirs" && last.Get("Baggage") == "a=b"; got != inside {
			t.Errorf("inside %t: %v was sent on", inside, last)
		}
		if len(last.Get("X-Request-Id")) == 0 {
			t.Error("no request id was made")
		}
	}
}

// jaeger is a propagator of a format that is not one of ours.
type jaeger struct{}

func (jaeger) Inject(context.Context, propagation.TextMapCarrier) {}
func (jaeger) Extract(ctx context.Context, _ propagation.TextMapCarrier) context.Context {
	return ctx
}
func (jaeger) Fields() []string { return []string{"uber-trace-id"} }

// The headers of a propagator are removed of requests from outside as those of the formats are.
func TestUntrustedHeadersOfAPropagatorAreRemoved(t *testing.T) {
	var seen http.Header
	h := &tracing.Handler{
		Config:    tracing.Config{Propagator: jaeger{}},
		Untrusted: func(*http.Request) bool { return true },
		Next:      http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen = r.Header }),
	}
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set("Uber-Trace-Id", "1:2:3:1")
	r.Header.Set("X-Kept", "yes")
	h.ServeHTTP(httptest.NewRecorder(), r)
	if seen.Get("Uber-Trace-Id") != "" || seen.Get("X-Kept") == "" {
		t.Errorf("the handler sees %v", seen)
	}
	if r.Header.Get("Uber-Trace-Id") == "" {
		t.Error("the request that arrived was changed")
	}
}

// Whoever makes spans around us is the parent, and is not doubled.
func TestSpansOfOthers(t *testing.T) {
	provider, spans := recorder()
	h := &tracing.Handler{Config: tracing.Config{Provider: provider}, Next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var sent []http.Header
		get(t, r.Context(), &tracing.Transport{Config: tracing.Config{Provider: provider, NoClientSpans: true}, Base: answer(&sent, 200)}, "http://orders/")
		if got, want := sent[0].Get("Traceparent")[36:52], trace.SpanContextFromContext(r.Context()).SpanID().String(); got != want {
			t.Errorf("without a client span %s is sent, want that of the context, %s", got, want)
		}
	})}
	ctx, outer := provider.Tracer("otelhttp").Start(context.Background(), "outer", trace.WithSpanKind(trace.SpanKindServer))
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil).WithContext(ctx))
	outer.End()
	if ended := spans.Ended(); len(ended) != 1 {
		t.Errorf("%d spans, want the outer one", len(ended))
	}
}

func TestPropagatorOfTheApplication(t *testing.T) {
	provider, spans := recorder()
	config := tracing.Config{Provider: provider, Propagator: propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})}
	var sent []http.Header
	h := &tracing.Handler{Config: config, Next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if got := tracing.Baggage(r.Context()).Member("a").Value(); got != "b" {
			t.Errorf("baggage %q", got)
		}
		get(t, r.Context(), &tracing.Transport{Config: config, Base: answer(&sent, 200)}, "http://orders/")
	})}
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header = http.Header{"Traceparent": {"00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"}, "Baggage": {"a=b"}}
	h.ServeHTTP(httptest.NewRecorder(), r)
	client := spans.Ended()[0]
	if got := sent[0]; got.Get("Traceparent")[36:52] != client.SpanContext().SpanID().String() || got.Get("Baggage") != "a=b" || got["X-B3-Traceid"] != nil {
		t.Errorf("sent %v", got)
	}
	if client.SpanContext().TraceID().String() != r.Header.Get("Traceparent")[3:35] {
		t.Error("the trace does not go on")
	}
}

func TestBaggageIsBounded(t *testing.T) {
	members := func(n int) string { return strings.TrimSuffix(strings.Repeat("a=b,", n), ",") }
	for name, test := range map[string]struct {
		came string
		kept bool
	}{
		"64 members": {members(64), true}, "65 members": {members(65), false},
		"8192 bytes": {"a=" + strings.Repeat("x", 8190), true}, "8193 bytes": {"a=" + strings.Repeat("x", 8191), false},
	} {
		var sent []http.Header
		h := &tracing.Handler{Next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			get(t, r.Context(), &tracing.Transport{Base: answer(&sent, 200)}, "http://orders/")
		})}
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header["Baggage"] = []string{test.came}
		h.ServeHTTP(httptest.NewRecorder(), r)
		if got := sent[0].Get("Baggage") == test.came; got != test.kept {
			t.Errorf("%s: passed on: %t", name, got)
		}
	}
}

func TestEchoRequestID(t *testing.T) {
	for _, echo := range []bool{false, true} {
		for came, want := range map[string]int{"id-1": 4, "": 36} {
			var id string
			h := &tracing.Handler{Config: tracing.Config{EchoRequestID: echo}, Next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				id = tracing.RequestID(r.Context())
			})}
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			r.Header["X-Request-Id"] = []string{came}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if got := w.Header().Get("X-Request-Id"); len(id) != want || echo && got != id || !echo && got != "" {
				t.Errorf("echo %t: %q came, the handler knows %q, the answer has %q", echo, came, id, got)
			}
		}
	}
}

// A request has one id, made or not, for all calls that are made for it.
func TestCallsOfARequestShareItsID(t *testing.T) {
	var seen []http.Header
	var id string
	h := &tracing.Handler{Next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id = tracing.RequestID(r.Context())
		for _, rt := range []http.RoundTripper{
			&tracing.Transport{Base: answer(&seen, 200)}, &tracing.Calls{Base: answer(&seen, 200)},
			&tracing.Transport{Config: tracing.Config{Formats: "b3"}, Base: answer(&seen, 200)},
		} {
			get(t, r.Context(), rt, "http://orders/")
		}
	})}
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil))
	for _, header := range seen {
		if got := header.Get("X-Request-Id"); len(got) != 36 || got != id {
			t.Errorf("a call has the request id %q, its request %q", got, id)
		}
	}
}

// Calls of gRPC over HTTP have the spans of gRPC, with the code of the trailers.
func TestGRPCOverHTTP(t *testing.T) {
	for _, test := range []struct {
		name            string
		status          int
		header, trailer http.Header
		want            string
		failed          bool
	}{
		{"trailers", 200, nil, http.Header{"Grpc-Status": {"0"}}, "OK", false},
		{"failed", 200, nil, http.Header{"Grpc-Status": {"5"}}, "NOT_FOUND", true},
		{"trailers only", 200, http.Header{"Grpc-Status": {"14"}}, nil, "UNAVAILABLE", true},
		{"no answer of gRPC", 403, nil, nil, "PERMISSION_DENIED", true},
		{"no code", 200, nil, nil, "", false},
		{"a code that is made up", 200, nil, http.Header{"Grpc-Status": {"4711"}}, "CODE(4711)", true},
	} {
		provider, spans := recorder()
		rt := &tracing.Transport{Config: tracing.Config{Provider: provider}, Base: roundTrip(func(req *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: test.status, ProtoMajor: 2, Header: test.header, Trailer: test.trailer, Request: req, Body: io.NopCloser(strings.NewReader("x"))}, nil
		})}
		req, _ := http.NewRequest(http.MethodPost, "http://pay/shop.Payment/Charge", nil)
		req.Header.Set("Content-Type", "application/grpc+proto")
		resp, err := rt.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		s := spans.Ended()
		if len(s) != 1 || s[0].Name() != "shop.Payment/Charge" || (s[0].Status().Code == codes.Error) != test.failed {
			t.Fatalf("%s: %d spans, the first %s, %v", test.name, len(s), s[0].Name(), s[0].Status())
		}
		wantAttributes(t, s[0], map[string]string{"rpc.system.name": "grpc", "rpc.method": "shop.Payment/Charge", "rpc.response.status_code": test.want})
		if kind := attributes(s[0])["error.type"]; test.failed && kind != strings.Replace(test.want, "CODE(4711)", "_OTHER", 1) {
			t.Errorf("%s: error.type is %q", test.name, kind)
		}
	}
}

// Whoever calls a server can make up methods of gRPC. They have one name, as methods of HTTP that nobody knows.
func TestMethodsOfGRPCThatDoNotExist(t *testing.T) {
	for status, want := range map[string]string{"12": "grpc", "0": "a.B/C"} {
		provider, spans := recorder()
		h := &tracing.Handler{Config: tracing.Config{Provider: provider}, Next: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Grpc-Status", status)
		})}
		r := httptest.NewRequest(http.MethodPost, "/a.B/C", nil)
		r.Header.Set("Content-Type", "application/grpc")
		h.ServeHTTP(httptest.NewRecorder(), r)
		s := spans.Ended()[0]
		if s.Name() != want {
			t.Errorf("status %s: the span is named %q, want %q", status, s.Name(), want)
		}
		if status == "12" {
			wantAttributes(t, s, map[string]string{"rpc.method": "_OTHER", "rpc.method_original": "a.B/C"})
		}
	}
	provider, spans := recorder()
	h := &tracing.Handler{Config: tracing.Config{Provider: provider}, Next: http.NotFoundHandler()} // no server of gRPC
	r := httptest.NewRequest(http.MethodPost, "/a.B/C", nil)
	r.Header.Set("Content-Type", "application/grpc")
	h.ServeHTTP(httptest.NewRecorder(), r)
	if s := spans.Ended()[0]; s.Name() != "grpc" {
		t.Errorf("without a server of gRPC the span is named %q", s.Name())
	}
}

// Members of a baggage that are malformed are left out.
func TestMalformedBaggage(t *testing.T) {
	h := &tracing.Handler{Next: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if got := tracing.Baggage(r.Context()); got.Len() != 2 || got.Member("a").Value() != "1" || got.Member("c").Value() != "3" {
			t.Errorf("the baggage is %q", got)
		}
	})}
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header["Baggage"] = []string{"a=1,=2,b", "c=3"}
	h.ServeHTTP(httptest.NewRecorder(), r)
}

// Peers and callers choose paths, agents, hosts and methods. Spans have a bounded part of them, and nothing that exporters refuse.
func TestTextsOfOthersAreBounded(t *testing.T) {
	provider, recorded := recorder()
	config := tracing.Config{Provider: provider}
	h := &tracing.Handler{Config: config, Next: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	long, broken := strings.Repeat("é", 5000), "\xff\xfeé"
	for _, text := range []string{long, broken, broken + long, "a" + long} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.URL.Path, r.Host, r.Method = "/"+text, text, text
		r.Header = http.Header{"User-Agent": {text}}
		h.ServeHTTP(httptest.NewRecorder(), r)
		r = httptest.NewRequest(http.MethodPost, "/", nil)
		r.URL.Path, r.Header = "/"+text, http.Header{"Content-Type": {"application/grpc"}}
		h.ServeHTTP(httptest.NewRecorder(), r)
		rt := &tracing.Transport{Config: config, Base: roundTrip(func(*http.Request) (*http.Response, error) { return nil, errors.New(text) })}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://user:secret@orders:8080/1", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.URL.RawQuery = text
		if _, err := rt.RoundTrip(req); err == nil {
			t.Fatal("no error")
		}
		other := req.Clone(t.Context())
		other.URL.User, other.URL.Host = nil, text
		if _, err := rt.RoundTrip(other); err == nil {
			t.Fatal("no error")
		}
	}
	for _, s := range recorded.Ended() {
		texts := []string{s.Name()}
		for _, kv := range s.Attributes() {
			texts = append(texts, strings.TrimPrefix(kv.Value.String(), "http://REDACTED:REDACTED@orders:8080"))
		}
		if most := len(s.Status().Description); most > 1024+3 {
			t.Errorf("%s: a description of %d bytes", s.SpanKind(), most)
		}
		for _, text := range append(texts, s.Status().Description) {
			if !utf8.ValidString(text) {
				t.Errorf("%s has the text %.40q, which is no UTF-8", s.SpanKind(), text)
			}
		}
		for _, text := range texts {
			if strings.HasPrefix(text, "http://") && len(text) > len("http://")+2*(256+3) || !strings.HasPrefix(text, "http://") && len(text) > 256+3 {
				t.Errorf("%s has a text of %d bytes: %.40q", s.SpanKind(), len(text), text)
			}
		}
	}
	if len(recorded.Ended()) < 12 {
		t.Errorf("%d spans", len(recorded.Ended()))
	}
}

func TestInvalidConfig(t *testing.T) {
	config := tracing.Config{Formats: "jaeger"}
	req, _ := http.NewRequest(http.MethodGet, "http://orders/", nil)
	for _, rt := range []http.RoundTripper{&tracing.Transport{Config: config}, &tracing.Calls{Config: config}} {
		if _, err := rt.RoundTrip(req); err == nil || !strings.Contains(err.Error(), "jaeger") {
			t.Errorf("%T: %v", rt, err)
		}
	}
	w := httptest.NewRecorder()
	(&tracing.Handler{Config: config}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	if w.Code != http.StatusInternalServerError {
		t.Errorf("a handler answered %d", w.Code)
	}
}
