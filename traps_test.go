package mesh_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy/route"
)

// Mistakes of other libraries, here for the mesh as a whole and over real connections. The layers have tests of the same
// names for what concerns them alone.

const retryDocument = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: api}
spec:
  hosts: [api]
  http:
  - route: [{destination: {host: api}}]
    retries: {attempts: 2, retryOn: "5xx"}
    headers:
      request:
        set: {x-route: api}
`

func TestTrap01_ResponsesOfRetriesAreClosed(t *testing.T) {
	noLeaks(t)
	var calls atomic.Int32
	api := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1)%3 != 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		io.WriteString(w, strings.Repeat("x", 1000))
	})
	var dials atomic.Int32
	c := newMesh(t, retryDocument, mesh.WithDiscovery(discovery.Static{"api": {api}}), mesh.WithTransport(counting(&dials))).Client()
	for range 20 {
		a := get(t, c, "http://api/")
		if a.status != http.StatusOK || len(a.body) != 1000 {
			t.Fatalf("status %d, %d bytes", a.status, len(a.body))
		}
	}
	if n := dials.Load(); n != 1 {
		t.Errorf("60 requests in a row took %d connections, want 1", n)
	}
}

func TestTrap02_RetryOverOneConnection(t *testing.T) {
	noLeaks(t)
	var calls atomic.Int32
	api := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	c := newMesh(t, retryDocument+`
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: api}
spec:
  host: api
  trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}}
`, mesh.WithDiscovery(discovery.Static{"api": {api}})).Client()
	if a := get(t, c, "http://api/"); a.status != http.StatusOK {
		t.Errorf("status %d, want 200 at the third try", a.status)
	}
}

func TestTrap04_TheRequestStaysTheCallers(t *testing.T) {
	noLeaks(t)
	api := serve(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if r.Header.Get("x-route") != "api" {
			t.Error("the route's header is missing")
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	down := discovery.Endpoint{Address: "127.0.0.1", Port: 1}
	full := `
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: faulty}
spec:
  hosts: [faulty]
  http:
  - route: [{destination: {host: faulty}}]
    fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: moved}
spec:
  hosts: [moved]
  http:
  - match: [{uri: {prefix: /old}}]
    redirect: {uri: /new}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: unsubset}
spec:
  hosts: [unsubset]
  http:
  - route: [{destination: {host: unsubset, subset: missing}}]
`
	m := newMesh(t, retryDocument+full, mesh.WithRegistryOnly(), mesh.WithDiscovery(discovery.Static{
		"api": {api}, "down": {down}, "empty": {}, "faulty": {api}, "moved": {api}, "unsubset": {api},
	}))
	closed := newMesh(t, "", mesh.WithDiscovery(discovery.Static{"api": {api}}))
	closed.Close()
	for _, test := range []struct {
		name, url string
		mesh      *mesh.Mesh
	}{
		{"retried", "http://api/", m},
		{"connection refused", "http://down/", m},
		{"no endpoints", "http://empty/", m},
		{"aborted", "http://faulty/", m},
		{"redirected", "http://moved/old", m},
		{"no route", "http://moved/other", m},
		{"unknown subset", "http://unsubset/", m},
		{"outside the mesh", "http://elsewhere/", m},
		{"mesh closed", "http://api/", closed},
	} {
		t.Run(test.name, func(t *testing.T) {
			body := &countedBody{Reader: strings.NewReader("hello")}
			req, err := http.NewRequest(http.MethodPost, test.url, body)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("X-Mine", "1")
			before, header, url := *req, req.Header.Clone(), *req.URL
			resp, err := test.mesh.Transport().RoundTrip(req)
			if err == nil {
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			if req.Body != before.Body || req.GetBody != nil || !reflect.DeepEqual(req.Header, header) || *req.URL != url ||
				req.Host != before.Host || req.ContentLength != before.ContentLength {
				t.Errorf("the request was changed: %+v", req)
			}
			// net/http may close the body a moment after the response has come.
			poll(5*time.Second, func() bool { return body.closed.Load() > 0 })
			if n := body.closed.Load(); n != 1 {
				t.Errorf("the body was closed %d times, want once", n)
			}
		})
	}
}

// countedBody counts its Close calls. It hides the Reader's type, so that net/http sets no GetBody.
type countedBody struct {
	io.Reader
	closed atomic.Int32
}

func (b *countedBody) Close() error {
	b.closed.Add(1)
	return nil
}

func TestTrap12_WhatTheBareTransportCanDo(t *testing.T) {
	noLeaks(t)
	flushed := make(chan struct{})
	api := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/upgrade":
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
			line, _ := rw.ReadString('\n')
			io.WriteString(conn, "echo "+line)
		case "/trailers":
			w.Header().Set("Trailer", "X-Sum")
			io.WriteString(w, "body")
			w.Header().Set("X-Sum", "42")
		case "/early":
			w.Header().Set("Link", "</style.css>")
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusOK)
		case "/nothing":
			w.WriteHeader(http.StatusNoContent)
		case "/continue":
			body, _ := io.ReadAll(r.Body)
			w.Write(body)
		case "/events":
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, "data: 1\n\n")
			http.NewResponseController(w).Flush()
			<-flushed
			io.WriteString(w, "data: 2\n\n")
		}
	})
	m := newMesh(t, retryDocument, mesh.WithDiscovery(discovery.Static{"api": {api}}))
	c := m.Client()

	t.Run("101 keeps both directions", func(t *testing.T) {
		req, _ := http.NewRequest(http.MethodGet, "http://api/upgrade", nil)
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", "echo")
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		conn, ok := resp.Body.(io.ReadWriteCloser)
		if resp.StatusCode != http.StatusSwitchingProtocols || !ok {
			t.Fatalf("status %d, body %T", resp.StatusCode, resp.Body)
		}
		io.WriteString(conn, "hello\n")
		if line, err := bufio.NewReader(conn).ReadString('\n'); line != "echo hello\n" {
			t.Errorf("read %q, %v", line, err)
		}
	})
	t.Run("trailers", func(t *testing.T) {
		a := get(t, c, "http://api/trailers")
		if got := a.resp.Trailer.Get("X-Sum"); got != "42" {
			t.Errorf("trailer %q, want 42", got)
		}
	})
	t.Run("1xx", func(t *testing.T) {
		var early string
		ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
			Got1xxResponse: func(code int, header textproto.MIMEHeader) error { early = header["Link"][0]; return nil },
		})
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://api/early", nil)
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if early != "</style.css>" {
			t.Errorf("early hint %q", early)
		}
	})
	t.Run("HEAD and 204", func(t *testing.T) {
		resp, err := c.Head("http://api/trailers")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if a := get(t, c, "http://api/nothing"); a.status != http.StatusNoContent || a.body != "" {
			t.Errorf("%d %q", a.status, a.body)
		}
	})
	t.Run("Expect: 100-continue", func(t *testing.T) {
		req, _ := http.NewRequest(http.MethodPost, "http://api/continue", strings.NewReader("payload"))
		req.Header.Set("Expect", "100-continue")
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if body, _ := io.ReadAll(resp.Body); string(body) != "payload" {
			t.Errorf("body %q", body)
		}
	})
	t.Run("server-sent events come as they are sent", func(t *testing.T) {
		resp, err := c.Get("http://api/events")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		r := bufio.NewReader(resp.Body)
		if line, err := r.ReadString('\n'); line != "data: 1\n" {
			t.Fatalf("%q, %v", line, err)
		}
		close(flushed)
		rest, _ := io.ReadAll(r)
		if string(rest) != "\ndata: 2\n\n" {
			t.Errorf("rest %q", rest)
		}
	})
}

func TestTrap15_WhoseTimeoutItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t)
		f.service("api", f.add(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
		c := f.mesh(t, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: api}
spec:
  hosts: [api]
  http:
  - route: [{destination: {host: api}}]
    timeout: 5s
`).Client()

		_, err := try(c, "http://api/")
		var failure *mesh.Error
		var netErr net.Error
		if !errors.As(err, &failure) || !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &netErr) || !netErr.Timeout() {
			t.Errorf("our timeout: %v", err)
		}

		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://api/", nil)
		if _, err := c.Do(req); errors.As(err, &failure) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the caller's deadline: %v, want it unwrapped", err)
		}

		ctx, cancel = context.WithCancel(context.Background())
		time.AfterFunc(time.Second, cancel)
		req, _ = http.NewRequestWithContext(ctx, http.MethodGet, "http://api/", nil)
		if _, err := c.Do(req); errors.As(err, &failure) || !errors.Is(err, context.Canceled) {
			t.Errorf("the caller's cancel: %v, want it unwrapped", err)
		}
	})
}

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

func TestTrap23_SlotsComeBack(t *testing.T) {
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
	// Two slots: were one of these calls to keep its own, the third would be refused.
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

func TestTrap27_DiscoveryErrorsKeepTheLastEndpoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t)
		resolver := make(scripted)
		var failures atomic.Int32
		c := f.mesh(t, "", mesh.WithDiscovery(resolver), mesh.WithObserver(mesh.Observer{DiscoveryFailed: func(discovery.Service, error) {
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
		resolver <- []discovery.Endpoint{f.add(says("one"))}
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

func TestTrap28_IdleConnectionsAreReused(t *testing.T) {
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

func TestTrap29_TheResponseNamesTheService(t *testing.T) {
	noLeaks(t)
	api := serve(t, fails(http.StatusServiceUnavailable))
	m := newMesh(t, retryDocument, mesh.WithDiscovery(discovery.Static{"api": {api}}))
	req, _ := http.NewRequest(http.MethodGet, "http://api/x?y=z", nil)
	for name, rt := range map[string]http.RoundTripper{"retried": m.Transport()} {
		resp, err := rt.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Request.URL.String(); got != "http://api/x?y=z" || resp.Request.Header.Get("x-route") != "" {
			t.Errorf("%s: resp.Request is %s %v, want the caller's view", name, got, resp.Request.Header)
		}
	}
}

func TestTrap30_RemovedEndpointsDrain(t *testing.T) {
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
	if !poll(5*time.Second, func() bool { return open.Load() == 0 }) {
		t.Errorf("%d connections to the removed endpoint are still open", open.Load())
	}
}

func TestTrap31_HostAndServerNameStayTheServices(t *testing.T) {
	noLeaks(t)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %d", r.Host, r.TLS.ServerName, r.ProtoMajor)
	}))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate()) // for example.com
	// A TLSClientConfig without ForceAttemptHTTP2 means HTTP/1.1 with net/http alone.
	m := newMesh(t, "", mesh.WithTransport(&http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}),
		mesh.WithDiscovery(discovery.Static{"example.com": {endpointOf(t, srv.Listener.Addr().String())}}))
	if got := get(t, m.Client(), "https://example.com/").body; got != "example.com example.com 2" {
		t.Errorf("the server saw %q", got)
	}
}

// A peer that vanished sends no FIN. Over HTTP/2, where calls share a connection, only a ping finds out.
func TestTrap32_DeadHTTP2PeerIsNoticed(t *testing.T) {
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
