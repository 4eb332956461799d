package retry_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/memnet"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/retry"
)

// newServer returns a server on the loopback interface and a transport of its own for it.
func newServer(t *testing.T, handler http.HandlerFunc) (*httptest.Server, *http.Transport) {
	t.Helper()
	leak.Check(t)
	srv := httptest.NewServer(handler)
	t.Cleanup(srv.Close)
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	return srv, tr
}

// trackBodies counts the response bodies that are opened and closed.
type trackBodies struct {
	base           http.RoundTripper
	opened, closed atomic.Int32
}

func (tb *trackBodies) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := tb.base.RoundTrip(req)
	if err == nil {
		tb.opened.Add(1)
		resp.Body = &trackedBody{ReadCloser: resp.Body, closed: &tb.closed}
	}
	return resp, err
}

type trackedBody struct {
	io.ReadCloser
	once   sync.Once
	closed *atomic.Int32
}

func (b *trackedBody) Close() error {
	b.once.Do(func() { b.closed.Add(1) })
	return b.ReadCloser.Close()
}

func TestRetriedBodiesClosedConnectionsReused(t *testing.T) {
	var calls, conns atomic.Int32
	srv, tr := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1)%3 != 0 {
			w.WriteHeader(503)
			_, _ = io.WriteString(w, strings.Repeat("sorry ", 1000))
			return
		}
		_, _ = io.WriteString(w, "ok")
	})
	tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conns.Add(1)
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
	bodies := &trackBodies{base: tr}
	client := &http.Client{Transport: &retry.Transport{Base: bodies, Config: retry.Config{Retries: 2, Backoff: -1},
		Budget: retry.BudgetConfig{Off: true}}}
	for range 10 {
		resp, err := client.Get(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); string(b) != "ok" || err != nil {
			t.Errorf("body %q, %v", b, err)
		}
		resp.Body.Close()
		if got := retry.Attempts(resp); got != 3 {
			t.Errorf("Attempts = %d, want 3", got)
		}
	}
	if o, c := bodies.opened.Load(), bodies.closed.Load(); o != 30 || c != 30 {
		t.Errorf("%d bodies opened and %d closed, want 30 of each", o, c)
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections for serial calls, want 1", n)
	}
}

func TestRetryOverOneConnection(t *testing.T) {
	var calls atomic.Int32
	srv, tr := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1) <= 2 {
			w.WriteHeader(503)
			_, _ = io.WriteString(w, strings.Repeat("x", 100<<10)) // more than is drained
		}
	})
	tr.MaxConnsPerHost = 1
	client := &http.Client{Transport: &retry.Transport{Base: tr, Config: retry.Config{Retries: 2, Backoff: -1}}}
	resp, err := client.Get(srv.URL)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v, %v, want 200", resp, err)
	}
	resp.Body.Close()
}

func TestStreamedPutIsSentOnce(t *testing.T) {
	const size = 64 << 20
	started := make(chan struct{})
	var once sync.Once
	var received atomic.Int64
	srv, tr := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		once.Do(func() { close(started) })
		n, _ := io.Copy(io.Discard, r.Body)
		received.Store(n)
		w.WriteHeader(503)
	})
	rt := &retry.Transport{Base: tr, Config: retry.Config{Retries: 2, Backoff: -1}}
	put := func(gate <-chan struct{}) (*http.Response, error) {
		body := io.Reader(&zeros{n: size, gate: gate})
		return rt.RoundTrip(newRequest(t, "PUT", srv.URL, body))
	}
	// The body goes on only when the server has got the beginning of the first try.
	resp, err := put(started)
	if err != nil || resp.StatusCode != 503 || retry.Attempts(resp) != 1 || received.Load() != size {
		t.Fatalf("%v, %v, %d bytes received, want one try and its 503", resp, err, received.Load())
	}
	resp.Body.Close()

	allocated := leak.Allocated(func() { resp, err = put(started) })
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if n := allocated; n > 1<<20 {
		t.Errorf("%d bytes allocated for a call of %d", n, size)
	}
}

// zeros is a body of n bytes, of which all but the first 100 wait for the gate.
type zeros struct {
	n, read int
	gate    <-chan struct{}
}

func (z *zeros) Read(p []byte) (int, error) {
	if z.read >= 100 {
		<-z.gate
	} else {
		p = p[:min(len(p), 100)]
	}
	if z.read == z.n {
		return 0, io.EOF
	}
	n := min(len(p), z.n-z.read)
	clear(p[:n])
	z.read += n
	return n, nil
}

func TestStaleConnectionReplayedByNetHTTP(t *testing.T) {
	// The server closes the connection after the first answer, without saying so.
	var conns atomic.Int32
	var got []string
	leak.Check(t)
	ln := rawtest.Listen(t)
	closed := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			first := conns.Add(1) == 1
			r := bufio.NewReader(conn)
			for {
				req, err := http.ReadRequest(r)
				if err != nil {
					break
				}
				b, _ := io.ReadAll(req.Body)
				if got = append(got, string(b)); first && len(got) == 2 {
					break // a server that goes away with the request unanswered
				}
				_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			}
			conn.Close()
			if first {
				close(closed)
			}
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	rt := &retry.Transport{Base: tr, Config: retry.Config{Retries: 2, Backoff: -1}}
	for _, payload := range []string{"one", "two"} {
		req := newRequest(t, "POST", "http://"+ln.Addr().String(), newBody(payload))
		req.Header.Set("Idempotency-Key", payload)
		resp, err := rt.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if n := retry.Attempts(resp); n != 1 {
			t.Errorf("Attempts = %d, want net/http to have replayed by itself", n)
		}
	}
	<-closed
	if fmt.Sprint(got) != "[one two two]" {
		t.Errorf("server got %v", got)
	}
}

// TestReplay_EarlyAnswers has a server that answers first tries without reading them, while the client still sends.
func TestReplay_EarlyAnswers(t *testing.T) {
	const size = 60_000
	want := strings.Repeat("0123456789", size/10)
	var retried atomic.Int32
	srv, tr := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(attemptHeader) == "" {
			w.WriteHeader(503)
			return
		}
		retried.Add(1)
		if got, err := io.ReadAll(r.Body); string(got) != want || err != nil {
			t.Errorf("a second try had %d bytes, %v, want %d", len(got), err, size)
		}
	})
	rt := &retry.Transport{Base: tr, Config: retry.Config{Retries: 1, Backoff: -1}, Budget: retry.BudgetConfig{Off: true}}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 25 {
				body := &leak.Body{Reader: iotest.HalfReader(strings.NewReader(want))}
				resp, err := rt.RoundTrip(newRequest(t, "PUT", srv.URL, body))
				if err != nil {
					t.Error(err)
					return
				}
				// A body that is closed during a read is committed.
				if n := retry.Attempts(resp); (n == 2) != (resp.StatusCode == 200) {
					t.Errorf("status %d after %d tries", resp.StatusCode, n)
				}
				resp.Body.Close()
			}
		})
	}
	wg.Wait()
	if retried.Load() == 0 {
		t.Error("nothing was retried")
	}
}

func TestEndlessBodyOverLoopback(t *testing.T) {
	var calls atomic.Int32
	srv, tr := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		n := calls.Add(1)
		if n > 3 {
			return
		}
		if n == 3 {
			w.Header().Set("Content-Encoding", "gzip") // decompressed by the transport, and stalled
		}
		w.WriteHeader(503)
		w.(http.Flusher).Flush()
		if n == 1 {
			for {
				if _, err := w.Write(make([]byte, 4096)); err != nil {
					return
				}
			}
		}
		<-r.Context().Done()
	})
	rt := &retry.Transport{Base: tr, Config: retry.Config{Retries: 3, Backoff: -1}}
	resp, err := rt.RoundTrip(newRequest(t, "GET", srv.URL, nil))
	if err != nil || resp.StatusCode != 200 || retry.Attempts(resp) != 4 {
		t.Fatalf("%v, %v, want 200 in the fourth try", resp, err)
	}
	resp.Body.Close()
}

func TestIdleConnectionsStayOpen(t *testing.T) {
	var conns atomic.Int32
	var failing atomic.Bool
	srv, tr := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		if failing.Load() {
			w.WriteHeader(503)
		}
	})
	tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conns.Add(1)
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
	for _, fail := range []bool{false, true, false} {
		failing.Store(fail)
		rt := &retry.Transport{Base: tr, Config: retry.Config{Retries: 2, Backoff: -1}}
		resp, err := rt.RoundTrip(newRequest(t, "GET", srv.URL, nil))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections, want the one that was there", n)
	}
}

// TestHTTPFeaturesAsWithTheBareTransport runs what HTTP has besides request and response through a transport with everything
// switched on, and through net/http alone: the same must come out.
func TestHTTPFeaturesAsWithTheBareTransport(t *testing.T) {
	srv, tr := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/upgrade":
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Upgrade", "echo")
			w.WriteHeader(http.StatusSwitchingProtocols)
			conn, rw, err := w.(http.Hijacker).Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			line, _ := rw.ReadString('\n')
			_, _ = rw.WriteString("echo " + line)
			rw.Flush()
		case "/trailers":
			w.Header().Set("Trailer", "X-Sum")
			_, _ = io.WriteString(w, "data")
			w.Header().Set("X-Sum", "42")
		case "/hints":
			w.Header().Set("Link", "</style.css>")
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(200)
		case "/204":
			w.WriteHeader(204)
		case "/304":
			w.WriteHeader(304)
		case "/continue":
			b, _ := io.ReadAll(r.Body)
			_, _ = w.Write(b)
		case "/reject":
			w.WriteHeader(http.StatusExpectationFailed)
		case "/sse":
			w.Header().Set("Content-Type", "text/event-stream")
			for i := range 3 {
				fmt.Fprintf(w, "data: %d\n\n", i)
				w.(http.Flusher).Flush()
			}
		case "/gzip":
			fmt.Fprint(w, "len ", r.Header.Get("Accept-Encoding"))
		default:
			w.Header().Set("Content-Length", "10")
			_, _ = io.WriteString(w, "0123456789")
		}
	})
	tr.ExpectContinueTimeout = 5 * time.Second

	observe := func(rt http.RoundTripper, method, path string, header http.Header, body string) string {
		var out strings.Builder
		req := newRequest(t, method, srv.URL+path, nil)
		for k, v := range header {
			req.Header[k] = v
		}
		if body != "" {
			req.Body, req.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
		}
		req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
			Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
				fmt.Fprint(&out, "1xx:", code, h.Get("Link"), " ")
				return nil
			},
			Got100Continue: func() { fmt.Fprint(&out, "continue ") },
		}))
		resp, err := rt.RoundTrip(req)
		if err != nil {
			t.Errorf("%s %s: %v", method, path, err)
			return ""
		}
		defer resp.Body.Close()
		rwc, upgraded := resp.Body.(io.ReadWriteCloser)
		if upgraded {
			if _, err := io.WriteString(rwc, "hello\n"); err != nil {
				t.Errorf("%s: %v", path, err)
			}
		}
		b, err := io.ReadAll(resp.Body)
		fmt.Fprint(&out, resp.StatusCode, resp.ContentLength, upgraded, string(b), err, resp.Trailer, resp.Request == req)
		return out.String()
	}
	full := &retry.Transport{Base: tr, Config: retry.Config{
		Retries: 2, PerTryTimeout: time.Minute,
		On: retry.On{Conditions: retry.ResetBeforeRequest | retry.Retriable4xx},
	}}
	expect := http.Header{"Expect": {"100-continue"}}
	for _, test := range []struct {
		name, method, path string
		header             http.Header
		body               string
	}{
		{name: "101", method: "GET", path: "/upgrade", header: http.Header{"Connection": {"Upgrade"}, "Upgrade": {"echo"}}},
		{name: "trailers", method: "GET", path: "/trailers"},
		{name: "early hints", method: "GET", path: "/hints"},
		{name: "HEAD", method: "HEAD", path: "/"},
		{name: "204", method: "GET", path: "/204"},
		{name: "304", method: "GET", path: "/304"},
		{name: "expect continue", method: "PUT", path: "/continue", header: expect, body: "payload"},
		{name: "expect rejected", method: "PUT", path: "/reject", header: expect, body: "payload"},
		{name: "server-sent events", method: "GET", path: "/sse"},
		{name: "compression", method: "GET", path: "/gzip"},
		{name: "body", method: "POST", path: "/continue", body: "payload"},
	} {
		want := observe(tr, test.method, test.path, test.header, test.body)
		got := observe(full, test.method, test.path, test.header, test.body)
		if got != want {
			t.Errorf("%s: %q, want %q as without retries", test.name, got, want)
		}
	}
}

func TestPerTryTimeoutOverLoopback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		tr := memnet.Transport(t, func(w http.ResponseWriter, r *http.Request) {
			if calls.Add(1) == 1 {
				<-r.Context().Done()
				return
			}
			for range 3 {
				_, _ = io.WriteString(w, "tick ")
				w.(http.Flusher).Flush()
				time.Sleep(100 * time.Millisecond)
			}
		})
		rt := &retry.Transport{Base: tr, Config: retry.Config{Retries: 2, PerTryTimeout: 150 * time.Millisecond, Backoff: -1}}
		began := time.Now()
		resp, err := rt.RoundTrip(newRequest(t, "GET", "http://service/", nil))
		if err != nil || retry.Attempts(resp) != 2 {
			t.Fatalf("%v, %v, want a response in the second try", resp, err)
		}
		if d := time.Since(began); d != 150*time.Millisecond {
			t.Errorf("second try after %v, want 150ms", d)
		}
		b, err := io.ReadAll(resp.Body)
		if string(b) != "tick tick tick " || err != nil {
			t.Errorf("stream %q, %v", b, err)
		}
		resp.Body.Close()
	})
}

func TestContextEndsWithTheBody(t *testing.T) {
	for _, test := range []struct {
		name string
		end  func(*testing.T, *http.Response)
	}{
		{"EOF", func(t *testing.T, resp *http.Response) { _, _ = io.Copy(io.Discard, resp.Body) }},
		{"Close", func(t *testing.T, resp *http.Response) { resp.Body.Close() }},
		{"read error", func(t *testing.T, resp *http.Response) {
			if _, err := io.Copy(io.Discard, resp.Body); !errors.Is(err, errBoom) {
				t.Errorf("read error %v", err)
			}
		}},
	} {
		var ctx context.Context
		rt := &retry.Transport{
			Config: retry.Config{Retries: 1, PerTryTimeout: time.Hour},
			Base: roundTrip(func(r *http.Request) (*http.Response, error) {
				ctx = r.Context()
				resp := response(200)
				resp.Body = newBody("data")
				if test.name == "read error" {
					resp.Body = &leak.Body{Reader: errReader{}}
				}
				return resp, nil
			}),
		}
		resp, err := rt.RoundTrip(newRequest(t, "GET", "http://service/", nil))
		if err != nil {
			t.Fatal(err)
		}
		if ctx.Err() != nil {
			t.Errorf("%s: the context ended with RoundTrip", test.name)
		}
		test.end(t, resp)
		if ctx.Err() == nil {
			t.Errorf("%s: the context did not end", test.name)
		}
	}
}

// h2Server speaks HTTP/2 frame by frame (RFC 9113), because net/http's server cannot be made to refuse a stream. It gives
// each request to answer, which counts them from 1.
type h2Server struct {
	ln     net.Listener
	answer func(w *h2Writer, stream uint32, n int)
	bodies []string // of the requests
	conns  int      // with a request: net/http may make one more
	wg     sync.WaitGroup

	mu      sync.Mutex
	current net.Conn
	stopped bool
}

// stop ends the server and its connection. After it, bodies and conns may be read.
func (s *h2Server) stop() {
	s.ln.Close()
	s.mu.Lock()
	s.stopped = true
	if s.current != nil {
		s.current.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// Types, flags and error codes of frames.
const (
	h2Data, h2Headers, h2Reset, h2Settings, h2GoAway = 0x0, 0x1, 0x3, 0x4, 0x7

	h2EndStream, h2Ack, h2EndHeaders = 0x1, 0x1, 0x4

	h2NoError, h2RefusedStream, h2EnhanceYourCalm = 0x0, 0x7, 0xb
)

func (s *h2Server) serve() {
	for {
		conn, err := s.ln.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.current = conn
		if s.stopped {
			conn.Close()
		}
		s.mu.Unlock()
		before := len(s.bodies)
		s.serveConn(conn) // one at a time is enough: a client with one call needs no two
		if len(s.bodies) > before {
			s.conns++
		}
		conn.Close()
	}
}

func (s *h2Server) serveConn(conn net.Conn) {
	const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	got := make([]byte, len(preface))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != preface {
		return
	}
	w := newH2Writer(conn)
	defer w.close()
	w.frame(h2Settings, 0, 0)
	var body []byte
	for {
		var head [9]byte
		if _, err := io.ReadFull(conn, head[:]); err != nil {
			return
		}
		payload := make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
		if _, err := io.ReadFull(conn, payload); err != nil {
			return
		}
		kind, flags, stream := head[3], head[4], binary.BigEndian.Uint32(head[5:])
		switch kind {
		case h2Settings:
			if flags&h2Ack == 0 {
				w.frame(h2Settings, h2Ack, 0)
			}
			continue
		case h2Headers:
			body = nil
		case h2Data:
			body = append(body, payload...)
		default:
			continue
		}
		if flags&h2EndStream != 0 {
			s.bodies = append(s.bodies, string(body))
			s.answer(w, stream, len(s.bodies))
		}
	}
}

// h2Writer writes frames from a goroutine of its own: an in-memory connection has no buffer, and a client that is writing
// does not read.
type h2Writer struct {
	frames chan []byte
	done   chan struct{}
}

func newH2Writer(conn net.Conn) *h2Writer {
	w := &h2Writer{frames: make(chan []byte, 100), done: make(chan struct{})}
	go func() {
		defer close(w.done)
		for b := range w.frames {
			_, _ = conn.Write(b) // fails when the client has gone, and then so does reading
		}
	}()
	return w
}

func (w *h2Writer) close() {
	close(w.frames)
	<-w.done
}

func (w *h2Writer) frame(kind, flags byte, stream uint32, payload ...byte) {
	b := []byte{0, 0, byte(len(payload)), kind, flags}
	w.frames <- append(binary.BigEndian.AppendUint32(b, stream), payload...)
}

func (w *h2Writer) ok(stream uint32) {
	w.frame(h2Headers, h2EndStream|h2EndHeaders, stream, 0x88) // ":status: 200" in HPACK's static table
}

func (w *h2Writer) reset(stream uint32, code byte) {
	w.frame(h2Reset, 0, stream, 0, 0, 0, code)
}

func (w *h2Writer) goAway(last uint32, code byte) {
	w.frame(h2GoAway, 0, 0, append(binary.BigEndian.AppendUint32(nil, last), 0, 0, 0, code)...)
}

func newH2Server(t *testing.T, answer func(w *h2Writer, stream uint32, n int)) (*h2Server, *http.Transport) {
	t.Helper()
	leak.Check(t)
	ln := rawtest.Listen(t)
	s := &h2Server{ln: ln, answer: answer}
	s.wg.Go(s.serve)
	t.Cleanup(s.stop)
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(tr.CloseIdleConnections)
	return s, tr
}

func TestRefusedStreamIsRetried(t *testing.T) {
	// net/http replays a refused stream by itself if it can get the body again. It does so with the body that is kept
	// for a replay, and here also with the bytes of an untouched one.
	s, tr := newH2Server(t, func(w *h2Writer, stream uint32, n int) {
		if n == 1 {
			w.reset(stream, h2RefusedStream)
			return
		}
		w.ok(stream)
	})
	rt := &retry.Transport{Base: tr, Config: retry.Config{Retries: 2, Backoff: -1}}
	resp, err := rt.RoundTrip(newRequest(t, "POST", "http://"+s.ln.Addr().String(), newBody("payload")))
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v, %v, want 200", resp, err)
	}
	resp.Body.Close()
	s.stop()
	if fmt.Sprint(s.bodies) != "[payload payload]" {
		t.Errorf("server got %q", s.bodies)
	}
}

func TestStreamAboveGoAwayIsRetried(t *testing.T) {
	// With an error code on the first stream of a connection net/http does not try again: we must.
	s, tr := newH2Server(t, func(w *h2Writer, stream uint32, n int) {
		if n == 1 {
			w.goAway(0, h2EnhanceYourCalm)
			return
		}
		w.ok(stream)
	})
	rt := &retry.Transport{Base: tr, Config: retry.Config{Retries: 2, Backoff: -1}}
	resp, err := rt.RoundTrip(newRequest(t, "POST", "http://"+s.ln.Addr().String(), newBody("payload")))
	if err != nil || resp.StatusCode != 200 || retry.Attempts(resp) != 2 {
		t.Fatalf("%v, %v, want 200 in the second try", resp, err)
	}
	resp.Body.Close()
	s.stop()
	if fmt.Sprint(s.bodies) != "[payload payload]" || s.conns != 2 {
		t.Errorf("server got %q on %d connections", s.bodies, s.conns)
	}
}

func TestGracefulGoAwayFailsNoCall(t *testing.T) {
	s, tr := newH2Server(t, func(w *h2Writer, stream uint32, n int) {
		if n == 1 {
			w.goAway(0, h2NoError)
			return
		}
		w.ok(stream)
	})
	rt := &retry.Transport{Base: tr, Config: retry.Config{Retries: 2, Backoff: -1}}
	resp, err := rt.RoundTrip(newRequest(t, "POST", "http://"+s.ln.Addr().String(), newBody("payload")))
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v, %v, want 200", resp, err)
	}
	resp.Body.Close()
}

// TestRefusedStreamSurfaces refuses more often than net/http tries by itself.
func TestRefusedStreamSurfaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const netHTTP = 8 // its own tries, over 64 s
		var network memnet.Network
		s := &h2Server{ln: network.Listen("service:80"), answer: func(w *h2Writer, stream uint32, n int) {
			if n <= netHTTP {
				w.reset(stream, h2RefusedStream)
				return
			}
			w.ok(stream)
		}}
		s.wg.Go(s.serve)
		tr := &http.Transport{Protocols: new(http.Protocols), DialContext: network.DialContext}
		tr.Protocols.SetUnencryptedHTTP2(true)
		rt := &retry.Transport{Base: tr, Config: retry.Config{
			Retries: 1, Backoff: -1, On: retry.On{Conditions: retry.RefusedStream}}}
		resp, err := rt.RoundTrip(newRequest(t, "POST", "http://service", newBody("payload")))
		if err != nil || resp.StatusCode != 200 || retry.Attempts(resp) != 2 {
			t.Fatalf("%v, %v, want 200 in our second try", resp, err)
		}
		resp.Body.Close()
		tr.CloseIdleConnections()
		s.stop()
		if len(s.bodies) != netHTTP+1 {
			t.Errorf("%d requests, want %d", len(s.bodies), netHTTP+1)
		}
	})
}

func TestResetBeforeRequest(t *testing.T) {
	// One listener closes connections as soon as they are made, in the TLS handshake; the other reads the request first.
	for _, test := range []struct {
		name, scheme string
		readFirst    bool
		want         int
	}{
		{"before the request", "https", false, 2},
		{"after the request", "http", true, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			leak.Check(t)
			ln := rawtest.Listen(t)
			rawtest.Serve(t, ln, func(conn net.Conn) {
				if test.readFirst {
					_, _ = http.ReadRequest(bufio.NewReader(conn))
				}
			})
			tr := &http.Transport{}
			t.Cleanup(tr.CloseIdleConnections)
			loop := retry.Loop{Policy: policy(t, retry.Config{
				Retries: 1, On: retry.On{Conditions: retry.ResetBeforeRequest}})}
			_, summary, err := loop.Do(newRequest(t, "POST", test.scheme+"://"+ln.Addr().String(), nil),
				tries(func(r *http.Request, _ int) (*http.Response, error) { return tr.RoundTrip(r) }))
			if err == nil || summary.Attempts != test.want {
				t.Errorf("%+v, %v, want %d tries", summary, err, test.want)
			}
		})
	}
}
