package tracing_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/nosidecar/mesh/retry"
	"github.com/nosidecar/mesh/tracing"
)

// A service that is called, and calls another one. Its handler only passes the context on.
func Example() {
	spans := tracetest.NewSpanRecorder() // in real life an exporter
	config := tracing.Config{Provider: sdk.NewTracerProvider(sdk.WithSpanProcessor(spans))}

	payments := roundTrip(func(r *http.Request) (*http.Response, error) { // in real life a server
		fmt.Println("request id:", r.Header.Get("X-Request-Id"))
		return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader("paid"))}, nil
	})
	client := &http.Client{Transport: &tracing.Transport{Config: config, Base: payments}}

	mux := http.NewServeMux()
	mux.HandleFunc("GET /orders/{id}", func(w http.ResponseWriter, r *http.Request) {
		req, err := http.NewRequestWithContext(r.Context(), http.MethodPost, "http://payments/", nil)
		if err != nil {
			panic(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			panic(err)
		}
		resp.Body.Close()
	})
	server := &tracing.Handler{Config: config, Next: mux}

	req := httptest.NewRequest(http.MethodGet, "/orders/42", nil)
	req.Header.Set("traceparent", "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01")
	req.Header.Set("x-request-id", "42")
	server.ServeHTTP(httptest.NewRecorder(), req)

	for _, s := range spans.Ended() {
		fmt.Println(s.SpanKind(), s.Name(), s.SpanContext().TraceID())
	}
	// Output:
	// request id: 42
	// client POST 0af7651916cd43dd8448eb211c80319c
	// server GET /orders/{id} 0af7651916cd43dd8448eb211c80319c
}

// With retries, each attempt has a span, and they are one trace.
func ExampleCalls() {
	spans := tracetest.NewSpanRecorder()
	config := tracing.Config{Provider: sdk.NewTracerProvider(sdk.WithSpanProcessor(spans))}
	client := &http.Client{Transport: &tracing.Calls{
		Config: config,
		Base: &retry.Transport{
			Config: retry.Config{Retries: 2},
			Base:   &tracing.Transport{Config: config, Base: answer(nil, 503, 200)}, // nil for http.DefaultTransport
		},
	}}
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://orders/", nil)
	if err != nil {
		panic(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		panic(err)
	}
	resp.Body.Close()
	for _, s := range spans.Ended() {
		fmt.Println(s.SpanKind(), s.Name())
	}
	// Output:
	// client GET
	// client GET
	// internal GET
}
