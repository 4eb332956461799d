package engine_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/engine"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/meshgrpc"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
	"github.com/nosidecar/mesh/tlsid"
)

func TestMain(m *testing.M) { os.Exit(leak.Run(m)) }

// full returns the name that targets have of a service.
func full(service string) string { return service + ".default.svc.cluster.local" }

// failOver has calls to the service of the first name go to the services of all, in this order.
func failOver(t testing.TB, m *mesh.Mesh, services ...string) {
	t.Helper()
	treat(t, m, func(target route.Target, c *policy.Cluster) {
		if target.Host == full(services[0]) && target.Subset == "" {
			c.Failover = targets(services...)
		}
	})
}

func targets(services ...string) (list []route.Target) {
	for _, s := range services {
		list = append(list, route.Target{Host: full(s)})
	}
	return list
}

func treat(t testing.TB, m *mesh.Mesh, change func(route.Target, *policy.Cluster)) {
	t.Helper()
	if err := engine.Of(m.Transport()).Treat(change); err != nil {
		t.Fatal(err)
	}
}

// says answers with a text.
func says(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) }
}

// ask calls a URL and returns the body of the answer, or its status if that is not 200.
func ask(t testing.TB, m *mesh.Mesh, url string) (string, error) {
	t.Helper()
	resp, err := m.Client().Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		return resp.Status, err
	}
	return string(body), err
}

func wantAnswer(t testing.TB, m *mesh.Mesh, url, want string) {
	t.Helper()
	if got, err := ask(t, m, url); got != want || err != nil {
		t.Errorf("%s: %q, %v; want %q", url, got, err, want)
	}
}

// nothingHeld checks that no call is left in any destination.
func nothingHeld(t testing.TB, m *mesh.Mesh) {
	t.Helper()
	for _, s := range engine.Of(m.Transport()).Status().Services {
		inFlight := s.InFlight + s.Pool.Active
		for _, e := range s.Endpoints {
			inFlight += e.InFlight
		}
		if inFlight != 0 {
			t.Errorf("%v is held by %d", s.Target, inFlight)
		}
	}
}

const (
	web = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web}
spec: {host: web}
`
	// ejects takes an endpoint out for a minute after one failure.
	ejects = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: %[1]s}
spec:
  host: %[1]s
  trafficPolicy:
    outlierDetection: {consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 60s, maxEjectionPercent: 100, minHealthPercent: %[2]d}
`
	retries = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web]
  http:
  - retries: {attempts: %d, retryOn: 5xx}
    route: [{destination: {host: web}}]
`
	noRetries = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec: {hosts: [web], http: [{retries: {attempts: 0}, route: [{destination: {host: web}}]}]}
`
)

func TestCallsGoToTheFirstTargetThatHasEndpoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f meshtest.Fleet
		first, second, third := f.Add(t, says("first")), f.Add(t, says("second")), f.Add(t, says("third"))
		f.Registry.Set("third", third)
		m := f.Mesh(t, web)
		failOver(t, m, "web", "second", "third")
		wantAnswer(t, m, "http://web/", "third") // discovery does not know the others
		f.Registry.Set("second", second)
		synctest.Wait()
		wantAnswer(t, m, "http://web/", "second")
		f.Registry.Set("web", first)
		synctest.Wait()
		wantAnswer(t, m, "http://web/", "first")
		wantAnswer(t, m, "http://second/", "second") // the list is that of one target
		draining := first
		draining.Draining = true
		f.Registry.Set("web", draining)
		synctest.Wait()
		wantAnswer(t, m, "http://web/", "second")
		f.Registry.Set("second")
		f.Registry.Set("third")
		synctest.Wait()
		_, err := ask(t, m, "http://web/")
		var failed *mesh.Error
		if !errors.As(err, &failed) || failed.Flags != mesh.FlagNoHealthyUpstream || failed.Layer != "balancer" ||
			failed.Target.Host != full("web") || failed.Attempts != 0 || !errors.Is(err, balancer.ErrNoEndpoints) {
			t.Errorf("without endpoints: %+v", err)
		}
		for _, name := range []string{"web", "second", "third"} {
			if !strings.Contains(err.Error(), full(name)+":80: balancer: no") {
				t.Errorf("%v does not say why it is not %s", err, name)
			}
		}
		nothingHeld(t, m)
	})
}

// noted is what an observer saw of calls.
type noted struct {
	mu sync.Mutex

	attempts, calls []string
}

func (n *noted) observer() mesh.Observer {
	note := func(list *[]string, target route.Target) {
		n.mu.Lock()
		defer n.mu.Unlock()
		*list = append(*list, strings.TrimSuffix(target.Host, ".default.svc.cluster.local"))
	}
	return mesh.Observer{
		AttemptStart: func(ctx context.Context, a *mesh.Attempt) context.Context {
			note(&n.attempts, a.Call.Target)
			return ctx
		},
		CallEnd: func(_ context.Context, c *mesh.Call) { note(&n.calls, c.Target) },
		ConnEnd: func(c *mesh.Conn) { note(&n.calls, c.Target) },
	}
}

func (n *noted) check(t testing.TB, attempts, calls string) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if got := strings.Join(n.attempts, " "); got != attempts {
		t.Errorf("observers saw attempts to %q, want %q", got, attempts)
	}
	if got := strings.Join(n.calls, " "); got != calls {
		t.Errorf("observers saw calls to %q, want %q", got, calls)
	}
	n.attempts, n.calls = nil, nil
}

func TestRetryMovesOnToTheNextTargetAndObserversSeeIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f meshtest.Fleet
		var seen noted
		failing := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }
		f.Registry.Set("web", f.Add(t, failing), f.Add(t, failing))
		f.Registry.Set("backup", f.Add(t, says("backup")))
		m := f.Mesh(t, fmt.Sprintf(ejects, "web", 0)+"---"+fmt.Sprintf(retries, 2), mesh.WithObserver(seen.observer()))
		failOver(t, m, "web", "backup")
		wantAnswer(t, m, "http://web/", "backup")
		seen.check(t, "web web backup", "backup")
		wantAnswer(t, m, "http://web/", "backup")
		seen.check(t, "backup", "backup")
		time.Sleep(62 * time.Second)
		wantAnswer(t, m, "http://web/", "backup")
		seen.check(t, "web web backup", "backup") // it got another chance
		nothingHeld(t, m)
	})
}

func TestSickEndpointsAreUsedOnlyByTargetsThatPanic(t *testing.T) {
	for _, panics := range []struct {
		web, backup int
		want        string
	}{{0, 0, ""}, {50, 0, "web"}, {0, 50, "backup"}, {50, 50, "web"}} {
		t.Run(fmt.Sprint(panics), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var f meshtest.Fleet
				var seen noted
				failing := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }
				f.Registry.Set("web", f.Add(t, failing))
				f.Registry.Set("backup", f.Add(t, failing))
				m := f.Mesh(t, fmt.Sprintf(ejects, "web", panics.web)+"---"+fmt.Sprintf(ejects, "backup", panics.backup)+"---"+noRetries,
					mesh.WithObserver(seen.observer()))
				failOver(t, m, "web", "backup")
				for _, first := range []string{"web", "backup"} {
					wantAnswer(t, m, "http://web/", "503 Service Unavailable")
					seen.check(t, first, first)
				}
				got, err := ask(t, m, "http://web/")
				if panics.want == "" {
					seen.check(t, "", "web")
					var failed *mesh.Error
					if !errors.As(err, &failed) || failed.Flags != mesh.FlagNoHealthyUpstream || !errors.Is(err, balancer.ErrNoHealthy) {
						t.Errorf("with all ejected: %q, %v", got, err)
					}
				} else if seen.check(t, panics.want, panics.want); err != nil {
					t.Errorf("with all ejected: %q, %v", got, err)
				}
				nothingHeld(t, m)
			})
		})
	}
}

func TestFullTargetIsNotAnUnhealthyOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f meshtest.Fleet
		release := make(chan struct{})
		f.Registry.Set("web", f.Add(t, func(w http.ResponseWriter, _ *http.Request) { <-release }))
		f.Registry.Set("backup", f.Add(t, says("backup")))
		m := f.Mesh(t, strings.Replace(web, "{host: web}", "{host: web, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}}}", 1))
		failOver(t, m, "web", "backup")
		var running sync.WaitGroup
		for range 2 { // one under way, one waiting
			running.Go(func() { wantAnswer(t, m, "http://web/", "") })
			synctest.Wait()
		}
		wantAnswer(t, m, "http://web/", "503 Service Unavailable")
		close(release)
		running.Wait()
		nothingHeld(t, m)
	})
}

// slow is discovery that does not answer for one service.
type slow struct {
	*discovery.Memory
	service string

	mu      sync.Mutex
	watched []string
}

func (s *slow) Watch(ctx context.Context, of discovery.Service) iter.Seq2[[]discovery.Endpoint, error] {
	s.mu.Lock()
	s.watched = append(s.watched, of.Name)
	s.mu.Unlock()
	if of.Name != s.service {
		return s.Memory.Watch(ctx, of)
	}
	return func(func([]discovery.Endpoint, error) bool) { <-ctx.Done() }
}

func TestTargetThatDiscoveryIsSlowAboutIsWaitedForOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f meshtest.Fleet
		f.Registry.Set("backup", f.Add(t, says("backup")))
		m := f.Mesh(t, strings.Replace(web, "{host: web}", "{host: web, trafficPolicy: {connectionPool: {tcp: {connectTimeout: 3s}}}}", 1),
			mesh.WithDiscovery(&slow{Memory: &f.Registry, service: "web"}))
		failOver(t, m, "web", "backup")
		for _, want := range []time.Duration{3 * time.Second, 0} {
			start := time.Now()
			wantAnswer(t, m, "http://web/", "backup")
			if took := time.Since(start); took != want {
				t.Errorf("the call took %v, want %v", took, want)
			}
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errors.New("gone"))
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://web/", nil)
		if resp, err := m.Client().Do(req); err == nil {
			resp.Body.Close()
			t.Error("a call whose caller has gone was answered")
		}
		nothingHeld(t, m)
	})
}

func TestTargetThatDiscoveryDoesNotKnowDoesNotKeepTheNextFromPanicking(t *testing.T) {
	for _, silent := range []string{"", "web"} {
		t.Run("silent about "+silent, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var f meshtest.Fleet
				f.Registry.Set("backup", f.Add(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }))
				m := f.Mesh(t, fmt.Sprintf(ejects, "web", 50)+"---"+fmt.Sprintf(ejects, "backup", 50)+"---"+noRetries,
					mesh.WithDiscovery(&slow{Memory: &f.Registry, service: silent}))
				failOver(t, m, "web", "backup")
				for range 2 { // the first answer ejects
					wantAnswer(t, m, "http://web/", "503 Service Unavailable")
				}
				nothingHeld(t, m)
			})
		})
	}
}

func TestDiscoveryOfAllTargetsBeginsWithTheFirstCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f meshtest.Fleet
		watched := &slow{Memory: &f.Registry}
		f.Registry.Set("web", f.Add(t, says("web")))
		m := f.Mesh(t, web, mesh.WithDiscovery(watched))
		failOver(t, m, "web", "backup", "last")
		wantAnswer(t, m, "http://web/", "web")
		synctest.Wait()
		watched.mu.Lock()
		defer watched.mu.Unlock()
		if slices.Sort(watched.watched); !slices.Equal(watched.watched, []string{"backup", "last", "web"}) {
			t.Errorf("watched were %v", watched.watched)
		}
	})
}

func TestTargetsThatFailOverToEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f meshtest.Fleet
		f.Registry.Set("b", f.Add(t, says("b")))
		m := f.Mesh(t, strings.ReplaceAll(web, "web", "a")+"---"+strings.ReplaceAll(web, "web", "b"))
		treat(t, m, func(target route.Target, c *policy.Cluster) {
			if target.Host == full("a") {
				c.Failover = targets("a", "b")
			} else {
				c.Failover = targets("b", "a")
			}
		})
		wantAnswer(t, m, "http://a/", "b")
		wantAnswer(t, m, "http://b/", "b")
		nothingHeld(t, m)
	})
}

func TestTargetThatIsNotInItsListHasNoEndpointsOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f meshtest.Fleet
		watched := &slow{Memory: &f.Registry}
		f.Registry.Set("web", f.Add(t, says("web")))
		f.Registry.Set("other", f.Add(t, says("other")))
		m := f.Mesh(t, web, mesh.WithDiscovery(watched))
		treat(t, m, func(target route.Target, c *policy.Cluster) {
			if target.Host == full("web") {
				c.Failover = targets("other")
			}
		})
		wantAnswer(t, m, "http://web/", "other")
		watched.mu.Lock()
		defer watched.mu.Unlock()
		if !slices.Equal(watched.watched, []string{"other"}) {
			t.Errorf("watched were %v", watched.watched)
		}
	})
}

func TestSubsetOfAFilter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f meshtest.Fleet
		one, two := f.Add(t, says("one")), f.Add(t, says("two"))
		one.Labels, two.Labels = map[string]string{"n": "1"}, map[string]string{"n": "2"}
		f.Registry.Set("web", one, two)
		m := f.Mesh(t, web)
		compiled := 0
		filter := func(text, n string) func(route.Target, *policy.Cluster) {
			return func(_ route.Target, c *policy.Cluster) {
				compiled++
				c.Filter = policy.Filter{Text: text, Match: func(e *discovery.Endpoint) bool { return e.Labels["n"] == n }}
			}
		}
		treat(t, m, filter("n == 2", "2"))
		for range 8 {
			wantAnswer(t, m, "http://web/", "two")
		}
		dials := f.Network.Dials()
		treat(t, m, filter("n == 2", "2")) // the same, made anew
		wantAnswer(t, m, "http://web/", "two")
		if f.Network.Dials() != dials {
			t.Error("a filter of the same text is not taken for the same")
		}
		treat(t, m, filter("n == 1", "1"))
		wantAnswer(t, m, "http://web/", "one")
		treat(t, m, filter("n == 3", "3"))
		if _, err := ask(t, m, "http://web/"); !errors.Is(err, balancer.ErrNoEndpoints) || !strings.Contains(err.Error(), `none of the 2 that there are matches "n == 3"`) {
			t.Errorf("nothing matches: %v", err)
		}
		if compiled == 0 {
			t.Error("no filter was made")
		}
	})
}

func TestReloadKeepsWhatTargetsOfTheListLearned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f meshtest.Fleet
		f.Registry.Set("web", f.Add(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }))
		f.Registry.Set("backup", f.Add(t, says("backup")))
		f.Registry.Set("last", f.Add(t, says("last")))
		m := f.Mesh(t, fmt.Sprintf(ejects, "web", 0)+"---"+noRetries)
		failOver(t, m, "web", "backup")
		wantAnswer(t, m, "http://web/", "503 Service Unavailable")
		wantAnswer(t, m, "http://web/", "backup")
		failOver(t, m, "web", "last") // web stays ejected
		wantAnswer(t, m, "http://web/", "last")
		treat(t, m, func(target route.Target, c *policy.Cluster) { // the settings of a member alone
			if target.Host == full("web") {
				c.Failover = targets("web", "last")
			}
			c.UpgradeHTTP2 = target.Host == full("backup")
			c.Filter = policy.Filter{Text: "none", Match: func(*discovery.Endpoint) bool { return false }}
		})
		if _, err := ask(t, m, "http://web/"); !errors.Is(err, balancer.ErrNoEndpoints) {
			t.Errorf("with members whose settings changed: %v", err)
		}
		nothingHeld(t, m)
	})
}

func TestMirrorsFailOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f meshtest.Fleet
		copies := make(chan string, 1)
		f.Registry.Set("shop", f.Add(t, says("shop")))
		f.Registry.Set("backup", f.Add(t, func(_ http.ResponseWriter, r *http.Request) { copies <- r.URL.Path }))
		m := f.Mesh(t, web+`---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec: {hosts: [shop], http: [{route: [{destination: {host: shop}}], mirror: {host: web}}]}
`)
		failOver(t, m, "web", "backup")
		wantAnswer(t, m, "http://shop/it", "shop")
		if got := <-copies; got != "/it" {
			t.Errorf("the copy is of %s", got)
		}
		synctest.Wait()
		nothingHeld(t, m)
	})
}

func TestRawConnectionsFailOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f meshtest.Fleet
		var seen noted
		l := f.Network.Listen("10.9.9.9:80")
		rawtest.Serve(t, l, func(conn net.Conn) { io.WriteString(conn, "hello") })
		f.Registry.Set("web", discovery.Endpoint{Address: "10.8.8.8", Port: 80}) // refuses
		f.Registry.Set("backup", discovery.Endpoint{Address: "10.9.9.9", Port: 80})
		m := f.Mesh(t, fmt.Sprintf(ejects, "web", 0), mesh.WithObserver(seen.observer()))
		failOver(t, m, "web", "backup")
		for range 2 {
			conn, err := m.DialContext(t.Context(), "tcp", "web:80")
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(conn); string(got) != "hello" || err != nil {
				t.Errorf("%q, %v", got, err)
			}
			conn.Close()
			seen.check(t, "", "backup")
		}
		nothingHeld(t, m)
		f.Registry.Set("backup")
		synctest.Wait()
		var failed *mesh.Error
		if _, err := m.DialContext(t.Context(), "tcp", "web:80"); !errors.As(err, &failed) || failed.Flags != mesh.FlagNoHealthyUpstream || failed.Target.Host != full("web") {
			t.Errorf("nothing healthy: %v", err)
		}
	})
}

func TestGRPCFailsOver(t *testing.T) {
	defer leak.Check(t)
	var seen noted
	unary := func(text string, code codes.Code) *grpctest.Service {
		return &grpctest.Service{Unary: func(_ context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			return &grpctest.Response{Username: text}, status.Error(code, text)
		}}
	}
	var registry discovery.Memory
	backup := meshtest.EndpointOf(t, grpctest.Serve(t, unary("backup", codes.OK)))
	registry.Set("web", meshtest.EndpointOf(t, grpctest.Serve(t, unary("web", codes.Unavailable))))
	registry.Set("backup", backup)
	m := meshtest.New(t, fmt.Sprintf(ejects, "web", 0)+"---"+strings.Replace(fmt.Sprintf(retries, 2), "5xx", "unavailable", 1),
		mesh.WithDiscovery(&registry), mesh.WithObserver(seen.observer()))
	failOver(t, m, "web", "backup")
	conn, err := grpc.NewClient("mesh:///web", meshgrpc.DialOptions(m)...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, attempts := range []string{"web backup", "backup"} {
		resp, err := grpctest.NewClient(conn).UnaryCall(t.Context(), &grpctest.Request{})
		if err != nil || resp.Username != "backup" {
			t.Fatalf("%v, %v", resp, err)
		}
		seen.check(t, attempts, "backup")
	}
	nothingHeld(t, m)
	registry.Set("backup")
	await.True(t, "calls fail for want of a target", func() bool {
		_, err := grpctest.NewClient(conn).UnaryCall(t.Context(), &grpctest.Request{})
		return status.Code(err) == codes.Unavailable && strings.Contains(err.Error(), "no target has a healthy endpoint")
	})
	nothingHeld(t, m)
}

// Each target is called as its own documents say. A server with the wrong identity is no reason to fail over.
func TestEachTargetHasAnIdentityOfItsOwn(t *testing.T) {
	defer leak.Check(t)
	ca, err := tlsid.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	ca.RotateEvery = -1
	server := meshtest.New(t, "", mesh.WithIdentity(ca.Source("default", "backup")))
	ln := rawtest.Listen(t)
	srv := &http.Server{Handler: server.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "to backup from %s", mesh.PeerID(r.Context()))
	}))}
	var serving sync.WaitGroup
	serving.Go(func() { srv.Serve(server.Listen(ln)) })
	defer serving.Wait()
	defer srv.Close()

	var registry discovery.Memory
	plain := meshtest.Serve(t, says("web in plaintext"))
	last := meshtest.Serve(t, says("never"))
	registry.Set("web", plain)
	registry.Set("backup", meshtest.EndpointOf(t, ln.Addr().String()))
	registry.Set("last", last)
	expect := func(account string) string {
		return fmt.Sprintf(`---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: backup}
spec: {host: backup, trafficPolicy: {tls: {mode: ISTIO_MUTUAL, subjectAltNames: ["spiffe://cluster.local/ns/default/sa/%s"]}}}
`, account)
	}
	m := meshtest.New(t, web+expect("backup"), mesh.WithDiscovery(&registry), mesh.WithIdentity(ca.Source("default", "caller")))
	failOver(t, m, "web", "backup", "last")
	wantAnswer(t, m, "http://web/", "web in plaintext")
	registry.Set("web")
	await.True(t, "calls go to backup", func() bool {
		got, err := ask(t, m, "http://web/")
		return err == nil && got == "to backup from spiffe://cluster.local/ns/default/sa/caller"
	})
	if err := m.Apply(policy.Source{Name: "a.yaml", Data: []byte(web + expect("somebody-else"))}); err != nil {
		t.Fatal(err)
	}
	var failed *mesh.Error
	if got, err := ask(t, m, "http://web/"); !errors.As(err, &failed) || failed.Target.Host != full("backup") {
		t.Errorf("a server with another identity: %q, %v", got, err)
	}
	nothingHeld(t, m)
}

// Connections of HTTP/2 count once, not once a call, at whichever target.
func TestGRPCCallsShareTheConnectionsOfTheNextTarget(t *testing.T) {
	defer leak.Check(t)
	var registry discovery.Memory
	const calls = 3
	var begun atomic.Int32
	all := make(chan struct{}) // closed when all have begun
	registry.Set("web")
	registry.Set("backup", meshtest.EndpointOf(t, grpctest.Serve(t, &grpctest.Service{
		Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			if begun.Add(1) == calls {
				close(all)
			}
			select {
			case <-all:
			case <-ctx.Done():
			}
			return &grpctest.Response{}, ctx.Err()
		},
	})))
	m := meshtest.New(t, web+"---"+strings.NewReplacer("name: web", "name: backup", "{host: web}",
		"{host: backup, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}}}").Replace(web),
		mesh.WithDiscovery(&registry))
	failOver(t, m, "web", "backup")
	conn, err := grpc.NewClient("mesh:///web", meshgrpc.DialOptions(m)...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // of a test that fails
	defer cancel()
	var running sync.WaitGroup
	for range calls {
		running.Go(func() {
			if _, err := grpctest.NewClient(conn).UnaryCall(ctx, &grpctest.Request{}); err != nil {
				t.Error(err)
				cancel()
			}
		})
	}
	running.Wait()
	nothingHeld(t, m)
}

// mover is a message whose library asks for another endpoint.
type mover struct {
	message
	before func()
	after  func(*engine.Attempt) // with the other endpoint; may be nil
}

func (m *mover) Send(ctx context.Context) (retry.Reason, error) {
	a := &m.first
	if err := m.Acquire(ctx, a, 1); err != nil {
		return retry.NotRetriable, err
	}
	a.Observe(ctx, 1, nil, nil)
	m.before()
	err := a.Again(ctx)
	if err == nil && m.after != nil {
		m.after(a)
	}
	return retry.NotRetriable, a.End(err)
}

var toWeb = engine.Request{Host: "web", Request: route.Request{Scheme: "http", Authority: "web", Path: "/", Port: 80}}

// Otherwise a balancer that uses latencies would avoid the endpoint that works.
func TestEndpointIsNotChargedWithTheTimeOfAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f meshtest.Fleet
		calls := map[string]int{}
		var list []discovery.Endpoint
		for range 2 {
			list = append(list, f.Add(t, func(_ http.ResponseWriter, r *http.Request) {
				calls[r.Context().Value(http.LocalAddrContextKey).(net.Addr).String()]++ // one at a time
				time.Sleep(10 * time.Millisecond)
			}))
		}
		f.Registry.Set("web", list...)
		var begun time.Time
		var took time.Duration
		m := f.Mesh(t, web, mesh.WithProtection(mesh.Protection{Balancing: &balancer.Config{Algorithm: balancer.PeakEWMA}}),
			mesh.WithObserver(mesh.Observer{AttemptEnd: func(_ context.Context, a *mesh.Attempt) { begun, took = a.Start, a.Duration }}))
		var moved time.Time
		var second string
		c := &mover{before: func() {
			time.Sleep(5 * time.Second)
			moved = time.Now()
		}, after: func(a *engine.Attempt) {
			second = a.Peer().Address
			time.Sleep(10 * time.Millisecond)
			a.Answered(200)
		}}
		c.Begin(t.Context(), engine.Of(m.Transport()), engine.Routed, nil)
		if _, err := c.Serve(c.Context(), &toWeb, c); err != nil {
			t.Fatal(err)
		}
		c.End(0, nil, nil)
		if !begun.Equal(moved) || took != 10*time.Millisecond {
			t.Errorf("the attempt was observed for %v from %v, want 10ms from %v", took, begun, moved)
		}
		for range 20 {
			if _, err := ask(t, m, "http://web/"); err != nil {
				t.Fatal(err)
			}
		}
		if calls[second] < 5 {
			t.Errorf("the endpoint that took over got %d calls of 20", calls[second])
		}
		nothingHeld(t, m)
	})
}

func TestAttemptThatFindsNoOtherEndpointLeavesItsTarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f meshtest.Fleet
		f.Registry.Set("web")
		f.Registry.Set("backup", f.Add(t, says("backup")))
		m := f.Mesh(t, web)
		failOver(t, m, "web", "backup")
		c := &mover{before: func() {
			f.Registry.Set("backup")
			synctest.Wait()
		}}
		c.Begin(t.Context(), engine.Of(m.Transport()), engine.Routed, nil)
		_, err := c.Serve(c.Context(), &toWeb, c)
		if !errors.Is(err, balancer.ErrNoEndpoints) {
			t.Errorf("the call ended with %v", err)
		}
		nothingHeld(t, m)
	})
}
