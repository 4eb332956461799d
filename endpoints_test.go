package mesh_test

import (
	"context"
	"errors"
	"io"
	"iter"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/policy/route"
)

const pooled = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: api}
spec:
  host: api
  trafficPolicy:
    connectionPool:
      http: {http2MaxRequests: 2}
`

func TestSlotsComeBack(t *testing.T) {
	noLeaks(t)
	blocked := make(chan struct{})
	api := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hang":
			select {
			case <-r.Context().Done():
			case <-blocked:
			}
		case "/upgrade":
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
				conn.Close()
			}
		case "/reset":
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				conn.Close()
			}
		default:
			io.WriteString(w, strings.Repeat("x", 1<<20))
		}
	})
	defer close(blocked)
	m := newMesh(t, pooled, mesh.WithDiscovery(discovery.Static{"api": {api}}))
	c := m.Client()
	// There are two slots: if one of these calls kept its slot, the third would be refused.
	for name, call := range map[string]func(){
		"unread body": func() {
			if resp, err := c.Get("http://api/large"); err == nil {
				resp.Body.Close()
			}
		},
		"cancel": func() {
			ctx, cancel := context.WithCancel(context.Background())
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://api/hang", nil)
			time.AfterFunc(5*time.Millisecond, cancel)
			c.Do(req)
		},
		"101": func() {
			req, _ := http.NewRequest(http.MethodGet, "http://api/upgrade", nil)
			req.Header.Set("Connection", "Upgrade")
			req.Header.Set("Upgrade", "echo")
			if resp, err := c.Do(req); err == nil {
				resp.Body.Close()
			}
		},
		"reset": func() { c.Get("http://api/reset") },
		"panic in a hook of the caller's": func() {
			defer func() { recover() }()
			req, _ := http.NewRequestWithContext(httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
				GetConn: func(string) { panic("the caller's") },
			}), http.MethodGet, "http://api/large", nil)
			m.Transport().RoundTrip(req)
			t.Error("the panic was swallowed")
		},
	} {
		for range 3 {
			call()
		}
		if a := get(t, c, "http://api/large"); a.status != http.StatusOK {
			t.Errorf("after %s: status %d, %s", name, a.status, a.body)
		}
	}
	// And while both are taken, a third call is refused.
	for range 2 {
		resp, err := c.Get("http://api/large")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
	}
	a := get(t, c, "http://api/large")
	if a.status != http.StatusServiceUnavailable || a.header.Get("x-envoy-overloaded") != "true" {
		t.Errorf("the third call at once: status %d, want 503 with x-envoy-overloaded", a.status)
	}
}

// scripted is a resolver whose answers the test gives.
type scripted chan any // []discovery.Endpoint or error

func (s scripted) Watch(ctx context.Context, _ discovery.Service) iter.Seq2[[]discovery.Endpoint, error] {
	return func(yield func([]discovery.Endpoint, error) bool) {
		for {
			select {
			case <-ctx.Done():
				return
			case answer := <-s:
				endpoints, _ := answer.([]discovery.Endpoint)
				err, _ := answer.(error)
				if !yield(endpoints, err) {
					return
				}
			}
		}
	}
}

func TestDiscoveryErrorsKeepTheLastEndpoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		resolver := make(scripted)
		var failures atomic.Int32
		c := f.Mesh(t, "", mesh.WithDiscovery(resolver), mesh.WithObserver(mesh.Observer{DiscoveryFailed: func(discovery.Service, error) {
			failures.Add(1)
		}})).Client()

		// Waiting for the first answer ends with the caller's context.
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://api/", nil)
		start := time.Now()
		if _, err := c.Do(req); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("%v after %v, want the caller's deadline after 1s", err, time.Since(start))
		}
		// And for a caller without one, in the time a connection may take.
		start = time.Now()
		_, err := try(c, "http://api/")
		var failure *mesh.Error
		if !errors.As(err, &failure) || failure.Layer != "discovery" || failure.Flags.String() != "UH" || time.Since(start) != 10*time.Second {
			t.Errorf("%v after %v, want a discovery error after 10s", err, time.Since(start))
		}

		// The first answer is an error, the next one is not.
		resolver <- errors.New("registry unreachable")
		resolver <- []discovery.Endpoint{f.Add(t, says("one"))}
		if got := get(t, c, "http://api/").body; got != "one" {
			t.Errorf("got %q", got)
		}
		resolver <- errors.New("registry unreachable")
		synctest.Wait()
		if got := get(t, c, "http://api/").body; got != "one" {
			t.Errorf("after an error of discovery: %q", got)
		}
		if failures.Load() != 2 {
			t.Errorf("%d failures of discovery were told, want 2", failures.Load())
		}
		// An empty set is an answer.
		resolver <- []discovery.Endpoint{}
		synctest.Wait()
		if _, err := try(c, "http://api/"); !errors.As(err, &failure) || failure.Layer != "balancer" || failure.Flags.String() != "UH" {
			t.Errorf("with no endpoints: %v", err)
		}
	})
}

func TestIdleConnectionsAreReused(t *testing.T) {
	noLeaks(t)
	api := serve(t, says("ok"))
	var dials atomic.Int32
	c := newMesh(t, "", mesh.WithDiscovery(discovery.Static{"api": {api}}), mesh.WithTransport(counting(&dials))).Client()
	var workers sync.WaitGroup
	for range 48 {
		workers.Go(func() {
			for range 100 {
				if a, err := try(c, "http://api/"); err != nil || a.status != http.StatusOK {
					t.Error(a.status, err)
				}
			}
		})
	}
	workers.Wait()
	// net/http dials ahead where a connection comes free meanwhile, so a few more than 48 are right.
	if n := dials.Load(); n > 100 {
		t.Errorf("4,800 calls of 48 workers took %d connections", n)
	}
}

func counting(dials *atomic.Int32) *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		dials.Add(1)
		return new(net.Dialer).DialContext(ctx, network, address)
	}}
}

func TestRemovedEndpointsDrain(t *testing.T) {
	noLeaks(t)
	entered, finish := make(chan struct{}), make(chan struct{})
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(entered)
			<-finish
		}
		io.WriteString(w, "old")
	}))
	var open atomic.Int32
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			open.Add(1)
		case http.StateClosed, http.StateHijacked:
			open.Add(-1)
		}
	}
	srv.Start()
	t.Cleanup(srv.Close)
	var registry discovery.Memory
	registry.Set("api", endpointOf(t, srv.Listener.Addr().String()))
	updated := make(chan struct{}, 10)
	c := newMesh(t, "", mesh.WithDiscovery(&registry), mesh.WithObserver(mesh.Observer{Endpoints: func(route.Target, int) {
		updated <- struct{}{}
	}})).Client()
	get(t, c, "http://api/")
	<-updated

	slow := make(chan answer)
	go func() {
		a, _ := try(c, "http://api/slow")
		slow <- a
	}()
	<-entered
	registry.Set("api", serve(t, says("new")))
	<-updated
	for range 20 {
		if got := get(t, c, "http://api/").body; got != "new" {
			t.Fatalf("a new call went to the removed endpoint")
		}
	}
	if open.Load() == 0 {
		t.Error("the call in flight lost its connection")
	}
	close(finish)
	if a := <-slow; a.body != "old" {
		t.Errorf("the call in flight got %q", a.body)
	}
	if !await.Done(func() bool { return open.Load() == 0 }) {
		t.Errorf("%d connections to the removed endpoint are still open", open.Load())
	}
}

// A peer that vanished sends no FIN. Over HTTP/2, where calls share a connection, only a ping finds out.
func TestDeadHTTP2PeerIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial := func(context.Context, string, string) (net.Conn, error) {
			client, server := net.Pipe()
			t.Cleanup(func() { server.Close() })
			go io.Copy(io.Discard, server)                                    // all that the client says is lost,
			go server.Write([]byte{0, 0, 0, 4 /* SETTINGS */, 0, 0, 0, 0, 0}) // after the server's first word
			return client, nil
		}
		c := newMesh(t, virtualService("retries: {attempts: 0}")+destinationRule("connectionPool: {http: {h2UpgradePolicy: UPGRADE}}"),
			mesh.WithDiscovery(discovery.Static{"api": {{Address: "10.0.0.1", Port: 80}}}),
			mesh.WithTransport(&http.Transport{DialContext: dial})).Client()
		start := time.Now()
		_, err := try(c, "http://api/")
		var failure *mesh.Error
		if !errors.As(err, &failure) || failure.Layer != "endpoint" || time.Since(start) != 45*time.Second {
			t.Errorf("%v after %v, want the connection given up after 30s of silence and 15s without an answer to a ping", err, time.Since(start))
		}
	})
}

// A stream that the server resets is not the same as a connection that it closes.
func TestRemoteResetHasItsFlag(t *testing.T) {
	noLeaks(t)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Config.Protocols.SetHTTP1(true)
	srv.Start()
	t.Cleanup(srv.Close)
	for upgrade, want := range map[string]string{"UPGRADE": "UR", "DO_NOT_UPGRADE": "UC"} {
		c := newMesh(t, virtualService("retries: {attempts: 0}")+destinationRule("connectionPool: {http: {h2UpgradePolicy: "+upgrade+"}}"),
			mesh.WithDiscovery(discovery.Static{"api": {endpointOf(t, srv.Listener.Addr().String())}})).Client()
		_, err := try(c, "http://api/")
		var failure *mesh.Error
		if !errors.As(err, &failure) || failure.Flags.String() != want {
			t.Errorf("%s: %v, want flag %s", upgrade, err, want)
		}
	}
}
