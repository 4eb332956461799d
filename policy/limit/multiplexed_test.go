package limit_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	h2 "golang.org/x/net/http2"

	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/memnet"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/policy/limit"
)

// serveClear serves HTTP/2 in the clear in memory, with so many streams to a connection at most, 0 for the default. It returns
// a template that speaks nothing else.
func serveClear(t *testing.T, streams int, handler http.HandlerFunc) (*memnet.Network, *http.Transport) {
	network := new(memnet.Network)
	startClear(t, network, streams, handler)
	template := &http.Transport{DialContext: network.DialContext, Protocols: new(http.Protocols)}
	template.Protocols.SetUnencryptedHTTP2(true)
	return network, template
}

// startClear starts a server like that of serveClear in a network that has none.
func startClear(t *testing.T, network *memnet.Network, streams int, handler http.HandlerFunc) *http.Server {
	l, done := network.Listen(""), make(chan struct{})
	server := &http.Server{Handler: handler, Protocols: new(http.Protocols), HTTP2: &http.HTTP2Config{MaxConcurrentStreams: streams}}
	server.Protocols.SetUnencryptedHTTP2(true)
	go func() {
		defer close(done)
		server.Serve(l)
	}()
	t.Cleanup(func() {
		server.Close()
		<-done
	})
	return server
}

// A connection that its peer has closed is released, with or without calls on it, long before the idle timeout.
func TestConns_ClosedByThePeerIsLetGo(t *testing.T) {
	const calls = 10
	for _, protocol := range []string{plain, overTLS, overTLS1, clear} {
		t.Run(protocol, func(t *testing.T) {
			arrived := make(chan struct{}, calls)
			s := serve(t, protocol, func(w http.ResponseWriter, req *http.Request) {
				arrived <- struct{}{}
				<-req.Context().Done()
			})
			var mu sync.Mutex
			var made []weak.Pointer[dialled]
			s.template.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
				nc, err := new(net.Dialer).DialContext(ctx, network, address)
				if err != nil {
					return nil, err
				}
				d := &dialled{Conn: nc}
				mu.Lock()
				defer mu.Unlock()
				made = append(made, weak.Make(d))
				return d, nil
			}
			// net/http keeps the connection for that long too.
			s.template.HTTP2 = &http.HTTP2Config{SendPingTimeout: time.Millisecond}
			c := conns(t, newPool(t, limit.PoolConfig{}), s.template)
			var workers sync.WaitGroup
			for range calls {
				workers.Go(func() {
					if resp, err := c.RoundTrip(httptest.NewRequestWithContext(t.Context(), http.MethodGet, s.URL, nil)); err == nil {
						resp.Body.Close()
						t.Error("a call went well whose connection was closed")
					}
				})
			}
			for range calls {
				await.Receive(t, "the calls", arrived)
			}
			s.CloseClientConnections()
			workers.Wait()
			await.True(t, "nothing holds the closed connections", func() bool {
				s.CloseClientConnections() // also those that were dialled and not needed
				runtime.GC()
				mu.Lock()
				defer mu.Unlock()
				for _, d := range made {
					if d.Value() != nil {
						return false
					}
				}
				return len(made) > 0
			})
		})
	}
}

// dialled is a connection that nothing but the transport holds.
type dialled struct{ net.Conn }

func TestConns_IdleTimeoutOfHTTP2(t *testing.T) {
	for _, tt := range []struct {
		name   string
		idle   time.Duration
		every  time.Duration // between calls
		calls  int
		wait   time.Duration
		closed bool
	}{
		{"default: before", 0, 0, 1, 59 * time.Minute, false},
		{"default: after", 0, 0, 1, 61 * time.Minute, true},
		{"set: after", time.Second, 0, 1, 2 * time.Second, true},
		{"set: after the last call", time.Minute, 40 * time.Second, 5, 59 * time.Second, false},
		{"set: a minute after the last call", time.Minute, 40 * time.Second, 5, 61 * time.Second, true},
		{"off", -1, 0, 1, 24 * time.Hour, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network, template := serveClear(t, 0, hello)
				c := conns(t, newPool(t, limit.PoolConfig{IdleTimeout: tt.idle}), template)
				for range tt.calls {
					time.Sleep(tt.every)
					get(t, c, "http://orders")
				}
				time.Sleep(tt.wait)
				synctest.Wait()
				if closed := c.Open() == 0; closed != tt.closed {
					t.Errorf("closed after %v without calls: %t, want %t", tt.wait, closed, tt.closed)
				}
				if n := network.Dials(); n != 1 {
					t.Errorf("%d dials, want 1", n)
				}
				get(t, c, "http://orders") // and it goes on
				time.Sleep(2 * max(0, tt.idle))
				synctest.Wait()
				if n := c.Open(); tt.idle > 0 && n != 0 {
					t.Errorf("%d connections are open in the end", n)
				}
			})
		})
	}
}

// The idle timeout does not end a call that takes longer, and is not forgotten after it.
func TestConns_IdleTimeoutSparesCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, template := serveClear(t, 0, func(w http.ResponseWriter, req *http.Request) {
			w.(http.Flusher).Flush()
			time.Sleep(10 * time.Minute)
			io.WriteString(w, "late")
		})
		c := conns(t, newPool(t, limit.PoolConfig{IdleTimeout: time.Minute}), template)
		if got := get(t, c, "http://orders"); got != "late" {
			t.Errorf("got %q", got)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if n := c.Open(); n != 0 {
			t.Errorf("%d connections are open, want 0", n)
		}
	})
}

// Connections that a burst needed do not stay open as long as there are any calls.
func TestConns_IdleTimeoutAfterABurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, template := serveClear(t, 1, func(w http.ResponseWriter, req *http.Request) {
			time.Sleep(time.Second)
			hello(w, req)
		})
		c := conns(t, newPool(t, limit.PoolConfig{IdleTimeout: time.Minute}), template)
		get(t, c, "http://orders")
		var burst sync.WaitGroup
		for range 5 {
			burst.Go(func() { get(t, c, "http://orders") })
		}
		burst.Wait()
		if n := c.Open(); n < 2 {
			t.Fatalf("%d connections are open, want that of each call", n)
		}
		for range 20 {
			get(t, c, "http://orders")
			time.Sleep(10 * time.Second)
		}
		synctest.Wait()
		if n := c.Open(); n != 1 {
			t.Errorf("%d connections are open, want the one that is needed", n)
		}
	})
}

// An endpoint that spoke HTTP/2 may speak HTTP/1 after it was started anew, and the other way round.
func TestConns_ThePeerChangesItsProtocol(t *testing.T) {
	for _, config := range []limit.PoolConfig{{}, {MaxConnections: 1}} {
		t.Run(fmt.Sprint("at most ", config.MaxConnections), func(t *testing.T) {
			var current atomic.Pointer[server]
			servers := []*server{serve(t, overTLS, hello), serve(t, overTLS1, hello), serve(t, overTLS, hello)}
			template := servers[0].template
			template.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, current.Load().Listener.Addr().String())
			}
			pool := newPool(t, config)
			c := conns(t, pool, template)
			for i, want := range []string{"HTTP/2.0", "HTTP/1.1", "HTTP/2.0"} {
				current.Store(servers[i])
				for range 3 {
					if got := get(t, c, servers[0].URL); got != want {
						t.Errorf("the server saw %s, want %s", got, want)
					}
				}
				servers[i].CloseClientConnections()
				await.True(t, "the connection was seen to end", func() bool { return pool.Stats().Connections == 0 })
			}
		})
	}
}

// A template may ask for HTTP/2 alone and get HTTP/1: without TLS, or from a server that does not negotiate.
func TestConns_ThePeerSpeaksSomethingElse(t *testing.T) {
	for _, protocol := range []string{plain, overTLS1} {
		t.Run(protocol, func(t *testing.T) {
			s := serve(t, protocol, hello)
			if s.TLS != nil {
				s.TLS.NextProtos = nil
			}
			s.template.Protocols = new(http.Protocols)
			s.template.Protocols.SetHTTP2(true)
			c := conns(t, newPool(t, limit.PoolConfig{MaxConnections: 1}), s.template)
			for range 3 {
				if got := get(t, c, s.URL); got != "HTTP/1.1" {
					t.Errorf("the server saw %s", got)
				}
			}
			if n := s.conns.Load(); n != 1 {
				t.Errorf("%d connections, want 1", n)
			}
		})
	}
}

// What net/http refuses to send, whatever the protocol, it refuses over open connections too.
func TestConns_RefusesWhatCannotBeSent(t *testing.T) {
	for _, protocol := range []string{plain, overTLS1, overTLS, clear} {
		t.Run(protocol, func(t *testing.T) {
			s := serve(t, protocol, hello)
			c := conns(t, newPool(t, limit.PoolConfig{}), s.template)
			get(t, c, s.URL)
			for name, spoil := range map[string]func(*http.Request){
				"header name":   func(req *http.Request) { req.Header["a b"] = []string{""} },
				"header value":  func(req *http.Request) { req.Header["A"] = []string{"a\r\nB: c"} },
				"trailer value": func(req *http.Request) { req.Trailer = http.Header{"A": {"a\r\nB: c"}} },
				"no header":     func(req *http.Request) { req.Header = nil },
				"no host":       func(req *http.Request) { req.URL.Host = "" },
				"no URL":        func(req *http.Request) { req.URL = nil },
			} {
				body := &closing{Reader: strings.NewReader("body")}
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL, body)
				if err != nil {
					t.Fatal(err)
				}
				spoil(req)
				if resp, err := c.RoundTrip(req); err == nil {
					resp.Body.Close()
					t.Errorf("%s: sent", name)
				}
				if !body.closed {
					t.Errorf("%s: the body was not closed", name)
				}
			}
		})
	}
}

// A request that a server has read and then not processed is sent again, whole, as net/http alone would.
func TestConns_GoawayAfterTheBody(t *testing.T) {
	const length = 100 << 10
	handler := func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		fmt.Fprint(w, len(body))
	}
	s := serve(t, clear, handler)
	ln := rawtest.Listen(t)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		answerOnce(nc)
	}()
	t.Cleanup(func() {
		ln.Close()
		<-gone
	})
	var dials atomic.Int64
	s.template.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if dials.Add(1) == 1 {
			address = ln.Addr().String()
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	s.template.Protocols.SetHTTP1(false)
	c := conns(t, newPool(t, limit.PoolConfig{}), s.template)
	post := func() string {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL, bytes.NewReader(make([]byte, length)))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		said, _ := io.ReadAll(resp.Body)
		return string(said)
	}
	if got := post(); got != "" {
		t.Errorf("the first answer is %q", got)
	}
	if got, want := post(), fmt.Sprint(length); got != want {
		t.Errorf("the second server got %s bytes, want %s", got, want)
	}
	if n := dials.Load(); n != 2 {
		t.Errorf("%d dials, want 2", n)
	}
}

// answerOnce answers the first request on a connection, and says of the next one, once some of its body came, that it was not
// processed.
func answerOnce(nc net.Conn) {
	if _, err := io.ReadFull(nc, make([]byte, len(h2.ClientPreface))); err != nil {
		return
	}
	f := h2.NewFramer(nc, nc)
	f.WriteSettings()
	for answered := false; ; {
		frame, err := f.ReadFrame()
		if err != nil {
			return
		}
		data, ok := frame.(*h2.DataFrame)
		switch {
		case !ok:
		case answered:
			f.WriteGoAway(1, h2.ErrCodeNo, nil)
			io.Copy(io.Discard, nc) // a reset would overtake what was said
			return
		default:
			f.WriteWindowUpdate(0, uint32(max(1, len(data.Data()))))
			f.WriteWindowUpdate(1, uint32(max(1, len(data.Data()))))
			if data.StreamEnded() {
				answered = true
				f.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, EndStream: true, EndHeaders: true, BlockFragment: []byte{0x88}}) // 200
			}
		}
	}
}

// Which protocols are offered in a handshake is up to the template, as without a pool.
func TestConns_Offers(t *testing.T) {
	both, one, two := new(http.Protocols), new(http.Protocols), new(http.Protocols)
	both.SetHTTP1(true)
	both.SetHTTP2(true)
	one.SetHTTP1(true)
	two.SetHTTP2(true)
	for _, tt := range []struct {
		name      string
		protocols *http.Protocols
		own       []string
		want      string
	}{
		{"default", nil, nil, "h2 http/1.1"},
		{"default and others", nil, []string{"istio"}, "h2 istio http/1.1"},
		{"both", both, []string{"istio"}, "h2 istio http/1.1"},
		{"HTTP/1", one, nil, ""}, // net/http offers nothing
		{"HTTP/2", two, []string{"istio"}, "h2 istio"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			offered := make(chan []string, 1)
			s := serve(t, overTLS, hello)
			s.TLS.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
				select {
				case offered <- hello.SupportedProtos:
				default:
				}
				return nil, nil
			}
			s.template.Protocols = tt.protocols
			s.template.TLSClientConfig.NextProtos = tt.own
			get(t, conns(t, newPool(t, limit.PoolConfig{}), s.template), s.URL)
			if got := strings.Join(await.Receive(t, "a handshake", offered), " "); got != tt.want {
				t.Errorf("offered %q, want %q", got, tt.want)
			}
		})
	}
}

// A call that fails over a new connection leaves it to those that come later, also behind a proxy, where its response would have told how many streams
// there are.
func TestConns_AFailedFirstCallKeepsTheConnectionUsable(t *testing.T) {
	for _, behind := range []string{"", " behind a proxy"} {
		t.Run(overTLS+behind, func(t *testing.T) {
			arrived := make(chan struct{}, 1)
			s := serve(t, overTLS, func(w http.ResponseWriter, req *http.Request) {
				if req.URL.Path == "/stall" {
					arrived <- struct{}{}
					<-req.Context().Done()
				}
				hello(w, req)
			})
			if behind != "" {
				proxy := httptest.NewServer(http.HandlerFunc(tunnel))
				defer proxy.Close()
				s.template.Proxy = func(*http.Request) (*url.URL, error) { return url.Parse(proxy.URL) }
			}
			c := conns(t, newPool(t, limit.PoolConfig{}), s.template)
			req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, s.URL, nil)
			req.Header["A"] = []string{"a\r\nB: c"}
			if _, err := c.RoundTrip(req); err == nil {
				t.Error("an invalid header was sent")
			}
			ctx, cancel := context.WithCancel(t.Context())
			var calls sync.WaitGroup
			calls.Go(func() { call(ctx, c, s.URL+"/stall") })
			await.Receive(t, "the first call", arrived)
			for range 3 {
				calls.Go(func() {
					if got := get(t, c, s.URL); got != "HTTP/2.0" {
						t.Errorf("the server saw %s", got)
					}
				})
			}
			cancel()
			calls.Wait()
			if n := s.conns.Load(); n != 1 {
				t.Errorf("%d connections, want 1", n)
			}
		})
	}
}

// tunnel is the handler of a proxy that connects.
func tunnel(w http.ResponseWriter, req *http.Request) {
	to, err := net.Dial("tcp", req.Host)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer to.Close()
	from, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer from.Close()
	io.WriteString(from, "HTTP/1.1 200 OK\r\n\r\n")
	go func() {
		io.Copy(to, rw)
		to.Close()
	}()
	io.Copy(from, to)
}

// Traces are told of the connections of calls that share them.
func TestConns_TracesOfSharedConnections(t *testing.T) {
	s := serve(t, overTLS, hello)
	c := conns(t, newPool(t, limit.PoolConfig{}), s.template)
	const calls = 100
	var fresh, reused atomic.Int64
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		if _, ok := info.Conn.(*tls.Conn); !ok || info.WasIdle && !info.Reused {
			t.Errorf("%+v", info)
		}
		if info.Reused {
			reused.Add(1)
		} else {
			fresh.Add(1)
		}
	}})
	var callers sync.WaitGroup
	for range calls {
		callers.Go(func() {
			if err := call(ctx, c, s.URL); err != nil {
				t.Error(err)
			}
		})
	}
	callers.Wait()
	if fresh.Load() != s.conns.Load() || fresh.Load()+reused.Load() != calls {
		t.Errorf("%d calls on new connections and %d on others, with %d connections", fresh.Load(), reused.Load(), s.conns.Load())
	}
}

// A connection over which nothing can be written fails the call that it was made for, and is closed.
func TestConns_ANewConnectionThatCannotBeWritten(t *testing.T) {
	for _, protocol := range []string{plain, clear, overTLS, overTLS1} {
		t.Run(protocol, func(t *testing.T) {
			s := serve(t, protocol, hello)
			s.template.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
				nc, err := new(net.Dialer).DialContext(ctx, network, address)
				return unwritable{nc}, err
			}
			pool := newPool(t, limit.PoolConfig{})
			c := conns(t, pool, s.template)
			if err := call(t.Context(), c, s.URL); !errors.Is(err, errUnwritable) {
				t.Errorf("the call ended with %v", err)
			}
			await.True(t, "the connection is closed", func() bool { return pool.Stats().Connections == 0 })
		})
	}
}

type unwritable struct{ net.Conn }

var errUnwritable = errors.New("cannot be written")

func (unwritable) Write([]byte) (int, error) { return 0, errUnwritable }
