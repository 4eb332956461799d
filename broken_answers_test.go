package mesh_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/accesslog"
	"github.com/nosidecar/mesh/admin"
	"github.com/nosidecar/mesh/tracing"
	"github.com/nosidecar/mesh/tracing/tracingmesh"
)

// An answer that has begun, and that its handler breaks off or its caller does not wait for, is not taken for one that ended well.
func TestAnswersThatAreBrokenOff(t *testing.T) {
	noLeaks(t)
	begin := func(w http.ResponseWriter) {
		io.WriteString(w, "part")
		http.NewResponseController(w).Flush()
	}
	breaksOff := func(w http.ResponseWriter, r *http.Request) {
		begin(w)
		panic(http.ErrAbortHandler)
	}
	for _, test := range []struct {
		name    string
		h       http.HandlerFunc
		http2   bool
		status  int
		flags   mesh.Flags
		details string
		fails   bool // by the process
	}{
		{"HTTP/1.1", breaksOff, false, 200, mesh.FlagConnectionTerminated, "upstream_reset_after_response_started{connection_termination}", true},
		{"HTTP/2", breaksOff, true, 200, mesh.FlagRemoteReset, "upstream_reset_after_response_started{remote_reset}", true},
		{"before it begins", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, false,
			0, mesh.FlagConnectionTerminated, "upstream_reset_before_response_started{connection_termination}", true},
		{"by a caller that is gone", func(w http.ResponseWriter, r *http.Request) {
			begin(w)
			<-r.Context().Done()
		}, false, 200, mesh.FlagCallerGone, "downstream_remote_disconnect", false},
		{"by a proxy whose caller is gone", func(w http.ResponseWriter, r *http.Request) {
			begin(w)
			<-r.Context().Done()
			panic(http.ErrAbortHandler)
		}, true, 200, mesh.FlagCallerGone, "downstream_remote_disconnect", false},
		{"by nobody", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "all") }, false, 200, 0, "via_upstream", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			spans, lines, ended := tracetest.NewSpanRecorder(), new(bytes.Buffer), make(chan mesh.Inbound, 1)
			traces, err := tracingmesh.Observer(tracing.Config{Provider: sdk.NewTracerProvider(sdk.WithSpanProcessor(spans))})
			if err != nil {
				t.Fatal(err)
			}
			access, err := accesslog.New(accesslog.Config{Writer: lines})
			if err != nil {
				t.Fatal(err)
			}
			page := admin.New(admin.Config{})
			m := newMesh(t, "", mesh.WithObserver(traces), mesh.WithObserver(access.Observer()), mesh.WithObserver(page.Observer()),
				mesh.WithObserver(mesh.Observer{InboundEnd: func(_ context.Context, in *mesh.Inbound) { ended <- *in }}))
			srv := httptest.NewUnstartedServer(m.Handler(test.h))
			srv.Config.ErrorLog, srv.EnableHTTP2 = log.New(io.Discard, "", 0), test.http2
			srv.StartTLS()
			defer srv.Close()
			if resp, err := srv.Client().Get(srv.URL); err == nil {
				if test.flags == mesh.FlagCallerGone {
					io.ReadFull(resp.Body, make([]byte, 4))
				} else {
					io.Copy(io.Discard, resp.Body)
				}
				resp.Body.Close()
			}

			in := <-ended
			if in.Status != test.status || in.Flags != test.flags {
				t.Errorf("ended with the status %d and the flags %v, want %d and %v", in.Status, in.Flags, test.status, test.flags)
			}
			if got := spans.Ended(); len(got) != 1 || (got[0].Status().Code == codes.Error) != test.fails {
				t.Errorf("spans %v; failed: want %t", got, test.fails)
			}
			access.Close()
			var line map[string]any
			if err := json.Unmarshal(lines.Bytes(), &line); err != nil || line["response_code_details"] != test.details {
				t.Errorf("logged %v, %v; want the details %s", line, err, test.details)
			}
			shown := httptest.NewRecorder()
			page.ServeHTTP(shown, httptest.NewRequest(http.MethodGet, "http://localhost/", nil))
			if got := strings.Contains(shown.Body.String(), "FAILED"); got != test.fails {
				t.Errorf("the page shows a failed request: %t, want %t: %s", got, test.fails, shown.Body)
			}
		})
	}
}
