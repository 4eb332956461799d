package mesh_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/rawtest"
)

// serveAs serves with srv behind a listener of m, as the service account payment-service of the town.
func (w *town) serveAs(t *testing.T, m *mesh.Mesh, srv *http.Server) {
	t.Helper()
	ln := rawtest.Listen(t)
	srv.ErrorLog = log.New(io.Discard, "", 0)
	var serving sync.WaitGroup
	serving.Go(func() { srv.Serve(m.Listen(ln)) })
	t.Cleanup(func() { srv.Close(); serving.Wait() })
	e := endpointOf(t, ln.Addr().String())
	e.ServiceAccount = "payment-service"
	w.registry.Set("payment-service", e)
}

// An http.Server for which HTTP/2 is off closes connections that chose it. HTTP1Only has callers offered HTTP/1.1 alone.
func TestServersWithoutHTTP2(t *testing.T) {
	for name, without := range map[string]func(*http.Server){
		"TLSConfig":    func(srv *http.Server) { srv.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS13} },
		"TLSNextProto": func(srv *http.Server) { srv.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){} },
		"Protocols": func(srv *http.Server) {
			srv.Protocols = new(http.Protocols)
			srv.Protocols.SetHTTP1(true)
		},
	} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			w := newTown(t)
			m := w.member(t, "payment-service", strict, mesh.WithServer(mesh.ServerConfig{HTTP1Only: true}))
			srv := &http.Server{Handler: m.Handler(http.HandlerFunc(whoCalls))}
			without(srv)
			w.serveAs(t, m, srv)
			client := w.member(t, "order-service", strict).Client()
			a := get(t, client, "http://payment-service/")
			if want := "spiffe://cluster.local/ns/default/sa/order-service over HTTP/1.1"; a.body != want {
				t.Errorf("the service saw %q, want %q", a.body, want)
			}
		})
	}
}

// What a server does to its connections and contexts leaves the mesh as it is.
func TestServersWithContextsOfTheirOwn(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	m := w.member(t, "payment-service", strict)
	type base struct{}
	type conn struct{}
	w.serveAs(t, m, &http.Server{
		BaseContext: func(net.Listener) context.Context { return context.WithValue(context.Background(), base{}, "base") },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, conn{}, c) },
		Handler: m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintln(w, r.Context().Value(base{}), r.Context().Value(conn{}) != nil, mesh.PeerID(r.Context()))
		})),
	})
	a := get(t, w.member(t, "order-service", strict).Client(), "http://payment-service/")
	if want := "base true spiffe://cluster.local/ns/default/sa/order-service\n"; a.body != want {
		t.Errorf("the handler saw %q, want %q", a.body, want)
	}
}

// zeros is a request body without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// Middleware around the mesh learns which pattern of a ServeMux the request matched, as it does without the mesh.
func TestPatternForMiddleware(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	m := w.member(t, "payment-service", strict)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /orders/{id}", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.PathValue("id")) })
	h, patterns := m.Handler(mux), make(chan string, 1)
	w.serveAs(t, m, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r)
		patterns <- r.Pattern
	})})
	if a := get(t, w.member(t, "order-service", strict).Client(), "http://payment-service/orders/42"); a.body != "42" {
		t.Fatalf("%d %q", a.status, a.body)
	}
	if got := await.Receive(t, "the handler to return", patterns); got != "GET /orders/{id}" {
		t.Errorf("the middleware saw the pattern %q", got)
	}
}

// The middleware of net/http works outside the mesh as well as inside.
func TestMiddlewareOfNetHTTP(t *testing.T) {
	// bounded gives handlers an hour, and nothing to those of /slow.
	bounded := func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			limit := time.Hour
			if r.URL.Path == "/slow" {
				limit = time.Millisecond
			}
			http.TimeoutHandler(h, limit, "too late").ServeHTTP(w, r)
		})
	}
	type step struct {
		path   string
		status int
		body   string
	}
	ok := step{"/", 200, "spiffe://cluster.local/ns/default/sa/order-service"}
	denied := step{"/denied", 403, "RBAC: access denied"}
	late := step{"/slow", 503, "too late"}
	for name, test := range map[string]struct {
		wrap  func(*mesh.Mesh, http.Handler) http.Handler
		steps []step
	}{
		"the same again": {func(m *mesh.Mesh, h http.Handler) http.Handler {
			return m.Handler(m.Handler(h))
		}, []step{ok, denied, ok}},
		"TimeoutHandler outside": {func(m *mesh.Mesh, h http.Handler) http.Handler {
			return bounded(m.Handler(h))
		}, []step{ok, denied, late, ok}},
		"TimeoutHandler inside": {func(m *mesh.Mesh, h http.Handler) http.Handler {
			return m.Handler(bounded(h))
		}, []step{ok, denied, late, ok}},
		"StripPrefix outside": {func(m *mesh.Mesh, h http.Handler) http.Handler {
			return http.StripPrefix("/api", m.Handler(h))
		}, []step{{"/api/", 200, ok.body}, {"/denied", 404, "404 page not found\n"}}},
		"StripPrefix inside": {func(m *mesh.Mesh, h http.Handler) http.Handler {
			return m.Handler(http.StripPrefix("/api", h))
		}, []step{{"/api/", 200, ok.body}, denied}},
		"MaxBytesHandler outside": {func(m *mesh.Mesh, h http.Handler) http.Handler {
			return http.MaxBytesHandler(m.Handler(h), 1<<10)
		}, []step{ok, denied}},
		"MaxBytesHandler inside": {func(m *mesh.Mesh, h http.Handler) http.Handler {
			return m.Handler(http.MaxBytesHandler(h, 1<<10))
		}, []step{ok, denied}},
	} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			w := newTown(t)
			// One request at a time: a place that is not given back is missed.
			m := w.member(t, "payment-service", strict+"---"+denyPath, mesh.WithServer(mesh.ServerConfig{MaxRequests: 1}))
			w.serveAs(t, m, &http.Server{Handler: test.wrap(m, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/slow" {
					<-r.Context().Done()
				}
				fmt.Fprint(w, mesh.PeerID(r.Context()))
			}))})
			client := w.member(t, "order-service", strict).Client()
			for _, s := range test.steps {
				var a answer
				await.Done(func() bool { // a handler may outlive its TimeoutHandler for a moment
					a = get(t, client, "http://payment-service"+s.path)
					return a.header.Get("X-Envoy-Overloaded") == ""
				})
				if a.status != s.status || a.body != s.body {
					t.Errorf("%s: %d %q, want %d %q", s.path, a.status, a.body, s.status, s.body)
				}
			}
		})
	}

	// A TimeoutHandler hides the connection of a request, which is cut off all the same.
	for _, way := range ways {
		t.Run("TimeoutHandler outside a request that is denied/"+way.name, func(t *testing.T) {
			noLeaks(t)
			w := newTown(t)
			m := w.member(t, "payment-service", "")
			begun, ended := make(chan struct{}, 1), make(chan error, 1)
			address := serveWays(t, m, m.Listen, func(w http.ResponseWriter, r *http.Request) {
				begun <- struct{}{}
				_, err := io.Copy(io.Discard, r.Body)
				ended <- err
			}, func(h http.Handler) http.Handler { return http.TimeoutHandler(h, time.Hour, "") })
			answered := make(chan error, 1)
			go func() {
				resp, err := way.client(t, w).Post(way.url(address, "/denied"), "", zeros{})
				if err == nil {
					resp.Body.Close()
					err = fmt.Errorf("%s", resp.Status)
				}
				answered <- err
			}()
			await.Receive(t, "the handler to begin", begun)
			apply(t, m, denyPath)
			if err := await.Receive(t, "the handler to end", ended); err == nil {
				t.Error("the handler read a whole body")
			}
			if err := await.Receive(t, "the answer", answered); err == nil || strings.HasPrefix(err.Error(), "200") {
				t.Errorf("the client got %v, want that it is cut off", err)
			}
		})
	}
}
