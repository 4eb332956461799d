package tracingmesh_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/meshgrpc"
	"github.com/nosidecar/mesh/tracing"
)

// A caller that gave up is an error neither to the client nor to the server, whatever protocol they speak.
func TestCallersThatGiveUp(t *testing.T) {
	for _, test := range []struct {
		name  string
		serve func(t *testing.T, tr *traces, wait func(context.Context)) (call func(context.Context) error)
		code  string // of the span
	}{
		{"HTTP/1.1", func(t *testing.T, tr *traces, wait func(context.Context)) func(context.Context) error {
			return serveHTTP(t, tr, false, wait)
		}, ""},
		{"HTTP/2", func(t *testing.T, tr *traces, wait func(context.Context)) func(context.Context) error {
			return serveHTTP(t, tr, true, wait)
		}, ""},
		{"a handler that panics", func(t *testing.T, tr *traces, wait func(context.Context)) func(context.Context) error {
			return serveHTTP(t, tr, true, func(ctx context.Context) {
				wait(ctx)
				panic(http.ErrAbortHandler)
			})
		}, ""},
		{"gRPC", func(t *testing.T, tr *traces, wait func(context.Context)) func(context.Context) error {
			m := meshtest.New(t, "", tr.option)
			conn := grpctest.Dial(t, grpctest.Serve(t, &grpctest.Service{
				Unary: func(ctx context.Context, _ *grpctest.Request) (*grpctest.Response, error) {
					wait(ctx)
					return nil, ctx.Err()
				},
			}, meshgrpc.ServerOptions(m)...))
			return func(ctx context.Context) error {
				_, err := grpctest.NewClient(conn).UnaryCall(ctx, &grpctest.Request{})
				return err
			}
		}, "CANCELLED"},
	} {
		t.Run(test.name, func(t *testing.T) {
			leak.Check(t)
			tr := newTraces(t, tracing.Config{})
			arrived := make(chan struct{}, 1)
			call := test.serve(t, tr, func(ctx context.Context) {
				arrived <- struct{}{}
				<-ctx.Done()
			})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() {
				<-arrived
				cancel()
			}()
			_ = call(ctx) // over TLS, an answer may arrive while the client closes its connection
			await.True(t, "the end of the span", func() bool { return len(tr.Ended()) == 1 })
			s := tr.Ended()[0]
			if s.SpanKind() != trace.SpanKindServer || s.Status().Code != codes.Unset || attribute(s, "error.type") != "" ||
				attribute(s, "mesh.response_flags") != "DC" || attribute(s, "rpc.response.status_code") != test.code {
				t.Errorf("%s span: %v, %v", s.SpanKind(), s.Status(), s.Attributes())
			}
		})
	}
}

// serveHTTP serves handle behind a mesh, and returns a call without one.
func serveHTTP(t *testing.T, tr *traces, http2 bool, handle func(context.Context)) func(context.Context) error {
	h := meshtest.New(t, "", tr.option).Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { handle(r.Context()) }))
	srv := httptest.NewUnstartedServer(h)
	srv.EnableHTTP2 = http2
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL, nil)
		if err != nil {
			return err
		}
		resp, err := srv.Client().Do(req)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
}
