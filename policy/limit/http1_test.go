package limit_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/memnet"
	"github.com/nosidecar/mesh/policy/limit"
)

// asNetHTTP compares what run sees with a template and with connections of a pool that are made from it, which through returns. Both see the same. It
// returns what that is.
func asNetHTTP(t *testing.T, run func(t *testing.T, through func(template *http.Transport) http.RoundTripper) string) string {
	t.Helper()
	var seen [2]string
	synctest.Test(t, func(t *testing.T) {
		seen[0] = run(t, func(template *http.Transport) http.RoundTripper {
			template.ForceAttemptHTTP2 = true // as for connections of a pool
			t.Cleanup(template.CloseIdleConnections)
			return template
		})
	})
	synctest.Test(t, func(t *testing.T) {
		seen[1] = run(t, func(template *http.Transport) http.RoundTripper {
			return conns(t, newPool(t, limit.PoolConfig{}), template)
		})
	})
	if seen[1] != seen[0] {
		t.Errorf("got\n%s\nwith http.Transport\n%s", seen[1], seen[0])
	}
	return seen[0]
}

// security is how the scripted servers of a test are reached.
type security struct {
	name    string
	scheme  string
	offered []string // by the server
	client  func(*http.Transport)
}

var securities = []security{
	{name: "in the clear", scheme: "http"},
	{name: "TLS", scheme: "https"},
	{name: "TLS with HTTP/1 chosen", scheme: "https", offered: []string{"http/1.1"}},
	{name: "TLS with another protocol chosen", scheme: "https", offered: []string{"istio"}, client: func(template *http.Transport) {
		template.TLSClientConfig.NextProtos = []string{"istio"}
	}},
	{name: "TLS without ALPN", scheme: "https", client: func(template *http.Transport) {
		template.Protocols = new(http.Protocols)
		template.Protocols.SetHTTP1(true)
	}},
}

// Whatever a server does with connections over HTTP/1, callers and the server see what they see with http.Transport: answers, errors, closed bodies and
// connections.
func TestConns_OverHTTP1AsNetHTTP(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	one := func(answer string) func(net.Conn, *bufio.Reader, int) {
		return func(nc net.Conn, r *bufio.Reader, n int) {
			for {
				if _, err := readRequest(r); err != nil {
					return
				}
				io.WriteString(nc, answer)
			}
		}
	}
	// once answers the first request of the first connection, and then does what then says. Other connections answer.
	once := func(then func(nc net.Conn, r *bufio.Reader)) func(net.Conn, *bufio.Reader, int) {
		return func(nc net.Conn, r *bufio.Reader, n int) {
			if n > 1 {
				one(ok)(nc, r, n)
				return
			}
			readRequest(r)
			io.WriteString(nc, ok)
			then(nc, r)
		}
	}
	closesOnRequest := once(func(nc net.Conn, r *bufio.Reader) { readRequest(r) })
	for _, tt := range []struct {
		name  string
		serve func(nc net.Conn, r *bufio.Reader, n int) // the n-th connection
		calls []scripted
	}{
		{"two calls", one(ok), []scripted{{}, {}}},
		{"a call with a body", one(ok), []scripted{{method: "POST", body: "body"}, {method: "POST", body: "body", again: true}}},
		{"the server closes", one("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"), []scripted{{}, {}}},
		{"the caller closes", one(ok), []scripted{{header: "Connection: close"}, {}}},
		{"HEAD", one("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"), []scripted{{method: "HEAD"}, {method: "HEAD"}}},
		{"no content", one("HTTP/1.1 204 No Content\r\n\r\n"), []scripted{{}, {}, {method: "DELETE"}}},
		{"an empty body", one("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), []scripted{{}, {}}},
		{"chunks and trailers", one("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n2\r\nok\r\n0\r\nX: y\r\n\r\n"), []scripted{{}, {}}},
		{"the body is not read", one(ok), []scripted{{unread: true}, {}}},
		{"a body that is cut off", one("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"), []scripted{{within: time.Second}, {within: time.Second}}},
		{"no answer", one(""), []scripted{{within: time.Second}, {within: time.Second}}},
		{"calls that have ended before they begin", one(ok), []scripted{{within: -1, method: "POST", body: "body"}, {}, {within: -1}, {}}},
		{"what is no HTTP", one("SSH-2.0\r\n"), []scripted{{}, {}}},
		{"an answer and more", one(ok + "HTTP/1.1 200 OK\r\n\r\n"), []scripted{{}, {}}},
		{"switching protocols", one("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"), []scripted{{header: "Upgrade: x\r\nConnection: Upgrade"}, {}}},
		{"an upgrade that is refused", one(ok), []scripted{{header: "Upgrade: x\r\nConnection: Upgrade"}, {}}},
		{"an early answer", one("HTTP/1.1 103 Early Hints\r\n\r\n" + ok), []scripted{{}, {}}},
		{"an invalid field", one(ok), []scripted{{}, {header: "X: a\x00b"}, {}}},
		{"an invalid method", one(ok), []scripted{{}, {method: "A B"}, {}}},
		{"the peer hangs up when it answers nothing", func(_ net.Conn, r *bufio.Reader, _ int) { readRequest(r) }, []scripted{{}, {method: "POST", body: "body", again: true}}},
		{"idle connections are closed", once(func(nc net.Conn, r *bufio.Reader) { nc.Close() }), []scripted{{}, {after: time.Second}}},
		{"408 to an idle connection", once(func(nc net.Conn, r *bufio.Reader) {
			io.WriteString(nc, "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n")
		}), []scripted{{}, {after: time.Second}}},
		{"closed by a GET", closesOnRequest, []scripted{{}, {}}},
		{"closed by a POST", closesOnRequest, []scripted{{}, {method: "POST", body: "body"}}},
		{"closed by a POST that could be sent again", closesOnRequest, []scripted{{}, {method: "POST", body: "body", again: true}}},
		{"closed by a POST with a key", closesOnRequest, []scripted{{}, {method: "POST", body: "body", again: true, header: "Idempotency-Key: 1"}}},
		{"closed by a PUT", closesOnRequest, []scripted{{}, {method: "PUT", body: "body", again: true}}},
		{"closed by an OPTIONS with a body", closesOnRequest, []scripted{{}, {method: "OPTIONS", body: "body", again: true}}},
		{"closed by an OPTIONS with a body that is gone", closesOnRequest, []scripted{{}, {method: "OPTIONS", body: "body"}}},
		{"a body that fails", one(ok), []scripted{{}, {method: "OPTIONS", body: "fails", again: true}, {}}},
		{"continue", one("HTTP/1.1 100 Continue\r\n\r\n" + ok), []scripted{{method: "POST", body: "body", header: "Expect: 100-continue"}, {}}},
	} {
		for _, over := range securities {
			t.Run(tt.name+"/"+over.name, func(t *testing.T) {
				asNetHTTP(t, func(t *testing.T, through func(*http.Transport) http.RoundTripper) string {
					network, template := script(t, over, tt.serve)
					rt, seen := through(template), ""
					for _, c := range tt.calls {
						time.Sleep(c.after)
						seen += c.do(rt, over.scheme) + "\n"
					}
					return seen + fmt.Sprint(network.Dials(), " dials")
				})
			})
		}
	}
}

// script serves each connection of a network with serve, and returns a template that leads there.
func script(t *testing.T, over security, serve func(nc net.Conn, r *bufio.Reader, n int)) (*memnet.Network, *http.Transport) {
	network := new(memnet.Network)
	ln := network.Listen("")
	t.Cleanup(func() { ln.Close() })
	template := &http.Transport{DialContext: network.DialContext}
	server, client := certificates(t)
	server.NextProtos = over.offered
	template.TLSClientConfig = client
	if over.client != nil {
		over.client(template)
	}
	go func() {
		for n := 1; ; n++ {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			if over.scheme == "https" {
				nc = tls.Server(buffer(nc), server)
			}
			go func() {
				defer nc.Close()
				serve(nc, bufio.NewReader(nc), n)
			}()
		}
	}()
	return network, template
}

// buffered is a connection in memory that takes what is written without waiting for the reader, as a socket does. When it is closed, it still sends
// that, and discards what it receives.
type buffered struct {
	net.Conn
	mu      sync.Mutex
	change  *sync.Cond // of pending and closed
	pending [][]byte
	closed  bool
}

func buffer(nc net.Conn) net.Conn {
	b := &buffered{Conn: nc}
	b.change = sync.NewCond(&b.mu)
	go b.send()
	return b
}

func (b *buffered) send() {
	defer b.Conn.Close()
	for {
		b.mu.Lock()
		for len(b.pending) == 0 && !b.closed {
			b.change.Wait()
		}
		pending := b.pending
		b.pending = nil
		b.mu.Unlock()
		if len(pending) == 0 {
			return
		}
		for _, p := range pending {
			if _, err := b.Conn.Write(p); err != nil {
				return
			}
		}
	}
}

func (b *buffered) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, net.ErrClosed
	}
	b.pending = append(b.pending, bytes.Clone(p))
	b.change.Signal()
	return len(p), nil
}

func (b *buffered) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		b.closed = true
		b.change.Signal()
		go io.Copy(io.Discard, b.Conn)
	}
	return nil
}

func (*buffered) SetWriteDeadline(time.Time) error { return nil }

func TestConns_DialsWhatNetHTTPDials(t *testing.T) {
	for _, host := range []string{"orders", "orders:8080", "orders:", "10.0.0.1", "[::1]", "[::1]:8080", "[fe80::1%25lo]:80", "B\u00dccher.example", "b\u00fccher.example:81"} {
		var dialled []string
		template := &http.Transport{DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
			dialled = append(dialled, address)
			return nil, errors.New("not today")
		}}
		for _, rt := range []http.RoundTripper{template, conns(t, newPool(t, limit.PoolConfig{}), template)} {
			req, err := http.NewRequest(http.MethodGet, "http://"+host+"/", nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := rt.RoundTrip(req); err == nil || !strings.Contains(err.Error(), "not today") {
				t.Errorf("%s: %v", host, err)
			}
		}
		if len(dialled) != 2 || dialled[0] != dialled[1] {
			t.Errorf("%s: dialled %q", host, dialled)
		}
	}
}

// A dialer that returns nothing fails the call, and not the program.
func TestConns_ADialerThatReturnsNothing(t *testing.T) {
	template := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return nil, nil }}
	for name, pool := range map[string]*limit.Pool{"a pool": newPool(t, limit.PoolConfig{}), "no pool": nil} {
		for _, target := range []string{"http://orders", "https://orders"} {
			c := conns(t, pool, template)
			if err := call(t.Context(), c, target); err == nil || !strings.Contains(err.Error(), "neither a connection nor an error") || c.Open() != 0 {
				t.Errorf("%s, %s: %v, with %d connections open", name, target, err, c.Open())
			}
		}
	}
}

// Hosts of which there is no connection take no memory.
func TestConns_ForgetsHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, template := serveInMemory(t, hello)
		c := conns(t, newPool(t, limit.PoolConfig{IdleTimeout: time.Minute}), template)
		for i := range 100 {
			get(t, c, fmt.Sprintf("http://orders%d", i))
		}
		if n := c.Hosts(); n != 100 || c.Open() != 100 {
			t.Errorf("%d hosts with %d connections, want 100", n, c.Open())
		}
		time.Sleep(2 * time.Minute)
		if n := c.Hosts(); n != 0 || c.Open() != 0 {
			t.Errorf("%d hosts with %d connections, want none", n, c.Open())
		}
	})
}

func readRequest(r *bufio.Reader) (*http.Request, error) {
	req, err := http.ReadRequest(r)
	if err == nil {
		_, err = io.Copy(io.Discard, req.Body)
	}
	return req, err
}

// scripted is a call to a server of a test.
type scripted struct {
	method, body, header string
	again, unread        bool
	after, within        time.Duration
}

// do makes the call, and returns what the caller sees.
func (c scripted) do(rt http.RoundTripper, scheme string) string {
	ctx := context.Background()
	if c.within != 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.within)
		defer cancel()
	}
	req, err := http.NewRequestWithContext(ctx, "GET", scheme+"://orders/", nil)
	if err != nil {
		return err.Error()
	}
	req.Method = c.method
	var bodies []*leak.Body
	if c.body != "" {
		fresh := func() (io.ReadCloser, error) {
			var r io.Reader = strings.NewReader(c.body)
			if c.body == "fails" {
				r = io.MultiReader(strings.NewReader("fa"), errReader{})
			}
			bodies = append(bodies, &leak.Body{Reader: r})
			return bodies[len(bodies)-1], nil
		}
		req.Body, _ = fresh()
		req.ContentLength = int64(len(c.body))
		if c.again {
			req.GetBody = fresh
		}
	}
	for line := range strings.SplitSeq(c.header, "\r\n") {
		if name, value, ok := strings.Cut(line, ": "); ok {
			req.Header.Set(name, value)
		}
	}
	resp, err := rt.RoundTrip(req)
	seen := fmt.Sprint(err)
	if err == nil {
		seen = resp.Status
		if !c.unread && resp.StatusCode != http.StatusSwitchingProtocols {
			text, err := io.ReadAll(resp.Body)
			seen += fmt.Sprintf(" %q %v %v", text, err, resp.Trailer)
		}
		_, writable := resp.Body.(io.Writer)
		resp.Body.Close()
		seen += fmt.Sprint(" ", writable, resp.Request == req, summary(resp.TLS))
	}
	synctest.Wait()
	for _, b := range bodies {
		seen += fmt.Sprint(" closed ", b.Closed.Load() > 0)
	}
	return seen
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errors.New("the body fails") }

// takes is a connection that tells what it is asked to copy, as a socket is that sends a file without a buffer.
type takes struct {
	net.Conn
	seen *notes
}

func (c *takes) ReadFrom(r io.Reader) (int64, error) {
	source := r
	if limited, ok := r.(*io.LimitedReader); ok {
		source = limited.R
	}
	c.seen.add("copies from a %T", source)
	return io.Copy(c.Conn, r)
}

// A file is sent by the socket, without a buffer.
func TestConns_FilesAsNetHTTP(t *testing.T) {
	name := filepath.Join(t.TempDir(), "body")
	if err := os.WriteFile(name, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	asNetHTTP(t, func(t *testing.T, through func(*http.Transport) http.RoundTripper) string {
		_, template := serveInMemory(t, func(w http.ResponseWriter, req *http.Request) {
			n, err := io.Copy(io.Discard, req.Body)
			fmt.Fprint(w, n, err)
		})
		seen, dial := new(notes), template.DialContext
		template.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			nc, err := dial(ctx, network, address)
			return &takes{nc, seen}, err
		}
		rt := through(template)
		for range 2 {
			file, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			req := httptest.NewRequest(http.MethodPut, "http://orders", file)
			req.ContentLength = 1 << 20
			resp, err := rt.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			text, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			seen.add("%s, closed: %t", text, errors.Is(file.Close(), os.ErrClosed))
		}
		return seen.String()
	})
}
