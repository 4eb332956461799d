package limit_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/memnet"
	"github.com/nosidecar/mesh/internal/refusal"
	"github.com/nosidecar/mesh/policy/limit"
)

// server is a loopback server that counts the connections made to it.
type server struct {
	*httptest.Server
	template *http.Transport // one that may call it

	conns atomic.Int64
}

// protocols a server may speak.
const (
	plain    = "HTTP/1.1"
	overTLS  = "HTTP/2 over TLS"
	overTLS1 = "HTTP/1.1 over TLS"
	clear    = "HTTP/2 in the clear"
)

func serve(t testing.TB, protocol string, handler http.HandlerFunc) *server {
	return serveStreams(t, protocol, 0, handler)
}

// serveStreams is serve with so many streams to an HTTP/2 connection at most, 0 for the default.
func serveStreams(t testing.TB, protocol string, streams int, handler http.HandlerFunc) *server {
	s := &server{template: &http.Transport{}}
	s.Server = httptest.NewUnstartedServer(handler)
	s.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: streams}
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // connections that are dialled and not needed
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			s.conns.Add(1)
		}
	}
	switch protocol {
	case plain:
		s.Start()
	case overTLS, overTLS1:
		s.EnableHTTP2 = protocol == overTLS
		s.StartTLS()
		// Without ForceAttemptHTTP2, on purpose.
		s.template.TLSClientConfig = s.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
		s.template.TLSClientConfig.NextProtos = nil
		s.template.TLSHandshakeTimeout = time.Minute // a machine may stand still for longer than the default
	case clear:
		s.Config.Protocols = new(http.Protocols)
		s.Config.Protocols.SetUnencryptedHTTP2(true)
		s.template.Protocols = new(http.Protocols)
		s.template.Protocols.SetUnencryptedHTTP2(true)
		s.Start()
	}
	t.Cleanup(s.Close)
	return s
}

func hello(w http.ResponseWriter, req *http.Request) {
	io.Copy(io.Discard, req.Body)
	io.WriteString(w, req.Proto)
}

// conns returns connections of the pool made from the template, which are closed, and seen to be, after the test.
func conns(t *testing.T, pool *limit.Pool, template *http.Transport) *limit.Conns {
	t.Helper()
	c, err := pool.Conns(template)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// get makes a call and returns what it answers. It may be called from any goroutine.
func get(t *testing.T, rt http.RoundTripper, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader("a body"))
	if err != nil {
		t.Error(err)
		return ""
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	if resp.Request != req {
		t.Error("resp.Request is not the caller's")
	}
	if req.Close || req.Header.Get("Connection") != "" {
		t.Error("the caller's request was changed")
	}
	return string(text)
}

// As many idle connections are kept as there were calls in flight: a later burst of calls dials none.
func TestIdleConnectionsAreReused(t *testing.T) {
	const workers, bursts = 48, 20
	for name, config := range map[string]limit.PoolConfig{
		"no limit": {},
		"limit":    {MaxConnections: workers},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				arrived := make(chan struct{}, workers)
				release := make(chan struct{})
				network, template := serveInMemory(t, func(w http.ResponseWriter, req *http.Request) {
					arrived <- struct{}{}
					<-release
					hello(w, req)
				})
				pool := newPool(t, config)
				c := conns(t, pool, template)
				for range bursts {
					var wg sync.WaitGroup
					for range workers {
						wg.Go(func() {
							slot, err := pool.Acquire(t.Context(), http1)
							if err != nil {
								t.Error(err)
								return
							}
							defer slot.Release()
							get(t, c, "http://orders")
						})
					}
					for range workers {
						<-arrived // all are in flight at once
					}
					if n := c.Open(); n != workers {
						t.Errorf("%d connections open, want %d", n, workers)
					}
					for range workers {
						release <- struct{}{}
					}
					wg.Wait()
					synctest.Wait() // net/http takes a connection back after its call
				}
				if n := network.Dials(); n != workers {
					t.Errorf("%d calls, %d at a time, opened %d connections", bursts*workers, workers, n)
				}
			})
		})
	}
}

// net/http appends to the protocols of a TLS configuration, which clones of a transport share.
func TestConns_OfOneTemplateShareNothing(t *testing.T) {
	s := serve(t, overTLS, hello)
	s.template.Protocols = new(http.Protocols)
	s.template.Protocols.SetHTTP2(true)
	pool := newPool(t, limit.PoolConfig{})
	var wg sync.WaitGroup
	for range 8 {
		c := conns(t, pool, s.template)
		wg.Go(func() { get(t, c, s.URL) })
	}
	wg.Wait()
}

func TestHTTP2ConnectionsAreKept(t *testing.T) {
	for _, tt := range []struct {
		protocol, want string
	}{
		{plain, "HTTP/1.1"},
		{overTLS, "HTTP/2.0"}, // by a template with a TLSClientConfig, which alone would mean HTTP/1.1
		{overTLS1, "HTTP/1.1"},
		{clear, "HTTP/2.0"},
	} {
		t.Run(tt.protocol, func(t *testing.T) {
			s := serve(t, tt.protocol, hello)
			pool := newPool(t, limit.PoolConfig{MaxConnections: 1})
			c := conns(t, pool, s.template)
			if got := get(t, c, s.URL); got != tt.want {
				t.Errorf("the server saw %s, want %s", got, tt.want)
			}
		})
	}
	t.Run("unless the template says no", func(t *testing.T) {
		s := serve(t, overTLS, hello)
		s.template.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
		if got := get(t, conns(t, nil, s.template), s.URL); got != "HTTP/1.1" {
			t.Errorf("the server saw %s, want HTTP/1.1", got)
		}
	})
}

// Calls that share an HTTP/2 connection never wait for one another, whatever MaxConnections is.
func TestHTTP2CallsShareOneConnection(t *testing.T) {
	const calls = 20
	var together sync.WaitGroup
	together.Add(calls)
	s := serve(t, overTLS, func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/together" {
			together.Done()
			together.Wait()
		}
		hello(w, req)
	})
	pool := newPool(t, limit.PoolConfig{MaxConnections: 1})
	c := conns(t, pool, s.template)
	if got := get(t, c, s.URL); got != "HTTP/2.0" {
		t.Fatalf("the server saw %s, want HTTP/2.0", got)
	}
	var workers sync.WaitGroup
	for range calls {
		workers.Go(func() { get(t, c, s.URL+"/together") })
	}
	workers.Wait()
	if n := s.conns.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

func TestConns_MaxRequestsPerConnection(t *testing.T) {
	for _, protocol := range []string{plain, overTLS, overTLS1, clear} {
		for _, tt := range []struct {
			limit, least, most int // calls that the busiest connection serves, of 12
		}{{0, 6, 12}, {1, 1, 1}, {2, 2, 2}, {5, 3, 5}} {
			t.Run(fmt.Sprintf("%s/%d", protocol, tt.limit), func(t *testing.T) {
				var mu sync.Mutex
				served := make(map[string]int) // by connection
				s := serve(t, protocol, func(w http.ResponseWriter, req *http.Request) {
					mu.Lock()
					served[req.RemoteAddr]++
					mu.Unlock()
					hello(w, req)
				})
				pool := newPool(t, limit.PoolConfig{MaxRequestsPerConnection: tt.limit})
				c := conns(t, pool, s.template)
				for range 12 {
					get(t, c, s.URL)
				}
				mu.Lock()
				defer mu.Unlock()
				// Not the number of connections: net/http now and then dials one more than it needs.
				if most := slices.Max(slices.Collect(maps.Values(served))); most < tt.least || most > tt.most {
					t.Errorf("connections served %v calls, want the busiest to serve %d to %d", served, tt.least, tt.most)
				}
			})
		}
	}
}

// A server that goes on with a connection after it was asked not to is not followed.
func TestConns_MaxRequestsPerConnectionIsEnforced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var servers sync.WaitGroup
		defer servers.Wait()
		dials := 0
		pool := newPool(t, limit.PoolConfig{MaxRequestsPerConnection: 2})
		c := conns(t, pool, &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
			dials++
			client, server := net.Pipe()
			servers.Go(func() {
				requests := bufio.NewReader(server)
				for {
					if _, err := http.ReadRequest(requests); err != nil {
						return
					}
					io.WriteString(server, "HTTP/1.1 204 No Content\r\nConnection: keep-alive\r\n\r\n")
				}
			})
			return client, nil
		}})
		defer c.Close()
		for range 6 {
			resp, err := c.RoundTrip(httptest.NewRequest(http.MethodGet, "http://orders", nil))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
		}
		if dials != 3 {
			t.Errorf("6 calls with 2 to a connection dialled %d times, want 3", dials)
		}
	})
}

func TestConns_MaxConnectionsOverEndpoints(t *testing.T) {
	pool := newPool(t, limit.PoolConfig{MaxConnections: 2})
	var endpoints []*limit.Conns
	var servers []*server
	for range 4 {
		s := serve(t, plain, hello)
		servers = append(servers, s)
		endpoints = append(endpoints, conns(t, pool, s.template))
	}
	conns(t, pool, servers[0].template).Close() // of an endpoint that is gone: the others still make room for each other
	for range 3 {
		for i, c := range endpoints {
			get(t, c, servers[i].URL)
			if n := pool.Stats().Connections; n > 2 || c.Open() != 1 {
				t.Fatalf("%d connections open, %d of them to the endpoint just called; want at most 2 and 1", n, c.Open())
			}
		}
	}
}

func TestConns_Close(t *testing.T) {
	for _, protocol := range []string{plain, overTLS, overTLS1, clear} {
		t.Run(protocol, func(t *testing.T) {
			s := serve(t, protocol, hello)
			pool := newPool(t, limit.PoolConfig{})
			c, other := conns(t, pool, s.template), conns(t, pool, s.template)
			get(t, other, s.URL)
			for range 10 {
				get(t, c, s.URL)
			}
			c.Close()
			c.Close()
			// net/http may still be dialling for a call that got another connection meanwhile.
			await.True(t, "0 connections open, 1 of the others, and 1 in all", func() bool {
				return c.Open() == 0 && other.Open() == 1 && pool.Stats().Connections == 1
			})
			_, err := c.RoundTrip(httptest.NewRequest(http.MethodGet, s.URL, nil))
			if !errors.Is(err, net.ErrClosed) || c.Open() != 0 {
				t.Errorf("RoundTrip = %v with %d open, want net.ErrClosed and 0", err, c.Open())
			}
		})
	}
}

// When the connections of other endpoints are busy, an endpoint without one still gets one.
func TestConns_EveryEndpointMayHaveOne(t *testing.T) {
	release := make(chan struct{})
	busy := serve(t, plain, func(w http.ResponseWriter, _ *http.Request) {
		w.(http.Flusher).Flush()
		<-release
	})
	free := serve(t, plain, hello)
	pool := newPool(t, limit.PoolConfig{MaxConnections: 1})
	held, err := conns(t, pool, busy.template).RoundTrip(httptest.NewRequest(http.MethodGet, busy.URL, nil))
	if err != nil {
		t.Fatal(err)
	}
	get(t, conns(t, pool, free.template), free.URL)
	close(release)
	held.Body.Close()
}

func TestPoolConns_Errors(t *testing.T) {
	dial := func(context.Context, string, string) (net.Conn, error) { return nil, io.EOF }
	for name, template := range map[string]*http.Transport{
		"DialTLS":         {DialTLSContext: dial},
		"MaxConnsPerHost": {MaxConnsPerHost: 1},
	} {
		if _, err := newPool(t, limit.PoolConfig{}).Conns(template); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: Conns = %v, want an error that names it", name, err)
		}
	}
}

// serveInMemory returns a template that calls the handler through a network in memory.
func serveInMemory(t *testing.T, handler http.HandlerFunc) (*memnet.Network, *http.Transport) {
	network := new(memnet.Network)
	network.Serve(t, "", handler)
	return network, &http.Transport{DialContext: network.DialContext}
}

func TestConns_ConnectTimeout(t *testing.T) {
	for _, tt := range []struct {
		config limit.PoolConfig
		want   time.Duration
	}{
		{limit.PoolConfig{}, 10 * time.Second},
		{limit.PoolConfig{ConnectTimeout: 50 * time.Millisecond}, 50 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			pool := newPool(t, tt.config)
			c := conns(t, pool, &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}})
			begin := time.Now()
			_, err := c.RoundTrip(httptest.NewRequest(http.MethodGet, "http://orders", nil))
			if took := time.Since(begin); took != tt.want {
				t.Errorf("%+v: failed after %v, want %v", tt.config, took, tt.want)
			}
			op, ok := errors.AsType[*net.OpError](err)
			if !ok || op.Op != "dial" || !op.Timeout() || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("RoundTrip = %v, want a dial error that is a timeout", err)
			}
			if n := pool.Stats().Connections; n != 0 {
				t.Errorf("%d connections counted after a failed dial", n)
			}
		})
	}
}

func TestConns_DialErrorsKeepTheirType(t *testing.T) {
	own, custom := &net.OpError{Op: "dial", Net: "tcp", Err: io.EOF}, errors.New("custom")
	for _, dialErr := range []error{own, custom} {
		c := conns(t, nil, &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
			return nil, dialErr
		}})
		_, err := c.RoundTrip(httptest.NewRequest(http.MethodGet, "http://orders", nil))
		op, ok := errors.AsType[*net.OpError](err)
		if !ok || op.Op != "dial" || !errors.Is(err, dialErr) {
			t.Errorf("RoundTrip = %v, want a dial error with %v", err, dialErr)
		}
		if dialErr == own && op != own {
			t.Errorf("%v was wrapped again", own)
		}
	}
}

func TestConns_IdleTimeout(t *testing.T) {
	for _, tt := range []struct {
		name   string
		idle   time.Duration
		wait   time.Duration
		closed bool
	}{
		{"default: before", 0, 59 * time.Minute, false},
		{"default: after", 0, 61 * time.Minute, true},
		{"set: after", time.Second, 2 * time.Second, true},
		{"off", -1, 24 * time.Hour, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, template := serveInMemory(t, hello)
				template.IdleConnTimeout = 90 * time.Second // the pool's wins
				pool := newPool(t, limit.PoolConfig{IdleTimeout: tt.idle})
				c := conns(t, pool, template)
				get(t, c, "http://orders")
				time.Sleep(tt.wait)
				synctest.Wait()
				if closed := c.Open() == 0; closed != tt.closed {
					t.Errorf("closed after %v without calls: %t, want %t", tt.wait, closed, tt.closed)
				}
			})
		})
	}
}

func TestConns_MaxConnectionDuration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network, template := serveInMemory(t, hello)
		pool := newPool(t, limit.PoolConfig{MaxConnectionDuration: time.Minute})
		c := conns(t, pool, template)
		for _, step := range []struct {
			after time.Duration
			dials int
		}{
			{0, 1}, {59 * time.Second, 1},
			{time.Second, 1}, // the last call
			{0, 2},
			{30 * time.Minute, 2}, {0, 3},
		} {
			time.Sleep(step.after)
			get(t, c, "http://orders")
			synctest.Wait()
			if n := network.Dials(); n != step.dials {
				t.Fatalf("%d dials at %v, want %d", n, step, step.dials)
			}
		}
	})
}

func TestConns_WaitsForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, template := serveInMemory(t, func(w http.ResponseWriter, req *http.Request) {
			w.(http.Flusher).Flush()
			<-req.Context().Done() // until the client closes the connection
		})
		pool := newPool(t, limit.PoolConfig{MaxConnections: 1})
		c := conns(t, pool, template)
		call := func() (*http.Response, error) {
			return c.RoundTrip(httptest.NewRequest(http.MethodGet, "http://orders", nil))
		}
		first, err := call()
		if err != nil {
			t.Fatal(err)
		}

		begin := time.Now()
		_, err = call()
		if !errors.Is(err, limit.ErrOverflow) || !refusal.Is(err) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("RoundTrip = %v, want ErrOverflow and the deadline", err)
		}
		if took := time.Since(begin); took != 10*time.Second {
			t.Errorf("waited %v, want the connect timeout", took)
		}
		if n := pool.Stats().Overflows; n != 1 {
			t.Errorf("%d overflows, want 1", n)
		}

		time.AfterFunc(time.Second, func() { first.Body.Close() })
		begin = time.Now()
		second, err := call()
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took != time.Second {
			t.Errorf("waited %v, want until the other connection closed", took)
		}
		second.Body.Close()
		synctest.Wait()
		if n := pool.Stats().Connections; n != 0 {
			t.Errorf("%d connections in the end", n)
		}
	})
}

// A connection to another endpoint that becomes idle makes room, however long a call has waited for it.
func TestConns_WaitsForAnIdleConnectionElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, template := serveInMemory(t, func(_ http.ResponseWriter, req *http.Request) {
			took, err := time.ParseDuration(req.URL.Query().Get("takes"))
			if err != nil {
				t.Error(err)
			}
			time.Sleep(took)
		})
		pool := newPool(t, limit.PoolConfig{MaxConnections: 2})
		orders, stock := conns(t, pool, template), conns(t, pool, template)
		var calls sync.WaitGroup
		calls.Go(func() { get(t, orders, "http://orders?takes=1h") })
		calls.Go(func() { get(t, stock, "http://stock?takes=5s") })
		synctest.Wait()
		time.AfterFunc(time.Second, func() { get(t, stock, "http://stock?takes=0s") }) // then net/http keeps what becomes idle
		begin := time.Now()
		get(t, orders, "http://orders?takes=0s")
		if took := time.Since(begin); took < 5*time.Second || took > 6*time.Second {
			t.Errorf("the call took %v, want little more than the 5s until the other connection was idle", took)
		}
		calls.Wait()
	})
}

// tcp is a connection that notes how keepalive was set.
type tcp struct {
	net.Conn
	config *net.KeepAliveConfig
	err    error
}

func (c tcp) SetKeepAliveConfig(config net.KeepAliveConfig) error {
	*c.config = config
	return c.err
}

func TestConns_Keepalive(t *testing.T) {
	for _, tt := range []struct {
		name      string
		keepalive limit.Keepalive
		err       error
		want      net.KeepAliveConfig
	}{
		{"unset", limit.Keepalive{}, nil, net.KeepAliveConfig{}},
		{"all", limit.Keepalive{Probes: 3, Time: time.Minute, Interval: time.Second}, nil,
			net.KeepAliveConfig{Enable: true, Count: 3, Idle: time.Minute, Interval: time.Second}},
		{"some", limit.Keepalive{Time: time.Minute}, nil,
			net.KeepAliveConfig{Enable: true, Count: -1, Idle: time.Minute, Interval: -1}},
		{"refused", limit.Keepalive{Probes: 3}, errors.New("no"),
			net.KeepAliveConfig{Enable: true, Count: 3, Idle: -1, Interval: -1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, template := serveInMemory(t, hello)
				dial := template.DialContext
				var got net.KeepAliveConfig
				template.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
					c, err := dial(ctx, network, addr)
					return tcp{c, &got, tt.err}, err
				}
				pool := newPool(t, limit.PoolConfig{Keepalive: tt.keepalive})
				c := conns(t, pool, template)
				resp, err := c.RoundTrip(httptest.NewRequest(http.MethodGet, "http://orders", nil))
				if !errors.Is(err, tt.err) {
					t.Fatalf("RoundTrip = %v, want %v", err, tt.err)
				}
				if err == nil {
					resp.Body.Close()
				}
				if got != tt.want {
					t.Errorf("keepalive %+v, want %+v", got, tt.want)
				}
				if tt.err != nil && c.Open() != 0 {
					t.Error("a connection that could not be set up counts as open")
				}
			})
		})
	}
}

// The deprecated Dial of a template is kept, inside what the pool adds.
func TestConns_KeepsDial(t *testing.T) {
	s := serve(t, plain, hello)
	var dialled []string
	//lint:ignore SA1019 that it still works is the point
	template := &http.Transport{Dial: func(network, addr string) (net.Conn, error) {
		dialled = append(dialled, addr)
		return net.Dial(network, addr)
	}}
	c := conns(t, nil, template)
	get(t, c, s.URL)
	if want := []string{s.Listener.Addr().String()}; !slices.Equal(dialled, want) || c.Open() != 1 {
		t.Errorf("dialled %q with %d open, want %q and 1", dialled, c.Open(), want)
	}
}

// The connection that traces get to see leads to the one that was dialled.
func TestConns_TraceSeesTheConnection(t *testing.T) {
	s := serve(t, plain, hello)
	c := conns(t, newPool(t, limit.PoolConfig{MaxRequestsPerConnection: 2}), s.template)
	var seen net.Conn
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) { seen = info.Conn },
	})
	resp, err := c.RoundTrip(httptest.NewRequestWithContext(ctx, http.MethodGet, s.URL, nil))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	wrapper, ok := seen.(interface{ NetConn() net.Conn })
	if !ok {
		t.Fatalf("the trace saw a %T without NetConn", seen)
	}
	if _, ok := wrapper.NetConn().(*net.TCPConn); !ok {
		t.Errorf("NetConn is a %T, want *net.TCPConn", wrapper.NetConn())
	}
}

func TestConns_SendsAFile(t *testing.T) {
	const size = 1 << 20
	s := serve(t, plain, func(w http.ResponseWriter, req *http.Request) {
		n, err := io.Copy(io.Discard, req.Body)
		fmt.Fprint(w, n, err)
	})
	name := filepath.Join(t.TempDir(), "body")
	if err := os.WriteFile(name, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, s.URL, file)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = size
	resp, err := conns(t, nil, s.template).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, _ := io.ReadAll(resp.Body); string(got) != fmt.Sprint(size, nil) {
		t.Errorf("the server read %s, want %d bytes", got, size)
	}
}

// A dial that is no longer needed, since its call got a connection that became idle, does not take that from later calls.
func TestConns_KeepsItsOwnIdleConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network, template := serveInMemory(t, slowly)
		c := conns(t, newPool(t, limit.PoolConfig{MaxConnections: 1}), template)
		var workers sync.WaitGroup
		for range 2 {
			workers.Go(func() { get(t, c, "http://orders") })
		}
		workers.Wait()
		time.Sleep(time.Second) // the connection is idle
		get(t, c, "http://orders")
		if n := network.Dials(); n != 1 || c.Open() != 1 {
			t.Errorf("%d dials, and %d connections are open; want 1 and 1", n, c.Open())
		}
	})
}
