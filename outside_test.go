package mesh_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/internal/rawtest"
)

// asked is a resolver that counts how often it is asked.
type asked struct {
	discovery.Resolver
	times atomic.Int64
}

func (a *asked) Watch(ctx context.Context, s discovery.Service) iter.Seq2[[]discovery.Endpoint, error] {
	a.times.Add(1)
	return a.Resolver.Watch(ctx, s)
}

// Requests and raw connections find out together that discovery does not know a host, and remember it together.
func TestOutsideIsOneDecision(t *testing.T) {
	const times = 20
	for _, test := range []struct {
		name      string
		get, dial bool
	}{{"requests", true, false}, {"raw connections", false, true}, {"both", true, true}} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := new(meshtest.Fleet)
				out := f.Add(t, says("outside"))
				resolver := &asked{Resolver: &f.Registry}
				m := f.Mesh(t, "", mesh.WithDiscovery(resolver))
				for range times {
					if test.get {
						if a := get(t, m.Client(), "http://"+out.ID()+"/"); a.body != "outside" {
							t.Fatalf("got %q", a.body)
						}
					}
					if test.dial {
						conn, err := m.DialContext(t.Context(), "tcp", out.ID())
						if err != nil {
							t.Fatal(err)
						}
						conn.Close()
					}
				}
				if n := resolver.times.Load(); n != 1 {
					t.Errorf("discovery was asked %d times, want once", n)
				}
			})
		})
	}
}

// A host that discovery does not know is asked about again soon, since a service may register after its first call, and
// less and less often, since it may never.
func TestServiceRegistersAfterItsFirstCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		api := f.Add(t, says("inside"))
		resolver := &asked{Resolver: &f.Registry}
		m := f.Mesh(t, "", mesh.WithDiscovery(resolver))
		if _, err := try(m.Client(), "http://api/"); err == nil {
			t.Fatal("there is an api already")
		}
		f.Registry.Set("api", api)
		advance(time.Second)
		if a := get(t, m.Client(), "http://api/"); a.body != "inside" {
			t.Errorf("a second after it registered: %q", a.body)
		}

		before := resolver.times.Load()
		for range 600 {
			_, _ = try(m.Client(), "http://nobody/")
			advance(100 * time.Millisecond)
		}
		between(t, "look-ups of a host that never registers, in a minute", int(resolver.times.Load()-before), 12, 20)
	})
}

// Hosts that no document names come from callers. Their state is dropped when they are no longer called.
func TestUndocumentedHostsAreForgotten(t *testing.T) {
	const hosts = 20
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		api := f.Add(t, says("ok"))
		for i := range hosts {
			f.Registry.Set(fmt.Sprintf("host-%d", i), api)
		}
		f.Registry.Set("api", api)
		m := f.Mesh(t, virtualService("timeout: 1s"))
		get(t, m.Client(), "http://api/")
		for i := range hosts {
			get(t, m.Client(), fmt.Sprintf("http://host-%d/", i))
			advance(time.Second)
		}
		if n := mesh.Clusters(m); n != hosts+1 {
			t.Errorf("%d targets are kept after %d were called", n, hosts+1)
		}
		advance(11 * time.Minute)
		if n := mesh.Clusters(m); n != 1 {
			t.Errorf("%d targets are kept when nobody calls them, want 1", n)
		}
		get(t, m.Client(), "http://host-0/")
	})
}

// openConns counts the connections that are open.
type openConns struct {
	mu   sync.Mutex
	open int
}

func (o *openConns) add(n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.open += n
}

type openConn struct {
	net.Conn
	closed func()
}

func (c *openConn) Close() error {
	c.closed()
	return c.Conn.Close()
}

func TestIdleConnectionsOutsideAreBounded(t *testing.T) {
	const hosts, kept = 120, 100
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		var endpoints []discovery.Endpoint
		for range hosts {
			endpoints = append(endpoints, f.Add(t, says("ok")))
		}
		var conns openConns
		m := f.Mesh(t, "", mesh.WithTransport(&http.Transport{
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := f.Network.DialContext(ctx, network, address)
				if err != nil {
					return nil, err
				}
				conns.add(1)
				return &openConn{conn, sync.OnceFunc(func() { conns.add(-1) })}, nil
			},
		}))
		for _, e := range endpoints {
			get(t, m.Client(), "http://"+e.ID()+"/")
		}
		synctest.Wait()
		if conns.open != kept {
			t.Errorf("%d idle connections are open, want %d", conns.open, kept)
		}
	})
}

// A caller may write a host in Unicode; documents and discovery name it as it is sent.
func TestUnicodeHostMeetsItsDocuments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		f.Registry.Set("xn--bcher-kva.example", f.Add(t, says("books")))
		m := f.Mesh(t, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: books}
spec:
  hosts: [xn--bcher-kva.example]
  http:
  - match: [{uri: {prefix: /shut}}]
    directResponse: {status: 418}
  - route: [{destination: {host: xn--bcher-kva.example}}]
`, mesh.WithRegistryOnly())
		for _, host := range []string{"bücher.example", "BÜCHER.example", "xn--bcher-kva.example", "bücher.example:80"} {
			if a := get(t, m.Client(), "http://"+host+"/shut"); a.status != 418 {
				t.Errorf("%s: %d, want what the document prescribes", host, a.status)
			}
			if a := get(t, m.Client(), "http://"+host+"/"); a.body != "books" {
				t.Errorf("%s: %q", host, a.body)
			}
			if conn, err := m.DialContext(t.Context(), "tcp", strings.TrimSuffix(host, ":80")+":80"); err != nil {
				t.Errorf("%s: %v", host, err)
			} else {
				conn.Close()
			}
		}
	})
}

func TestErrorAfterClose(t *testing.T) {
	m := newMesh(t, "", mesh.WithDiscovery(discovery.Static{}))
	m.Close()
	_, get := m.Transport().RoundTrip(httpRequest(t, "http://b/"))
	_, dial := m.DialContext(t.Context(), "tcp", "b:80")
	for _, err := range []error{get, dial} {
		if !errors.Is(err, mesh.ErrClosed) || err.Error() != "mesh: b.default.svc.cluster.local:80: the mesh is closed" {
			t.Errorf("error = %v", err)
		}
	}
}

func httpRequest(t *testing.T, url string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// Settings that make no sense are an error of New, which says what is wrong.
func TestNewRefuses(t *testing.T) {
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	dialsTLS := &http.Transport{DialTLSContext: (&tls.Dialer{}).DialContext}
	circuit := mesh.Protection{Circuit: &breaker.Config{}}
	var noContext context.Context
	for name, test := range map[string]struct {
		ctx    context.Context
		option mesh.Option
		want   string
	}{
		"no context":             {noContext, mesh.WithEmptyPolicy(), "mesh: New: the context is nil"},
		"a context that is over": {canceled, mesh.WithEmptyPolicy(), "mesh: New: context canceled"},
		"a nil option":           {t.Context(), nil, "mesh: New: option 1 is nil"},
		"a nil resolver":         {t.Context(), mesh.WithDiscovery(nil), "mesh: WithDiscovery: the resolver is nil"},
		"a template with TLS":    {t.Context(), mesh.WithTransport(dialsTLS), "mesh: the transport of WithTransport dials TLS itself: set TLSClientConfig"},
		"a template with a bound": {t.Context(), mesh.WithTransport(&http.Transport{MaxConnsPerHost: 1}),
			"mesh: the transport of WithTransport sets MaxConnsPerHost: remove it, and set connectionPool.tcp.maxConnections"},
		"a negative limit": {t.Context(), mesh.WithServer(mesh.ServerConfig{MaxRequests: -1}), "mesh: WithServer: MaxRequests is negative"},
		"a nil feed":       {t.Context(), mesh.WithPolicyFeed(nil), "mesh: WithPolicyFeed: the feed is nil"},
		"a wildcard":       {t.Context(), mesh.WithProtection(circuit, "*"), `"*" is not a host`},
		"an empty host":    {t.Context(), mesh.WithProtection(circuit, "api", ""), `"" is not a host`},
		"a URL":            {t.Context(), mesh.WithProtection(circuit, "http://api"), `"http://api" is not a host`},
		"a space":          {t.Context(), mesh.WithProtection(circuit, "api, orders"), `"api, orders" is not a host`},
	} {
		m, err := mesh.New(test.ctx, test.option)
		if err == nil {
			m.Close()
		}
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want %q", name, err, test.want)
		}
	}
}

// TestHostOutsideSaysThatNoPolicyApplied: the name of a service that is misspelt passes plainly, and fails. The error says
// that neither a document nor discovery knows it.
func TestHostOutsideSaysThatNoPolicyApplied(t *testing.T) {
	noLeaks(t)
	closed := rawtest.Refusing(t)
	var registry discovery.Memory
	m := newMesh(t, "", mesh.WithDiscovery(&registry))
	const want = "neither a document nor discovery knows this host: no policy applied"
	_, err := m.Client().Get("http://" + closed + "/")
	if err == nil || !strings.Contains(err.Error(), want) || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("Get: %v, want ECONNREFUSED and %q", err, want)
	}
	if meshErr, ok := errors.AsType[*mesh.Error](err); !ok || meshErr.Layer != "endpoint" {
		t.Errorf("Get: %#v, want a mesh.Error of the endpoint", err)
	}
	if _, err := m.DialContext(t.Context(), "tcp", closed); err == nil || !strings.Contains(err.Error(), want) || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("DialContext: %v, want ECONNREFUSED and %q", err, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.DialContext(ctx, "tcp", closed); !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), want) {
		t.Errorf("DialContext of a caller that gave up: %v", err)
	}
	registry.Set("shop", endpointOf(t, closed))
	if _, err := m.Client().Get("http://shop/"); err == nil || strings.Contains(err.Error(), want) {
		t.Errorf("Get of a service of the mesh: %v", err)
	}
}

// The Dial function of a template, which predates contexts, is used for endpoints and for hosts outside the mesh.
func TestTemplateWithDial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		api := f.Add(t, says("ok"))
		f.Registry.Set("api", api)
		m := f.Mesh(t, "", mesh.WithTransport(&http.Transport{
			//lint:ignore SA1019 it is deprecated, but still honoured by net/http
			Dial: func(network, address string) (net.Conn, error) {
				return f.Network.DialContext(t.Context(), network, address)
			},
		}))
		for _, host := range []string{"api", api.ID()} {
			if a := get(t, m.Client(), "http://"+host+"/"); a.body != "ok" {
				t.Errorf("%s: %q", host, a.body)
			}
			conn, err := m.DialContext(t.Context(), "tcp", strings.TrimSuffix(host, ":80")+":80")
			if err != nil {
				t.Errorf("%s: %v", host, err)
				continue
			}
			conn.Close()
		}
	})
}

// A host outside the mesh is dialled by the name that the documents were asked about, and not by the one that it looks like.
func TestHostsThatLookLikeOthers(t *testing.T) {
	var mu sync.Mutex
	var dialled []string
	m := newMesh(t, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: api}
spec:
  hosts: [api, api.example, 10.0.0.7]
  http: [{directResponse: {status: 418}}]
`, mesh.WithDiscovery(discovery.Static{}), mesh.WithTransport(&http.Transport{DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		dialled = append(dialled, address)
		return nil, errors.New("not dialled")
	}}))
	for url, want := range map[string]string{
		"http://\uff41pi/":                 "xn--pi-bz3n:80",         // a wide a
		"http://ap\u00adi/":                "xn--api-hfa:80",         // a soft hyphen
		"http://api\u3002example/":         "xn--apiexample-ph3i:80", // an ideographic full stop
		"http://b\u00fccher.example:8080/": "xn--bcher-kva.example:8080",
	} {
		dialled = nil
		a, err := try(m.Client(), url)
		if err == nil || len(dialled) != 1 || dialled[0] != want {
			t.Errorf("GET %s = %d, %v, dialled %q, want %s", url, a.status, err, dialled, want)
		}
	}
	for _, url := range []string{"http://10.0.0.7/", "http://[::ffff:10.0.0.7]/", "http://[::ffff:a00:7]/", "http://API.example./"} {
		if a := get(t, m.Client(), url); a.status != 418 {
			t.Errorf("GET %s = %d, want what the document of the address prescribes", url, a.status)
		}
	}
}
