package mesh_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/memnet"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/tlsid"
)

// record keeps the lines that are logged.
type record struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(p)
}

// take returns what was logged since the last call.
func (r *record) take() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	text := r.text.String()
	r.text.Reset()
	return text
}

func (r *record) logger() *slog.Logger { return slog.New(slog.NewTextHandler(r, nil)) }

// asDefault makes r what slog.Default logs to, until the test ends.
func (r *record) asDefault(t *testing.T) {
	before := slog.Default()
	slog.SetDefault(r.logger())
	t.Cleanup(func() { slog.SetDefault(before) })
}

const (
	warned = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n---\n" +
		"apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n"
	broken = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web}\nspec: {htp: []}\n"
)

// TestLog_Documents: warnings and refused loads are logged, whoever else is told of them.
func TestLog_Documents(t *testing.T) {
	observer := mesh.WithObserver(mesh.Observer{PolicyLoad: func(mesh.PolicyLoad) {}})
	for _, test := range []struct {
		name string
		opts func(r *record) []mesh.Option
		want bool
	}{
		{"slog.Default", func(*record) []mesh.Option { return nil }, true},
		{"an observer of calls", func(*record) []mesh.Option {
			return []mesh.Option{mesh.WithObserver(mesh.Observer{CallEnd: func(context.Context, *mesh.Call) {}})}
		}, true},
		{"an observer of loads", func(*record) []mesh.Option { return []mesh.Option{observer} }, true},
		{"an observer of loads, and a logger", func(r *record) []mesh.Option { return []mesh.Option{mesh.WithLogger(r.logger()), observer} }, true},
		{"silent", func(*record) []mesh.Option { return []mesh.Option{mesh.WithLogger(slog.New(slog.DiscardHandler))} }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := new(record)
			r.asDefault(t)
			expect := func(step, want string) {
				t.Helper()
				got := r.take()
				if !test.want || want == "" {
					if got != "" {
						t.Errorf("%s: logged %q, want nothing", step, got)
					}
				} else if !strings.Contains(got, want) {
					t.Errorf("%s: logged %q, want %q", step, got, want)
				}
			}
			m := newMesh(t, warned, test.opts(r)...)
			expect("New", "a Deployment has no meaning in-process")
			if err := m.Apply(yaml(warned)...); err != nil {
				t.Fatal(err)
			}
			expect("the same again", "")
			if err := m.Apply(yaml(broken)...); err == nil {
				t.Fatal("a broken document is in force")
			}
			expect("a broken document", "documents are refused")
			if err := m.Apply(yaml(warned)...); err != nil {
				t.Fatal(err)
			}
			expect("good again", "good again")
		})
	}
}

// TestLog_FeedThatCannotBeRead: documents that cannot be read are not called refused.
func TestLog_FeedThatCannotBeRead(t *testing.T) {
	var r record
	feed := make(failingFeed)
	m, err := mesh.New(t.Context(), mesh.WithLogger(r.logger()), mesh.WithPolicyFeed(feed))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	r.take()
	feed <- errors.New("the server is away")
	feed <- errors.New("the server is away") // the first has been reported
	got, _, _ := strings.Cut(r.take(), "\n")
	if !strings.Contains(got, "documents cannot be read") || strings.Contains(got, "refused") || !strings.Contains(got, "the server is away") {
		t.Errorf("logged %q", got)
	}
}

// TestLog_SkippedDocuments: the documents of a folder that are not about the mesh hide no other warning.
func TestLog_SkippedDocuments(t *testing.T) {
	var text strings.Builder
	for i := range 60 {
		fmt.Fprintf(&text, "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a%d}\n---\n", i)
	}
	text.WriteString("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: old}\n" +
		"spec: {host: old, trafficPolicy: {outlierDetection: {consecutiveErrors: 5}}}\n")
	var r record
	newMesh(t, text.String(), mesh.WithLogger(r.logger()))
	lines := strings.Split(strings.TrimSuffix(r.take(), "\n"), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], "consecutiveErrors") || !strings.Contains(lines[1], "it is skipped, and so are 59 others") {
		t.Errorf("logged\n%s\nwant the warning about old, and one about the Deployments", strings.Join(lines, "\n"))
	}
}

// TestLog_ManyErrorsAreCounted: one line names the first errors of a load.
func TestLog_ManyErrorsAreCounted(t *testing.T) {
	var r record
	m, err := mesh.New(t.Context(), mesh.WithLogger(r.logger()), mesh.WithEmptyPolicy())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for _, n := range []int{20, 21, 900} {
		var text strings.Builder
		for i := range n {
			fmt.Fprintf(&text, "%s---\n", strings.Replace(broken, "name: web", fmt.Sprintf("name: web%d", i), 1))
		}
		err = m.Apply(policy.Source{Name: "x.yaml", Data: []byte(text.String())})
		var all policy.Findings
		if !errors.As(err, &all) || len(all) != n {
			t.Errorf("Apply returns %d errors, want %d", len(all), n)
		}
		log := r.take()
		if got := strings.Count(log, "spec.htp: error"); got != min(n, 20) {
			t.Errorf("%d of %d errors are logged", got, n)
		}
		if more := fmt.Sprintf("and %d more", n-20); strings.Contains(log, more) != (n > 20) {
			t.Errorf("of %d errors, the log says %s", n, log[max(0, len(log)-200):])
		}
	}
}

// TestLog_NewReturnsItsErrors: an error that New returns is not logged as well.
func TestLog_NewReturnsItsErrors(t *testing.T) {
	r := new(record)
	r.asDefault(t)
	if _, err := mesh.New(t.Context(), mesh.WithPolicy(yaml(broken)...)); err == nil {
		t.Fatal("New took a broken document")
	}
	if got := r.take(); got != "" {
		t.Errorf("logged %q, want nothing", got)
	}
	if _, err := mesh.New(t.Context(), mesh.WithLogger(nil)); err == nil {
		t.Error("New took a nil logger")
	}
}

// TestLog_DocumentsAboutOthers: a process that only calls is not bothered with security documents about those it calls.
func TestLog_DocumentsAboutOthers(t *testing.T) {
	const service = "\n---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: web}\nspec: {ports: [{port: 80}]}\n"
	for _, documents := range []string{
		denyAllInShop,
		"apiVersion: policy.linkerd.io/v1beta3\nkind: Server\nmetadata: {name: all, namespace: shop}\nspec: {podSelector: {}, port: 80}\n",
		"apiVersion: access.smi-spec.io/v1alpha3\nkind: TrafficTarget\nmetadata: {name: all, namespace: shop}\nspec:\n" +
			"  destination: {kind: ServiceAccount, name: shop, namespace: shop}\n  rules: [{kind: TCPRoute, name: all}]\n" +
			"  sources: [{kind: ServiceAccount, name: web, namespace: web}]\n---\n" +
			"apiVersion: specs.smi-spec.io/v1alpha4\nkind: TCPRoute\nmetadata: {name: all, namespace: shop}\nspec: {matches: {ports: []}}\n",
	} {
		r := new(record)
		newMesh(t, documents+service, mesh.WithLogger(r.logger()), mesh.WithWorkload(policy.Workload{Namespace: "web", Labels: map[string]string{"app": "web"}}))
		if got := r.take(); got != "" {
			t.Errorf("%s\nlogged %q, want nothing", documents, got)
		}
	}
}

const ejects = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: shop}
spec:
  host: shop
  trafficPolicy: {outlierDetection: {consecutive5xxErrors: 1, maxEjectionPercent: 100}}
`

func TestLog_Ejection(t *testing.T) {
	var registry discovery.Memory
	r := new(record)
	registry.Set("shop", serve(t, fails(http.StatusInternalServerError)))
	m := newMesh(t, ejects, mesh.WithDiscovery(&registry), mesh.WithLogger(r.logger()))
	get(t, m.Client(), "http://shop/")
	if got := r.take(); !strings.Contains(got, "mesh: endpoint ejected") || !strings.Contains(got, "shop") {
		t.Errorf("logged %q, want the ejection", got)
	}
}

// TestLog_EjectionWithheld: an endpoint that fails and stays is logged once, with the setting that keeps it and the value that would not.
func TestLog_EjectionWithheld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f meshtest.Fleet
		r := new(record)
		var broken atomic.Bool
		broken.Store(true)
		answer := func(w http.ResponseWriter, _ *http.Request) {
			if broken.Load() {
				w.WriteHeader(http.StatusBadGateway)
			}
		}
		f.Registry.Set("shop", f.Add(t, answer), f.Add(t, answer), f.Add(t, answer))
		var ejected, withheld []breaker.Event
		m := f.Mesh(t, strings.Replace(ejects, "1, maxEjectionPercent: 100", "2, baseEjectionTime: 1h", 1), mesh.WithLogger(r.logger()), mesh.WithObserver(mesh.Observer{
			Ejection:         func(_ route.Target, e breaker.Event) { ejected = append(ejected, e) },
			EjectionWithheld: func(_ route.Target, e breaker.Event) { withheld = append(withheld, e) },
		}))
		calls := func() {
			for range 50 {
				get(t, m.Client(), "http://shop/")
				time.Sleep(time.Second)
			}
		}
		calls()
		const want = `msg="mesh: endpoint fails and is not ejected, since maxEjectionPercent allows no more ejections" ` +
			`destination=shop.default.svc.cluster.local:80 endpoint=`
		got := r.take()
		if n := strings.Count(got, want); n != 2 || strings.Count(got, "reason=consecutive_5xx failures=2 calls=2 maxEjectionPercent=10 needed=67") != 2 {
			t.Errorf("%d times %s in\n%s\nwant the two endpoints that stay", n, want, got)
		}
		if len(ejected) != 1 || !ejected[0].Ejected || len(withheld) != 2 || withheld[0].Endpoint == withheld[1].Endpoint {
			t.Errorf("observers are told of the ejections %+v, and of %+v withheld; want 1 and 2", ejected, withheld)
		}
		fail := func(fails bool) {
			broken.Store(fails)
			calls()
		}
		if fail(false); len(withheld) != 2 {
			t.Errorf("%d ejections withheld when nothing failed", len(withheld)-2)
		}
		if fail(true); len(withheld) != 4 {
			t.Errorf("%d ejections withheld after endpoints recovered, want 2", len(withheld)-2)
		}
		if got := r.take(); got != "" {
			t.Errorf("logged %q again, within ten minutes", got)
		}
		fail(false)
		time.Sleep(10 * time.Minute)
		fail(false)
		if fail(true); strings.Count(r.take(), want) != 2 {
			t.Error("not logged again after ten minutes")
		}
		if len(ejected) != 1 {
			t.Errorf("%d events of ejections, want 1", len(ejected))
		}
	})
}

// mute never says anything.
type mute struct{}

func (mute) Watch(ctx context.Context) iter.Seq2[*tlsid.Identity, error] {
	return func(func(*tlsid.Identity, error) bool) { <-ctx.Done() }
}

// TestLog_NewWaitsForAnIdentity: a process that does not start says why meanwhile.
func TestLog_NewWaitsForAnIdentity(t *testing.T) {
	for name, source := range map[string]tlsid.Source{"that says nothing": mute{}, "that fails": silent{}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := new(record)
				ctx, cancel := context.WithTimeout(t.Context(), 12*time.Second)
				defer cancel()
				_, err := mesh.New(ctx, mesh.WithIdentity(source), mesh.WithLogger(r.logger()), mesh.WithDiscovery(new(discovery.Memory)))
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("New: %v", err)
				}
				got := r.take()
				for _, want := range []string{"New waits for an identity, since 5s", "New waits for an identity, since 10s"} {
					if !strings.Contains(got, want) {
						t.Errorf("logged %q, want %q", got, want)
					}
				}
				if source == (tlsid.Source)(silent{}) && !strings.Contains(got, "the agent is away") {
					t.Errorf("logged %q, want what the source says", got)
				}
			})
		})
	}
}

// Observers know the first identity before anything can be called, so that all calls are recorded with it.
func TestFirstIdentityIsToldBeforeNewReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, err := tlsid.NewDevCA("cluster.local")
		if err != nil {
			t.Fatal(err)
		}
		var told *tlsid.Identity
		m, err := mesh.New(t.Context(), mesh.WithIdentity(ca.Source("default", "web")), mesh.WithDiscovery(new(discovery.Memory)),
			mesh.WithObserver(mesh.Observer{Identity: func(id *tlsid.Identity, _ error) {
				time.Sleep(time.Second) // of the bubble: whoever does not wait has returned by then
				told = id
			}}))
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if now, err := m.Identity(); err != nil || told != now {
			t.Errorf("New returned before the observer was told of the identity (%v)", err)
		}
	})
}

// TestLog_OpenWorkload: what Handler says of an open workload is no load of documents.
func TestLog_OpenWorkload(t *testing.T) {
	ca, err := tlsid.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	r := new(record)
	m := newMesh(t, warned, mesh.WithLogger(r.logger()), mesh.WithIdentity(ca.Source("default", "web")))
	if err := m.Apply(yaml(broken)...); err == nil {
		t.Fatal("a broken document is in force")
	}
	r.take()
	m.Handler(http.NotFoundHandler())
	if got := r.take(); !strings.Contains(got, "no AuthorizationPolicy") || strings.Contains(got, "good again") {
		t.Errorf("Handler: logged %q, want that the workload is open, and nothing of the documents that are refused", got)
	}
	if err := m.Apply(yaml(warned)...); err != nil {
		t.Fatal(err)
	}
	if got := r.take(); !strings.Contains(got, "good again") || strings.Contains(got, "Deployment") {
		t.Errorf("the documents of before: logged %q, want that they are good again, and no warning twice", got)
	}
}

// outage is a registry that does not answer, and says so each second. Each of its connections has a port of its own.
type outage struct{}

func (outage) Watch(ctx context.Context, service discovery.Service) iter.Seq2[[]discovery.Endpoint, error] {
	return func(yield func([]discovery.Endpoint, error) bool) {
		failure := func(port int) error {
			return fmt.Errorf("registry: %w", &net.OpError{Op: "read", Net: "udp", Err: os.ErrDeadlineExceeded,
				Source: &net.UDPAddr{IP: net.IPv4(10, 0, 0, 9), Port: port}, Addr: &net.UDPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 53}})
		}
		for port := 40_000; ctx.Err() == nil && yield(nil, failure(port)); port++ {
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
	}
}

// yamlOf returns a document about a service.
func yamlOf(service string) string {
	return "\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: " + service + "}\n" +
		"spec: {hosts: [" + service + "], http: [{route: [{destination: {host: " + service + "}}]}]}\n"
}

// TestLog_DiscoveryFailuresAreNotRepeated: one line for each service that cannot be found, and again if it goes on.
func TestLog_DiscoveryFailuresAreNotRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := new(record)
		m := newMesh(t, yamlOf("orders")+"---"+yamlOf("payments"), mesh.WithDiscovery(outage{}), mesh.WithLogger(r.logger()))
		var calls sync.WaitGroup
		for _, url := range []string{"http://orders/", "http://payments/"} {
			calls.Go(func() { try(m.Client(), url) })
		}
		calls.Wait()
		if got := r.take(); strings.Count(got, "\n") != 2 {
			t.Errorf("logged %q, want one line for each of two services", got)
		}
		advance(time.Hour)
		if n := strings.Count(r.take(), "\n"); n < 2 || n > 20 {
			t.Errorf("logged %d lines in the next hour, want a reminder of each service now and then", n)
		}
	})
}

// TestLog_FeedThatNewWaitedFor: what was never said to be wrong is not said to be good again.
func TestLog_FeedThatNewWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := new(record)
		down := []error{passing{"connection refused"}, passing{"still down"}}
		newMesh(t, "", mesh.WithLogger(r.logger()),
			mesh.WithPolicyFeed(lateFeed{down, []policy.Source{routeOf("api", fmt.Sprintf(answersWith, "api", 201))}}))
		if got := r.take(); strings.Contains(got, "good again") {
			t.Errorf("logged: %s", got)
		}
	})
}

// TestLog_RefusedConnections: a refused connection is logged although an observer counts it. Those that follow are counted in the log, too,
// but peers cannot fill it.
func TestLog_RefusedConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, refused := new(record), 0
		r.asDefault(t)
		m := newMesh(t, strict, mesh.WithObserver(mesh.Observer{ConnectionRefused: func(net.Addr, tlsid.Refusal) { refused++ }}))
		var network memnet.Network
		server := &http.Server{Handler: m.Handler(says("secret"))}
		go server.Serve(m.Listen(network.Listen("10.0.0.1:80")))
		defer server.Close()
		connect := func(send string) {
			t.Helper()
			conn, err := network.DialContext(t.Context(), "tcp", "10.0.0.1:80")
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(conn, send)
			if send != "" {
				_, _ = io.ReadAll(conn)
			}
			conn.Close()
			synctest.Wait()
		}
		expect := func(step string, lines int, want ...string) {
			t.Helper()
			got := r.take()
			if n := strings.Count(got, "\n"); n != lines {
				t.Errorf("%s: logged %d lines, want %d: %s", step, n, lines, got)
			}
			for _, w := range want {
				if !strings.Contains(got, w) {
					t.Errorf("%s: logged %q, want %q", step, got, w)
				}
			}
		}
		synctest.Wait()
		r.take()
		for range 3 {
			connect("GET / HTTP/1.1\r\n\r\n")
		}
		expect("three in plaintext", 1, "connection refused", "10.0.0.1:80", "the port is STRICT", "mesh.WithIdentity")
		connect("\x16\x03\x01\x00\x01x")
		expect("another reason", 1, "no TLS configuration", "mesh.WithIdentity")
		connect("")
		expect("a probe that sends nothing", 0)
		advance(time.Hour)
		connect("GET / HTTP/1.1\r\n\r\n")
		expect("an hour later", 1, "unlogged=2")
		if refused != 6 {
			t.Errorf("the observer was told of %d connections, want all 6", refused)
		}
	})
}

// TestLog_EjectionWithheldFromTheLast: for the last endpoint that takes calls, the setting is not the reason.
func TestLog_EjectionWithheldFromTheLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f meshtest.Fleet
		r := new(record)
		f.Registry.Set("shop", f.Add(t, fails(http.StatusBadGateway)))
		m := f.Mesh(t, strings.Replace(ejects, "maxEjectionPercent: 100", "maxEjectionPercent: 50", 1), mesh.WithLogger(r.logger()))
		get(t, m.Client(), "http://shop/")
		const message = `msg="mesh: endpoint fails and is not ejected, since no other endpoint takes calls" destination=shop.default.svc.cluster.local:80 endpoint=`
		if got := r.take(); !strings.Contains(got, message) || !strings.Contains(got, "failures=1 calls=1 maxEjectionPercent=50 needed=100") {
			t.Errorf("logged %q, want %q", got, message)
		}
	})
}

// TestLog_Credentials: what is logged of the URL of a key set, and of errors about it, holds no key of its own.
func TestLog_Credentials(t *testing.T) {
	rules := func(uri string) string {
		return "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: users, namespace: default}\n" +
			"spec: {jwtRules: [{issuer: i, jwksUri: \"" + uri + "\"}]}\n"
	}
	var r record
	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	m := newMesh(t, rules(keys.URL+"/keys?key=query-secret"), mesh.WithLogger(r.logger()))
	defer keys.Close()
	logged := ""
	await.True(t, "the failure of the fetch is logged", func() bool {
		logged += r.take()
		return strings.Contains(logged, "418")
	})
	if err := m.Apply(yaml(rules("ftp://user:pass-secret@a/keys?key=query-secret"))...); err == nil {
		t.Fatal("keys over FTP are accepted")
	}
	logged += r.take()
	for _, want := range []string{"/keys?…", "ftp://a/keys"} {
		if !strings.Contains(logged, want) {
			t.Errorf("%q is not logged:\n%s", want, logged)
		}
	}
	if strings.Contains(logged, "secret") {
		t.Errorf("a secret is logged:\n%s", logged)
	}
}
