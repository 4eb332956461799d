package tlsid_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/tlsid"
)

// issueFor returns the identity of a workload that is valid for life.
func issueFor(t testing.TB, a *authority, name string, life time.Duration, change ...func(*x509.Certificate)) *tlsid.Identity {
	t.Helper()
	change = append(change, lasting(-time.Minute, life))
	return newIdentity(t, a.issue(t, a.domain.IDString()+"/"+name, change...), a)
}

// ends are the TLS configurations of a server and of its client.
type ends struct{ server, client *tls.Config }

func newEnds(t testing.TB, serverLife, clientLife time.Duration) ends {
	t.Helper()
	ca := newAuthority(t, "example.org")
	server, client := issueFor(t, ca, "server", serverLife), issueFor(t, ca, "client", clientLife)
	return ends{keepOne(t, server).Server(), keepOne(t, client).Client(tlsid.Expect(server.ID()))}
}

// refusals collects what a listener refused.
type refusals struct {
	mu   sync.Mutex
	seen []tlsid.Refusal

	came chan tlsid.Refusal
}

func newRefusals() *refusals { return &refusals{came: make(chan tlsid.Refusal, 1000)} }

func (r *refusals) note(refusal tlsid.Refusal) {
	r.mu.Lock()
	r.seen = append(r.seen, refusal)
	r.mu.Unlock()
	r.came <- refusal
}

func (r *refusals) next(t testing.TB) tlsid.Refusal {
	t.Helper()
	return await.Receive(t, "a refusal is reported", r.came)
}

func (r *refusals) none(t testing.TB) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, refusal := range r.seen {
		t.Errorf("%v was refused under %v: %v", refusal.RemoteAddr, refusal.Mode, refusal.Err)
	}
}

func always(m tlsid.Mode) func() tlsid.Mode { return func() tlsid.Mode { return m } }

// listen returns a listener on the loopback, which is closed at the end of the test; then nothing of it may be left.
func listen(t testing.TB, config tlsid.ListenerConfig) *tlsid.Listener {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := tlsid.NewListener(inner, config)
	t.Cleanup(func() {
		l.Close()
		await.True(t, "the listener ends", func() bool { return listenerStacks() == "" }) // of this one: these tests are not parallel
	})
	return l
}

// listenerStacks returns the stacks of goroutines of listeners.
func listenerStacks() string {
	return leak.Running("tlsid.(*Listener).accept(", "tlsid.(*Listener).take")
}

// serveHTTP serves what tells the client what the server saw of it.
func serveHTTP(t testing.TB, l net.Listener, handler http.Handler) {
	t.Helper()
	srv := &http.Server{Handler: handler}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Close()
		if err := <-done; err != http.ErrServerClosed && !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
}

func whoami(w http.ResponseWriter, r *http.Request) {
	peer := "plaintext"
	if r.TLS != nil {
		peer = r.TLS.PeerCertificates[0].URIs[0].String()
	}
	fmt.Fprintf(w, "%s %s", r.Proto, peer)
}

func get(c *http.Client, url string) (string, error) {
	resp, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// httpClients returns a client for each protocol by name, and the URL it calls.
func httpClients(t testing.TB, config *tls.Config, addr net.Addr) map[string]func() (string, error) {
	h1 := config.Clone()
	h1.NextProtos = []string{"http/1.1"}
	clients := make(map[string]func() (string, error))
	for name, c := range map[string]struct {
		tls    *tls.Config
		scheme string
	}{"plaintext": {nil, "http"}, "http1": {h1, "https"}, "http2": {config, "https"}} {
		transport := &http.Transport{TLSClientConfig: c.tls, ForceAttemptHTTP2: name == "http2"}
		t.Cleanup(transport.CloseIdleConnections)
		client := &http.Client{Transport: transport, Timeout: time.Minute}
		clients[name] = func() (string, error) { return get(client, c.scheme+"://"+addr.String()+"/") }
	}
	return clients
}

func TestListener_HTTP(t *testing.T) {
	const principal = "spiffe://example.org/client"
	for _, tt := range []struct {
		mode tlsid.Mode
		want map[string]string // by client; "": refused
	}{
		{tlsid.Permissive, map[string]string{
			"plaintext": "HTTP/1.1 plaintext", "http1": "HTTP/1.1 " + principal, "http2": "HTTP/2.0 " + principal}},
		{tlsid.Strict, map[string]string{
			"plaintext": "", "http1": "HTTP/1.1 " + principal, "http2": "HTTP/2.0 " + principal}},
		{tlsid.Disable, map[string]string{
			"plaintext": "HTTP/1.1 plaintext", "http1": "", "http2": ""}},
		{tlsid.Mode(99), map[string]string{"plaintext": "", "http1": "HTTP/1.1 " + principal}},
	} {
		t.Run(tt.mode.String(), func(t *testing.T) {
			e := newEnds(t, time.Hour, time.Hour)
			l := listen(t, tlsid.ListenerConfig{TLS: e.server, Mode: always(tt.mode)})
			serveHTTP(t, l, http.HandlerFunc(whoami))
			for name, call := range httpClients(t, e.client, l.Addr()) {
				want, named := tt.want[name]
				if !named {
					continue
				}
				for range 2 {
					got, err := call()
					if got != want || (err == nil) != (want != "") {
						t.Errorf("%s: %q, %v; want %q", name, got, err, want)
					}
				}
			}
		})
	}
}

func TestListener_NilModeIsStrict(t *testing.T) {
	e := newEnds(t, time.Hour, time.Hour)
	refused := newRefusals()
	l := listen(t, tlsid.ListenerConfig{TLS: e.server, Refused: refused.note})
	serveHTTP(t, l, http.HandlerFunc(whoami))
	if got, err := httpClients(t, e.client, l.Addr())["plaintext"](); err == nil {
		t.Errorf("plaintext was answered: %q", got)
	}
	if r := refused.next(t); r.Mode != tlsid.Strict || !errors.Is(r.Err, tlsid.ErrPlaintext) {
		t.Errorf("refusal %+v, want ErrPlaintext under STRICT", r)
	}
}

// Plaintext under STRICT gets a reset, and not one byte of an answer.
func TestListener_StrictResetsPlaintext(t *testing.T) {
	refused := newRefusals()
	l := listen(t, tlsid.ListenerConfig{TLS: newEnds(t, time.Hour, time.Hour).server, Refused: refused.note})
	serveHTTP(t, l, http.HandlerFunc(whoami))
	for _, sent := range []string{"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "G"} { // an unread byte alone would bring a reset
		c := dial(t, l.Addr(), "127.0.0.1")
		io.WriteString(c, sent)
		got, err := io.ReadAll(c)
		if len(got) > 0 || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("sent %q, read %q, %v; want a connection reset", sent, got, err)
		}
		if r := refused.next(t); r.RemoteAddr.String() != c.LocalAddr().String() || !errors.Is(r.Err, tlsid.ErrPlaintext) {
			t.Errorf("refusal %+v, want that of %v for ErrPlaintext", r, c.LocalAddr())
		}
	}
}

// dial connects from an address of the loopback.
func dial(t testing.TB, to net.Addr, from string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: time.Minute}
	c, err := d.Dial("tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	return c
}

func accept(t testing.TB, l *tlsid.Listener) net.Conn {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// A plaintext connection is as good as the TCP connection below it.
func TestListener_RawTCP(t *testing.T) {
	for _, mode := range []tlsid.Mode{tlsid.Permissive, tlsid.Disable} {
		for name, echo := range map[string]func(c net.Conn) error{
			"Read": func(c net.Conn) error {
				_, err := io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
				return err
			},
			"WriteTo": func(c net.Conn) error {
				_, err := c.(io.WriterTo).WriteTo(struct{ io.Writer }{c})
				return err
			},
			"ReadFrom": func(c net.Conn) error {
				_, err := c.(io.ReaderFrom).ReadFrom(struct{ io.Reader }{c})
				return err
			},
			"Copy": func(c net.Conn) error {
				_, err := io.Copy(c, c)
				return err
			},
		} {
			t.Run(mode.String()+"/"+name, func(t *testing.T) {
				l := listen(t, tlsid.ListenerConfig{Mode: always(mode)})
				c := dial(t, l.Addr(), "127.0.0.1")
				io.WriteString(c, "hello")
				s := accept(t, l)
				if n, err := s.Read(nil); n != 0 || err != nil {
					t.Errorf("Read(nil) = %d, %v", n, err)
				}
				done := make(chan error, 1)
				go func() {
					err := echo(s)
					s.(interface{ CloseWrite() error }).CloseWrite()
					done <- err
				}()
				io.WriteString(c, " world")
				c.(*net.TCPConn).CloseWrite()
				if got, err := io.ReadAll(c); string(got) != "hello world" || err != nil {
					t.Errorf("echoed %q, %v", got, err)
				}
				if err := <-done; err != nil {
					t.Error(err)
				}
				raw, err := s.(syscall.Conn).SyscallConn()
				if err != nil {
					t.Fatal(err)
				}
				if err := raw.Control(func(uintptr) {}); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// Under DISABLE nobody waits for the client to speak, and TLS is the server's own affair.
func TestListener_DisableTouchesNothing(t *testing.T) {
	l := listen(t, tlsid.ListenerConfig{Mode: always(tlsid.Disable)})
	silent := dial(t, l.Addr(), "127.0.0.1")
	s := accept(t, l)
	io.WriteString(s, "220 server speaks first\r\n")
	if line, err := bufio.NewReader(silent).ReadString('\n'); err != nil {
		t.Errorf("%q, %v", line, err)
	}

	e := newEnds(t, time.Hour, time.Hour)
	c := tls.Client(dial(t, l.Addr(), "127.0.0.1"), e.client)
	done := make(chan error, 1)
	go func() { done <- c.Handshake() }()
	if err := tls.Server(accept(t, l), e.server).Handshake(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// slow sends one byte at a time.
type slow struct{ net.Conn }

func (s slow) Write(b []byte) (int, error) {
	for i := range b {
		if n, err := s.Conn.Write(b[i : i+1]); err != nil {
			return i + n, err
		}
		runtime.Gosched()
	}
	return len(b), nil
}

func TestListener_HelloByteByByte(t *testing.T) {
	e := newEnds(t, time.Hour, time.Hour)
	l := listen(t, tlsid.ListenerConfig{TLS: e.server, Mode: always(tlsid.Permissive)})
	c := dial(t, l.Addr(), "127.0.0.1")
	c.(*net.TCPConn).SetNoDelay(true)
	client := tls.Client(slow{c}, e.client)
	go io.WriteString(client, "hello")
	s := accept(t, l).(*tls.Conn)
	if !s.ConnectionState().HandshakeComplete {
		t.Error("the handshake is not done")
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(s, got); string(got) != "hello" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
}

// Connections that say nothing, or begin a handshake and stop, delay nobody.
func TestSilentConnectionsDelayNobody(t *testing.T) {
	e := newEnds(t, time.Hour, time.Hour)
	refused := newRefusals()
	l := listen(t, tlsid.ListenerConfig{TLS: e.server, Mode: always(tlsid.Permissive), HandshakeTimeout: time.Hour,
		Refused: refused.note})
	serveHTTP(t, l, http.HandlerFunc(whoami))
	var silent []net.Conn
	for i := range 60 {
		c := dial(t, l.Addr(), "127.0.0.1")
		switch i % 3 {
		case 1:
			c.Write([]byte{0x16})
		case 2:
			c.Write([]byte{0x16, 3, 1, 2, 0, 1})
		}
		silent = append(silent, c)
	}
	for name, call := range httpClients(t, e.client, l.Addr()) { // each has a time limit
		if _, err := call(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	refused.none(t)
	l.Close()
	for i, c := range silent {
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("silent connection %d after Close: %v, want it closed", i, err)
		}
	}
}

func TestListener_CapPerIP(t *testing.T) {
	const limit = 3
	e := newEnds(t, time.Hour, time.Hour)
	refused := newRefusals()
	l := listen(t, tlsid.ListenerConfig{TLS: e.server, Mode: always(tlsid.Permissive), HandshakeTimeout: time.Hour,
		MaxPendingPerIP: limit, Refused: refused.note})
	serveHTTP(t, l, http.HandlerFunc(whoami))
	var silent []net.Conn
	for range limit {
		silent = append(silent, dial(t, l.Addr(), "127.0.0.2"))
	}
	beyond := dial(t, l.Addr(), "127.0.0.2")
	if n, err := beyond.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("beyond the limit: read %d, %v, want it closed", n, err)
	}
	if r := refused.next(t); r.RemoteAddr.String() != beyond.LocalAddr().String() || !errors.Is(r.Err, tlsid.ErrTooManyPending) {
		t.Errorf("refusal %+v, want that of %v for ErrTooManyPending", r, beyond.LocalAddr())
	}
	for name, call := range httpClients(t, e.client, l.Addr()) { // come from 127.0.0.1
		if _, err := call(); err != nil {
			t.Errorf("%s from another address: %v", name, err)
		}
	}

	// A place is free again when a connection has gone.
	silent[0].Close()
	if r := refused.next(t); r.Err != io.EOF {
		t.Errorf("refusal %+v, want io.EOF", r)
	}
	again := dial(t, l.Addr(), "127.0.0.2")
	io.WriteString(again, "GET / HTTP/1.0\r\n\r\n")
	if got, err := io.ReadAll(again); !strings.HasSuffix(string(got), "plaintext") {
		t.Errorf("after a place was given back: %q, %v", got, err)
	}
}

func TestListener_CapInAll(t *testing.T) {
	const limit = 4
	refused := newRefusals()
	l := listen(t, tlsid.ListenerConfig{Mode: always(tlsid.Permissive), HandshakeTimeout: time.Hour,
		MaxPending: limit, Refused: refused.note})
	go l.Accept()
	for i := range limit {
		dial(t, l.Addr(), fmt.Sprintf("127.0.0.%d", 1+i))
	}
	for i := range 20 {
		dial(t, l.Addr(), fmt.Sprintf("127.0.0.%d", 10+i))
		if r := refused.next(t); !errors.Is(r.Err, tlsid.ErrTooManyPending) {
			t.Errorf("refusal %+v, want ErrTooManyPending", r)
		}
	}
	await.True(t, "connections are pending", func() bool { return strings.Count(listenerStacks(), "tlsid.(*Listener).admit") == limit })
}

// Silent connections from many addresses shut nobody out: the oldest of them makes room.
func TestListener_SilentConnectionsMakeRoom(t *testing.T) {
	const limit = 6
	e := newEnds(t, time.Hour, time.Hour)
	refused := newRefusals()
	l := listen(t, tlsid.ListenerConfig{TLS: e.server, Mode: always(tlsid.Permissive), HandshakeTimeout: time.Hour,
		MaxPending: limit, MaxPendingPerIP: 2, Refused: refused.note})
	serveHTTP(t, l, http.HandlerFunc(whoami))
	var silent []net.Conn
	for i := range limit {
		silent = append(silent, dial(t, l.Addr(), fmt.Sprintf("127.0.0.%d", 10+i/2)))
	}
	for name, call := range httpClients(t, e.client, l.Addr()) { // come from 127.0.0.1
		if _, err := call(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if r := refused.next(t); r.RemoteAddr.String() != silent[0].LocalAddr().String() || !errors.Is(r.Err, tlsid.ErrTooManyPending) {
			t.Errorf("%s: refusal %+v, want that of the oldest, %v", name, r, silent[0].LocalAddr())
		}
		silent = append(silent[1:], dial(t, l.Addr(), fmt.Sprintf("127.0.0.%d", 20+len(name))))
	}
}

// Who has one IPv6 address has 2^64 of them.
func TestListener_CapPerIPv6Network(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := newRefusals()
		_, inner, _ := listenPipes(t, tlsid.ListenerConfig{Mode: always(tlsid.Strict), MaxPendingPerIP: 2, Refused: refused.note})
		from := func(address string) {
			t.Helper()
			near, far := net.Pipe()
			t.Cleanup(func() { near.Close() })
			inner.conns <- fromIP{far, &net.TCPAddr{IP: net.ParseIP(address), Port: 1}}
		}
		for _, address := range []string{"2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "10.0.0.1", "10.0.0.2"} {
			from(address)
		}
		synctest.Wait()
		from("2001:db8::ffff:3")
		if r := <-refused.came; !errors.Is(r.Err, tlsid.ErrTooManyPending) || !strings.Contains(r.RemoteAddr.String(), "ffff:3") {
			t.Errorf("refusal %+v, want that of the third of a network", r)
		}
	})
}

// fromIP is a connection from an IP address.
type fromIP struct {
	net.Conn
	remote net.Addr
}

func (c fromIP) RemoteAddr() net.Addr { return c.remote }

// behindProxy is a connection whose peer first says where it comes from, in a byte: a PROXY protocol in small.
type behindProxy struct {
	net.Conn
	header sync.Once
	from   byte
}

func (c *behindProxy) read() {
	c.header.Do(func() {
		var b [1]byte
		io.ReadFull(c.Conn, b[:])
		c.from = b[0]
	})
}

func (c *behindProxy) LocalAddr() net.Addr {
	c.read()
	return pipeAddr("listener")
}

func (c *behindProxy) RemoteAddr() net.Addr {
	c.read()
	return &net.TCPAddr{IP: net.IPv4(10, 0, 0, c.from), Port: 1}
}

func (c *behindProxy) Read(b []byte) (int, error) {
	c.read()
	return c.Conn.Read(b)
}

// A listener for the PROXY protocol finds out where a connection comes from when it is asked. Peers that do not say so delay nobody, have no
// more time than others, and count as coming from where they say.
func TestListener_WaitsForAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mode := tlsid.Permissive
		refused := newRefusals()
		l, inner, accepted := listenPipes(t, tlsid.ListenerConfig{
			Mode: func() tlsid.Mode { return mode }, HandshakeTimeout: time.Second, MaxPendingPerIP: 2, Refused: refused.note,
		})
		dial := func(says string) net.Conn {
			client, server := net.Pipe()
			t.Cleanup(func() { client.Close() })
			inner.conns <- &behindProxy{Conn: server}
			go io.WriteString(client, says)
			synctest.Wait()
			return client
		}
		dial("") // never says anything
		dial("\x01hello")
		if from := (<-accepted).RemoteAddr().String(); from != "10.0.0.1:1" {
			t.Errorf("a connection is from %s, want that of its header", from)
		}
		dial("\x02")
		dial("\x02")
		refused.none(t)
		dial("\x02")
		if r := <-refused.came; !errors.Is(r.Err, tlsid.ErrTooManyPending) || r.RemoteAddr.String() != "10.0.0.2:1" {
			t.Errorf("%v was refused for %v, want the third of 10.0.0.2", r.RemoteAddr, r.Err)
		}
		time.Sleep(time.Second)
		for range 3 {
			if r := <-refused.came; !errors.Is(r.Err, os.ErrDeadlineExceeded) {
				t.Errorf("%v was refused for %v, want that it was too slow", r.RemoteAddr, r.Err)
			}
		}

		mode = tlsid.Disable
		slow := dial("\x03")
		c := <-accepted
		time.Sleep(time.Hour)
		go io.WriteString(slow, "late")
		if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
			t.Errorf("under DISABLE a slow client is read with %v", err)
		}
		dial("") // is waited for as the listener is closed
		l.Close()
	})
}

// The connection of a request is known by its address, also where a wrapper hides what it is.
func TestListener_Conn(t *testing.T) {
	e := newEnds(t, time.Hour, time.Hour)
	l := listen(t, tlsid.ListenerConfig{TLS: e.server, Mode: always(tlsid.Permissive)})
	other := listen(t, tlsid.ListenerConfig{TLS: e.server})
	serveHTTP(t, hiding{l}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%T %T %v", l.Conn(r), other.Conn(r), r.TLS != nil)
	}))
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: e.client}}
	t.Cleanup(c.CloseIdleConnections)
	c.Transport.(*http.Transport).TLSClientConfig.NextProtos = []string{"http/1.1"}
	for url, want := range map[string]string{"https://": "*tls.Conn <nil> false", "http://": "*tlsid.conn <nil> false"} {
		if got, err := get(c, url+l.Addr().String()); got != want {
			t.Errorf("%s: %q, %v, want %q", url, got, err, want)
		}
	}
	if got := l.Conn(httptest.NewRequest("GET", "/", nil)); got != nil {
		t.Errorf("a request that came over no listener came over %v", got)
	}
}

// hiding wraps each connection, as netutil.LimitListener does.
type hiding struct{ net.Listener }

func (h hiding) Accept() (net.Conn, error) {
	c, err := h.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return struct{ net.Conn }{c}, nil
}

// A burst larger than the limits is let in if nobody is slow: what is ready does not count as pending.
func TestListener_ReadyIsNotPending(t *testing.T) {
	refused := newRefusals()
	var asked atomic.Int64 // twice for each connection
	l := listen(t, tlsid.ListenerConfig{HandshakeTimeout: time.Hour, MaxPendingPerIP: 1, Refused: refused.note,
		Mode: func() tlsid.Mode { asked.Add(1); return tlsid.Permissive }})
	for i := range int64(50) {
		c := dial(t, l.Addr(), "127.0.0.1")
		c.Write([]byte{'a'})
		if i == 0 {
			accept(t, l) // for the others nobody calls Accept
		}
		await.True(t, "the connection is ready", func() bool {
			return asked.Load() == 2*(i+1) && !strings.Contains(listenerStacks(), "tlsid.(*Listener).take")
		})
	}
	refused.none(t)
}

func TestListener_Close(t *testing.T) {
	e := newEnds(t, time.Hour, time.Hour)
	refused := newRefusals()
	var drained atomic.Int64
	l := listen(t, tlsid.ListenerConfig{
		TLS: e.server, Mode: always(tlsid.Permissive), Refused: refused.note, Drained: func() { drained.Add(1) },
	})
	served := dial(t, l.Addr(), "127.0.0.1")
	served.Write([]byte{'a'})
	s := accept(t, l)

	cut := map[string]net.Conn{}
	for name, sent := range map[string]string{"silent": "", "in the handshake": "\x16\x03\x01\x02\x00", "ready": "b"} {
		cut[name] = dial(t, l.Addr(), "127.0.0.1")
		io.WriteString(cut[name], sent)
	}
	blocked := make(chan error, 1)
	await.True(t, "connections are pending", func() bool { return strings.Count(listenerStacks(), "tlsid.(*Listener).admit") == 2 })
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("Close again: %v", err)
	}
	go func() {
		_, err := l.Accept()
		blocked <- err
	}()
	if err := <-blocked; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v, want net.ErrClosed", err)
	}
	for name, c := range cut {
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s connection after Close: %v, want it closed", name, err)
		}
	}
	refused.none(t)
	io.WriteString(s, "still here")
	got := make([]byte, 10)
	if _, err := io.ReadFull(served, got); err != nil {
		t.Errorf("an accepted connection after Close: %v", err)
	}
	if n := drained.Load(); n != 0 {
		t.Errorf("drained %d times while a connection is open", n)
	}
	for range 2 {
		s.Close()
		if n := drained.Load(); n != 1 {
			t.Errorf("drained %d times, want once", n)
		}
	}
}

func TestListener_CloseWakesAccept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := tlsid.NewListener(newPipes(), tlsid.ListenerConfig{})
		done := make(chan error, 1)
		go func() {
			_, err := l.Accept()
			done <- err
		}()
		synctest.Wait()
		l.Close()
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept: %v, want net.ErrClosed", err)
		}
	})
}

func TestListener_CloseBeforeAccept(t *testing.T) {
	drained := make(chan struct{}, 2)
	l := listen(t, tlsid.ListenerConfig{Drained: func() { drained <- struct{}{} }})
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v, want net.ErrClosed", err)
	}
	await.Receive(t, "the listener is drained", drained)
}

// pipes is a listener for connections in memory.
type pipes struct {
	resets atomic.Int64

	conns  chan net.Conn
	errs   chan error
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes {
	return &pipes{conns: make(chan net.Conn), errs: make(chan error), closed: make(chan struct{})}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case err := <-p.errs:
		return nil, err
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return pipeAddr("listener") }

type pipeAddr string

func (pipeAddr) Network() string  { return "pipe" }
func (a pipeAddr) String() string { return string(a) }

// named is a connection with addresses of its own.
type named struct {
	net.Conn
	remote pipeAddr
	resets *atomic.Int64
}

func (n named) SetLinger(sec int) error {
	if sec == 0 {
		n.resets.Add(1)
	}
	return nil
}

func (n named) LocalAddr() net.Addr  { return pipeAddr("listener") }
func (n named) RemoteAddr() net.Addr { return n.remote }

var dialed atomic.Int64

func (p *pipes) dial(t testing.TB) net.Conn {
	client, server := net.Pipe()
	t.Cleanup(func() { client.Close() })
	p.conns <- named{server, pipeAddr(fmt.Sprint("client ", dialed.Add(1))), &p.resets}
	return client
}

// listenPipes is listen in memory, for synctest; Accept was called once.
func listenPipes(t testing.TB, config tlsid.ListenerConfig) (*tlsid.Listener, *pipes, <-chan net.Conn) {
	inner := newPipes()
	l := tlsid.NewListener(inner, config)
	accepted := make(chan net.Conn)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			accepted <- c
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l, inner, accepted
}

func TestListener_HandshakeTimeout(t *testing.T) {
	for name, sent := range map[string]string{"nothing": "", "one byte": "\x16", "half a hello": "\x16\x03\x01\x02\x00\x01\x00"} {
		for _, limit := range []time.Duration{0, 3 * time.Second} {
			t.Run(fmt.Sprint(name, " ", limit), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					refused := newRefusals()
					_, inner, _ := listenPipes(t, tlsid.ListenerConfig{TLS: newEnds(t, time.Hour, time.Hour).server,
						Mode: always(tlsid.Permissive), HandshakeTimeout: limit, Refused: refused.note})
					start := time.Now()
					c := inner.dial(t)
					io.WriteString(c, sent)
					go io.Copy(io.Discard, c) // an alert
					r := <-refused.came
					if limit == 0 {
						limit = 10 * time.Second
					}
					if took := time.Since(start); took != limit || !errors.Is(r.Err, os.ErrDeadlineExceeded) {
						t.Errorf("refused after %v for %v, want %v for os.ErrDeadlineExceeded", took, r.Err, limit)
					}
				})
			})
		}
	}
}

// Nothing of the time limit of the handshake is left on a connection that was accepted.
func TestListener_DeadlinesAreTheServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEnds(t, 24*time.Hour, 24*time.Hour)
		_, inner, accepted := listenPipes(t, tlsid.ListenerConfig{TLS: e.server, Mode: always(tlsid.Permissive),
			HandshakeTimeout: time.Second})
		for _, dial := range []func() net.Conn{
			func() net.Conn { return inner.dial(t) },
			func() net.Conn { return tls.Client(inner.dial(t), e.client) },
		} {
			c := dial()
			go io.WriteString(c, "a")
			s := <-accepted
			buf := make([]byte, 1)
			if _, err := io.ReadFull(s, buf); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
			go io.WriteString(c, "b")
			if _, err := s.Read(buf); err != nil {
				t.Errorf("%T: read an hour later: %v", s, err)
			}
			start := time.Now()
			s.SetReadDeadline(start.Add(time.Minute))
			if _, err := s.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Minute {
				t.Errorf("%T: read with a deadline of 1m: %v after %v", s, err, time.Since(start))
			}
		}
	})
}

// A peer that has no certificate, one that nobody vouches for, or one that expired, is refused.
func TestListener_HandshakeFailures(t *testing.T) {
	ca, other := newAuthority(t, "example.org"), newAuthority(t, "example.org")
	server := keepOne(t, issueFor(t, ca, "server", time.Hour)).Server()
	expired := issueFor(t, ca, "client", -time.Second)
	insecure := func(certificates ...tls.Certificate) *tls.Config {
		return &tls.Config{InsecureSkipVerify: true, Certificates: certificates}
	}
	for _, tt := range []struct {
		name   string
		client *tls.Config
		want   func(error) bool
	}{
		{"no certificate", insecure(), func(err error) bool { return strings.Contains(err.Error(), "certificate") }},
		{"of another authority", insecure(*issueFor(t, other, "client", time.Hour).Certificate()), func(err error) bool {
			var peer *tlsid.PeerError
			return errors.As(err, &peer) && peer.ID.String() == "spiffe://example.org/client"
		}},
		{"expired", insecure(*expired.Certificate()), func(err error) bool {
			var peer *tlsid.PeerError
			var past *tlsid.ExpiredError
			return errors.As(err, &peer) && errors.As(err, &past)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			refused := newRefusals()
			l := listen(t, tlsid.ListenerConfig{TLS: server, Refused: refused.note})
			serveHTTP(t, l, http.HandlerFunc(whoami))
			c := tls.Client(dial(t, l.Addr(), "127.0.0.1"), tt.client)
			if _, err := c.Write([]byte("GET / HTTP/1.0\r\n\r\n")); err == nil {
				if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil {
					t.Errorf("read %d, %v", n, err)
				}
			}
			if r := refused.next(t); !tt.want(r.Err) {
				t.Errorf("refused for %v", r.Err)
			}
		})
	}
}

// A configuration that verifies nobody does not let an expired certificate in either.
func TestListener_ExpiredAtTheEndOfTheHandshake(t *testing.T) {
	ca := newAuthority(t, "example.org")
	good, bad := issueFor(t, ca, "good", time.Hour).Certificate(), issueFor(t, ca, "bad", -time.Second).Certificate()
	for _, tt := range []struct {
		name           string
		server, client *tls.Certificate
		peer           bool
	}{{"own", bad, good, false}, {"peer", good, bad, true}} {
		t.Run(tt.name, func(t *testing.T) {
			refused := newRefusals()
			l := listen(t, tlsid.ListenerConfig{Refused: refused.note,
				TLS: &tls.Config{Certificates: []tls.Certificate{*tt.server}, ClientAuth: tls.RequireAnyClientCert}})
			go l.Accept()
			tls.Client(dial(t, l.Addr(), "127.0.0.1"),
				&tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*tt.client}}).Handshake()
			var peer *tlsid.PeerError
			var past *tlsid.ExpiredError
			err := refused.next(t).Err
			if !errors.As(err, &past) || past.ID.String() != "spiffe://example.org/bad" || errors.As(err, &peer) != tt.peer {
				t.Errorf("refused for %v", err)
			}
		})
	}
}

func TestListener_WithoutTLS(t *testing.T) {
	refused := newRefusals()
	l := listen(t, tlsid.ListenerConfig{Mode: always(tlsid.Permissive), Refused: refused.note})
	serveHTTP(t, l, http.HandlerFunc(whoami))
	calls := httpClients(t, newEnds(t, time.Hour, time.Hour).client, l.Addr())
	if got, err := calls["http2"](); err == nil {
		t.Errorf("TLS: %q", got)
	}
	if r := refused.next(t); !strings.Contains(r.Err.Error(), "no TLS configuration") {
		t.Errorf("refused for %v", r.Err)
	}
	if _, err := calls["plaintext"](); err != nil {
		t.Error(err)
	}
}

// lacking is what accept returns when there are no descriptors left.
var lacking = &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", syscall.EMFILE)}

func TestListener_TemporaryErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := newRefusals()
		_, inner, accepted := listenPipes(t, tlsid.ListenerConfig{Mode: always(tlsid.Disable), Refused: refused.note})
		start := time.Now()
		for range 10 {
			inner.errs <- lacking
			if r := <-refused.came; r.RemoteAddr != nil || !errors.Is(r.Err, syscall.EMFILE) {
				t.Errorf("refusal %+v, want EMFILE of nobody", r)
			}
		}
		inner.dial(t)
		<-accepted
		// 5, 10, ... 640 ms, then 1 s and 1 s.
		if took, want := time.Since(start), 1275*time.Millisecond+2*time.Second; took != want {
			t.Errorf("ten errors took %v, want %v", took, want)
		}
		start = time.Now()
		inner.errs <- lacking
		inner.dial(t)
		<-accepted
		if took := time.Since(start); took != 5*time.Millisecond {
			t.Errorf("the next error took %v, want 5ms", took)
		}
		inner.errs <- lacking // Close does not wait for the delay
	})
}

func TestListener_FailsForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := newPipes()
		l := tlsid.NewListener(inner, tlsid.ListenerConfig{Mode: always(tlsid.Disable)})
		defer l.Close()
		broken := errors.New("broken")
		go func() {
			inner.dial(t)
			synctest.Wait()
			inner.errs <- broken
		}()
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		for range 2 {
			if _, err := l.Accept(); err != broken {
				t.Errorf("Accept: %v, want %v", err, broken)
			}
		}
	})
}

// A connection is closed when the first of its certificates expires, wherever the server's comes from.
func TestConnectionsEndWithTheirCertificates(t *testing.T) {
	anyPeer := func(c *tls.Config) *tls.Config {
		c.ClientAuth = tls.RequireAnyClientCert
		return c
	}
	forms := map[string]func(*tls.Certificate) *tls.Config{
		"Certificates": func(c *tls.Certificate) *tls.Config {
			return anyPeer(&tls.Config{Certificates: []tls.Certificate{*c}})
		},
		"Certificates without Leaf": func(c *tls.Certificate) *tls.Config {
			return anyPeer(&tls.Config{Certificates: []tls.Certificate{{Certificate: c.Certificate, PrivateKey: c.PrivateKey}}})
		},
		"one of two Certificates": func(c *tls.Certificate) *tls.Config {
			other := issueFor(t, newAuthority(t, "example.org"), "other", 24*time.Hour).Certificate()
			return anyPeer(&tls.Config{Certificates: []tls.Certificate{{Certificate: other.Certificate, PrivateKey: other.PrivateKey,
				SupportedSignatureAlgorithms: []tls.SignatureScheme{tls.Ed25519}}, *c}})
		},
		"GetCertificate": func(c *tls.Certificate) *tls.Config {
			return anyPeer(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c, nil }})
		},
		"GetCertificate has none": func(c *tls.Certificate) *tls.Config {
			return anyPeer(&tls.Config{Certificates: []tls.Certificate{*c},
				GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }})
		},
		"GetConfigForClient": func(c *tls.Certificate) *tls.Config {
			inner := anyPeer(&tls.Config{Certificates: []tls.Certificate{*c}})
			return &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return inner, nil }}
		},
		"GetConfigForClient has none": func(c *tls.Certificate) *tls.Config {
			return anyPeer(&tls.Config{Certificates: []tls.Certificate{*c},
				GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, nil }})
		},
	}
	for name, form := range forms {
		for _, serverName := range []string{"", "server"} {
			for _, lives := range [][2]time.Duration{{time.Hour, 5 * time.Hour}, {5 * time.Hour, time.Hour}} {
				t.Run(fmt.Sprint(name, serverName, lives), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						ca := newAuthority(t, "example.org")
						named := func(c *x509.Certificate) { c.DNSNames = []string{"server"} }
						server := issueFor(t, ca, "server", lives[0], named).Certificate()
						client := issueFor(t, ca, "client", lives[1]).Certificate()
						ends := server.Leaf.NotAfter
						if client.Leaf.NotAfter.Before(ends) {
							ends = client.Leaf.NotAfter
						}
						_, inner, accepted := listenPipes(t, tlsid.ListenerConfig{TLS: form(server)})
						c := tls.Client(inner.dial(t), &tls.Config{InsecureSkipVerify: true, ServerName: serverName,
							Certificates: []tls.Certificate{*client}})
						if err := c.Handshake(); err != nil {
							t.Fatal(err)
						}
						s := <-accepted
						read := make(chan error, 1)
						go func() {
							_, err := s.Read(make([]byte, 1))
							read <- err
						}()
						if _, err := c.Read(make([]byte, 1)); err != io.EOF {
							t.Errorf("the client reads %v, want io.EOF", err)
						}
						if now := time.Now(); !now.Equal(ends) {
							t.Errorf("closed at %v, want %v", now, ends)
						}
						if err := <-read; !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.ErrClosedPipe) {
							t.Errorf("the server reads %v, want that the connection is closed", err)
						}
						if n := inner.resets.Load(); n != 1 {
							t.Errorf("%d resets, want one: over TCP, the client would take what it has got for all", n)
						}
					})
				})
			}
		}
	}
}

// A resumed session has no certificate of the server, but that of the client.
func TestResumedSessionEndsWithItsCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "example.org")
		server, client := issueFor(t, ca, "server", 24*time.Hour).Certificate(), issueFor(t, ca, "client", time.Hour).Certificate()
		_, inner, accepted := listenPipes(t, tlsid.ListenerConfig{
			TLS: &tls.Config{Certificates: []tls.Certificate{*server}, ClientAuth: tls.RequireAnyClientCert}})
		config := &tls.Config{InsecureSkipVerify: true, ServerName: "server", Certificates: []tls.Certificate{*client},
			ClientSessionCache: tls.NewLRUClientSessionCache(1)}
		for _, resumed := range []bool{false, true} {
			c := tls.Client(newQueue(t, inner.dial(t)), config)
			read := make(chan error, 1)
			go func() {
				_, err := c.Read(make([]byte, 1)) // and the ticket
				read <- err
			}()
			s := (<-accepted).(*tls.Conn)
			if got := s.ConnectionState().DidResume; got != resumed {
				t.Fatalf("resumed = %v, want %v", got, resumed)
			}
			if !resumed {
				synctest.Wait()
				s.Close()
				<-read
				continue
			}
			if err := <-read; err != io.EOF {
				t.Errorf("the client reads %v, want io.EOF", err)
			}
			if now := time.Now(); !now.Equal(client.Leaf.NotAfter) {
				t.Errorf("closed at %v, want %v", now, client.Leaf.NotAfter)
			}
		}
	})
}

// queue is a connection that does not wait for the other end to read: to resume a session both write at once.
type queue struct {
	net.Conn
	out chan []byte
}

func newQueue(t testing.TB, c net.Conn) net.Conn {
	q := queue{c, make(chan []byte, 100)}
	t.Cleanup(func() { close(q.out) })
	go func() {
		for b := range q.out {
			c.Write(b)
		}
	}()
	return q
}

func (q queue) Write(b []byte) (int, error) {
	q.out <- bytes.Clone(b)
	return len(b), nil
}

// The certificate is the one that crypto/tls would choose.
func TestListener_ChoosesAsTLS(t *testing.T) {
	ca := newAuthority(t, "example.org")
	issue := func(names ...string) tls.Certificate {
		return *issueFor(t, ca, "server", time.Hour, func(c *x509.Certificate) { c.DNSNames = names }).Certificate()
	}
	a, b, got := issue("a"), issue("b"), issue("got")
	returns := func(c *tls.Certificate, err error) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		return func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c, err }
	}
	both := []tls.Certificate{a, b}
	for name, config := range map[string]*tls.Config{
		"Certificates":                   {Certificates: both},
		"one certificate":                {Certificates: both[:1]},
		"GetCertificate":                 {GetCertificate: returns(&got, nil)},
		"GetCertificate has none":        {GetCertificate: returns(nil, nil)},
		"GetCertificate fails":           {GetCertificate: returns(nil, errors.New("broken"))},
		"both":                           {Certificates: both, GetCertificate: returns(&got, nil)},
		"both, GetCertificate has none":  {Certificates: both, GetCertificate: returns(nil, nil)},
		"both, GetCertificate fails":     {Certificates: both, GetCertificate: returns(nil, errors.New("broken"))},
		"neither":                        {},
		"GetConfigForClient":             {GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return &tls.Config{Certificates: both}, nil }},
		"GetConfigForClient has none":    {Certificates: both, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, nil }},
		"GetConfigForClient fails":       {Certificates: both, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, errors.New("broken") }},
		"GetConfigForClient has nothing": {Certificates: both, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return &tls.Config{}, nil }},
	} {
		t.Run(name, func(t *testing.T) {
			l := listen(t, tlsid.ListenerConfig{TLS: config})
			go l.Accept()
			for _, serverName := range []string{"", "a", "b", "c"} {
				chosen := func(c *tls.Conn) string {
					if c.Handshake() != nil {
						return "none"
					}
					return c.ConnectionState().PeerCertificates[0].DNSNames[0]
				}
				client := &tls.Config{InsecureSkipVerify: true, ServerName: serverName}
				near, far := net.Pipe()
				go func() {
					tls.Server(far, config).Handshake()
					far.Close()
				}()
				want := chosen(tls.Client(near, client))
				near.Close()
				if got := chosen(tls.Client(dial(t, l.Addr(), "127.0.0.1"), client)); got != want {
					t.Errorf("for %q the certificate of %s, want that of %s", serverName, got, want)
				}
			}
		})
	}
}

// Shortly before its end a connection is retiring: a handler can say so, and no request is lost.
func TestConnectionsRetireBeforeTheirCertificates(t *testing.T) {
	for _, proto := range []string{"http/1.1", "h2"} {
		for _, life := range []time.Duration{time.Minute, 24 * time.Hour} {
			t.Run(fmt.Sprint(proto, life), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					e := newEnds(t, life, 25*time.Hour)
					inner := newPipes()
					l := tlsid.NewListener(inner, tlsid.ListenerConfig{TLS: e.server})
					srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if l.Retiring(r) {
							w.Header().Set("Connection", "close")
						}
						io.WriteString(w, r.RemoteAddr)
					})}
					served := make(chan error, 1)
					go func() { served <- srv.Serve(l) }()
					e.client.NextProtos = []string{proto}
					transport := &http.Transport{TLSClientConfig: e.client, ForceAttemptHTTP2: proto == "h2",
						DialContext: func(context.Context, string, string) (net.Conn, error) { return inner.dial(t), nil }}
					client := &http.Client{Transport: transport}
					call := func() string {
						t.Helper()
						got, err := get(client, "https://server/")
						if err != nil {
							t.Fatal(err)
						}
						return got
					}

					start := time.Now()
					first := call()
					notice := min(life/10, time.Minute)
					time.Sleep(life - notice - time.Until(start) - time.Millisecond)
					if got := call(); got != first {
						t.Errorf("%v before the end the connection is another", notice)
					}
					time.Sleep(notice/2 + 2*time.Millisecond)
					if got := call(); got != first {
						t.Error("the connection ended before its time")
					}
					synctest.Wait() // GOAWAY
					if got := call(); got == first {
						t.Errorf("%v before the end the connection is still used", notice/2)
					}
					transport.CloseIdleConnections()
					srv.Close()
					<-served
				})
			})
		}
	}
}

// What is known of a connection that is retiring is forgotten with it: another may get its address.
func TestListener_RetiringIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEnds(t, time.Hour, time.Hour)
		l, inner, accepted := listenPipes(t, tlsid.ListenerConfig{TLS: e.server})
		c := tls.Client(inner.dial(t), e.client)
		go c.Handshake()
		s := <-accepted
		r := &http.Request{RemoteAddr: s.RemoteAddr().String()}
		r = r.WithContext(context.WithValue(t.Context(), http.LocalAddrContextKey, s.LocalAddr()))
		for _, step := range []struct {
			until time.Duration // before the end
			want  bool
		}{{2 * time.Minute, false}, {time.Second, true}, {-time.Second, false}} {
			if step.until < 0 {
				go io.Copy(io.Discard, c)
			}
			time.Sleep(time.Until(s.(*tls.Conn).ConnectionState().PeerCertificates[0].NotAfter) - step.until)
			synctest.Wait()
			if got := l.Retiring(r); got != step.want {
				t.Errorf("%v before the end Retiring = %v, want %v", step.until, got, step.want)
			}
		}
		if l.Retiring(&http.Request{RemoteAddr: r.RemoteAddr}) {
			t.Error("a request that came over no listener is retiring")
		}
	})
}

// A listener does not hold on to connections that were closed.
func TestListener_ForgetsClosedConnections(t *testing.T) {
	l := listen(t, tlsid.ListenerConfig{Mode: always(tlsid.Permissive)})
	var collected atomic.Bool
	func() {
		dial(t, l.Addr(), "127.0.0.1").Write([]byte{'a'})
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		runtime.SetFinalizer(c, func(net.Conn) { collected.Store(true) })
	}()
	await.True(t, "it is collected", func() bool { runtime.GC(); return collected.Load() })
}

func TestListener_Recheck(t *testing.T) {
	e := newEnds(t, time.Hour, time.Hour)
	for _, tt := range []struct {
		to             tlsid.Mode
		plaintext, tls bool // still open
	}{
		{tlsid.Permissive, true, true},
		{tlsid.Strict, false, true},
		{tlsid.Disable, true, false},
	} {
		t.Run(tt.to.String(), func(t *testing.T) {
			var mode atomic.Uint32 // Permissive
			l := listen(t, tlsid.ListenerConfig{TLS: e.server, Mode: func() tlsid.Mode { return tlsid.Mode(mode.Load()) }})
			plain := dial(t, l.Addr(), "127.0.0.1")
			io.WriteString(plain, "a")
			plainAt := accept(t, l)
			secure := tls.Client(dial(t, l.Addr(), "127.0.0.1"), e.client)
			if err := secure.Handshake(); err != nil {
				t.Fatal(err)
			}
			secureAt := accept(t, l)
			mode.Store(uint32(tt.to))
			l.Recheck()
			for _, c := range []struct {
				client, server net.Conn
				open           bool
			}{{plain, plainAt, tt.plaintext}, {secure, secureAt, tt.tls}} {
				_, wrote := c.server.Write([]byte("b"))
				_, err := c.client.Read(make([]byte, 1))
				if open := wrote == nil && err == nil; open != c.open || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("%T open = %v (%v, %v), want %v", c.client, open, wrote, err, c.open)
				}
			}
		})
	}
}

// No plaintext connection survives a change to STRICT, however the two meet.
func TestListener_RecheckMissesNobody(t *testing.T) {
	for range 50 {
		var mode atomic.Uint32 // Permissive
		l := listen(t, tlsid.ListenerConfig{Mode: func() tlsid.Mode { return tlsid.Mode(mode.Load()) }})
		var clients []net.Conn
		go func() {
			for {
				if _, err := l.Accept(); err != nil {
					return
				}
			}
		}()
		for range 5 {
			c := dial(t, l.Addr(), "127.0.0.1")
			c.Write([]byte{'a'})
			clients = append(clients, c)
		}
		mode.Store(uint32(tlsid.Strict))
		l.Recheck()
		for _, c := range clients {
			if _, err := c.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("a plaintext connection is open under STRICT")
			}
		}
		l.Close()
	}
}

// A mode that changes during the handshake decides too.
func TestListener_DisabledDuringTheHandshake(t *testing.T) {
	var mode atomic.Uint32 // Permissive
	e := newEnds(t, time.Hour, time.Hour)
	get := e.server.GetCertificate
	e.server.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		mode.Store(uint32(tlsid.Disable))
		return get(hello)
	}
	refused := newRefusals()
	l := listen(t, tlsid.ListenerConfig{TLS: e.server, Mode: func() tlsid.Mode { return tlsid.Mode(mode.Load()) },
		Refused: refused.note})
	go l.Accept()
	tls.Client(dial(t, l.Addr(), "127.0.0.1"), e.client).Handshake()
	if r := refused.next(t); !errors.Is(r.Err, tlsid.ErrTLSDisabled) || r.Mode != tlsid.Disable {
		t.Errorf("refusal %+v, want ErrTLSDisabled", r)
	}
}

// Reading the byte that was sniffed, and all after it, allocates nothing.
func TestListener_ReadDoesNotAllocate(t *testing.T) {
	l := listen(t, tlsid.ListenerConfig{Mode: always(tlsid.Permissive)})
	c := dial(t, l.Addr(), "127.0.0.1")
	c.Write(make([]byte, 1000))
	s, buf := accept(t, l), make([]byte, 1)
	if n := testing.AllocsPerRun(500, func() { io.ReadFull(s, buf) }); n != 0 {
		t.Errorf("%v allocations a Read, want 0", n)
	}
}

// Close leaves alone what Accept has returned, at whatever moment it comes.
func TestListener_CloseLeavesWhatWasAccepted(t *testing.T) {
	for range 300 {
		inner, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l := tlsid.NewListener(inner, tlsid.ListenerConfig{Mode: func() tlsid.Mode { return tlsid.Disable }})
		client, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		if _, err := server.Write([]byte("x")); err != nil {
			t.Fatalf("the connection is closed: %v", err)
		}
		server.Close()
		client.Close()
	}
}
