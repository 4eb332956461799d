package kubernetes_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/kubernetes"
	"github.com/nosidecar/mesh/internal/kubernetes/kubetest"
	"github.com/nosidecar/mesh/internal/memnet"
)

// TestWatchesShareConnections over HTTP/2: an API server lets 100 have one, and there may be more.
func TestWatchesShareConnections(t *testing.T) {
	for _, test := range []struct{ watches, connections int }{{61, 1}, {130, 2}} {
		t.Run(fmt.Sprint(test.watches), func(t *testing.T) {
			s := kubetest.New(things)
			s.Apply(thing("x", "1"))
			var mu sync.Mutex
			from := map[string]int{}
			s.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
				mu.Lock()
				defer mu.Unlock()
				if r.ProtoMajor != 2 {
					t.Errorf("a request over %s", r.Proto)
				}
				from[r.RemoteAddr]++
				return false
			})
			c := s.Start(t)
			all := []*watched{watch(t, c)}
			all[0].want("x=1 [x]")
			for len(all) < test.watches {
				all = append(all, watch(t, c))
			}
			for _, w := range all[1:] {
				w.want("x=1 [x]")
			}
			if err := c.Do(t.Context(), "GET", "/apis/example.com/v1", nil, nil); err != nil {
				t.Errorf("a request beside %d watches: %v", test.watches, err)
			}
			s.Apply(thing("x", "2"))
			for _, w := range all {
				w.want("x=2 [x]")
			}
			mu.Lock()
			defer mu.Unlock()
			if len(from) != test.connections {
				t.Errorf("%d watches have %d connections, want %d", test.watches, len(from), test.connections)
			}
		})
	}
}

// TestOverTheWire: torn writes, events as large as they get, and connections that break.
func TestOverTheWire(t *testing.T) {
	s := kubetest.New(things)
	s.Torn = true
	s.Apply(thing("x", "1"))
	w := watch(t, s.Start(t))
	w.want("x=1 [x]")
	s.Apply(thing("x", "2"))
	w.want("x=2 [x]")
	s.EndWatches()
	s.Apply(thing("x", "3"))
	w.want("x=3 [x]")
}

func TestLargeObjects(t *testing.T) {
	large := func(size int) string {
		return strings.TrimSuffix(object("x", "u1", 5, "1"), "}") + `,"more":"` + strings.Repeat("x", size) + `"}`
	}
	refused := raw(422, "application/json", string(kubetest.Status(422, "Invalid", "sendInitialEvents is forbidden")))
	for _, test := range []struct {
		name    string
		bound   int // 0 for the one of programs
		answers []answer
		want    string
	}{
		{"more than a server stores", 0, []answer{hold(`{"type":"ADDED","object":`+large(2<<20)+`}`, marker(10))}, "x=1 [x]"},
		{"much in an event", 1 << 20, []answer{hold(`{"type":"ADDED","object":`+large(3<<18)+`}`, marker(10))}, "x=1 [x]"},
		{"too much in an event", 1 << 20, []answer{hold(`{"type":"ADDED","object":`+large(5<<18)+`}`, marker(10))}, "(too large: an event of more than 1 MiB)"},
		{"much in a list", 1 << 20, []answer{refused, list(10, "", large(3<<18)), hold()}, "x=1 [x]"},
		{"too much in a list", 1 << 20, []answer{refused, list(10, "", large(5<<19)), hold()}, "(too large: an object of more than 1 MiB)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.bound > 0 {
				t.Cleanup(kubernetes.SetMaxLine(test.bound))
			}
			if got, _ := first(t, test.answers...); !wanted(got, test.want) {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

// TestBoundOfObjects pins the bound of programs, 8 MiB: other tests lower it.
func TestBoundOfObjects(t *testing.T) {
	const bound = 8 << 20
	large := func(size int) string {
		whole := strings.TrimSuffix(object("x", "u1", 5, "1"), "}") + `,"more":"`
		return whole + strings.Repeat("x", size-len(whole)-2) + `"}`
	}
	for _, test := range []struct {
		size int
		want string
	}{
		{bound - 64, ""}, // with what is around it
		{bound + 1<<17, "too large: an event of more than 8 MiB"}, // the last part of a line is not looked at
	} {
		objects, _, err := kubernetes.ReadEvents(strings.NewReader(`{"type":"ADDED","object":`+large(test.size)+"}\n"), things, "")
		if test.want == "" && (err != io.EOF || len(objects) != 1) || test.want != "" && (err == nil || err.Error() != test.want) {
			t.Errorf("an event with an object of %d bytes: %d objects, %v, want %q", test.size, len(objects), err, test.want)
		}
	}
	page := func(item string) string {
		return `{"kind":"ThingList","apiVersion":"example.com/v1","metadata":{"resourceVersion":"1"},"items":[` + item + `]}`
	}
	for _, test := range []struct {
		size int
		want string
	}{
		{bound - 1<<10, ""},
		{2*bound + 1<<20, "too large: an object of more than 8 MiB"}, // what has been read is looked at first
	} {
		objects, _, err := kubernetes.ReadList(strings.NewReader(page(large(test.size))), things, "")
		if test.want == "" && (err != nil || len(objects) != 1) || test.want != "" && (err == nil || err.Error() != test.want) {
			t.Errorf("a list with an object of %d bytes: %d objects, %v, want %q", test.size, len(objects), err, test.want)
		}
	}
}

// TestAnswersWithoutEnd cost no more than one object may.
func TestAnswersWithoutEnd(t *testing.T) {
	endless := func(begin, more string) answer {
		piece := []byte(strings.Repeat(more, 1<<16/len(more)))
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Write([]byte(begin))
			for r.Context().Err() == nil {
				if _, err := w.Write(piece); err != nil {
					return
				}
			}
		}
	}
	refused := raw(422, "application/json", string(kubetest.Status(422, "Invalid", "sendInitialEvents is forbidden")))
	for _, test := range []struct {
		name    string
		answers []answer
		want    string
	}{
		{"a line", []answer{endless(`{"type":"ADDED","object":{"a":"`, "x")}, "an event of more than 1 MiB"},
		{"a field of a list", []answer{refused, endless(`{"kind":"`, "x")}, "an object of more than 1 MiB"},
		{"an item of a list", []answer{refused, endless(`{"kind":"ThingList","items":[{"a":"`, "x")}, "an object of more than 1 MiB"},
		{"white space in a list", []answer{refused, endless(`{"kind":"ThingList","items":[`, " ")}, "an object of more than 1 MiB"},
		{"nested arrays", []answer{endless(`{"type":"ADDED","object":{"a":`, "[")}, "an event of more than 1 MiB"},
		{"an error", []answer{func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(500)
			endless("", "x")(w, r)
		}}, "(500): xxx"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Cleanup(kubernetes.SetMaxLine(1 << 20))
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			got, times := first(t, test.answers...)
			if !strings.Contains(got, test.want) {
				t.Errorf("got %.300s", got)
			}
			runtime.ReadMemStats(&after)
			if used := after.TotalAlloc - before.TotalAlloc; used > times*32<<20 {
				t.Errorf("%d MiB were allocated", used>>20)
			}
		})
	}
}

// frozen is a network whose connections can fall silent, as those to a machine that is gone.
type frozen struct {
	memnet.Network
	now atomic.Pointer[chan struct{}] // what the connections of now wait for to fall silent
}

func newFrozen() *frozen {
	f := &frozen{}
	f.thaw()
	return f
}

// thaw makes the connections from now on work.
func (f *frozen) thaw() {
	silent := make(chan struct{})
	f.now.Store(&silent)
}

// freeze makes all connections so far fall silent.
func (f *frozen) freeze() { close(*f.now.Load()) }

func (f *frozen) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := f.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &frozenConn{Conn: conn, silent: *f.now.Load(), closed: make(chan struct{})}, nil
}

type frozenConn struct {
	net.Conn
	silent chan struct{}
	once   sync.Once
	closed chan struct{}
}

func (c *frozenConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	select {
	case <-c.silent:
		<-c.closed
		return 0, net.ErrClosed
	default:
		return n, err
	}
}

func (c *frozenConn) Write(p []byte) (int, error) {
	select {
	case <-c.silent:
		return len(p), nil // into the buffers of the kernel
	default:
		return c.Conn.Write(p)
	}
}

func (c *frozenConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// TestAServerThatIsGoneWithoutAWord looks like one with nothing to say. Pings tell them apart.
func TestAServerThatIsGoneWithoutAWord(t *testing.T) {
	certificate, key := selfSigned(t)
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		s, network := kubetest.New(things), newFrozen()
		s.Apply(thing("x", "1"))
		server := &http.Server{Handler: s, TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2"}}}
		listener, done := network.Listen("10.0.0.1:6443"), make(chan struct{})
		go func() {
			defer close(done)
			server.ServeTLS(listener, "", "")
		}()
		t.Cleanup(func() {
			server.Close()
			<-done
		})
		c, err := kubernetes.New(kubernetes.Config{Server: "https://10.0.0.1:6443", CA: certificate, ServerName: "kubernetes.default.svc"})
		if err != nil {
			t.Fatal(err)
		}
		kubernetes.Dial(c, network.dial)
		t.Cleanup(c.CloseIdleConnections)
		w := watch(t, c)
		w.want("x=1 [x]")
		time.Sleep(10 * time.Minute) // it is quiet, and there
		w.nothing()
		if n := network.Dials(); n != 1 {
			t.Errorf("%d connections", n)
		}
		network.freeze()
		network.thaw()
		s.Apply(thing("x", "2"))
		began := time.Now()
		w.want("x=2 [x]")
		if took := time.Since(began); took > 35*time.Second {
			t.Errorf("it took %v", took)
		}
		w.stop()
		time.Sleep(time.Minute)
	})
}

// TestAnAuthorityThatIsRenewed is read again when the certificate of the server has changed, and new connections trust only the new one.
func TestAnAuthorityThatIsRenewed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ca.crt")
	var pairs []tls.Certificate
	var authorities [][]byte
	for range 3 {
		certificate, key := selfSigned(t)
		pair, err := tls.X509KeyPair(certificate, key)
		if err != nil {
			t.Fatal(err)
		}
		pairs, authorities = append(pairs, pair), append(authorities, certificate)
	}
	write := func(data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(authorities[0])
	synctest.Test(t, func(t *testing.T) {
		s := kubetest.New(things)
		s.Apply(thing("x", "1"))
		var network memnet.Network
		start := func(pair tls.Certificate) (stop func()) {
			server := &http.Server{Handler: s, TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2"}}, ErrorLog: log.New(io.Discard, "", 0)}
			listener, done := network.Listen("10.0.0.1:6443"), make(chan struct{})
			go func() {
				defer close(done)
				server.ServeTLS(listener, "", "")
			}()
			return func() {
				server.Close()
				<-done
			}
		}
		c, err := kubernetes.New(kubernetes.Config{Server: "https://10.0.0.1:6443", CAFile: path, ServerName: "kubernetes.default.svc"})
		if err != nil {
			t.Fatal(err)
		}
		kubernetes.Dial(c, network.DialContext)
		stop := start(pairs[0])
		w := watch(t, c)
		w.want("x=1 [x]")
		write(authorities[1])
		time.Sleep(time.Minute)
		s.Apply(thing("x", "2"))
		w.want("x=2 [x]") // the watch that is open stays so
		stop()
		stop = start(pairs[1])
		s.Apply(thing("x", "3"))
		w.want("x=3 [x]") // without an error
		for _, bad := range []string{"", "no certificate"} {
			write([]byte(bad))
			time.Sleep(time.Minute)
			stop()
			stop = start(pairs[1])
			s.Apply(thing("x", "4"+bad))
			w.want("x=4" + bad + " [x]") // with the last
		}
		stop()
		stop = start(pairs[2])
		w.want("(ca.crt has no certificate)")
		write(authorities[2])
		w.want("x=4no certificate []")
		w.stop()
		c.CloseIdleConnections()
		stop()
	})
}

// TestAServerThatRestarts ends all watches in the middle, and is not there for a while.
func TestAServerThatRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := kubetest.New(things)
		s.Apply(thing("x", "1"))
		var network memnet.Network
		start := func() (stop func()) {
			server, listener, done := &http.Server{Handler: s}, network.Listen("10.0.0.1:80"), make(chan struct{})
			go func() {
				defer close(done)
				server.Serve(listener)
			}()
			return func() {
				server.Close()
				<-done
			}
		}
		stop := start()
		transport := &http.Transport{DialContext: network.DialContext}
		c, err := kubernetes.New(kubernetes.Config{Server: "http://10.0.0.1:80", Transport: transport})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.CloseIdleConnections)
		w := watch(t, c)
		w.want("x=1 [x]")
		time.Sleep(time.Minute)
		p := play(s)
		stop()
		s.Apply(thing("x", "2"))
		w.want("(connection refused)")
		time.Sleep(5 * time.Minute)
		w.nothing()
		stop = start()
		defer func() {
			w.stop()
			c.CloseIdleConnections()
			stop()
		}()
		w.want("x=2 [x]")
		synctest.Wait()
		if got := kinds(p.requests()); got != fmt.Sprint("from ", s.Version()-1) {
			t.Errorf("asked for %s", got)
		}
	})
}
