package mesh_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
)

// endings are the ways in which programs end calls. Each returns the body, if it is to be read and closed again once other calls use
// the memory of this one.
var endings = []func(want string, resp *http.Response, cancel func()) (io.ReadCloser, error){
	func(want string, resp *http.Response, _ func()) (io.ReadCloser, error) { // read to the end and closed
		got, err := io.ReadAll(resp.Body)
		if err == nil && string(got) != want {
			err = fmt.Errorf("body %q, want %q", got, want)
		}
		resp.Body.Close()
		return resp.Body, err
	},
	func(_ string, resp *http.Response, _ func()) (io.ReadCloser, error) { // read to the end, closed late
		_, err := io.ReadAll(resp.Body)
		return resp.Body, err
	},
	func(_ string, resp *http.Response, _ func()) (io.ReadCloser, error) { // closed at once
		return resp.Body, resp.Body.Close()
	},
	func(_ string, resp *http.Response, _ func()) (io.ReadCloser, error) { // closed while it is read
		var reading sync.WaitGroup
		reading.Go(func() { _, _ = io.Copy(io.Discard, resp.Body) })
		resp.Body.Close()
		reading.Wait()
		return resp.Body, nil
	},
	func(_ string, resp *http.Response, _ func()) (io.ReadCloser, error) { // closed twice at the same time
		var closing sync.WaitGroup
		closing.Go(func() { resp.Body.Close() })
		closing.Go(func() { resp.Body.Close() })
		closing.Wait()
		return resp.Body, nil
	},
	func(_ string, resp *http.Response, cancel func()) (io.ReadCloser, error) { // canceled while it is read
		var reading sync.WaitGroup
		reading.Go(func() { _, _ = io.Copy(io.Discard, resp.Body) })
		cancel()
		reading.Wait()
		return resp.Body, nil
	},
	func(_ string, resp *http.Response, _ func()) (io.ReadCloser, error) { // not closed before many other calls have ended
		return resp.Body, nil
	},
}

// TestBodiesOfEndedCalls does with the bodies of responses whatever programs do, while other calls use the memory of those that have
// ended.
func TestBodiesOfEndedCalls(t *testing.T) {
	observed := func(header bool, calls, attempts *atomic.Int64) mesh.Option {
		o := mesh.Observer{
			CallStart: func(ctx context.Context, _ *mesh.Call) context.Context { calls.Add(1); return ctx },
			CallEnd:   func(context.Context, *mesh.Call) { calls.Add(-1) },
		}
		if header {
			o.AttemptStart = func(ctx context.Context, a *mesh.Attempt) context.Context {
				attempts.Add(1)
				a.Sent.SetHeader("X-Test", "1")
				return ctx
			}
			o.AttemptEnd = func(context.Context, *mesh.Attempt) { attempts.Add(-1) }
		}
		return mesh.WithObserver(o)
	}
	for _, timeouts := range []bool{false, true} {
		for _, observe := range []string{"nothing", "calls", "headers"} {
			t.Run(fmt.Sprintf("timeouts %t, %s observed", timeouts, observe), func(t *testing.T) {
				noLeaks(t)
				var calls, attempts atomic.Int64
				opts := []mesh.Option{mesh.WithProtection(mesh.Protection{Circuit: &breaker.Config{ConsecutiveFailures: 1000}})}
				if observe != "nothing" {
					opts = append(opts, observed(observe == "headers", &calls, &attempts))
				}
				endCalls(t, timeouts, opts...)
				if calls, attempts := calls.Load(), attempts.Load(); calls != 0 || attempts != 0 {
					t.Errorf("%d calls and %d attempts have not ended", calls, attempts)
				}
			})
		}
	}
}

// endCalls makes calls from several goroutines and ends them in every way.
func endCalls(t *testing.T, timeouts bool, opts ...mesh.Option) {
	perTry, whole := "", ""
	if timeouts {
		perTry, whole = ", perTryTimeout: 60s", "timeout: 90s"
	}
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "3") && r.Header.Get("X-Envoy-Attempt-Count") == "" {
			w.WriteHeader(http.StatusServiceUnavailable) // which is retried
		}
		io.WriteString(w, strings.Repeat(r.URL.Path, 3))
	})
	m := newMesh(t, fmt.Sprintf(benchDocuments, perTry, whole),
		append(opts, mesh.WithDiscovery(discovery.Static{"user-service": {server}}))...)
	c := m.Client()
	var callers sync.WaitGroup
	for caller := range 6 {
		callers.Go(func() {
			var bodies []io.ReadCloser
			for n := range 70 {
				body, err := endCall(c, fmt.Sprintf("/users/%d/%d", caller, n), endings[(caller+n)%len(endings)])
				if err != nil {
					t.Error(err)
					return
				}
				if bodies = append(bodies, body); len(bodies) == 10 {
					for _, body := range bodies {
						body.Close()
						_, _ = body.Read(make([]byte, 1))
						body.Close()
					}
					bodies = nil
				}
			}
		})
	}
	callers.Wait()
	s := m.Status().Services[0]
	if s.InFlight != 0 || s.Pool.Active != 0 || s.Endpoints[0].InFlight != 0 {
		t.Errorf("in flight: %d calls, %d in the pool, %d attempts", s.InFlight, s.Pool.Active, s.Endpoints[0].InFlight)
	}
}

// endCall makes a call and ends it.
func endCall(c *http.Client, path string, end func(string, *http.Response, func()) (io.ReadCloser, error)) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://user-service"+path, nil)
	if err != nil {
		cancel()
		return nil, err
	}
	resp, err := c.Do(req)
	if err != nil {
		cancel()
		return nil, err
	}
	body, err := end(strings.Repeat(path, 3), resp, cancel)
	return canceling{body, cancel}, err
}

// canceling is a body that releases the context of its call.
type canceling struct {
	io.ReadCloser
	cancel func()
}

func (c canceling) Close() error {
	defer c.cancel()
	return c.ReadCloser.Close()
}

// A call ends with its attempt even if an observer of that panics.
func TestCallsWhoseObserversPanic(t *testing.T) {
	noLeaks(t)
	for name, end := range map[string]func(io.ReadCloser){
		"read":   func(body io.ReadCloser) { _, _ = io.Copy(io.Discard, body) },
		"closed": func(body io.ReadCloser) { body.Close() },
	} {
		m := newMesh(t, fmt.Sprintf(benchDocuments, "", ""), mesh.WithDiscovery(discovery.Static{"user-service": {serve(t, says("hello"))}}),
			mesh.WithObserver(mesh.Observer{AttemptEnd: func(context.Context, *mesh.Attempt) { panic("observer") }}))
		resp, err := m.Client().Get("http://user-service/users/1")
		if err != nil {
			t.Fatal(err)
		}
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: the panic was swallowed", name)
				}
			}()
			end(resp.Body)
		}()
		resp.Body.Close()
		if s := m.Status().Services[0]; s.InFlight != 0 || s.Pool.Active != 0 || s.Endpoints[0].InFlight != 0 {
			t.Errorf("%s: in flight: %d calls, %d in the pool, %d attempts", name, s.InFlight, s.Pool.Active, s.Endpoints[0].InFlight)
		}
	}
}
