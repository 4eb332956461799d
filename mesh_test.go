package mesh_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/engine"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// virtualService is a document that routes api, with fields of its one route.
func virtualService(fields string) string {
	return `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: api}
spec:
  hosts: [api]
  http:
  - route: [{destination: {host: api}}]
` + indent(fields)
}

// destinationRule is a document about api, with the fields of its traffic policy.
func destinationRule(fields string) string {
	return `
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: api}
spec:
  host: api
  trafficPolicy:
` + indent(fields)
}

func indent(fields string) string {
	return "    " + strings.ReplaceAll(strings.TrimSpace(fields), "\n", "\n    ") + "\n"
}

func source(documents string) policy.Source {
	return policy.Source{Name: "new.yaml", Data: []byte(documents)}
}

func TestErrorsSayWhoAndWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		f.Registry.Set("api", discovery.Endpoint{Address: "10.9.9.9", Port: 80})
		f.Registry.Set("empty")
		f.Registry.Set("failing", f.Add(t, fails(500)))
		f.Registry.Set("cut", f.Add(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
		m := f.Mesh(t, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: subset}
spec:
  hosts: [subset]
  http:
  - route: [{destination: {host: api, subset: v9}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: cut}
spec:
  hosts: [cut]
  http:
  - route: [{destination: {host: cut}}]
    retries: {attempts: 0}
`, mesh.WithRegistryOnly(), mesh.WithProtection(mesh.Protection{Circuit: &breaker.Config{ConsecutiveFailures: 2}}, "failing"))
		c := m.Client()
		for range 2 {
			get(t, c, "http://failing/")
		}
		for _, test := range []struct {
			url, flags, target string
			layer              string
			attempts           int
			is                 error
		}{
			{"http://api/", "UF,URX", "api.default.svc.cluster.local:80", "endpoint", 3, syscall.ECONNREFUSED},
			{"http://empty/", "UH", "empty.default.svc.cluster.local:80", "balancer", 0, balancer.ErrNoEndpoints},
			{"http://failing/", "UO", "failing.default.svc.cluster.local:80", "breaker", 0, breaker.ErrOpen},
			{"http://subset/", "NC", "api.default.svc.cluster.local:80 subset v9", "route", 0, engine.ErrUnknownSubset},
			{"http://elsewhere/", "NR", "elsewhere.default.svc.cluster.local", "route", 0, mesh.ErrNotInMesh},
			{"http://cut/", "UC", "cut.default.svc.cluster.local:80", "endpoint", 1, io.EOF},
		} {
			_, err := try(c, test.url)
			var failure *mesh.Error
			if !errors.As(err, &failure) {
				t.Errorf("%s: %v, want a *mesh.Error", test.url, err)
				continue
			}
			if failure.Layer != test.layer || failure.Flags.String() != test.flags || failure.Attempts != test.attempts ||
				!errors.Is(err, test.is) || !strings.Contains(err.Error(), test.target) || !strings.Contains(err.Error(), test.flags) {
				t.Errorf("%s: %v\nlayer %s, flags %s, attempts %d, is %v; want %s, %s, %d, true", test.url, err, failure.Layer,
					failure.Flags, failure.Attempts, errors.Is(err, test.is), test.layer, test.flags, test.attempts)
			}
		}
	})
}

func TestBadDocumentsAreAllTold(t *testing.T) {
	_, err := mesh.New(context.Background(), mesh.WithPolicy(
		policy.Source{Name: "a.yaml", Data: []byte(virtualService("retires: {attempts: 3}"))},
		policy.Source{Name: "b.yaml", Data: []byte("kind: [")},
		policy.Source{Name: "c.yaml", Data: []byte("apiVersion: networking.istio.io/v1\nkind: EnvoyFilter\nmetadata: {name: x}\n")},
	))
	if err == nil {
		t.Fatal("New took bad documents")
	}
	for _, want := range []string{"a.yaml:9", "spec.http[0].retires", `did you mean "retries"`, "b.yaml:1", "c.yaml:2: EnvoyFilter default/x"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q:\n%v", want, err)
		}
	}
}

func TestApply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		bad := f.Add(t, fails(500))
		f.Registry.Set("api", f.Add(t, says("good")), bad)
		var loads []error
		m := f.Mesh(t, virtualService("timeout: 1s")+destinationRule("outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 1h, maxEjectionPercent: 50}"),
			mesh.WithObserver(mesh.Observer{PolicyLoad: func(l mesh.PolicyLoad) { loads = append(loads, l.Err) }}))
		c := m.Client()
		for range 50 {
			get(t, c, "http://api/")
		}
		dials := f.Network.Dials()

		// A bad document changes nothing.
		if err := m.Apply(source("kind: [")); err == nil {
			t.Error("Apply took a bad document")
		}
		// What is learned stays where the settings stay: the ejection through a change of the balancing, and the connections
		// through a change of the ejections.
		for _, documents := range []string{
			virtualService("headers: {response: {set: {x-plan: two}}}") + destinationRule("loadBalancer: {simple: RANDOM}\noutlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 1h, maxEjectionPercent: 50}"),
			virtualService("headers: {response: {set: {x-plan: two}}}") + destinationRule("loadBalancer: {simple: ROUND_ROBIN}\noutlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 1h, maxEjectionPercent: 50}"),
		} {
			if err := m.Apply(source(documents)); err != nil {
				t.Fatal(err)
			}
			for range 50 {
				a := get(t, c, "http://api/")
				if a.status != http.StatusOK || a.header.Get("x-plan") != "two" {
					t.Fatalf("after the reload: status %d, x-plan %q", a.status, a.header.Get("x-plan"))
				}
			}
		}
		if n := f.Network.Dials(); n != dials {
			t.Errorf("%d new connections after reloads that left the pool alone", n-dials)
		}
		// With other settings the endpoint gets a new chance.
		if err := m.Apply(source(virtualService("timeout: 1s"))); err != nil {
			t.Fatal(err)
		}
		failed := 0
		for range 50 {
			if get(t, c, "http://api/").status != http.StatusOK {
				failed++
			}
		}
		if failed == 0 {
			t.Error("without outlier detection the failing endpoint is still ejected")
		}
		if len(loads) != 5 || loads[0] != nil || loads[1] == nil || loads[4] != nil {
			t.Errorf("loads told: %v", loads)
		}
	})
}

func TestServiceEntries(t *testing.T) {
	noLeaks(t)
	one, two := serve(t, says("one")), serve(t, says("two"))
	entries := func(port int) string {
		return fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: static}
spec:
  hosts: [static.example.com]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints:
  - {address: 127.0.0.1, ports: {http: %d}, labels: {version: v1}}
  - {address: 127.0.0.1, ports: {http: %d}, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: named}
spec:
  hosts: [named.example.com]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: DNS
  endpoints:
  - {address: localhost, ports: {http: %d}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: static}
spec:
  hosts: [static.example.com]
  http:
  - route: [{destination: {host: static.example.com, subset: v2}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: static}
spec:
  host: static.example.com
  subsets:
  - {name: v2, labels: {version: v2}}
`, one.Port, port, port)
	}
	m := newMesh(t, entries(two.Port), mesh.WithDiscovery(discovery.Static{}), mesh.WithRegistryOnly())
	c := m.Client()
	for range 5 {
		for _, host := range []string{"static", "named"} {
			if got := get(t, c, "http://"+host+".example.com/").body; got != "two" {
				t.Errorf("%s: %q", host, got)
			}
		}
	}
	if err := m.Apply(source(entries(one.Port))); err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"static", "named"} {
		if got := get(t, c, "http://"+host+".example.com/").body; got != "one" {
			t.Errorf("%s after the entry changed: %q", host, got)
		}
	}
}

func TestServiceProfileBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		var seen atomic.Int32
		f.Registry.Set("api", f.Add(t, func(w http.ResponseWriter, r *http.Request) {
			seen.Add(1)
			w.WriteHeader(http.StatusServiceUnavailable)
		}))
		c := f.Mesh(t, `
apiVersion: linkerd.io/v1alpha2
kind: ServiceProfile
metadata: {name: api.default.svc.cluster.local, namespace: default}
spec:
  retryBudget: {retryRatio: 0.5, minRetriesPerSecond: 1, ttl: 10s}
  routes:
  - name: all
    condition: {pathRegex: "/.*"}
    isRetryable: true
`).Client()
		for range 100 {
			get(t, c, "http://api/")
		}
		between(t, "requests", int(seen.Load()), 145, 160)
	})
}

// fed is a feed whose sets the test gives.
type fed chan any // a string, sources or an error

func (f fed) Watch(ctx context.Context) iter.Seq2[[]policy.Source, error] {
	return func(yield func([]policy.Source, error) bool) {
		for {
			select {
			case <-ctx.Done():
				return
			case next := <-f:
				sources, _ := next.([]policy.Source)
				if documents, ok := next.(string); ok {
					sources = []policy.Source{source(documents)}
				}
				err, _ := next.(error)
				if !yield(sources, err) {
					return
				}
			}
		}
	}
}

// ended is a feed that yields nothing.
type ended struct{}

func (ended) Watch(context.Context) iter.Seq2[[]policy.Source, error] {
	return func(func([]policy.Source, error) bool) {}
}

func TestDefaultTransportMayBeAnything(t *testing.T) {
	standard := http.DefaultTransport
	defer func() { http.DefaultTransport = standard }()
	http.DefaultTransport = struct{ http.RoundTripper }{standard}
	if _, err := mesh.New(t.Context()); err == nil || !strings.Contains(err.Error(), "WithTransport") {
		t.Errorf("New: %v, want an error that names the remedy", err)
	}
	m, err := mesh.New(t.Context(), mesh.WithTransport(standard.(*http.Transport)))
	if err != nil {
		t.Fatal(err)
	}
	m.Close()
}

func TestFeeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		f.Registry.Set("api", f.Add(t, says("ok")))
		f.Registry.Set("other", f.Add(t, says("ok")))
		tagged := func(plan string) string {
			return virtualService("headers: {response: {set: {x-plan: " + plan + "}}}")
		}
		other := func(plan string) string {
			return strings.NewReplacer("name: api", "name: other", "[api]", "[other]", "host: api", "host: other").Replace(tagged(plan))
		}
		one, two := make(fed, 1), make(fed, 1)
		one <- tagged("first")
		two <- other("second")
		var loads []bool
		m := f.Mesh(t, "", mesh.WithPolicyFeed(one), mesh.WithPolicyFeed(two), mesh.WithObserver(mesh.Observer{
			PolicyLoad: func(l mesh.PolicyLoad) { loads = append(loads, l.Err == nil) },
		}))
		c := m.Client()
		plans := func() string {
			synctest.Wait()
			return get(t, c, "http://api/").header.Get("x-plan") + " " + get(t, c, "http://other/").header.Get("x-plan")
		}
		for _, step := range []struct {
			name string
			feed fed
			set  any
			want string
		}{
			{"as New found them", nil, nil, "first second"},
			{"one changes", one, tagged("third"), "third second"},
			{"an error of the feed", one, errors.New("folder is gone"), "third second"},
			{"a bad document", two, "kind: [", "third second"},
			{"while one is bad the other changes", one, tagged("fourth"), "fourth second"},
			{"once it is mended all do", two, other("fifth"), "fourth fifth"},
			{"the same document twice is bad", two, tagged("sixth"), "fourth fifth"},
		} {
			if step.feed != nil {
				step.feed <- step.set
			}
			if got := plans(); got != step.want {
				t.Errorf("%s: plans %s, want %s", step.name, got, step.want)
			}
		}
		if got := fmt.Sprint(loads); got != "[true true false false true false true false]" {
			t.Errorf("loads %s", got)
		}

		// A feed whose first set is bad keeps New from returning a mesh, and so does one that has none in time.
		bad, silent := make(fed, 1), make(fed)
		bad <- "kind: ["
		if _, err := mesh.New(t.Context(), mesh.WithPolicyFeed(bad)); err == nil {
			t.Error("New took a bad first set")
		}
		if _, err := mesh.New(t.Context(), mesh.WithPolicyFeed(ended{})); err == nil {
			t.Error("New took a feed that ended without documents")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := mesh.New(ctx, mesh.WithPolicyFeed(silent)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("New with a silent feed: %v", err)
		}
	})
}

// TestApplyDropsNoCall reloads all the time while calls are made.
func TestApplyDropsNoCall(t *testing.T) {
	noLeaks(t)
	api := serve(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Header.Get("x-plan")) })
	plan := func(n int) string {
		return virtualService(fmt.Sprintf("headers: {request: {set: {x-plan: '%d'}}, response: {set: {x-plan: '%d'}}}", n, n)) +
			destinationRule(fmt.Sprintf("connectionPool: {http: {http2MaxRequests: %d}}", 100+n%2))
	}
	m := newMesh(t, plan(0), mesh.WithDiscovery(discovery.Static{"api": {api}}))
	c := m.Client()
	var reloads sync.WaitGroup
	called := make(chan struct{}, 1)
	reloads.Go(func() {
		n := 0
		for range called {
			n++
			if err := m.Apply(source(plan(n))); err != nil {
				t.Error(err)
			}
		}
	})
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for range 200 {
				select {
				case called <- struct{}{}: // one reload a call at most, so that calls get their share of one processor
				default:
				}
				a, err := try(c, "http://api/")
				if err != nil || a.status != http.StatusOK {
					t.Errorf("%d, %v", a.status, err)
				} else if a.body != a.header.Get("x-plan") {
					t.Errorf("one call saw plan %s going out and plan %s coming back", a.body, a.header.Get("x-plan"))
				}
			}
		})
	}
	callers.Wait()
	close(called)
	reloads.Wait()
}

func TestClose(t *testing.T) {
	noLeaks(t)
	finish := make(chan struct{})
	entered := make(chan struct{}, 1)
	api := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			entered <- struct{}{}
			<-finish
		}
		io.WriteString(w, "ok")
	})
	outside := serve(t, says("outside"))
	m := newMesh(t, "", mesh.WithDiscovery(discovery.Static{"api": {api}}))
	c := m.Client()
	get(t, c, "http://api/")
	get(t, c, "http://"+outside.ID()+"/")
	slow := make(chan answer)
	go func() {
		a, _ := try(c, "http://api/slow")
		slow <- a
	}()
	<-entered
	var closers sync.WaitGroup
	for range 3 {
		closers.Go(func() {
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	closers.Wait()
	for _, url := range []string{"http://api/", "http://new/", "http://" + outside.ID() + "/"} {
		if _, err := try(c, url); !errors.Is(err, mesh.ErrClosed) {
			t.Errorf("%s after Close: %v, want ErrClosed", url, err)
		}
	}
	if err := m.Apply(); !errors.Is(err, mesh.ErrClosed) {
		t.Errorf("Apply after Close: %v", err)
	}
	close(finish)
	if a := <-slow; a.body != "ok" {
		t.Errorf("the call in flight got %q", a.body)
	}
}

func TestOutboundPolicy(t *testing.T) {
	noLeaks(t)
	outside := serve(t, says("outside"))
	inside := discovery.Static{"api": {serve(t, says("inside"))}}
	for _, test := range []struct {
		name    string
		options []mesh.Option
		refused bool
	}{{"any host", nil, false}, {"registry only", []mesh.Option{mesh.WithRegistryOnly()}, true}} {
		t.Run(test.name, func(t *testing.T) {
			m := newMesh(t, "", append(test.options, mesh.WithDiscovery(inside))...)
			c := m.Client()
			if got := get(t, c, "http://api/").body; got != "inside" {
				t.Errorf("inside: %q", got)
			}
			for range 3 {
				a, err := try(c, "http://"+outside.ID()+"/")
				if test.refused && !errors.Is(err, mesh.ErrNotInMesh) || !test.refused && a.body != "outside" {
					t.Errorf("outside: %q, %v", a.body, err)
				}
			}
			if n := mesh.Clusters(m); n != 1 {
				t.Errorf("state is kept for %d targets, want 1", n)
			}
		})
	}
}

// http.Client.Timeout ends a call through a channel beside the context, and sometimes a moment earlier.
func TestClientTimeoutIsTheCallers(t *testing.T) {
	noLeaks(t)
	done := make(chan struct{})
	api := serve(t, func(w http.ResponseWriter, r *http.Request) { <-done })
	t.Cleanup(func() { close(done) })
	var flags sync.Map
	m := newMesh(t, "", mesh.WithDiscovery(discovery.Static{"api": {api}}), mesh.WithObserver(mesh.Observer{
		CallEnd: func(_ context.Context, c *mesh.Call) { flags.Store(c.Flags.String(), true) },
	}))
	var callers sync.WaitGroup
	for range 50 {
		callers.Go(func() {
			c := m.Client()
			c.Timeout = 20 * time.Millisecond
			_, err := try(c, "http://api/")
			var failure *mesh.Error
			if errors.As(err, &failure) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v, want the client's own timeout", err)
			}
		})
	}
	callers.Wait()
	flags.Range(func(flag, _ any) bool {
		if flag != "DC" {
			t.Errorf("flag %s, want DC", flag)
		}
		return true
	})
}

// That a response breaks off is the server's doing, and not the caller's, also if the route has a timeout.
func TestBrokenResponseUnderATimeoutIsNotTheCallersDoing(t *testing.T) {
	noLeaks(t)
	api := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		io.WriteString(w, "some")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	ended := make(chan mesh.Call, 1)
	m := newMesh(t, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: api}
spec:
  hosts: [api]
  http: [{timeout: 60s, route: [{destination: {host: api}}]}]
`, mesh.WithDiscovery(discovery.Static{"api": {api}}), mesh.WithObserver(mesh.Observer{
		CallEnd: func(_ context.Context, c *mesh.Call) { ended <- *c },
	}))
	if _, err := try(m.Client(), "http://api/"); err == nil {
		t.Error("the response did not break off")
	}
	if c := <-ended; c.Flags != mesh.FlagConnectionTerminated || c.Err == nil {
		t.Errorf("flags %v (%v), want UC", c.Flags, c.Err)
	}
}

func TestClientKeepsItsOwnSettings(t *testing.T) {
	noLeaks(t)
	api := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/login" {
			http.SetCookie(w, &http.Cookie{Name: "session", Value: "1"})
			http.Redirect(w, r, "/home", http.StatusFound)
			return
		}
		_, err := r.Cookie("session")
		fmt.Fprint(w, err == nil)
	})
	jar, _ := cookiejar.New(nil)
	redirects := 0
	mine := &http.Client{Jar: jar, Timeout: time.Minute, CheckRedirect: func(*http.Request, []*http.Request) error { redirects++; return nil }}
	m := newMesh(t, "", mesh.WithDiscovery(discovery.Static{"api": {api}}))
	mine.Transport = m.Transport()
	if got := get(t, mine, "http://api/login").body; got != "true" || redirects != 1 {
		t.Errorf("body %q, %d redirects", got, redirects)
	}
	one, other := m.Client(), m.Client()
	if one.Jar = jar; other.Jar != nil || one.Transport != mine.Transport {
		t.Errorf("clients of a mesh share the jar %v, or have not its transport: %v", other.Jar, one.Transport)
	}
}

func TestProtectionCircuit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		var broken atomic.Bool
		broken.Store(true)
		var calls atomic.Int32
		f.Registry.Set("api", f.Add(t, func(w http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			if broken.Load() {
				w.WriteHeader(http.StatusBadGateway)
			}
		}))
		var states []string
		c := f.Mesh(t, virtualService("retries: {attempts: 3, retryOn: 5xx}"),
			mesh.WithProtection(mesh.Protection{Circuit: &breaker.Config{ConsecutiveFailures: 6, OpenDuration: time.Minute}}, "api"),
			mesh.WithObserver(mesh.Observer{Circuit: func(_ route.Target, change breaker.Change) {
				states = append(states, change.To.String())
			}})).Client()
		get(t, c, "http://api/")
		start := time.Now()
		_, err := try(c, "http://api/") // the third of its tries is refused, and there is no fourth
		if !errors.Is(err, breaker.ErrOpen) || calls.Load() != 6 || time.Since(start) > time.Second {
			t.Errorf("%v after %d calls", err, calls.Load())
		}
		start = time.Now()
		if _, err := try(c, "http://api/"); !errors.Is(err, breaker.ErrOpen) || time.Since(start) != 0 || calls.Load() != 6 {
			t.Errorf("with the circuit open: %v after %v and %d calls, want a refusal at once", err, time.Since(start), calls.Load())
		}
		broken.Store(false)
		advance(time.Minute)
		if a := get(t, c, "http://api/"); a.status != http.StatusOK {
			t.Errorf("the probe got %d", a.status)
		}
		if got := fmt.Sprint(states); got != "[open half-open closed]" {
			t.Errorf("states %v", got)
		}
	})
}

func TestProtectionRetries(t *testing.T) {
	for _, test := range []struct {
		name       string
		protection mesh.Protection
		host       string
		calls      int
		header     []string
		low, high  int           // requests that the server sees
		took       time.Duration // at least; at most half as much again
	}{
		{name: "off without being asked for", host: "other", calls: 100, header: []string{"x-envoy-attempt-count", "2"}, low: 400, high: 400},
		{name: "budget", protection: mesh.Protection{RetryBudget: &retry.BudgetConfig{}}, host: "api", calls: 100, low: 110, high: 160},
		{name: "Retry-After", protection: mesh.Protection{RetryAfter: true}, host: "api.default", calls: 1, low: 4, high: 4, took: 6 * time.Second},
		{name: "no retries of retries", protection: mesh.Protection{StopNestedRetries: true}, host: "api.default.svc.cluster.local",
			calls: 1, header: []string{"x-envoy-attempt-count", "2"}, low: 1, high: 1},
		{name: "for another host", protection: mesh.Protection{StopNestedRetries: true}, host: "other",
			calls: 1, header: []string{"x-envoy-attempt-count", "2"}, low: 4, high: 4},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := new(meshtest.Fleet)
				var seen atomic.Int32
				f.Registry.Set("api", f.Add(t, func(w http.ResponseWriter, r *http.Request) {
					seen.Add(1)
					w.Header().Set("Retry-After", "2")
					w.WriteHeader(http.StatusServiceUnavailable)
				}))
				c := f.Mesh(t, virtualService("retries: {attempts: 3, retryOn: 5xx}"), mesh.WithProtection(test.protection, test.host)).Client()
				start := time.Now()
				for range test.calls {
					get(t, c, "http://api/", test.header...)
				}
				between(t, "requests", int(seen.Load()), test.low, test.high)
				if took := time.Since(start); test.took > 0 && (took < test.took || took > test.took*3/2) {
					t.Errorf("took %v, want %v and a little", took, test.took)
				}
			})
		})
	}
}

func TestProtectionRateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		f.Registry.Set("api", f.Add(t, says("ok")))
		c := f.Mesh(t, "", mesh.WithProtection(mesh.Protection{RateLimit: limit.RateConfig{PerSecond: 10, Burst: 5}})).Client()
		served := 0
		for range 20 {
			a := get(t, c, "http://api/")
			switch {
			case a.status == http.StatusOK:
				served++
			case a.status != http.StatusTooManyRequests || a.header.Get("x-envoy-ratelimited") != "true":
				t.Errorf("status %d, header %v", a.status, a.header)
			}
		}
		if served != 5 {
			t.Errorf("%d calls at once were served, want the burst of 5", served)
		}
		advance(time.Second)
		if a := get(t, c, "http://api/"); a.status != http.StatusOK {
			t.Errorf("a second later: %d", a.status)
		}
	})
}

func TestProtectionBodyIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		f.Registry.Set("api", f.Add(t, func(w http.ResponseWriter, r *http.Request) {
			for range 3 {
				io.WriteString(w, "part ")
				http.NewResponseController(w).Flush()
				advance(2 * time.Second)
			}
			<-r.Context().Done()
		}))
		c := f.Mesh(t, "", mesh.WithProtection(mesh.Protection{BodyIdle: 5 * time.Second})).Client()
		start := time.Now()
		a, err := try(c, "http://api/")
		if a.body != "part part part " || !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 9*time.Second {
			t.Errorf("%q, %v after %v; want what came in 4s and a timeout 5s later", a.body, err, time.Since(start))
		}
	})
}

func TestProtectionIsChecked(t *testing.T) {
	for _, p := range []mesh.Protection{
		{Circuit: &breaker.Config{FailureFraction: 2}},
		{RetryBudget: &retry.BudgetConfig{Window: 1}},
		{RateLimit: limit.RateConfig{PerSecond: -1}},
		{BodyIdle: -1},
	} {
		if _, err := mesh.New(context.Background(), mesh.WithProtection(p, "api")); err == nil || !strings.Contains(err.Error(), "protection of api") {
			t.Errorf("%+v: %v, want an error that names the host", p, err)
		}
	}
}

func TestCookieOfConsistentHash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		f.Registry.Set("api", f.Add(t, says("a")), f.Add(t, says("b")), f.Add(t, says("c")))
		m := f.Mesh(t, virtualService("timeout: 1s")+destinationRule("loadBalancer: {consistentHash: {httpCookie: {name: user, path: /, ttl: 60s}}}"))
		jar, _ := cookiejar.New(nil)
		c := &http.Client{Jar: jar, Transport: m.Transport()}
		first := get(t, c, "http://api/")
		if set := first.header.Get("Set-Cookie"); !strings.HasPrefix(set, "user=") || !strings.Contains(set, "Max-Age=60") || !strings.Contains(set, "Path=/") {
			t.Errorf("Set-Cookie: %q", set)
		}
		for range 30 {
			a := get(t, c, "http://api/")
			if a.body != first.body || a.header.Get("Set-Cookie") != "" {
				t.Fatalf("with the cookie the call went to %s, first to %s; Set-Cookie %q", a.body, first.body, a.header.Get("Set-Cookie"))
			}
		}
	})
}

// Each try tells the server how long the caller will still wait.
func TestDeadlineIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		var told []string
		f.Registry.Set("api", f.Add(t, func(w http.ResponseWriter, r *http.Request) {
			told = append(told, r.Header.Get("x-envoy-expected-rq-timeout-ms"))
			advance(time.Second)
			w.WriteHeader(http.StatusServiceUnavailable)
		}))
		c := f.Mesh(t, virtualService("timeout: 10s\nretries: {attempts: 2, retryOn: 5xx, backoff: 1ms}")).Client()
		get(t, c, "http://api/")
		if len(told) != 3 || told[0] != "10000" || !strings.HasPrefix(told[1], "899") && told[1] != "9000" || !strings.HasPrefix(told[2], "79") && told[2] != "8000" {
			t.Errorf("told %v, want 10s, 9s and 8s, less the waits", told)
		}

		// The caller's own deadline is told too, on a copy of the request.
		told = nil
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		f.Registry.Set("plain", f.Add(t, func(w http.ResponseWriter, r *http.Request) {
			told = append(told, r.Header.Get("x-envoy-expected-rq-timeout-ms"))
		}))
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://plain/", nil)
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if len(told) != 1 || told[0] != "5000" || len(req.Header) != 0 {
			t.Errorf("told %v, the caller's header is %v", told, req.Header)
		}
	})
}

func TestSubsetThatSelectsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		f.Registry.Set("myapp", f.Add(t, says("unlabelled")), labeled(f.Add(t, says("old")), "version", "v0"))
		_, err := try(f.Mesh(t, readSeed(t, "03-canary.yaml")+"\n---\n"+versions("myapp")).Client(), "http://myapp/")
		if !errors.Is(err, balancer.ErrNoEndpoints) || !strings.Contains(err.Error(), "none of the 2 that there are has the labels version=v") {
			t.Errorf("error %v, want one that says why", err)
		}
	})
}

func TestRetriesPreferOtherEndpoints(t *testing.T) {
	for fields, wantAgain := range map[string]bool{"": false, ", retryIgnorePreviousHosts: false": true} {
		synctest.Test(t, func(t *testing.T) {
			f := new(meshtest.Fleet)
			var again atomic.Int32
			last := ""
			var endpoints []discovery.Endpoint
			for i := range 2 {
				endpoints = append(endpoints, f.Add(t, func(w http.ResponseWriter, r *http.Request) {
					if r.Header.Get("x-envoy-attempt-count") != "" && last == fmt.Sprint(i) {
						again.Add(1)
					}
					last = fmt.Sprint(i)
					w.WriteHeader(http.StatusServiceUnavailable)
				}))
			}
			f.Registry.Set("api", endpoints...)
			c := f.Mesh(t, virtualService("retries: {attempts: 1, retryOn: 5xx"+fields+"}")).Client()
			for range 50 {
				get(t, c, "http://api/")
			}
			if got := again.Load() > 0; got != wantAgain {
				t.Errorf("with %q, %d of 50 retries went to the endpoint that had just failed", fields, again.Load())
			}
		})
	}
}

// The Host header decides over a request if a document names it; the port stays the URL's.
func TestHostHeader(t *testing.T) {
	noLeaks(t)
	says := func(name string) discovery.Endpoint {
		return serve(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, name, " ", r.Host) })
	}
	api, other := says("api"), says("other")
	mapped := discovery.Endpoint{Address: "127.0.0.1", Ports: []discovery.Port{{Number: 8080, Target: api.Port}, {Number: 80, Target: 1}}}
	c := newMesh(t, virtualService("timeout: 5s"), mesh.WithDiscovery(discovery.Static{"api": {mapped}, "other": {other}, "unnamed": {api}})).Client()
	for _, test := range []struct{ url, host, want string }{
		{"http://other:8080/", "api", "api api"},
		{"http://other:8080/", "api:99", "api api:99"},
		{"http://other:8080/", "API.default", "api API.default"},
		{"http://other/", "unnamed", "other unnamed"},
		{"http://other/", "elsewhere.example.com", "other elsewhere.example.com"},
	} {
		if got := get(t, c, test.url, "Host", test.host).body; got != test.want {
			t.Errorf("%s with Host %s went to %q, want %q", test.url, test.host, got, test.want)
		}
	}
}

func TestPassthroughDialsWhatWasAsked(t *testing.T) {
	noLeaks(t)
	api := serve(t, says("original"))
	elsewhere := serve(t, says("discovered"))
	m := newMesh(t, strings.ReplaceAll(destinationRule("loadBalancer: {simple: PASSTHROUGH}"), "host: api", "host: localhost"),
		mesh.WithDiscovery(discovery.Static{"localhost": {elsewhere}}))
	if got := get(t, m.Client(), fmt.Sprintf("http://localhost:%d/", api.Port)).body; got != "original" {
		t.Errorf("got %q", got)
	}
}

func TestObserver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		var n atomic.Int32
		one := f.Add(t, func(w http.ResponseWriter, r *http.Request) {
			if n.Add(1) == 1 {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			fmt.Fprintf(w, "%s", r.Header.Get("x-span"))
		})
		f.Registry.Set("api", one)
		type key struct{}
		var events []string
		say := func(format string, args ...any) { events = append(events, fmt.Sprintf(format, args...)) }
		c := f.Mesh(t, strings.Replace(virtualService("retries: {attempts: 1, retryOn: 5xx}"), "- route", "- name: all\n    route", 1), mesh.WithObserver(mesh.Observer{
			CallStart: func(ctx context.Context, c *mesh.Call) context.Context {
				say("start %s", c.Request.URL)
				return context.WithValue(ctx, key{}, "call")
			},
			CallEnd: func(ctx context.Context, c *mesh.Call) {
				say("end %v %s %s %+v %d %v %s %d %s", ctx.Value(key{}), c.Document, c.Route, c.Target, c.Status, c.Err, c.Flags, c.Attempts, c.Stopped)
			},
			AttemptStart: func(ctx context.Context, a *mesh.Attempt) context.Context {
				a.Sent.SetHeader("x-span", fmt.Sprint(a.Number))
				return context.WithValue(ctx, key{}, fmt.Sprint("attempt ", a.Number))
			},
			AttemptEnd: func(ctx context.Context, a *mesh.Attempt) {
				say("%v at %s: %d %v", ctx.Value(key{}), a.Endpoint, a.Status, a.Err)
			},
		})).Client()
		req, _ := http.NewRequest(http.MethodGet, "http://api/x", nil)
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if len(events) != 2 {
			t.Errorf("before the body was read: %q", events)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(body) != "2" || req.Header.Get("x-span") != "" {
			t.Errorf("the server saw span %s; the caller's request has %q", body, req.Header.Get("x-span"))
		}
		want := []string{
			"start http://api/x",
			"attempt 1 at 10.0.0.1:80: 503 <nil>",
			"attempt 2 at 10.0.0.1:80: 200 <nil>",
			"end call VirtualService default/api all api.default.svc.cluster.local:80 200 <nil> - 2 succeeded",
		}
		if fmt.Sprint(events) != fmt.Sprint(want) {
			t.Errorf("events:\n%s\nwant:\n%s", strings.Join(events, "\n"), strings.Join(want, "\n"))
		}
	})
}

func TestFlagsString(t *testing.T) {
	for flags, want := range map[mesh.Flags]string{
		0:                       "-",
		mesh.FlagConnectFailure: "UF",
		mesh.FlagRetriesExhausted | mesh.FlagUpstreamTimeout | mesh.FlagDelayInjected: "UT,DI,URX",
		1<<13 - 1: "UH,UT,UR,UF,UC,UO,NR,DI,FI,RL,DC,URX,NC",
	} {
		if got := flags.String(); got != want {
			t.Errorf("%#x is %q, want %q", uint32(flags), got, want)
		}
	}
}

// h2UpgradePolicy speaks HTTP/2 to endpoints without TLS, and calls then share connections.
func TestHTTP2Upgrade(t *testing.T) {
	noLeaks(t)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) }))
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Config.Protocols.SetHTTP1(true)
	srv.Start()
	t.Cleanup(srv.Close)
	api := endpointOf(t, srv.Listener.Addr().String())
	for policy, want := range map[string]string{"UPGRADE": "HTTP/2.0", "DO_NOT_UPGRADE": "HTTP/1.1"} {
		c := newMesh(t, virtualService("timeout: 5s")+destinationRule("connectionPool: {tcp: {maxConnections: 1}, http: {h2UpgradePolicy: "+policy+"}}"),
			mesh.WithDiscovery(discovery.Static{"api": {api}})).Client()
		if got := get(t, c, "http://api/").body; got != want {
			t.Errorf("%s: the server was spoken to in %s", policy, got)
		}
	}
}

// A gRPC call is answered with 200 whatever became of it: its status says how the endpoint did.
func TestGRPCStatusCounts(t *testing.T) {
	for _, test := range []struct {
		name    string
		code    string
		ejected bool
		answer  func(http.ResponseWriter, string)
	}{
		{"unavailable in the header", "14", true, func(w http.ResponseWriter, code string) { w.Header().Set("Grpc-Status", code) }},
		{"unavailable in the trailer", "14", true, inTrailer},
		{"not found in the trailer", "5", false, inTrailer},
		{"fine", "0", false, inTrailer},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := new(meshtest.Fleet)
				answer := func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Content-Type", "application/grpc")
					test.answer(w, test.code)
				}
				f.Registry.Set("orders", f.Add(t, answer), f.Add(t, answer))
				ejected := 0
				m := f.Mesh(t, `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: d, namespace: default}
spec:
  host: orders
  trafficPolicy: {outlierDetection: {consecutive5xxErrors: 3, maxEjectionPercent: 100}}
`, mesh.WithObserver(mesh.Observer{Ejection: func(_ route.Target, event breaker.Event) {
					if event.Ejected {
						ejected++
					}
				}}))
				for range 20 {
					resp, err := m.Client().Post("http://orders/", "application/grpc", nil)
					if err == nil {
						_, err = io.Copy(io.Discard, resp.Body)
						resp.Body.Close()
					}
					if err != nil && !test.ejected {
						t.Fatal(err)
					}
				}
				if (ejected > 0) != test.ejected {
					t.Errorf("%d endpoints were ejected", ejected)
				}
			})
		})
	}
}

func inTrailer(w http.ResponseWriter, code string) {
	w.Header().Set("Trailer", "Grpc-Status")
	io.WriteString(w, "message")
	w.Header().Set("Grpc-Status", code)
}
