package limit_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/memnet"
	"github.com/nosidecar/mesh/policy/limit"
)

// notes are what happens in a test, in order.
type notes struct {
	mu    sync.Mutex
	text  strings.Builder
	http2 bool // chosen in a handshake
}

func (n *notes) add(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	fmt.Fprintf(&n.text, format+"\n", args...)
}

func (n *notes) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.text.String()
}

// trace notes what a trace is told.
func (n *notes) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		GetConn: func(hostPort string) { n.add("  GetConn %s", hostPort) },
		GotConn: func(info httptrace.GotConnInfo) {
			n.add("  GotConn %t %t %v", info.Reused, info.WasIdle, info.IdleTime)
		},
		PutIdleConn:          func(err error) { n.add("  PutIdleConn %v", err) },
		GotFirstResponseByte: func() { n.add("  GotFirstResponseByte") },
		Got100Continue:       func() { n.add("  Got100Continue") },
		Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
			n.add("  Got1xxResponse %d %v", code, header)
			return nil
		},
		TLSHandshakeStart: func() { n.add("  TLSHandshakeStart") },
		TLSHandshakeDone: func(state tls.ConnectionState, err error) {
			n.add("  TLSHandshakeDone%s %v", summary(&state), err)
			n.mu.Lock()
			defer n.mu.Unlock()
			n.http2 = state.NegotiatedProtocol == "h2"
		},
		WroteHeaderField: func(key string, value []string) { n.add("  WroteHeaderField %s %q", key, value) },
		WroteHeaders:     func() { n.wrote("  WroteHeaders") },
		Wait100Continue:  func() { n.add("  Wait100Continue") },
		WroteRequest:     func(info httptrace.WroteRequestInfo) { n.wrote("  WroteRequest %v", info.Err) },
	}
}

// wrote notes what over HTTP/2 may come after the answer, and is not noted then.
func (n *notes) wrote(format string, args ...any) {
	n.mu.Lock()
	http2 := n.http2
	n.mu.Unlock()
	if !http2 {
		n.add(format, args...)
	}
}

// proxy is a proxy of a test. It notes what it is asked, and answers plain requests itself.
type proxy struct {
	network *memnet.Network
	notes   notes
	connect string // what it answers to CONNECT instead of connecting
	then    func(net.Conn)
}

// listen serves a proxy at proxy:port, over TLS if there are settings for it.
func (p *proxy) listen(t *testing.T, port string, settings *tls.Config, serve func(nc net.Conn)) {
	ln := p.network.Listen("proxy:" + port)
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			nc = buffer(nc)
			if settings != nil {
				nc = tls.Server(nc, settings)
			}
			go func() {
				defer nc.Close()
				serve(nc)
			}()
		}
	}()
}

func (p *proxy) http(nc net.Conn) {
	for r := bufio.NewReader(nc); ; {
		req, err := readRequest(r)
		if err != nil {
			return
		}
		p.notes.add("proxy: %s %s %s %v", req.Method, req.RequestURI, req.Host, req.Header)
		switch {
		case req.Method != http.MethodConnect:
			io.WriteString(nc, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nproxy")
		case p.connect != "":
			io.WriteString(nc, p.connect)
			return
		case p.then != nil:
			p.then(nc)
			return
		default:
			to, err := p.network.DialContext(context.Background(), "tcp", req.Host)
			if err != nil {
				io.WriteString(nc, "HTTP/1.1 502 No Way\r\n\r\n")
				return
			}
			io.WriteString(nc, "HTTP/1.1 200 Connected\r\n\r\n")
			join(nc, r, to)
			return
		}
	}
}

// join copies what comes from a client to a server, and back.
func join(nc net.Conn, from io.Reader, to net.Conn) {
	go func() {
		io.Copy(to, from)
		to.Close()
	}()
	io.Copy(nc, to)
	to.Close()
}

// socks serves SOCKS5 with a password (RFC 1928, RFC 1929).
func (p *proxy) socks(nc net.Conn) {
	r := bufio.NewReader(nc)
	field := func() string {
		n, err := r.ReadByte()
		if err != nil {
			return ""
		}
		b := make([]byte, n)
		io.ReadFull(r, b)
		return string(b)
	}
	r.ReadByte() // the version
	p.notes.add("proxy: methods %q", field())
	if p.then != nil {
		p.then(nc)
		return
	}
	nc.Write([]byte{5, 2})
	r.ReadByte()
	p.notes.add("proxy: %s %s", field(), field())
	nc.Write([]byte{1, 0})
	r.Discard(4)
	host, port := field(), make([]byte, 2)
	io.ReadFull(r, port)
	p.notes.add("proxy: to %s %v", host, port)
	to, err := p.network.DialContext(context.Background(), "tcp", fmt.Sprint(host, ":", int(port[0])<<8|int(port[1])))
	if err != nil {
		nc.Write([]byte{5, 5, 0, 1, 0, 0, 0, 0, 0, 0})
		return
	}
	nc.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	join(nc, r, to)
}

// behindProxies returns a template that uses the proxy at via, and the proxies, behind which there are servers for "orders" and "other", over TLS with
// such protocols, and in the clear.
func behindProxies(t *testing.T, via string, protocols ...string) (*proxy, *http.Transport) {
	p := &proxy{network: new(memnet.Network)}
	server, client := certificates(t)
	for port, serve := range map[string]func(net.Conn){"80": p.http, "443": p.http, "1080": p.socks} {
		settings := server
		if port != "443" {
			settings = nil
		}
		p.listen(t, port, settings, serve)
	}
	for _, host := range []string{"orders", "other"} {
		for port, settings := range map[string]*tls.Config{"80": nil, "443": {Certificates: server.Certificates, NextProtos: protocols}} {
			ln := p.network.Listen(host + ":" + port)
			if settings != nil {
				ln = tls.NewListener(bufferedListener{ln}, settings)
			}
			s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if req.Header.Get("Upgrade") != "" {
					upgrade(w, req)
					return
				}
				hello(w, req)
			})}
			go s.Serve(ln)
			t.Cleanup(func() { s.Close() })
		}
	}
	template := &http.Transport{DialContext: p.network.DialContext, TLSClientConfig: client}
	template.Proxy = func(*http.Request) (*url.URL, error) { return url.Parse(via) }
	return p, template
}

// bufferedListener accepts connections that do not wait for the reader.
type bufferedListener struct{ net.Listener }

func (l bufferedListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return buffer(nc), nil
}

// visit makes a traced call, and notes what the caller sees.
func (n *notes) visit(rt http.RoundTripper, target string) {
	req := httptest.NewRequest(http.MethodGet, target, nil)
	req.RequestURI = ""
	n.add("%s", target)
	resp, err := rt.RoundTrip(req.WithContext(httptrace.WithClientTrace(req.Context(), n.trace())))
	if err != nil {
		n.add("%T %v", err, err)
		return
	}
	text, err := []byte(nil), error(nil)
	if resp.StatusCode != http.StatusSwitchingProtocols {
		text, err = io.ReadAll(resp.Body)
	}
	resp.Body.Close()
	n.add("%s %s %q %v%s", resp.Proto, resp.Status, text, err, summary(resp.TLS))
	synctest.Wait()
}

// Behind proxies, callers, traces, proxies and servers see what they see with http.Transport.
func TestConns_BehindProxiesAsNetHTTP(t *testing.T) {
	refused := errors.New("refused for the test")
	for _, tt := range []struct {
		name      string
		via       string
		protocols []string
		set       func(p *proxy, template *http.Transport)
		calls     []string
	}{
		{name: "HTTP", via: "http://user:secret@proxy", calls: []string{"http://orders", "http://orders/path?query", "http://other:8080"}},
		{name: "HTTPS", via: "https://user:secret@proxy", calls: []string{"http://orders", "http://other", "https://orders", "https://orders"}},
		{name: "CONNECT", via: "http://user:secret@proxy", calls: []string{"https://orders", "https://orders", "https://other"}},
		{name: "CONNECT to HTTP/2", via: "http://user:secret@proxy", protocols: []string{"h2"}, calls: []string{"https://orders", "https://other"}},
		{name: "SOCKS to HTTP/2", via: "socks5://user:secret@proxy", protocols: []string{"h2"}, calls: []string{"https://orders", "https://other"}},
		{name: "SOCKS", via: "socks5://user:secret@proxy", calls: []string{"https://orders", "https://orders", "http://orders", "http://other"}},
		{name: "CONNECT with fields", via: "http://user:secret@proxy", set: func(_ *proxy, template *http.Transport) {
			template.ProxyConnectHeader = http.Header{"A": {"b"}}
		}, calls: []string{"https://orders"}},
		{name: "CONNECT with fields for the call", via: "http://user:secret@proxy", set: func(p *proxy, template *http.Transport) {
			template.GetProxyConnectHeader = func(_ context.Context, proxyURL *url.URL, target string) (http.Header, error) {
				p.notes.add("header for %s by %v", target, proxyURL)
				return http.Header{"A": {"c"}}, nil
			}
			template.OnProxyConnectResponse = func(_ context.Context, proxyURL *url.URL, req *http.Request, resp *http.Response) error {
				p.notes.add("%s from %v for %s", resp.Status, proxyURL, req.Host)
				return nil
			}
		}, calls: []string{"https://orders"}},
		{name: "no fields for the call", via: "http://proxy", set: func(_ *proxy, template *http.Transport) {
			template.GetProxyConnectHeader = func(context.Context, *url.URL, string) (http.Header, error) { return nil, refused }
		}, calls: []string{"https://orders", "http://orders"}},
		{name: "a response that is refused", via: "http://proxy", set: func(_ *proxy, template *http.Transport) {
			template.OnProxyConnectResponse = func(context.Context, *url.URL, *http.Request, *http.Response) error { return refused }
		}, calls: []string{"https://orders"}},
		{name: "CONNECT is refused", via: "http://proxy", set: func(p *proxy, _ *http.Transport) {
			p.connect = "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"
		}, calls: []string{"https://orders", "https://orders", "http://orders"}},
		{name: "CONNECT is answered with what is no HTTP", via: "http://proxy", set: func(p *proxy, _ *http.Transport) { p.connect = "SSH-2.0\r\n" }, calls: []string{"https://orders"}},
		{name: "the proxy closes", via: "http://proxy", set: func(p *proxy, _ *http.Transport) { p.then = func(net.Conn) {} }, calls: []string{"https://orders"}},
		{name: "the proxy cannot connect", via: "http://proxy", calls: []string{"https://nowhere", "https://nowhere"}},
		{name: "SOCKS cannot connect", via: "socks5://user:secret@proxy", calls: []string{"https://nowhere", "http://nowhere"}},
		{name: "the proxy stalls", via: "http://proxy", set: func(p *proxy, _ *http.Transport) { p.then = func(nc net.Conn) { io.Copy(io.Discard, nc) } }, calls: []string{"https://orders"}},
		{name: "the TLS proxy is none", via: "https://proxy:80", calls: []string{"http://orders"}},
		{name: "the peer speaks no TLS", via: "http://proxy", calls: []string{"https://orders:80"}},
		{name: "nothing listens", via: "http://proxy:1", calls: []string{"http://orders", "https://orders"}},
		{name: "another scheme", via: "ftp://proxy:80", calls: []string{"http://orders"}},
		{name: "no proxy", set: func(p *proxy, template *http.Transport) {
			template.Proxy = func(req *http.Request) (*url.URL, error) {
				p.notes.add("asked for %s %s", req.Method, req.URL)
				return nil, nil
			}
		}, calls: []string{"http://orders", "http://orders", "https://orders"}},
		{name: "a Proxy that fails", set: func(_ *proxy, template *http.Transport) {
			template.Proxy = func(*http.Request) (*url.URL, error) { return nil, refused }
		}, calls: []string{"http://orders", "https://orders"}},
		{name: "a Proxy that differs", set: func(_ *proxy, template *http.Transport) {
			template.Proxy = func(req *http.Request) (*url.URL, error) {
				via := req.URL.Query().Get("via")
				if via == "" {
					return nil, nil
				}
				return url.Parse(via)
			}
		}, calls: []string{"http://orders", "http://orders?via=http://proxy", "http://orders", "http://orders?via=http://user:secret@proxy", "http://orders?via=http://proxy", "http://orders?via=https://proxy"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			asNetHTTP(t, func(t *testing.T, through func(*http.Transport) http.RoundTripper) string {
				p, template := behindProxies(t, tt.via, tt.protocols...)
				if tt.set != nil {
					tt.set(p, template)
				}
				rt, seen := through(template), new(notes)
				for _, target := range tt.calls {
					seen.visit(rt, target)
				}
				return seen.String() + p.notes.String() + fmt.Sprint(p.network.Dials(), " dials")
			})
		})
	}
}

// Over HTTP/2 through a proxy, nothing tells how many streams there are before the first response. Calls at once all get one.
func TestConns_HTTP2BehindAProxy(t *testing.T) {
	for _, via := range []string{"http://proxy", "https://proxy", "socks5://user:secret@proxy"} {
		t.Run(via, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, template := behindProxies(t, via)
				server, _ := certificates(t)
				server.NextProtos = []string{"h2"}
				s := &http.Server{
					Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
						time.Sleep(time.Second)
						hello(w, req)
					}),
					TLSConfig: server, HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 2},
				}
				go s.ServeTLS(bufferedListener{p.network.Listen("other:8443")}, "", "")
				defer s.Close()
				c := conns(t, newPool(t, limit.PoolConfig{}), template)
				defer c.Close()
				var callers sync.WaitGroup
				for range 9 {
					callers.Go(func() {
						if got := get(t, c, "https://other:8443"); got != "HTTP/2.0" {
							t.Errorf("the server saw %s", got)
						}
					})
				}
				callers.Wait()
			})
		})
	}
}

// An upgrade to WebSocket needs HTTP/1, whatever the peer speaks otherwise.
func TestConns_WebSocketOfAPeerWithHTTP2(t *testing.T) {
	for _, via := range []string{"", "http://proxy", "socks5://user:secret@proxy"} {
		t.Run(via, func(t *testing.T) {
			asNetHTTP(t, func(t *testing.T, through func(*http.Transport) http.RoundTripper) string {
				p, template := behindProxies(t, via, "h2", "http/1.1")
				if via == "" {
					template.Proxy = nil
				}
				rt, seen := through(template), new(notes)
				visit := func(header ...string) {
					req := httptest.NewRequest(http.MethodGet, "https://orders", nil)
					req.RequestURI = ""
					for i := 0; i < len(header); i += 2 {
						req.Header.Set(header[i], header[i+1])
					}
					resp, err := rt.RoundTrip(req)
					if err != nil {
						seen.add("%v", err)
						return
					}
					resp.Body.Close()
					synctest.Wait()
					seen.add("%s %s%s", resp.Proto, resp.Status, summary(resp.TLS))
				}
				visit()
				visit("Connection", "Upgrade", "Upgrade", "websocket")
				visit("Connection", "keep-alive, upgrade", "Upgrade", "WebSocket")
				visit("Upgrade", "websocket")
				visit("Connection", "upgraded", "Upgrade", "websocket")
				visit("Connection", "Upgrade", "Upgrade", "echo")
				visit()
				return seen.String() + p.notes.String() + fmt.Sprint(p.network.Dials(), " dials")
			})
		})
	}
}

// A proxy that stalls does so for a while only, also where net/http would wait for ever.
func TestConns_AProxyThatStalls(t *testing.T) {
	for _, via := range []string{"http://proxy", "socks5://user:secret@proxy"} {
		t.Run(via, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, template := behindProxies(t, via)
				p.then = func(nc net.Conn) { io.Copy(io.Discard, nc) }
				c := conns(t, newPool(t, limit.PoolConfig{}), template)
				began := time.Now()
				err := call(t.Context(), c, "https://orders")
				if took := time.Since(began); err == nil || took < time.Minute || took > 2*time.Minute || c.Open() != 0 {
					t.Errorf("the call ended with %v after %v, and %d connections are open", err, took, c.Open())
				}
			})
		})
	}
}

// A call does not wait for a connection with which one before has lost patience.
func TestConns_AfterAStallAsNetHTTP(t *testing.T) {
	for _, tt := range []struct {
		name      string
		target    string
		via       string
		protocols []string
	}{
		{"a dial", "http://orders", "", nil},
		{"a dial for TLS", "https://orders", "", []string{"http/1.1"}},
		{"a dial for HTTP/2", "https://orders", "", []string{"h2"}},
		{"CONNECT", "https://orders", "http://proxy", nil},
		{"SOCKS", "https://orders", "socks5://user:secret@proxy", nil},
	} {
		for _, before := range []int{1, 3} {
			t.Run(fmt.Sprint(tt.name, " ", before), func(t *testing.T) {
				asNetHTTP(t, func(t *testing.T, through func(*http.Transport) http.RoundTripper) string {
					p, template := behindProxies(t, tt.via, tt.protocols...)
					if tt.via == "" {
						template.Proxy = nil
					}
					var stalled atomic.Bool
					stalled.Store(true)
					template.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
						if stalled.Load() {
							time.Sleep(5 * time.Second)
							return nil, errUnwanted
						}
						return p.network.DialContext(ctx, network, address)
					}
					rt, seen := through(template), new(notes)
					began := time.Now()
					var callers sync.WaitGroup
					for range before {
						callers.Go(func() {
							ctx, cancel := context.WithTimeout(t.Context(), time.Second)
							defer cancel()
							_, err := rt.RoundTrip(httptest.NewRequestWithContext(ctx, http.MethodGet, tt.target, nil))
							seen.add("%s", anatomy(err))
						})
					}
					callers.Wait()
					stalled.Store(false)
					seen.add("%s after %v", get(t, rt, tt.target), time.Since(began))
					time.Sleep(time.Minute)
					return seen.String()
				})
			})
		}
	}
}
