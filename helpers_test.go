package mesh_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy"
)

// TestMain fails the run if anything of the mesh, or of its connections, is left running at its end.
func TestMain(m *testing.M) {
	if description := os.Getenv(processVariable); description != "" { // process_test.go
		if err := beProcess(description); err != nil {
			log.Fatal(err)
		}
		os.Exit(0)
	}
	code := m.Run()
	if left := leftRunning(); left != "" && code == 0 {
		os.Stderr.WriteString("left running after the tests:\n" + left)
		code = 1
	}
	os.Exit(code)
}

// leftRunning returns the stacks of goroutines that should be gone, after giving them time to end.
func leftRunning() string {
	var left string
	poll(5*time.Second, func() bool {
		stacks := make([]byte, 4<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		left = ""
		for stack := range strings.SplitSeq(string(stacks), "\n\n") {
			ours := strings.Contains(stack, "nosidecar/mesh") || strings.Contains(stack, "net/http.(*persistConn)") ||
				strings.Contains(stack, "net/http.(*http2")
			if ours && !strings.Contains(stack, "mesh_test.TestMain") && !strings.Contains(stack, "mesh_test.leftRunning") {
				left += stack + "\n\n"
			}
		}
		return left == ""
	})
	return left
}

// poll waits until done reports true, and reports whether it did in time.
func poll(limit time.Duration, done func() bool) bool {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(limit); ; <-tick.C {
		if done() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// noLeaks checks, when the test is over and everything it started was closed, that nothing is left running. It is
// called first.
func noLeaks(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		if left := leftRunning(); left != "" {
			t.Errorf("left running:\n%s", left)
		}
	})
}

// serve starts a real HTTP server on the loopback and returns it as an endpoint.
func serve(t testing.TB, h http.HandlerFunc) discovery.Endpoint {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return endpointOf(t, srv.Listener.Addr().String())
}

func endpointOf(t testing.TB, address string) discovery.Endpoint {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return discovery.Endpoint{Address: host, Port: n}
}

func labeled(e discovery.Endpoint, key, value string) discovery.Endpoint {
	e.Labels = map[string]string{key: value}
	return e
}

// newMesh makes a mesh of the documents, closed with the test.
func newMesh(t testing.TB, documents string, opts ...mesh.Option) *mesh.Mesh {
	t.Helper()
	if documents != "" {
		opts = append(opts, mesh.WithPolicy(policy.Source{Name: "test.yaml", Data: []byte(documents)}))
	}
	m, err := mesh.New(context.Background(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// answer is what a call gave.
type answer struct {
	status int
	body   string
	header http.Header
	resp   *http.Response
}

func get(t testing.TB, c *http.Client, url string, header ...string) answer {
	t.Helper()
	a, err := try(c, url, header...)
	if err != nil {
		t.Fatalf("GET %s: %v", url, err)
	}
	return a
}

func try(c *http.Client, url string, header ...string) (answer, error) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return answer{}, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		} else {
			req.Header.Add(header[i], header[i+1])
		}
	}
	resp, err := c.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, string(body), resp.Header, resp}, err
}

// fleet is a network of HTTP servers in memory, for tests in which time is not real. Its servers are found by address.
type fleet struct {
	mu        sync.Mutex
	listeners map[string]*memoryListener
	servers   []*http.Server
	registry  discovery.Memory
	dials     int
}

func newFleet(t testing.TB) *fleet {
	f := &fleet{listeners: make(map[string]*memoryListener)}
	t.Cleanup(f.close)
	return f
}

func (f *fleet) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.servers {
		s.Close()
	}
}

// add starts a server and returns its endpoint.
func (f *fleet) add(h http.HandlerFunc) discovery.Endpoint {
	f.mu.Lock()
	defer f.mu.Unlock()
	address := "10.0.0." + strconv.Itoa(len(f.listeners)+1)
	l := &memoryListener{address: address, conns: make(chan net.Conn), closed: make(chan struct{})}
	f.listeners[address+":80"] = l
	srv := &http.Server{Handler: h}
	f.servers = append(f.servers, srv)
	go srv.Serve(l)
	return discovery.Endpoint{Address: address, Port: 80}
}

// service registers endpoints that answer with h, and returns them.
func (f *fleet) service(name string, endpoints ...discovery.Endpoint) {
	f.registry.Set(name, endpoints...)
}

// mesh makes a mesh over the fleet.
func (f *fleet) mesh(t testing.TB, documents string, opts ...mesh.Option) *mesh.Mesh {
	t.Helper()
	return newMesh(t, documents, append([]mesh.Option{
		mesh.WithDiscovery(&f.registry),
		mesh.WithTransport(&http.Transport{DialContext: f.dial}),
	}, opts...)...)
}

var errNoServer = errors.New("connection refused")

func (f *fleet) dial(ctx context.Context, network, address string) (net.Conn, error) {
	f.mu.Lock()
	f.dials++
	l := f.listeners[address]
	f.mu.Unlock()
	if l == nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: errNoServer}
	}
	client, server := net.Pipe()
	select {
	case l.conns <- server:
		return client, nil
	case <-l.closed:
		return nil, &net.OpError{Op: "dial", Net: network, Err: errNoServer}
	case <-ctx.Done():
		return nil, &net.OpError{Op: "dial", Net: network, Err: context.Cause(ctx)}
	}
}

func (f *fleet) dialled() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dials
}

type memoryListener struct {
	address string
	conns   chan net.Conn
	once    sync.Once
	closed  chan struct{}
}

func (l *memoryListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *memoryListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *memoryListener) Addr() net.Addr { return memoryAddr(l.address) }

type memoryAddr string

func (memoryAddr) Network() string  { return "memory" }
func (a memoryAddr) String() string { return string(a) + ":80" }

// says answers every request with text.
func says(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, text) }
}

// fails answers every request with status.
func fails(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(status) }
}

// readSeed returns a document file of the seed.
func readSeed(t testing.TB, name string) string {
	t.Helper()
	data, err := os.ReadFile("policy/testdata/seed/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(bytes.TrimSpace(data))
}

// between checks a share that was measured.
func between(t testing.TB, what string, got, low, high int) {
	t.Helper()
	if got < low || got > high {
		t.Errorf("%s: %d, want %d to %d", what, got, low, high)
	}
}

// advance lets time pass, in a synctest bubble.
func advance(d time.Duration) { time.Sleep(d) }
