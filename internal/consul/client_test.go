package consul

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/memnet"
	"github.com/nosidecar/mesh/internal/rawtest"
)

// agent is a server that answers like an agent without anything: reads that block are held until their context ends or it is
// released, and nothing else is.
type agent struct {
	*httptest.Server
	dials    atomic.Int32
	closed   atomic.Int32 // of the connections
	blocked  atomic.Int32
	short    atomic.Int32 // queries with an index and a wait of 10 ms
	release  chan struct{}
	tokens   chan string
	requests sync.Map // by URL path, the last URL
}

func newAgent(t *testing.T, secure bool) *agent {
	a := &agent{release: make(chan struct{}), tokens: make(chan string, 1000)}
	a.Server = httptest.NewUnstartedServer(a)
	a.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			a.dials.Add(1)
		case http.StateClosed:
			a.closed.Add(1)
		}
	}
	if secure {
		a.EnableHTTP2 = true
		a.StartTLS()
	} else {
		a.Start()
	}
	t.Cleanup(a.Close)
	return a
}

func (a *agent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case a.tokens <- r.Header.Get("X-Consul-Token"):
	default:
	}
	a.requests.Store(r.URL.Path, r.URL.String())
	if query := r.URL.Query(); query.Has("index") {
		if query.Get("wait") == shortWait.String() {
			a.short.Add(1)
		} else {
			a.blocked.Add(1)
			defer a.blocked.Add(-1)
			select {
			case <-r.Context().Done():
			case <-a.release:
			}
		}
	}
	w.Header().Set("X-Consul-Index", "5")
	fmt.Fprint(w, "[]")
}

// config returns how to reach the agent.
func (a *agent) config() *api.Config {
	c := &api.Config{Address: a.URL}
	if a.TLS != nil {
		c.TLSConfig.CAPem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Certificate().Raw})
	}
	return c
}

func (a *agent) client(t *testing.T) *api.Client {
	client, err := NewClient(a.config())
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// watchMany watches so many services until stop is called.
func watchMany(client *api.Client, n int) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for i := range n {
		name := fmt.Sprintf("service-%d", i)
		w := Watch[[]*api.ServiceEntry]{What: name, Read: func(o *api.QueryOptions) ([]*api.ServiceEntry, *api.QueryMeta, error) {
			return client.Health().Service(name, "", false, o)
		}}
		running.Go(func() {
			for range w.All(ctx) {
			}
		})
	}
	return func() {
		cancel()
		running.Wait()
	}
}

func TestHTTPSTakesOneConnection(t *testing.T) {
	watch := func() (before, after int32) {
		a := newAgent(t, true)
		client := a.client(t)
		defer watchMany(client, 200)()
		await.True(t, "200 blocked queries", func() bool { return a.blocked.Load() == 200 })
		before = a.dials.Load()
		// All queries end with the connection, and come back at the same time.
		a.CloseClientConnections()
		await.True(t, "200 blocked queries again", func() bool { return a.dials.Load() > before && a.blocked.Load() == 200 })
		return before, a.dials.Load()
	}
	stalls := await.WatchStalls(t)
	for again := true; again; {
		began := time.Now()
		before, after := watch()
		good := before == 1 && after == 2
		// What waits for a handshake gives up after 10 s, and what waits for the first request to connect then connects, too.
		if again = !good && stalls.Excuse(began); !good && !again {
			t.Errorf("%d and %d connections, want 1 and 2, one after the other", before, after)
		}
	}
}

// While one request connects all others wait, so it must not be a query that is answered after a minute.
func TestTheFirstRequestDoesNotBlock(t *testing.T) {
	a := newAgent(t, true)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	options := (&api.QueryOptions{WaitIndex: 5, WaitTime: time.Minute}).WithContext(ctx)
	if _, _, err := a.client(t).Health().Service("web", "", false, options); err != nil || a.short.Load() != 1 {
		t.Errorf("%v after %d queries with a short wait, want an answer after one", err, a.short.Load())
	}
}

func TestHTTPTakesFewConnections(t *testing.T) {
	a := newAgent(t, false)
	client := a.client(t)
	defer watchMany(client, 200)()
	await.True(t, "64 blocked queries, and all others answered in turn", func() bool {
		return a.blocked.Load() == mostBlocked && a.short.Load() >= 200-mostBlocked
	})
	// net/http may replace a connection on a busy machine, and the agent may notice the end of the old one late.
	await.True(t, "72 connections at most", func() bool { return a.dials.Load()-a.closed.Load() <= mostBlocked+mostShort })
	// Other requests get through meanwhile.
	if _, err := client.Status().Leader(); err == nil || !strings.Contains(err.Error(), "unmarshal") {
		t.Errorf("another request: %v, want the agent's answer", err)
	}
}

// tooMany marks a connection beyond what the agent takes.
type tooMany struct{}

// What an agent does not take is not asked for again and again: processes share what it takes.
func TestRefusedConnectionsLowerTheBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most = 6 // connections that the agent takes
		var open, refused, answered atomic.Int32
		var n memnet.Network
		handler := func(w http.ResponseWriter, r *http.Request) {
			if r.Context().Value(tooMany{}) != nil {
				if refused.Add(1)%2 == 0 {
					panic(http.ErrAbortHandler) // as if it had not read the request
				}
				w.Header().Set("Connection", "close")
				w.WriteHeader(http.StatusTooManyRequests)
				return
			}
			answered.Add(1)
			query := r.URL.Query()
			wait, _ := time.ParseDuration(query.Get("wait"))
			if query.Has("index") {
				select {
				case <-time.After(wait):
				case <-r.Context().Done():
				}
			}
			w.Header().Set("X-Consul-Index", "5")
			fmt.Fprint(w, "[]")
		}
		l, done := n.Listen("agent:8500"), make(chan struct{})
		server := &http.Server{
			Handler: http.HandlerFunc(handler),
			ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
				if open.Load() > most {
					return context.WithValue(ctx, tooMany{}, true)
				}
				return ctx
			},
			ConnState: func(_ net.Conn, state http.ConnState) {
				switch state {
				case http.StateNew:
					open.Add(1)
				case http.StateClosed:
					open.Add(-1)
				}
			},
		}
		go func() {
			defer close(done)
			server.Serve(l) // until Close
		}()
		client, err := NewClient(&api.Config{Address: "agent:8500", Transport: &http.Transport{DialContext: n.DialContext}})
		if err != nil {
			t.Fatal(err)
		}
		stop := watchMany(client, 12)
		time.Sleep(time.Minute)
		refused.Store(0)
		answered.Store(0)
		time.Sleep(time.Minute)
		if n := refused.Load(); n > 60 {
			t.Errorf("%d connections refused in a minute, want one a second at most", n)
		}
		if n := answered.Load(); n < 60*7 {
			t.Errorf("%d queries answered in a minute, want nearly one per second of each that does not block", n)
		}
		stop()
		server.Close()
		<-done
		time.Sleep(2 * time.Second) // for connections that no request took
	})
}

// Agents answer a connection too many at once. net/http writes a line to the log of the process for an answer to nothing.
func TestRefusalsAreNotLogged(t *testing.T) {
	l := rawtest.Listen(t)
	rawtest.Serve(t, l, func(conn net.Conn) {
		fmt.Fprint(conn, "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
	})
	var logged bytes.Buffer
	defer log.SetOutput(log.Writer())
	log.SetOutput(&logged)
	for range 20 { // not in a row: the client would wait between them
		client, err := NewClient(&api.Config{Address: l.Addr().String()})
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = client.Catalog().Nodes(nil)
		if Status(err) != http.StatusTooManyRequests && (err == nil || !strings.Contains(err.Error(), "http_max_conns_per_client")) {
			t.Errorf("%v, want that the agent has too many connections", err)
		}
	}
	if logged.Len() > 0 {
		t.Errorf("logged %q, want nothing", &logged)
	}
}

func TestTokenFileIsReadAgain(t *testing.T) {
	a := newAgent(t, false)
	path := filepath.Join(t.TempDir(), "token")
	write := func(token string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("first\n")
	config := a.config()
	config.TokenFile = path
	client, err := NewClient(config)
	if err != nil {
		t.Fatal(err)
	}
	sent := func(want string, options *api.QueryOptions) {
		t.Helper()
		if _, _, err := client.Catalog().Nodes(options); err != nil {
			t.Fatal(err)
		}
		if got := await.Receive(t, "a request", a.tokens); got != want {
			t.Errorf("the token is %q, want %q", got, want)
		}
	}
	sent("first", nil)
	write("second")
	sent("second", nil)
	sent("own", &api.QueryOptions{Token: "own"})
	write("") // in the course of being written
	sent("second", nil)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	sent("second", nil)
	write("third")
	sent("third", nil)
	if config.TokenFile != path || config.Token != "" || config.HttpClient != nil || config.Transport != nil {
		t.Errorf("the caller's config is now %+v", config)
	}
}

func TestTokenOfTheCallerIsNotReplaced(t *testing.T) {
	a := newAgent(t, false)
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte("of the file"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONSUL_HTTP_TOKEN_FILE", path)
	config := a.config()
	config.Token = "of the caller"
	client, err := NewClient(config)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := client.Catalog().Nodes(nil); err != nil {
		t.Fatal(err)
	}
	if got := await.Receive(t, "a request", a.tokens); got != "of the caller" {
		t.Errorf("the token is %q, want %q", got, "of the caller")
	}
}

func TestClientOfTheEnvironment(t *testing.T) {
	a := newAgent(t, false)
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte("of the file"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONSUL_HTTP_ADDR", a.URL)
	t.Setenv("CONSUL_HTTP_TOKEN_FILE", path)
	client, err := NewClient(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := client.Catalog().Nodes(nil); err != nil {
		t.Fatal(err)
	}
	if got := await.Receive(t, "a request", a.tokens); got != "of the file" {
		t.Errorf("the token is %q, want %q", got, "of the file")
	}
	t.Setenv("CONSUL_HTTP_TOKEN_FILE", path+".missing")
	if _, err := NewClient(nil); err == nil || !strings.HasPrefix(err.Error(), "consul: ") {
		t.Errorf("a token file that is missing: %v, want an error of this package", err)
	}
}

// A pipe can be read only once: the token that the client read from it stays.
func TestTokenFromAPipe(t *testing.T) {
	a := newAgent(t, false)
	path := filepath.Join(t.TempDir(), "token")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Skip(err)
	}
	go os.WriteFile(path, []byte("of the pipe"), 0o600)
	made := make(chan *api.Client, 1)
	go func() {
		client, err := NewClient(&api.Config{Address: a.URL, TokenFile: path})
		if err != nil {
			t.Error(err)
		}
		made <- client
	}()
	if _, _, err := await.Receive(t, "the client", made).Catalog().Nodes(nil); err != nil {
		t.Fatal(err)
	}
	if got := await.Receive(t, "a request", a.tokens); got != "of the pipe" {
		t.Errorf("the token is %q, want %q", got, "of the pipe")
	}
}

// The certificates that the environment names are those that the agent is verified with.
func TestCertificatesOfTheEnvironment(t *testing.T) {
	a := newAgent(t, true)
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, a.config().TLSConfig.CAPem, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONSUL_HTTP_ADDR", a.URL)
	t.Setenv("CONSUL_CACERT", path)
	client, err := NewClient(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := client.Catalog().Nodes(nil); err != nil {
		t.Error(err)
	}
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{release: make(chan struct{}), tokens: make(chan string, 1000)}
	a.Server = &httptest.Server{Listener: l, Config: &http.Server{Handler: a}}
	a.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			a.dials.Add(1)
		}
	}
	a.Start()
	defer a.Close()
	client, err := NewClient(&api.Config{Address: "unix://" + path})
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if _, _, err := client.Catalog().Nodes(nil); err != nil {
			t.Fatal(err)
		}
	}
	if n := a.dials.Load(); n != 1 {
		t.Errorf("%d connections for five requests in a row, want 1", n)
	}
}

// A server that speaks HTTP/1 behind TLS is one that takes few connections.
func TestHTTPSWithoutHTTP2TakesFewConnections(t *testing.T) {
	a := &agent{release: make(chan struct{}), tokens: make(chan string, 1000)}
	a.Server = httptest.NewUnstartedServer(a)
	a.Server.TLS = &tls.Config{NextProtos: []string{"http/1.1"}}
	a.StartTLS()
	defer a.Close()
	defer watchMany(a.client(t), 100)()
	await.True(t, "64 blocked queries, and all others answered in turn", func() bool {
		return a.blocked.Load() == mostBlocked && a.short.Load() >= 100-mostBlocked
	})
}

func TestTurnsAreGivenUpWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var turns turns
		var done []func(bool)
		request := func(ctx context.Context) (func(bool), error) {
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/v1/kv/x", nil)
			_, leave, err := turns.wait(req)
			return leave, err
		}
		for range mostShort {
			leave, err := request(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			done = append(done, leave)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := request(ctx); err != context.DeadlineExceeded {
			t.Errorf("a request without a place: %v, want that its time is up", err)
		}
		for _, leave := range done {
			leave(false)
		}
		if turns.short != 0 || len(turns.queue) != 0 {
			t.Errorf("%d requests under way and %d waiting, want none", turns.short, len(turns.queue))
		}
	})
}
