package mesh_test

import (
	"context"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
)

// closes counts how often a request body was closed.
type closes struct {
	io.Reader
	n atomic.Int32
}

func (c *closes) Close() error {
	c.n.Add(1)
	return nil
}

// panics reports whether f panics.
func panics(f func()) (panicked bool) {
	defer func() { panicked = recover() != nil }()
	f()
	return false
}

// panicking has a service of two endpoints, which are ejected at the first failure. Calls to it are retried, except those to /once.
const panicking = `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: api}
spec:
  hosts: [api.test]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints:
  - {address: %s, ports: {http: %d}}
  - {address: %s, ports: {http: %d}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: api}
spec:
  hosts: [api.test]
  http:
  - match: [{uri: {prefix: /once}}]
    retries: {attempts: 0}
    route: [{destination: {host: api.test}}]
  - match: [{uri: {prefix: /mirrored}}]
    route: [{destination: {host: api.test}}]
    mirrors: [{destination: {host: api.test, subset: none}}]
  - match: [{uri: {prefix: /nowhere}}]
    route: [{destination: {host: api.test, subset: none}}]
  - retries: {attempts: 1, retryOn: "5xx"}
    route: [{destination: {host: api.test}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: api}
spec:
  host: api.test
  trafficPolicy:
    outlierDetection: {consecutive5xxErrors: 1, interval: 1h, baseEjectionTime: 1h, maxEjectionPercent: 100}
    connectionPool: {http: {http2MaxRequests: 64}}
  subsets: [{name: none, labels: {version: none}}]
`

// withheld is the hook that is called only if an endpoint fails while the other one is ejected, and has to stay.
const withheld = "EjectionWithheld"

// panickingHooks are the functions of an Observer that run on the goroutine of a call with a body.
var panickingHooks = map[string]mesh.Observer{
	"CallStart":     {CallStart: func(context.Context, *mesh.Call) context.Context { panic("observer") }},
	"CallEnd":       {CallEnd: func(context.Context, *mesh.Call) { panic("observer") }},
	"AttemptStart":  {AttemptStart: func(context.Context, *mesh.Attempt) context.Context { panic("observer") }},
	"AttemptEnd":    {AttemptEnd: func(context.Context, *mesh.Attempt) { panic("observer") }},
	"Ejection":      {Ejection: func(route.Target, breaker.Event) { panic("observer") }},
	withheld:        {EjectionWithheld: func(route.Target, breaker.Event) { panic("observer") }},
	"Circuit":       {Circuit: func(route.Target, breaker.Change) { panic("observer") }},
	"Endpoints":     {Endpoints: func(route.Target, int) { panic("observer") }},
	"MirrorDropped": {MirrorDropped: func(route.Target, error) { panic("observer") }},
	"second AttemptStart": {AttemptStart: func(ctx context.Context, a *mesh.Attempt) context.Context {
		if a.Number == 2 {
			panic("observer")
		}
		return ctx
	}},
	"second AttemptEnd": {AttemptEnd: func(_ context.Context, a *mesh.Attempt) {
		if a.Number == 2 {
			panic("observer")
		}
	}},
}

// A panic of an observer passes through the call on whose goroutine it happens. It leaves nothing behind: each body of the request is closed
// once, and nothing is in flight any more when the caller has closed the response, if there is one.
func TestPanicsOfObserversLeaveNothingBehind(t *testing.T) {
	noLeaks(t)
	bodies := map[string]func(req *http.Request) (opened []*closes){
		"read once": func(req *http.Request) []*closes {
			const size = 70_000 // too large for a copy
			body := &closes{Reader: strings.NewReader(strings.Repeat("x", size))}
			req.Body, req.ContentLength = body, size
			return []*closes{body}
		},
		"GetBody": func(req *http.Request) []*closes {
			opened := make([]*closes, 0, 8)
			open := func() (io.ReadCloser, error) {
				opened = append(opened, &closes{Reader: strings.NewReader("hello")})
				return opened[len(opened)-1], nil
			}
			req.Body, _ = open()
			req.ContentLength, req.GetBody = 5, open
			return opened[:cap(opened)]
		},
	}
	for hook, observer := range panickingHooks {
		for kind, give := range bodies {
			for _, path := range []string{"/once", "/again", "/mirrored", "/nowhere"} {
				if path == "/mirrored" && kind != "read once" {
					continue // the copy is refused on a goroutine of its own, where a panic ends the process
				}
				t.Run(fmt.Sprintf("%s/%s%s", hook, kind, path), func(t *testing.T) {
					down := func(w http.ResponseWriter, r *http.Request) {
						_, _ = io.Copy(io.Discard, r.Body)
						w.WriteHeader(http.StatusServiceUnavailable)
						_, _ = io.WriteString(w, "down")
					}
					a, b := serve(t, down), serve(t, down)
					documents := fmt.Sprintf(panicking, a.Address, a.Port, b.Address, b.Port)
					if hook == withheld {
						documents = strings.Replace(documents, "maxEjectionPercent: 100", "maxEjectionPercent: 10", 1)
					}
					m := newMesh(t, documents, mesh.WithObserver(observer),
						mesh.WithProtection(mesh.Protection{Circuit: &breaker.Config{ConsecutiveFailures: 2}}, "api.test"))
					if hook == withheld { // one of the endpoints is ejected
						get(t, m.Client(), "http://api.test/once")
					}
					req, err := http.NewRequest(http.MethodPut, "http://api.test"+path, nil)
					if err != nil {
						t.Fatal(err)
					}
					opened := give(req)
					panicked := panics(func() {
						resp, err := m.Transport().RoundTrip(req)
						if err != nil {
							return
						}
						defer resp.Body.Close()
						defer attemptsEnded(t, m)
						_, _ = io.Copy(io.Discard, resp.Body)
					})
					if want := path != "/nowhere"; hook == withheld && panicked != want {
						t.Errorf("panicked: %t, want %t", panicked, want)
					}
					for i, body := range opened {
						if body != nil && body.n.Load() != 1 {
							t.Errorf("body %d was closed %d times", i+1, body.n.Load())
						}
					}
					attemptsEnded(t, m)
					for _, s := range m.Status().Services {
						if s.InFlight != 0 {
							t.Errorf("%d calls are in flight", s.InFlight)
						}
					}
				})
			}
		}
	}
}

// attemptsEnded checks that no attempt holds anything.
func attemptsEnded(t *testing.T, m *mesh.Mesh) {
	t.Helper()
	for _, s := range m.Status().Services {
		if s.Pool.Active != 0 || s.Pool.Pending != 0 {
			t.Errorf("the pool has %d in flight, %d pending", s.Pool.Active, s.Pool.Pending)
		}
		for _, e := range s.Endpoints {
			if e.InFlight != 0 {
				t.Errorf("%d attempts are in flight at %s", e.InFlight, e.Address)
			}
		}
	}
}

// A raw connection whose circuit closes is closed if an observer of that panics: nobody gets it.
func TestRawConnectionWhoseCircuitObserverPanics(t *testing.T) {
	noLeaks(t)
	server := rawtest.Listen(t)
	defer server.Close()
	var registry discovery.Memory
	registry.Set("db", meshtest.Refusing(t))
	m := newMesh(t, "", mesh.WithDiscovery(&registry),
		mesh.WithProtection(mesh.Protection{Circuit: &breaker.Config{ConsecutiveFailures: 3, OpenDuration: time.Microsecond}}, "db"),
		mesh.WithObserver(mesh.Observer{Circuit: func(_ route.Target, change breaker.Change) {
			if change.To == breaker.Closed {
				panic("observer")
			}
		}}))
	if _, err := m.DialContext(t.Context(), "tcp", "db:5432"); err == nil {
		t.Fatal("connected to nothing")
	}
	registry.Set("db", endpointOf(t, server.Addr().String()))
	if !await.Done(func() bool {
		return panics(func() { _, _ = m.DialContext(t.Context(), "tcp", "db:5432") })
	}) {
		t.Fatal("the circuit did not close, or the panic did not pass through")
	}
	accepted, err := server.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	if n, err := accepted.Read(make([]byte, 1)); n > 0 || err == nil {
		t.Errorf("read %d bytes, %v", n, err)
	}
	attemptsEnded(t, m)
}

// If an observer of a circuit panics when the circuit lets an attempt through as a probe, the attempt holds nothing afterwards.
func TestAttemptWhoseCircuitObserverPanics(t *testing.T) {
	noLeaks(t)
	var registry discovery.Memory
	registry.Set("db", meshtest.Refusing(t))
	m := newMesh(t, "", mesh.WithDiscovery(&registry),
		mesh.WithProtection(mesh.Protection{Circuit: &breaker.Config{ConsecutiveFailures: 1, OpenDuration: time.Microsecond, ProbeTimeout: time.Millisecond}}, "db"),
		mesh.WithObserver(mesh.Observer{Circuit: func(_ route.Target, change breaker.Change) {
			if change.To == breaker.HalfOpen {
				panic("observer")
			}
		}}))
	for name, call := range map[string]func() error{
		"request": func() error {
			resp, err := m.Client().Get("http://db:5432/")
			if err == nil {
				resp.Body.Close()
			}
			return err
		},
		"raw connection": func() error {
			conn, err := m.DialContext(t.Context(), "tcp", "db:5432")
			if err == nil {
				conn.Close()
			}
			return err
		},
	} {
		if !await.Done(func() bool { return panics(func() { _ = call() }) }) {
			t.Errorf("%s: the circuit did not probe, or the panic did not pass through", name)
		}
		attemptsEnded(t, m)
		for _, s := range m.Status().Services {
			if s.InFlight != 0 {
				t.Errorf("%s: %d calls are in flight", name, s.InFlight)
			}
		}
	}
}

// If an observer panics while new documents replace old ones, what was admitted under the old ones is judged again all the same.
func TestApplyWhoseObserverPanics(t *testing.T) {
	noLeaks(t)
	var armed atomic.Bool
	m := newMesh(t, "", mesh.WithObserver(mesh.Observer{Endpoints: func(route.Target, int) {
		if armed.Load() {
			panic("observer")
		}
	}}))
	ended := make(chan error, 1)
	server := httptest.NewServer(m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/denied" {
			return
		}
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		ended <- context.Cause(r.Context())
	})))
	defer server.Close()
	at := endpointOf(t, server.Listener.Addr().String())
	documents := fmt.Sprintf(panicking, at.Address, at.Port, at.Address, at.Port)
	apply(t, m, documents)
	get(t, m.Client(), "http://api.test/once") // which begins to follow the endpoints

	resp, err := http.Get(server.URL + "/denied")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	armed.Store(true)
	changed := strings.Replace(documents, "http2MaxRequests: 64", "http2MaxRequests: 65", 1) + "---" + denyPath
	if !panics(func() { _ = m.Apply(policy.Source{Name: "test.yaml", Data: []byte(changed)}) }) {
		t.Error("the panic did not pass through")
	}
	if _, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Error("a request that is denied now was not cut off")
	}
	<-ended
}

// watchEnds is a resolver that says when a watch has ended.
type watchEnds struct {
	discovery.Resolver
	ended chan struct{}
}

func (r watchEnds) Watch(ctx context.Context, service discovery.Service) iter.Seq2[[]discovery.Endpoint, error] {
	return func(yield func([]discovery.Endpoint, error) bool) {
		defer func() { r.ended <- struct{}{} }()
		r.Resolver.Watch(ctx, service)(yield)
	}
}

// A destination whose first number of endpoints makes an observer panic follows its endpoints all the same, and no longer than it is there.
func TestDestinationWhoseFirstEndpointsPanic(t *testing.T) {
	noLeaks(t)
	a := serve(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "a") })
	b := serve(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "b") })
	var registry discovery.Memory
	registry.Set("api", a)
	ended := make(chan struct{}, 8)
	var panicked atomic.Bool
	m := newMesh(t, "", mesh.WithDiscovery(watchEnds{&registry, ended}), mesh.WithObserver(mesh.Observer{
		Endpoints: func(target route.Target, _ int) {
			if target.Port == 81 && panicked.CompareAndSwap(false, true) {
				panic("observer")
			}
		},
	}))
	get(t, m.Client(), "http://api/") // from now on the endpoints are known
	if !panics(func() { _, _ = try(m.Client(), "http://api:81/") }) {
		t.Error("the panic did not pass through")
	}
	registry.Set("api", b)
	if !await.Done(func() bool { return get(t, m.Client(), "http://api:81/").body == "b" }) {
		t.Error("calls do not follow the endpoints")
	}

	// Endpoints in a document end both watches of discovery, which share one of the resolver.
	apply(t, m, fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: api}
spec:
  hosts: [api.default.svc.cluster.local]
  resolution: STATIC
  location: MESH_INTERNAL
  ports: [{number: 80, name: http, protocol: HTTP}, {number: 81, name: http-too, protocol: HTTP}]
  endpoints: [{address: %[1]s, ports: {http: %[2]d, http-too: %[2]d}}]
`, b.Address, b.Port))
	await.Receive(t, "the end of the watch", ended)
}
