package balancer_test

import (
	"bufio"
	"bytes"
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
	"net/netip"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/leak"
)

// backend is a server, with what it saw.
type backend struct {
	*httptest.Server
	endpoint discovery.Endpoint
	calls    atomic.Int32
	opened   atomic.Int32 // connections
	closed   chan struct{}
}

func newBackend(t testing.TB, handler http.HandlerFunc, start func(*httptest.Server)) *backend {
	t.Helper()
	b := &backend{closed: make(chan struct{}, 1000)}
	b.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.calls.Add(1)
		if handler != nil {
			handler(w, r)
		}
	}))
	b.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			b.opened.Add(1)
		case http.StateClosed:
			b.closed <- struct{}{}
		}
	}
	start(b.Server)
	t.Cleanup(b.Close)
	address := netip.MustParseAddrPort(b.Listener.Addr().String())
	b.endpoint = discovery.Endpoint{Address: address.Addr().String(), Port: int(address.Port())}
	return b
}

// newTransport sends the requests for http://svc to the backends, and checks at the end that nothing is left in flight.
func newTransport(t testing.TB, tr *balancer.Transport, backends ...*backend) *discovery.Memory {
	t.Helper()
	registry := new(discovery.Memory)
	set := []discovery.Endpoint{}
	for _, b := range backends {
		set = append(set, b.endpoint)
	}
	registry.Set("svc", set...)
	tr.Resolver = registry
	t.Cleanup(func() {
		for _, h := range balancer.TransportHosts(tr, "svc") {
			if n := h.InFlight(); n != 0 {
				t.Errorf("%d calls in flight on %s at the end", n, h.ID())
			}
		}
		if err := tr.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return registry
}

func do(t testing.TB, rt http.RoundTripper, req *http.Request) *http.Response {
	t.Helper()
	resp, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatalf("%s %s: reading the body: %v", req.Method, req.URL, err)
	}
	resp.Body.Close()
	return resp
}

func get(t testing.TB, url string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func TestTransportBalances(t *testing.T) {
	a, b := newBackend(t, nil, (*httptest.Server).Start), newBackend(t, nil, (*httptest.Server).Start)
	tr := &balancer.Transport{Config: balancer.Config{Algorithm: balancer.RoundRobin}}
	newTransport(t, tr, a, b)
	for range 10 {
		do(t, tr, get(t, "http://SVC./"))
	}
	if a.calls.Load() != 5 || b.calls.Load() != 5 || a.opened.Load() != 1 || b.opened.Load() != 1 {
		t.Errorf("calls %d and %d on %d and %d connections, want 5 and 5 on 1 and 1",
			a.calls.Load(), b.calls.Load(), a.opened.Load(), b.opened.Load())
	}
}

func TestInFlightReturnsToZero(t *testing.T) {
	inFlight := func(tr *balancer.Transport) int {
		n := 0
		for _, h := range balancer.TransportHosts(tr, "svc") {
			n += h.InFlight()
		}
		return n
	}
	stream := func(w http.ResponseWriter, r *http.Request) {
		w.Write([]byte("data: 1\n\n"))
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
	for _, c := range []struct {
		name    string
		handler http.HandlerFunc
		call    func(t *testing.T, tr *balancer.Transport)
	}{
		{"read to the end", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("hello")) },
			func(t *testing.T, tr *balancer.Transport) {
				resp, err := tr.RoundTrip(get(t, "http://svc/"))
				if err != nil {
					t.Fatal(err)
				}
				if n := inFlight(tr); n != 1 {
					t.Errorf("%d in flight before the body is read, want 1", n)
				}
				io.Copy(io.Discard, resp.Body)
				if n := inFlight(tr); n != 0 {
					t.Errorf("%d in flight after EOF, want 0", n)
				}
				resp.Body.Close()
				resp.Body.Close()
			}},
		{"closed unread", stream, func(t *testing.T, tr *balancer.Transport) {
			resp, err := tr.RoundTrip(get(t, "http://svc/"))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			resp.Body.Close()
		}},
		{"no body", nil, func(t *testing.T, tr *balancer.Transport) {
			req := get(t, "http://svc/")
			req.Method = "HEAD"
			if _, err := tr.RoundTrip(req); err != nil {
				t.Fatal(err)
			}
		}},
		{"cancelled while streaming", stream, func(t *testing.T, tr *balancer.Transport) {
			ctx, cancel := context.WithCancel(t.Context())
			resp, err := tr.RoundTrip(get(t, "http://svc/").WithContext(ctx))
			if err != nil {
				t.Fatal(err)
			}
			cancel()
			if _, err := io.Copy(io.Discard, resp.Body); !errors.Is(err, context.Canceled) {
				t.Errorf("reading: %v, want context.Canceled", err)
			}
		}},
		{"connection reset", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
			func(t *testing.T, tr *balancer.Transport) {
				if _, err := tr.RoundTrip(get(t, "http://svc/")); err == nil {
					t.Error("no error")
				}
			}},
		{"upgraded", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Upgrade", "echo")
			w.WriteHeader(101)
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			line, _ := rw.ReadString('\n')
			rw.WriteString(line)
			rw.Flush()
		}, func(t *testing.T, tr *balancer.Transport) {
			req := get(t, "http://svc/")
			req.Header.Set("Connection", "Upgrade")
			req.Header.Set("Upgrade", "echo")
			resp, err := tr.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			conn, ok := resp.Body.(io.ReadWriteCloser)
			if !ok {
				t.Fatalf("the body of a 101 is a %T", resp.Body)
			}
			fmt.Fprintln(conn, "hello")
			if line, err := bufio.NewReader(conn).ReadString('\n'); line != "hello\n" {
				t.Errorf("echo %q, %v", line, err)
			}
			if n := inFlight(tr); n != 1 {
				t.Errorf("%d in flight on an open connection, want 1", n)
			}
			conn.Close()
		}},
		{"panic", nil, func(t *testing.T, tr *balancer.Transport) {
			defer func() {
				if recover() == nil {
					t.Error("the panic was lost")
				}
			}()
			trace := &httptrace.ClientTrace{GetConn: func(string) { panic("in user code") }}
			tr.RoundTrip(get(t, "http://svc/").WithContext(httptrace.WithClientTrace(t.Context(), trace)))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr := &balancer.Transport{}
			newTransport(t, tr, newBackend(t, c.handler, (*httptest.Server).Start))
			c.call(t, tr)
			if n := inFlight(tr); n != 0 {
				t.Errorf("%d in flight, want 0", n)
			}
		})
	}
}

func TestCallsWaitForTheFirstSet(t *testing.T) {
	t.Run("waiting honours the context", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			tr := &balancer.Transport{Resolver: resolver(func(ctx context.Context, yield func([]discovery.Endpoint, error) bool) {
				yield(nil, errors.New("no answer"))
				<-ctx.Done()
			})}
			defer tr.Close()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			body := &leak.Body{Reader: strings.NewReader("x")}
			req, _ := http.NewRequestWithContext(ctx, "POST", "http://svc/", body)
			_, err := tr.RoundTrip(req)
			if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no answer") {
				t.Errorf("RoundTrip: %v, want the deadline and the resolver's error", err)
			}
			if wrapped := (&url.Error{Op: "Post", URL: "http://svc/", Err: err}); !wrapped.Timeout() {
				t.Errorf("an http.Client would not report a timeout for %v", err)
			}
			if body.Closed.Load() == 0 {
				t.Error("the request body was not closed")
			}
		})
	})
	t.Run("an unknown service is no set", func(t *testing.T) {
		b := newBackend(t, nil, (*httptest.Server).Start)
		registry := new(discovery.Memory)
		tr := &balancer.Transport{Resolver: registry}
		defer tr.Close()
		_, err := tr.RoundTrip(get(t, "http://svc/"))
		if !errors.Is(err, discovery.ErrUnknownService) || !errors.Is(err, balancer.ErrNoEndpoints) {
			t.Errorf("RoundTrip: %v, want ErrUnknownService and ErrNoEndpoints", err)
		}
		registry.Set("svc", b.endpoint)
		do(t, tr, get(t, "http://svc/")) // not poisoned
	})
	t.Run("errors keep the last set, an empty one does not", func(t *testing.T) {
		b := newBackend(t, nil, (*httptest.Server).Start)
		events := make(chan func(func([]discovery.Endpoint, error) bool))
		tr := &balancer.Transport{Resolver: resolver(func(ctx context.Context, yield func([]discovery.Endpoint, error) bool) {
			for {
				select {
				case event := <-events:
					event(yield)
				case <-ctx.Done():
					return
				}
			}
		})}
		defer tr.Close()
		send := func(set []discovery.Endpoint, err error) {
			done := make(chan struct{})
			events <- func(yield func([]discovery.Endpoint, error) bool) { yield(set, err); close(done) }
			<-done
		}
		go send([]discovery.Endpoint{b.endpoint}, nil)
		do(t, tr, get(t, "http://svc/"))
		send(nil, errors.New("discovery is down"))
		do(t, tr, get(t, "http://svc/"))
		send([]discovery.Endpoint{}, nil)
		if _, err := tr.RoundTrip(get(t, "http://svc/")); !errors.Is(err, balancer.ErrNoEndpoints) {
			t.Errorf("RoundTrip with an empty set: %v, want ErrNoEndpoints", err)
		}
	})
}

// resolver is a discovery.Resolver made of its Watch.
type resolver func(ctx context.Context, yield func([]discovery.Endpoint, error) bool)

func (r resolver) Watch(ctx context.Context, _ discovery.Service) iter.Seq2[[]discovery.Endpoint, error] {
	return func(yield func([]discovery.Endpoint, error) bool) { r(ctx, yield) }
}

func TestFewConnections(t *testing.T) {
	const workers, calls = 48, 4800
	backends := []*backend{
		newBackend(t, nil, (*httptest.Server).Start),
		newBackend(t, nil, (*httptest.Server).Start),
		newBackend(t, nil, (*httptest.Server).Start),
	}
	tr := &balancer.Transport{Base: &http.Transport{}}
	newTransport(t, tr, backends...)
	var running sync.WaitGroup
	for range workers {
		running.Go(func() {
			for range calls / workers {
				resp, err := tr.RoundTrip(get(t, "http://svc/"))
				if err != nil {
					t.Error(err)
					return
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
	running.Wait()
	opened := int32(0)
	for _, b := range backends {
		opened += b.opened.Load()
	}
	if opened > 3*workers {
		t.Errorf("%d calls of %d workers opened %d connections, want about %d", calls, workers, opened, workers)
	}
}

func TestHTTP2CallsShareAConnection(t *testing.T) {
	secure := func(s *httptest.Server) {
		s.EnableHTTP2 = true
		s.StartTLS()
	}
	one := new(http.Protocols)
	one.SetHTTP1(true)
	for _, c := range []struct {
		name string
		base *http.Transport
		want int
	}{
		{"TLSClientConfig", &http.Transport{}, 2},
		{"MaxConnsPerHost", &http.Transport{MaxConnsPerHost: 2, ForceAttemptHTTP2: true}, 1},
		{"Protocols", &http.Transport{Protocols: one}, 1},
		{"TLSNextProto", &http.Transport{TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBackend(t, nil, secure)
			roots := x509.NewCertPool()
			roots.AddCert(b.Certificate())
			c.base.TLSClientConfig = &tls.Config{RootCAs: roots, ServerName: "example.com"}
			tr := &balancer.Transport{Base: c.base}
			newTransport(t, tr, b)
			if resp := do(t, tr, get(t, "https://svc/")); resp.ProtoMajor != c.want {
				t.Errorf("HTTP/%d, want HTTP/%d", resp.ProtoMajor, c.want)
			}
		})
	}
}

func TestResponseShowsTheCallersRequest(t *testing.T) {
	tr := &balancer.Transport{}
	newTransport(t, tr, newBackend(t, nil, (*httptest.Server).Start))
	req := get(t, "http://svc/x")
	before := req.Clone(t.Context())
	if resp := do(t, tr, req); resp.Request != req || req.URL.String() != before.URL.String() || req.Host != before.Host {
		t.Errorf("resp.Request = %+v, want the request as it was: %+v", resp.Request, before)
	}
}

func TestRemovedEndpointsAreDrained(t *testing.T) {
	hold := make(chan struct{})
	old := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).Flush()
		<-hold
		w.Write([]byte("done"))
	}, (*httptest.Server).Start)
	next := newBackend(t, nil, (*httptest.Server).Start)
	tr := &balancer.Transport{}
	registry := newTransport(t, tr, old)
	resp, err := tr.RoundTrip(get(t, "http://svc/"))
	if err != nil {
		t.Fatal(err)
	}
	registry.Set("svc", next.endpoint)
	for balancer.TransportHosts(tr, "svc")[0].ID() != next.endpoint.ID() {
		runtime.Gosched() // until the change has arrived
	}
	do(t, tr, get(t, "http://svc/"))
	if old.calls.Load() != 1 || next.calls.Load() != 1 {
		t.Errorf("calls %d and %d, want 1 and 1", old.calls.Load(), next.calls.Load())
	}
	select {
	case <-old.closed:
		t.Fatal("the connection was closed with a call in flight")
	default:
	}
	close(hold)
	if text, err := io.ReadAll(resp.Body); string(text) != "done" || err != nil {
		t.Errorf("the call in flight read %q, %v", text, err)
	}
	<-old.closed // by the drain; the test hangs if it is not
}

func TestHostAndServerNameAreTheServices(t *testing.T) {
	type seen struct{ host, serverName string }
	got := make(chan seen, 1)
	b := newBackend(t, func(_ http.ResponseWriter, r *http.Request) { got <- seen{r.Host, r.TLS.ServerName} },
		(*httptest.Server).StartTLS)
	roots := x509.NewCertPool()
	roots.AddCert(b.Certificate())
	tr := &balancer.Transport{Base: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots},
		Proxy: func(*http.Request) (*url.URL, error) {
			return nil, errors.New("an endpoint is not dialled through a proxy")
		},
	}}
	defer tr.Close()
	mapped := b.endpoint
	mapped.Ports = []discovery.Port{{Number: 8443, Target: mapped.Port}}
	mapped.Port = 1
	tr.Resolver = discovery.Static{"example.com": {mapped}} // the name in the certificate
	do(t, tr, get(t, "https://example.com:8443/"))
	if want := (seen{"example.com:8443", "example.com"}); <-got != want {
		t.Errorf("the server did not see %+v", want)
	}
}

func TestTransportAvoidsTried(t *testing.T) {
	a, b := newBackend(t, nil, (*httptest.Server).Start), newBackend(t, nil, (*httptest.Server).Start)
	tr := &balancer.Transport{Config: balancer.Config{Algorithm: balancer.Random}}
	newTransport(t, tr, a, b)
	for range 20 {
		ctx := balancer.WithTried(t.Context())
		do(t, tr, get(t, "http://svc/").WithContext(ctx))
		do(t, tr, get(t, "http://svc/").WithContext(ctx))
		if ids := balancer.Tried(ctx); !slices.Contains(ids, a.endpoint.ID()) || !slices.Contains(ids, b.endpoint.ID()) {
			t.Fatalf("two attempts went to %v", ids)
		}
	}
}

// outlier ejects what it is told to.
type outlier struct {
	mu      sync.Mutex
	ejected []string
	reports []string
}

func (o *outlier) Ejected(id string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Contains(o.ejected, id)
}

func (o *outlier) Report(id string, resp *http.Response, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	status := 0
	if resp != nil {
		status = resp.StatusCode
	}
	o.reports = append(o.reports, fmt.Sprint(id, " ", status, " ", err != nil))
}

func (o *outlier) set(ids ...string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ejected = ids
}

func TestTransportEjects(t *testing.T) {
	a, b := newBackend(t, nil, (*httptest.Server).Start), newBackend(t, nil, (*httptest.Server).Start)
	o := new(outlier)
	tr := &balancer.Transport{Outlier: o}
	newTransport(t, tr, a, b)
	o.set(a.endpoint.ID())
	for range 20 {
		do(t, tr, get(t, "http://svc/"))
	}
	if a.calls.Load() != 0 {
		t.Errorf("an ejected endpoint got %d calls", a.calls.Load())
	}
	o.set(a.endpoint.ID(), b.endpoint.ID())
	if _, err := tr.RoundTrip(get(t, "http://svc/")); !errors.Is(err, balancer.ErrNoHealthy) {
		t.Errorf("RoundTrip with all ejected: %v, want ErrNoHealthy", err)
	}
	o.set(b.endpoint.ID())
	do(t, tr, get(t, "http://svc/")) // comes back at once where there is no other
	if a.calls.Load() != 1 {
		t.Errorf("the endpoint that is back got %d calls, want 1", a.calls.Load())
	}
}

func TestTransportReportsOnceAtTheEnd(t *testing.T) {
	b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/503":
			w.WriteHeader(503)
		case "/cut":
			w.Header().Set("Content-Length", "10")
			w.Write([]byte("x"))
		case "/abort":
			panic(http.ErrAbortHandler)
		}
	}, (*httptest.Server).Start)
	for _, c := range []struct{ path, want string }{
		{"/", " 200 false"}, {"/503", " 503 false"}, {"/cut", " 200 true"}, {"/abort", " 0 true"},
	} {
		o := new(outlier)
		tr := &balancer.Transport{Outlier: o}
		newTransport(t, tr, b)
		if resp, err := tr.RoundTrip(get(t, "http://svc"+c.path)); err == nil {
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		if want := []string{b.endpoint.ID() + c.want}; !slices.Equal(o.reports, want) {
			t.Errorf("%s: reports %q, want %q", c.path, o.reports, want)
		}
	}
}

func TestTransportCookie(t *testing.T) {
	backends := []*backend{}
	for range 4 {
		backends = append(backends, newBackend(t, nil, (*httptest.Server).Start))
	}
	tr := &balancer.Transport{Config: balancer.Config{Algorithm: balancer.Maglev, HashKey: balancer.HashKey{
		Source: balancer.CookieKey, Name: "sticky", Generate: true, TTL: time.Minute,
	}}}
	newTransport(t, tr, backends...)
	for range 10 {
		first := balancer.WithTried(t.Context())
		resp := do(t, tr, get(t, "http://svc/").WithContext(first))
		cookies := resp.Cookies()
		if len(cookies) != 1 || cookies[0].Name != "sticky" || cookies[0].MaxAge != 60 {
			t.Fatalf("cookies %v, want one of 60 s", cookies)
		}
		req := get(t, "http://svc/")
		req.AddCookie(&http.Cookie{Name: "sticky", Value: cookies[0].Value})
		second := balancer.WithTried(t.Context())
		if resp := do(t, tr, req.WithContext(second)); len(resp.Cookies()) != 0 {
			t.Errorf("a request with the cookie got %v", resp.Cookies())
		}
		if a, b := balancer.Tried(first), balancer.Tried(second); !slices.Equal(a, b) {
			t.Errorf("the cookie led to %v, then to %v", a, b)
		}
	}
}

func TestTransportRefuses(t *testing.T) {
	known := discovery.Static{"svc": {{Address: "127.0.0.1", Port: 1}}}
	closed := &balancer.Transport{Resolver: known}
	closed.Close()
	dial := func(context.Context, string, string) (net.Conn, error) { return nil, io.EOF }
	for _, c := range []struct {
		name string
		tr   *balancer.Transport
		want string
	}{
		{"no resolver", &balancer.Transport{}, "no Resolver"},
		{"invalid config", &balancer.Transport{Resolver: known, Config: balancer.Config{Choices: 1}}, "Choices"},
		{"custom TLS", &balancer.Transport{Resolver: known, Base: &http.Transport{DialTLSContext: dial}}, "DialTLS"},
		{"closed", closed, balancer.ErrClosed.Error()},
		{"no endpoints", &balancer.Transport{Resolver: discovery.Static{"svc": {}}}, "no endpoints of \"svc\""},
		{"no valid endpoint", &balancer.Transport{Resolver: discovery.Static{"svc": {{Address: "10.0.0.1:80"}}}}, "the port into Port"},
	} {
		body := &leak.Body{Reader: bytes.NewReader([]byte("x"))}
		req, _ := http.NewRequestWithContext(t.Context(), "POST", "http://svc/", body)
		_, err := c.tr.RoundTrip(req)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: RoundTrip: %v, want an error with %q", c.name, err, c.want)
		}
		if body.Closed.Load() != 1 {
			t.Errorf("%s: the body was closed %d times, want once", c.name, body.Closed.Load())
		}
		if err := errors.Join(c.tr.Close(), c.tr.Close()); err != nil {
			t.Errorf("%s: Close: %v", c.name, err)
		}
	}
}

func TestTransportCloseLeavesCallsInFlight(t *testing.T) {
	hold := make(chan struct{})
	b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).Flush()
		<-hold
		w.Write([]byte("done"))
	}, (*httptest.Server).Start)
	tr := &balancer.Transport{}
	newTransport(t, tr, b)
	resp, err := tr.RoundTrip(get(t, "http://svc/"))
	if err != nil {
		t.Fatal(err)
	}
	tr.Close()
	close(hold)
	if text, err := io.ReadAll(resp.Body); string(text) != "done" || err != nil {
		t.Errorf("the call in flight read %q, %v", text, err)
	}
	<-b.closed // the connection does not outlive the call; the test hangs if it does
}

// An HTTP/2 connection becomes idle a little after its last call has ended.
func TestTransportClosesHTTP2ConnectionsOfCallsThatWereGivenUp(t *testing.T) {
	began := make(chan struct{})
	b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		began <- struct{}{}
		<-r.Context().Done()
	}, func(s *httptest.Server) {
		s.EnableHTTP2 = true
		s.StartTLS()
	})
	base := b.Client().Transport.(*http.Transport).Clone()
	base.TLSClientConfig.ServerName = "example.com"
	for range 20 { // goroutines of net/http race with Close
		tr := &balancer.Transport{Base: base}
		newTransport(t, tr, b)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-began
			cancel()
		}()
		if _, err := tr.RoundTrip(get(t, "https://svc/").WithContext(ctx)); !errors.Is(err, context.Canceled) {
			t.Fatalf("the call ended with %v", err)
		}
		tr.Close()
		<-b.closed // the test hangs if nothing closes the connection
	}
}
