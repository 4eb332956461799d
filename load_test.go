package mesh_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/internal/admission"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/orca"
)

// TestLoadReportsReachCallers: a caller with an identity gets reports. A caller that balances by them removes them from answers, so that
// it does not pass them on.
func TestLoadReportsReachCallers(t *testing.T) {
	w := newTown(t)
	server := w.member(t, "payment-service", strict, mesh.WithServer(mesh.ServerConfig{ReportLoad: true}))
	w.serve(t, server, "payment-service", func(http.ResponseWriter, *http.Request) {})
	ask := func(client *http.Client, url string) string {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, "GET", url, nil)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		io.Copy(io.Discard, resp.Body)
		return resp.Header.Get("endpoint-load-metrics")
	}
	caller := w.member(t, "order-service", strict).Client()
	var got string
	await.Done(func() bool {
		got = ask(caller, "http://payment-service/")
		return got != ""
	})
	if !strings.HasPrefix(got, "TEXT application_utilization=") || !strings.Contains(got, ",rps_fractional=") {
		t.Errorf("a caller is told %q", got)
	}
	weighs := w.member(t, "order-service", strict, mesh.WithProtection(mesh.Protection{Balancing: &balancer.Config{Algorithm: balancer.WeightedRoundRobin}})).Client()
	if got := ask(weighs, "http://payment-service/"); got != "" {
		t.Errorf("a caller that balances by reports shows %q", got)
	}
}

func TestUtilizationWithoutReports(t *testing.T) {
	_, err := mesh.New(t.Context(), mesh.WithEmptyPolicy(), mesh.WithServer(mesh.ServerConfig{Utilization: func() float64 { return 1 }}))
	if err == nil || !strings.Contains(err.Error(), "ReportLoad") {
		t.Errorf("New = %v, want an error that names ReportLoad", err)
	}
}

// changing is the context of a request. Its Deadline, which is asked for once the request is admitted, changes the documents.
type changing struct {
	context.Context
	change func()
}

func (c changing) Deadline() (time.Time, bool) {
	c.change()
	return c.Context.Deadline()
}

// adapter is the adapter of another protocol.
type adapter struct{ *httptest.ResponseRecorder }

func (adapter) Edit(string, []string) {}
func (adapter) End()                  {}

// TestRefusedRequestsAreNoLoad: documents change, so a request is refused before its handler begins, or ended while its handler runs. It
// took little time, but not because the process is fast.
func TestRefusedRequestsAreNoLoad(t *testing.T) {
	for name, refused := range map[string]func(t *testing.T, h http.Handler, deny func(), r *http.Request){
		"HTTP, before the handler": func(t *testing.T, h http.Handler, deny func(), r *http.Request) {
			answer := httptest.NewRecorder()
			r.Header.Set("X-Envoy-Expected-Rq-Timeout-Ms", "5000")
			if h.ServeHTTP(answer, r.WithContext(changing{r.Context(), deny})); answer.Code != http.StatusForbidden {
				t.Errorf("status %d, want 403", answer.Code)
			}
		},
		"HTTP, in the handler": func(t *testing.T, h http.Handler, deny func(), r *http.Request) {
			r.URL.Path = "/deny"
			h.ServeHTTP(httptest.NewRecorder(), r)
		},
		"gRPC, before the handler": func(t *testing.T, h http.Handler, deny func(), r *http.Request) {
			ctx, call := h.(admission.Gate).Admit(adapter{httptest.NewRecorder()}, r)
			deny()
			if call.Enter(&admission.Context{Context: ctx, Peer: call.PeerID()}) {
				t.Error("the call is let through")
			}
			call.Done(http.StatusOK, 7)
		},
		"gRPC, in the handler": func(t *testing.T, h http.Handler, deny func(), r *http.Request) {
			ctx, call := h.(admission.Gate).Admit(adapter{httptest.NewRecorder()}, r)
			call.Enter(&admission.Context{Context: ctx, Peer: call.PeerID()})
			deny()
			call.Done(http.StatusOK, 7)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newTown(t)
				m := w.member(t, "payment-service", "", mesh.WithServer(mesh.ServerConfig{ReportLoad: true, Utilization: func() float64 { return 0.5 }}))
				deny := func() { apply(t, m, denyAll) }
				h := m.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/deny" {
						deny()
						<-r.Context().Done()
					}
				}))
				id, err := w.Identity("default", "order-service")
				if err != nil {
					t.Fatal(err)
				}
				refused(t, h, deny, inboundRequest(id.Certificate().Leaf))
				apply(t, m, strict)
				time.Sleep(2 * time.Second)
				answer := httptest.NewRecorder()
				for range 2 { // the second answer reports the first request
					answer = httptest.NewRecorder()
					h.ServeHTTP(answer, inboundRequest(id.Certificate().Leaf))
				}
				if report, ok := orca.Take(answer.Header()); !ok || report.Requests != 0.5 || report.Errors != 0 {
					t.Errorf("the report is %+v, %v; want one request in 2 seconds", report, ok)
				}
			})
		})
	}
}

// TestPanicOfUtilization: the slot of the request is free, because its handler has returned.
func TestPanicOfUtilization(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var inbound [2]int // begun, ended
		m := newMesh(t, "", mesh.WithServer(mesh.ServerConfig{MaxRequests: 1, ReportLoad: true, Utilization: func() float64 { panic("utilization") }}),
			mesh.WithObserver(mesh.Observer{
				InboundStart: func(ctx context.Context, _ *mesh.Inbound) context.Context { inbound[0]++; return ctx },
				InboundEnd:   func(context.Context, *mesh.Inbound) { inbound[1]++ },
			}))
		h := m.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		gate := h.(admission.Gate)
		for name, serve := range map[string]func() (served bool){
			"HTTP": func() bool {
				answer := httptest.NewRecorder()
				h.ServeHTTP(answer, inboundRequest(nil))
				return answer.Code == http.StatusOK
			},
			"gRPC": func() bool {
				ctx, call := gate.Admit(adapter{httptest.NewRecorder()}, inboundRequest(nil))
				if call == nil {
					return false
				}
				call.Enter(&admission.Context{Context: ctx})
				call.Done(http.StatusOK, 0)
				return true
			},
		} {
			time.Sleep(2 * time.Second)
			func() {
				defer func() {
					if p := recover(); p != "utilization" {
						t.Errorf("%s: panic %v, want that of Utilization", name, p)
					}
				}()
				serve()
			}()
			if !serve() {
				t.Errorf("%s: the slot of the request is not free", name)
			}
			if n := mesh.Running(m); n > 0 || inbound[0] != inbound[1] {
				t.Errorf("%s: %d requests are in the register, and observers saw %d begin and %d end", name, n, inbound[0], inbound[1])
			}
		}
	})
}
