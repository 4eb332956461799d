package tracing_test

import (
	"net/http"
	"strings"
	"testing"

	sdk "go.opentelemetry.io/otel/sdk/trace"

	"github.com/nosidecar/mesh/tracing"
	"github.com/nosidecar/mesh/tracing/internal/w3c"
)

// With the SDK, whatever it samples, and without it.
func TestTraceContextOfW3C(t *testing.T) {
	for name, config := range map[string]tracing.Config{
		"sampled":   {Provider: sdk.NewTracerProvider(sdk.WithSampler(sdk.AlwaysSample()))},
		"unsampled": {Provider: sdk.NewTracerProvider(sdk.WithSampler(sdk.NeverSample()))},
		"parent":    {Provider: sdk.NewTracerProvider()},
	} {
		t.Run(name, func(t *testing.T) {
			var calls int
			var seen []http.Header
			url, _ := serve(t, false, &tracing.Handler{Config: config, Next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				for range calls {
					get(t, r.Context(), &tracing.Transport{Config: config, Base: answer(&seen, 200)}, "http://payment/")
				}
			})})
			w3c.Check(t, func(t *testing.T, header []w3c.Field, n int) []http.Header {
				calls, seen = n, nil
				w3c.Get(t, strings.TrimPrefix(url, "http://"), header)
				return seen
			})
		})
	}
}
