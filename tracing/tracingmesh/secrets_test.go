package tracingmesh_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/policy/telemetry"
	"github.com/nosidecar/mesh/tracing"
	"github.com/nosidecar/mesh/tracing/tracingmesh"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// Tokens in the parameters that documents have for them are in no span.
func TestTokensOfDocumentsAreNotInSpans(t *testing.T) {
	recorder := tracetest.NewSpanRecorder()
	provider := sdk.NewTracerProvider(sdk.WithSpanProcessor(recorder))
	o, err := tracingmesh.Observer(tracing.Config{Provider: provider, CallSpans: true})
	if err != nil {
		t.Fatal(err)
	}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://pots/1?a=b&jwt=secret", nil)
	call := &mesh.Call{Request: req, GRPCStatus: -1, Status: 200, Telemetry: telemetry.New(telemetry.Side{SecretParams: []string{"jwt"}}, telemetry.Side{})}
	ctx := o.CallStart(t.Context(), call)
	o.CallEnd(ctx, call)
	spans := recorder.Ended()
	if len(spans) != 1 {
		t.Fatalf("%d spans", len(spans))
	}
	for _, a := range spans[0].Attributes() {
		if strings.Contains(a.Value.String(), "secret") {
			t.Errorf("%s: %s", a.Key, a.Value.String())
		}
		if a.Key == "url.full" && a.Value.AsString() != "http://pots/1?a=b&jwt=REDACTED" {
			t.Errorf("%s", a.Value.AsString())
		}
	}
}
