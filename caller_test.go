package mesh_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/policy/route"
)

// watchful is a mesh in which one failure ejects the endpoint of api and opens its circuit.
func watchful(t *testing.T, api discovery.Endpoint, fields string) (m *mesh.Mesh, ejections func() []breaker.Event) {
	var (
		mu     sync.Mutex
		events []breaker.Event
	)
	m = meshtest.New(t, virtualService(fields)+destinationRule(`
outlierDetection: {consecutive5xxErrors: 1, consecutiveGatewayErrors: 1, maxEjectionPercent: 100, interval: 1h, baseEjectionTime: 1h}
`), mesh.WithDiscovery(discovery.Static{"api": {api}}),
		mesh.WithProtection(mesh.Protection{Circuit: &breaker.Config{ConsecutiveFailures: 1}}),
		mesh.WithObserver(mesh.Observer{Ejection: func(_ route.Target, e breaker.Event) {
			mu.Lock()
			defer mu.Unlock()
			events = append(events, e)
		}}))
	return m, func() []breaker.Event {
		mu.Lock()
		defer mu.Unlock()
		return events
	}
}

type brokenBody struct{}

func (brokenBody) Read([]byte) (int, error) { return 0, errors.New("the disk is gone") }

// TestMistakesOfTheCallerHaveNoConsequences sends requests that no server could answer to an endpoint that one failure would eject.
func TestMistakesOfTheCallerHaveNoConsequences(t *testing.T) {
	leak.Check(t)
	api := meshtest.Serve(t, func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			panic(http.ErrAbortHandler)
		}
		if r.ContentLength == 3 || r.Header.Get("Wait") != "" {
			<-r.Context().Done() // an answer might come before net/http sees that the body is longer, or that the call is canceled
		}
	})
	m, ejections := watchful(t, api, "timeout: 30s\nretries: {attempts: 2, retryOn: '5xx,reset'}")
	for name, spoil := range map[string]func(*http.Request){
		"header name":  func(req *http.Request) { req.Header["bad name"] = []string{"x"} },
		"header value": func(req *http.Request) { req.Header["X"] = []string{"a\nb"} },
		"method":       func(req *http.Request) { req.Method = "BAD METHOD" },
		"trailer":      func(req *http.Request) { req.Trailer = http.Header{"bad name": nil} },
		"failing body": func(req *http.Request) { req.Body = io.NopCloser(brokenBody{}) },
		"short body":   func(req *http.Request) { req.Body, req.ContentLength = io.NopCloser(strings.NewReader("12345")), 10 },
		"long body":    func(req *http.Request) { req.Body, req.ContentLength = io.NopCloser(strings.NewReader("12345")), 3 },
		"canceled": func(req *http.Request) {
			gone := make(chan struct{})
			close(gone)
			//lint:ignore SA1019 deprecated, but still honoured by net/http
			req.Cancel = gone
			req.Header.Set("Wait", "for the end")
		},
	} {
		t.Run(name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), "POST", "http://api/", nil)
			if err != nil {
				t.Fatal(err)
			}
			spoil(req)
			resp, err := m.Transport().RoundTrip(req)
			if err == nil {
				resp.Body.Close()
				t.Fatal("no error")
			}
			var ours *mesh.Error
			if errors.As(err, &ours) {
				t.Errorf("the mesh takes the blame: %v", err)
			}
			if e := ejections(); len(e) > 0 {
				t.Fatalf("the endpoint was ejected: %+v", e)
			}
			if status := get(t, m.Client(), "http://api/").status; status != http.StatusOK {
				t.Errorf("the next call gets %d", status)
			}
		})
	}
}

// TestWebSocketsDoNotEjectEndpoints ends a stream as every client does: one goroutine reads until another closes.
func TestWebSocketsDoNotEjectEndpoints(t *testing.T) {
	leak.Check(t)
	api := meshtest.Serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			return
		}
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		sent, _ := io.ReadAll(rw)
		conn.Write(sent)
	})
	m, ejections := watchful(t, api, "timeout: 30s")
	dial := func() io.ReadWriteCloser {
		req, err := http.NewRequestWithContext(t.Context(), "GET", "http://api/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", "echo")
		resp, err := m.Transport().RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		stream, ok := resp.Body.(io.ReadWriteCloser)
		if !ok {
			t.Fatalf("%s, body %T", resp.Status, resp.Body)
		}
		return stream
	}
	for range 20 {
		stream := dial()
		read := make(chan error, 1)
		go func() {
			_, err := stream.Read(make([]byte, 1))
			read <- err
		}()
		stream.Close()
		<-read
	}
	if e := ejections(); len(e) > 0 {
		t.Errorf("the endpoint was ejected: %+v", e)
	}

	proxy := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "api" },
		Transport: m.Transport(),
	})
	defer proxy.Close()
	conn, err := net.Dial("tcp", proxy.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	r := bufio.NewReader(conn)
	if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", resp, err)
	}
	io.WriteString(conn, "all that there is")
	conn.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(r); string(got) != "all that there is" || err != nil {
		t.Errorf("after the half-close: %q, %v", got, err)
	}
}

// drip is a request body that comes a byte a second.
type drip struct{ left int }

func (d *drip) Read(p []byte) (int, error) {
	if d.left == 0 {
		return 0, io.EOF
	}
	d.left--
	time.Sleep(time.Second)
	p[0] = 'x'
	return 1, nil
}

// TestTimeoutsBeginWhenTheRequestIsSent uploads for longer than any limit, and then waits for the answer.
func TestTimeoutsBeginWhenTheRequestIsSent(t *testing.T) {
	for name, fields := range map[string]string{
		"timeout":       "timeout: 3s\nretries: {attempts: 0}",
		"perTryTimeout": "retries: {attempts: 1, perTryTimeout: 3s, retryOn: connect-failure}",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := new(meshtest.Fleet)
				think := make(chan time.Duration, 1)
				f.Registry.Set("api", f.Add(t, func(w http.ResponseWriter, r *http.Request) {
					_, _ = io.Copy(io.Discard, r.Body)
					select {
					case <-time.After(<-think):
					case <-r.Context().Done():
					}
				}))
				m := f.Mesh(t, virtualService(fields))
				post := func(wait time.Duration) (time.Duration, error) {
					think <- wait
					req, err := http.NewRequestWithContext(t.Context(), "POST", "http://api/", io.NopCloser(&drip{10}))
					if err != nil {
						t.Fatal(err)
					}
					began := time.Now()
					resp, err := m.Transport().RoundTrip(req)
					if err == nil {
						_, err = io.Copy(io.Discard, resp.Body)
						resp.Body.Close()
					}
					return time.Since(began), err
				}
				if took, err := post(2 * time.Second); err != nil || took != 12*time.Second {
					t.Errorf("answered within the limit: %v after %v", err, took)
				}
				if took, err := post(time.Minute); err == nil || took != 13*time.Second {
					t.Errorf("answered too late: %v after %v", err, took)
				}
			})
		})
	}
}
