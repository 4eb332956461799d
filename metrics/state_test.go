package metrics_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/jwttest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/meshgrpc"
	"github.com/nosidecar/mesh/metrics"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/retry"
	"github.com/nosidecar/mesh/tlsid"
)

// is fails the test if a series does not have a value.
func (p *process) is(t *testing.T, want float64, name string, labels ...string) {
	t.Helper()
	if got := p.one(t, name, labels...).value(); got != want {
		t.Errorf("%s%q is %v, want %v", name, labels, got, want)
	}
}

const (
	fragile = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: orders}
spec:
  hosts: [orders]
  http: [{route: [{destination: {host: orders}}], retries: {attempts: 2, retryOn: 5xx, backoff: 1ms}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: orders}
spec:
  host: orders
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN} # so that each endpoint is called
    connectionPool: {http: {http1MaxPendingRequests: 7}}
    outlierDetection: {consecutive5xxErrors: 1, interval: 1h, baseEjectionTime: 1h, maxEjectionPercent: 100}
`
	refusedDocument = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: orders}\nspec: {nonsense: true}\n"
)

// What happens to documents, endpoints and calls shows.
func TestStateOfTheMesh(t *testing.T) {
	leak.Check(t)
	p := newProcess(t, metrics.Config{Dropped: map[string]func() uint64{"access_log": func() uint64 { return 3 }}, Version: "1.2.3"})
	var registry discovery.Memory
	registry.Set("orders", meshtest.Serve(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) }), meshtest.Serve(t, func(http.ResponseWriter, *http.Request) {}))
	m := meshtest.New(t, fragile, mesh.WithDiscovery(&registry), mesh.WithObserver(p.Observer()),
		mesh.WithProtection(mesh.Protection{Circuit: &breaker.Config{ConsecutiveFailures: 100}, RetryBudget: &retry.BudgetConfig{}}))
	for range 6 {
		if code := do(t, m, http.MethodGet, "http://orders/", ""); code != 200 {
			t.Errorf("answered with %d", code)
		}
	}
	destination := []string{"destination_service", "orders.default.svc.cluster.local", "destination_port", "80", "destination_subset", "-"}
	of := func(labels ...string) []string { return append(append([]string(nil), destination...), labels...) }
	p.is(t, 1, "mesh_ready")
	p.is(t, 1, "istio_build", "component", "proxy", "tag", "1.2.3")
	p.is(t, 1, "mesh_policy_loads_total", "result", "loaded")
	p.is(t, 0, "mesh_policy_loads_total", "result", "refused")
	p.is(t, 0, "mesh_policy_refused")
	p.is(t, 2, "mesh_policy_documents")
	p.is(t, 1, "mesh_policy_number")
	p.is(t, 1, "mesh_policy_info", "version", m.Status().Documents.Version)
	p.is(t, 0, "mesh_policy_findings", "severity", "error")
	p.is(t, 1, "mesh_ejections_total", of("reason", "consecutive_5xx")...)
	p.is(t, 1, "mesh_endpoints", of("state", "healthy")...)
	p.is(t, 1, "mesh_endpoints", of("state", "ejected")...)
	p.is(t, 0, "mesh_endpoints", of("state", "unhealthy")...)
	p.is(t, 1, "mesh_retries_total", destination...)
	p.is(t, 0, "mesh_requests_in_flight", destination...)
	p.is(t, 0, "mesh_pool_active", destination...)
	p.is(t, 7, "mesh_pool_limit", of("of", "pending")...)
	p.is(t, 1, "mesh_circuit_state", of("state", "closed")...)
	p.is(t, 0, "mesh_circuit_state", of("state", "open")...)
	p.is(t, 1, "mesh_discovery_updates_total", destination...)
	p.is(t, 3, "mesh_dropped_total", "what", "access_log")
	if n := p.one(t, "mesh_retry_budget", destination...).value(); n < 1 {
		t.Errorf("a budget of %v", n)
	}
	if err := m.Apply(policy.Source{Name: "bad.yaml", Data: []byte(refusedDocument)}); err == nil {
		t.Error("a bad document is taken")
	}
	p.is(t, 1, "mesh_policy_loads_total", "result", "refused")
	p.is(t, 1, "mesh_policy_refused")
	p.is(t, 1, "mesh_policy_number")
	if n := p.one(t, "mesh_policy_findings", "severity", "error").value(); n < 1 {
		t.Errorf("%v errors", n)
	}
	if at := p.one(t, "mesh_policy_refused_timestamp_seconds").value(); at < p.one(t, "mesh_policy_loaded_timestamp_seconds").value() {
		t.Errorf("refused at %v", at)
	}
	m.Close()
	p.is(t, 0, "mesh_ready")
}

// Endpoints that fail and are not ejected because of maxEjectionPercent are counted once, and not as ejections.
func TestEjectionsWithheld(t *testing.T) {
	leak.Check(t)
	p := newProcess(t, metrics.Config{})
	var registry discovery.Memory
	fails := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }
	registry.Set("orders", meshtest.Serve(t, fails), meshtest.Serve(t, fails), meshtest.Serve(t, fails))
	m := meshtest.New(t, strings.Replace(fragile, ", maxEjectionPercent: 100", "", 1), mesh.WithDiscovery(&registry), mesh.WithObserver(p.Observer()))
	for range 10 {
		do(t, m, http.MethodGet, "http://orders/", "")
	}
	of := []string{"destination_service", "orders.default.svc.cluster.local", "destination_port", "80", "destination_subset", "-", "reason", "consecutive_5xx"}
	p.is(t, 1, "mesh_ejections_total", of...)
	p.is(t, 2, "mesh_ejections_withheld_total", of...)
}

// Documents that stand alone and are refused are counted by what is in force in their place.
func TestRefusedDocuments(t *testing.T) {
	leak.Check(t)
	p := newProcess(t, metrics.Config{})
	meshtest.New(t, "", mesh.WithObserver(p.Observer()), mesh.WithDiscovery(new(discovery.Memory)), mesh.WithPolicy(policy.Source{Name: "bad.yaml", Alone: true, Data: []byte(`
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: x, namespace: default}, spec: {ruls: [], rulez: []}}
---
{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: x}, spec: {hosts: [a], htp: []}}
`)}))
	p.is(t, 0, "mesh_policy_documents_refused", "in_force", "last good")
	p.is(t, 1, "mesh_policy_documents_refused", "in_force", "nothing")
	p.is(t, 1, "mesh_policy_documents_refused", "in_force", "denial")
	p.is(t, 0, "mesh_policy_refused")
}

// A remark about the documents in force is no load, and does not hide what the last load said.
func TestRemarksAreNoLoads(t *testing.T) {
	leak.Check(t)
	p := newProcess(t, metrics.Config{})
	ca, err := tlsid.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	m := meshtest.New(t, "", mesh.WithObserver(p.Observer()), mesh.WithDiscovery(new(discovery.Memory)), mesh.WithIdentity(ca.Source("default", "web")),
		mesh.WithPolicy(policy.Source{Name: "bad.yaml", Alone: true, Data: []byte(refusedDocument)}))
	findings := p.one(t, "mesh_policy_findings", "severity", "error").value()
	m.Handler(http.NotFoundHandler()) // warns that everybody is served
	p.is(t, 1, "mesh_policy_loads_total", "result", "loaded")
	p.is(t, 1, "mesh_policy_documents_refused", "in_force", "nothing")
	p.is(t, findings, "mesh_policy_findings", "severity", "error")
}

// stepping is a source of one identity: for each step it yields that, or the step's error.
type stepping struct {
	identity *tlsid.Identity
	steps    chan error
}

func (s *stepping) Watch(ctx context.Context) iter.Seq2[*tlsid.Identity, error] {
	return func(yield func(*tlsid.Identity, error) bool) {
		for id, err := s.identity, error(nil); yield(id, err); {
			select {
			case err = <-s.steps:
			case <-ctx.Done():
				return
			}
			if id = s.identity; err != nil {
				id = nil
			}
		}
	}
}

// A source that has failed says so once. It shows until it yields an identity again.
func TestFailingIdentity(t *testing.T) {
	leak.Check(t)
	p := newProcess(t, metrics.Config{})
	ca, err := tlsid.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	source := &stepping{steps: make(chan error)}
	if source.identity, err = ca.Identity("default", "web"); err != nil {
		t.Fatal(err)
	}
	meshtest.New(t, "", mesh.WithObserver(p.Observer()), mesh.WithDiscovery(new(discovery.Memory)), mesh.WithIdentity(source))
	failing := func() float64 { return p.one(t, "mesh_identity_failing").value() }
	if failing() != 0 {
		t.Error("the source fails from the start")
	}
	source.steps <- errors.New("the file is gone")
	await.True(t, "a failing source", func() bool { return failing() == 1 && p.total(t, "mesh_identity_failures_total") == 1 })
	source.steps <- nil
	await.True(t, "a source that is well again", func() bool { return failing() == 0 })
}

// A status has a bounded number of destinations. The metrics say how many it leaves out.
func TestOmittedDestinations(t *testing.T) {
	leak.Check(t)
	p := newProcess(t, metrics.Config{})
	var registry discovery.Memory
	m := meshtest.New(t, "", mesh.WithDiscovery(&registry), mesh.WithObserver(p.Observer()))
	at := meshtest.Serve(t, func(http.ResponseWriter, *http.Request) {})
	for i := range 253 {
		name := fmt.Sprint("service-", i)
		registry.Set(name, at)
		do(t, m, http.MethodGet, "http://"+name+"/", "")
	}
	p.is(t, 3, "mesh_destinations_omitted")
	if n := len(p.scrape(t, "mesh_requests_in_flight")); n != 250 {
		t.Errorf("%d destinations have a state", n)
	}
}

// A process with several meshes has one set of metrics.
func TestSeveralMeshes(t *testing.T) {
	leak.Check(t)
	p := newProcess(t, metrics.Config{})
	var registry discovery.Memory
	registry.Set("orders", meshtest.Serve(t, func(http.ResponseWriter, *http.Request) {}))
	var all []*mesh.Mesh
	for range 2 {
		m := meshtest.New(t, fragile, mesh.WithDiscovery(&registry), mesh.WithObserver(p.Observer()))
		all = append(all, m)
		do(t, m, http.MethodGet, "http://orders/", "")
	}
	p.is(t, 2, "mesh_endpoints", "state", "healthy")
	p.is(t, 2, "istio_requests_total")
	if err := all[0].Apply(policy.Source{Name: "bad.yaml", Data: []byte(refusedDocument)}); err == nil {
		t.Error("a bad document is taken")
	}
	if err := all[1].Apply(policy.Source{Name: "good.yaml", Data: []byte(fragile)}); err != nil {
		t.Fatal(err)
	}
	p.is(t, 1, "mesh_policy_refused") // by one of them
	all[0].Close()
	p.is(t, 0, "mesh_policy_refused")
	p.is(t, 1, "mesh_endpoints", "state", "healthy")
	p.is(t, 1, "mesh_ready")
}

func TestIdentityAndConnections(t *testing.T) {
	leak.Check(t)
	tn := newTown(t, "", true)
	ln := rawtest.Listen(t)
	listener := tn.order.Listen(ln)
	rawtest.Serve(t, listener, func(net.Conn) {})
	for reason, use := range map[string]func(net.Conn){
		"plaintext": func(c net.Conn) { io.WriteString(c, "GET / HTTP/1.1\r\n\r\n") },
		"silent":    func(net.Conn) {},
		"peer": func(c net.Conn) {
			tls.Client(c, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}).Handshake()
		},
	} {
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		use(conn)
		conn.Close()
		await.True(t, "a connection refused as "+reason, func() bool {
			if reason == "peer" { // crypto/tls says so, not we
				return tn.destination.total(t, "mesh_connections_refused_total", "reason", "peer")+
					tn.destination.total(t, "mesh_connections_refused_total", "reason", "handshake") >= 1
			}
			return tn.destination.total(t, "mesh_connections_refused_total", "reason", reason) == 1
		})
	}
	id, err := tn.order.Identity()
	if err != nil {
		t.Fatal(err)
	}
	expiry := tn.destination.one(t, "mesh_certificate_expiry_timestamp_seconds", "principal", "spiffe://cluster.local/ns/shop/sa/order")
	if int64(expiry.value()) != id.NotAfter().Unix() {
		t.Errorf("the certificate expires at %v, and it says %v", id.NotAfter(), expiry)
	}
	tn.destination.is(t, 1, "mesh_identity_rotations_total")
	if at := tn.destination.one(t, "mesh_authority_expiry_timestamp_seconds", "trust_domain", "cluster.local").value(); at < expiry.value() {
		t.Errorf("the authority expires at %v", at)
	}
}

// A process that serves requests makes its calls with their contexts, or the trace breaks there.
func TestOutboundWithoutInbound(t *testing.T) {
	leak.Check(t)
	p := newProcess(t, metrics.Config{})
	var registry discovery.Memory
	registry.Set("orders", meshtest.Serve(t, func(http.ResponseWriter, *http.Request) {}))
	m := meshtest.New(t, "", mesh.WithDiscovery(&registry), mesh.WithObserver(p.Observer()))
	do(t, m, http.MethodGet, "http://orders/", "")
	p.is(t, 0, "mesh_outbound_without_inbound_total") // it serves nothing yet
	srv := httptest.NewServer(m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		if r.URL.Path == "/forgets" {
			ctx = context.Background()
		}
		out, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://orders/", nil)
		if err != nil {
			t.Error(err)
			return
		}
		resp, err := m.Client().Do(out)
		if err != nil {
			t.Error(err)
			return
		}
		resp.Body.Close()
	})))
	defer srv.Close()
	for path, want := range map[string]float64{"/passes": 0, "/forgets": 1} {
		before := p.one(t, "mesh_outbound_without_inbound_total").value()
		resp, err := http.Get(srv.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := p.one(t, "mesh_outbound_without_inbound_total").value() - before; got != want {
			t.Errorf("%s counts %v, want %v", path, got, want)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

// The endpoint that is slow, or fails, shows among the others.
func TestAttemptsByEndpoint(t *testing.T) {
	leak.Check(t)
	p := newProcess(t, metrics.Config{MaxEndpoints: 2})
	var registry discovery.Memory
	bad := meshtest.Serve(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) })
	good := meshtest.Serve(t, func(http.ResponseWriter, *http.Request) {})
	registry.Set("orders", bad, good)
	m := meshtest.New(t, fragile, mesh.WithDiscovery(&registry), mesh.WithObserver(p.Observer()))
	for range 5 {
		do(t, m, http.MethodGet, "http://orders/", "")
	}
	destination := []string{"destination_service", "orders.default.svc.cluster.local", "destination_port", "80", "destination_subset", "-"}
	at := func(e discovery.Endpoint, result string) []string {
		return append(destination[:6:6], "endpoint", net.JoinHostPort(e.Address, fmt.Sprint(e.Port)), "result", result)
	}
	p.is(t, 5, "mesh_attempt_duration_milliseconds", at(good, "success")...)
	p.is(t, 1, "mesh_attempt_duration_milliseconds", at(bad, "failure")...)

	synctest.Test(t, func(t *testing.T) {
		p := newProcess(t, metrics.Config{MaxEndpoints: 2, IdleExpiry: time.Minute})
		o := p.Observer()
		attempt := func(i int, err error) {
			c := call(t, "orders", &discovery.Endpoint{}, "")
			c.Last.Endpoint, c.Last.Start, c.Last.Duration, c.Last.Status, c.Last.GRPCStatus = fmt.Sprint("10.0.0.", i), time.Now(), time.Second, 200, -1
			c.Last.Err = err
			o.AttemptEnd(t.Context(), c.Last)
			ends(o, c)
		}
		for i := range 10 {
			attempt(i, nil)
		}
		attempt(3, fmt.Errorf("the caller: %w", context.Canceled))
		p.is(t, 1, "mesh_attempt_duration_milliseconds", "endpoint", "10.0.0.3")
		p.is(t, 6, "mesh_attempt_duration_milliseconds", "endpoint", "other")
		time.Sleep(2 * time.Minute)
		attempt(11, nil)
		if s := p.one(t, "mesh_attempt_duration_milliseconds"); !s.has("endpoint", "other") {
			t.Errorf("left is %v", s)
		}
		attempt(11, nil)
		p.is(t, 1, "mesh_attempt_duration_milliseconds", "endpoint", "10.0.0.11")
	})
}

// The same for gRPC, whose requests have no context of net/http.
func TestOutboundWithinInboundOfGRPC(t *testing.T) {
	leak.Check(t)
	tn := newTown(t, "", false)
	tn.registry.Set("bank", meshtest.Serve(t, func(http.ResponseWriter, *http.Request) {}))
	ln := rawtest.Listen(t)
	tn.add(t, host, ln.Addr().String())
	grpctest.ServeOn(t, tn.order.Listen(ln), &grpctest.Service{
		Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			if in.GetFillUsername() {
				ctx = context.Background()
			}
			out, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://bank/", nil)
			if err != nil {
				return nil, err
			}
			resp, err := tn.order.Client().Do(out)
			if err != nil {
				return nil, err
			}
			return &grpctest.Response{}, resp.Body.Close()
		},
	}, meshgrpc.ServerOptions(tn.order)...)
	client, err := grpc.NewClient("mesh:///"+host, meshgrpc.DialOptions(tn.web)...)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for forgets, want := range map[bool]float64{false: 0, true: 1} {
		before := tn.destination.one(t, "mesh_outbound_without_inbound_total").value()
		if _, err := grpctest.NewClient(client).UnaryCall(t.Context(), &grpctest.Request{FillUsername: forgets}); err != nil {
			t.Fatal(err)
		}
		if got := tn.destination.one(t, "mesh_outbound_without_inbound_total").value() - before; got != want {
			t.Errorf("forgets %t: counts %v, want %v", forgets, got, want)
		}
	}
}

// The messages of a stream that goes on are counted within five seconds.
func TestMessagesOfLongStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcess(t, metrics.Config{})
		o := identified(t, p.Observer())
		c := call(t, "order.shop.svc.cluster.local", &discovery.Endpoint{Labels: map[string]string{"app": "order"}}, order)
		c.Request.Method, c.Request.Header = http.MethodPost, http.Header{"Content-Type": {"application/grpc"}}
		ctx := o.CallStart(t.Context(), c)
		o.CallMessage(ctx, c, true) // before an endpoint is known
		c.Last.Sent = headers{}
		o.AttemptStart(ctx, c.Last)
		for range 3 {
			o.CallMessage(ctx, c, true)
			o.CallMessage(ctx, c, false)
		}
		if n := p.total(t, "istio_request_messages_total"); n != 0 {
			t.Errorf("%v messages are counted, though it is not known who has got them", n)
		}
		time.Sleep(5 * time.Second)
		for range 2 {
			p.is(t, 4, "istio_request_messages_total", "destination_app", "order")
			p.is(t, 3, "istio_response_messages_total", "destination_app", "order")
		}
		o.CallMessage(ctx, c, true)
		c.GRPCStatus = 0
		o.CallEnd(ctx, c)
		p.is(t, 5, "istio_request_messages_total", "destination_app", "order")
	})
}

type headers map[string]string

func (h headers) SetHeader(name, value string) { h[name] = value }

// Scrapes, calls and Close go on at the same time.
func TestScrapesDuringCalls(t *testing.T) {
	leak.Check(t)
	tn := newTown(t, "", true)
	tn.serveHTTP(t, orders(t))
	var working sync.WaitGroup
	for i := range 4 {
		working.Go(func() {
			for range 25 {
				if code := do(t, tn.web, http.MethodPost, "http://"+host+fmt.Sprint("/", i), "body"); code != 200 {
					t.Errorf("answered with %d", code)
				}
			}
		})
		working.Go(func() {
			for range 10 {
				tn.source.text(t, "application/openmetrics-text")
				tn.destination.text(t, "")
			}
		})
	}
	working.Wait()
	tn.settled(t, "istio_requests_total")
	tn.source.is(t, 100, "istio_requests_total")
	tn.destination.is(t, 100, "istio_requests_total")
	tn.agree(t, "istio_requests_total")
	for range 2 {
		working.Go(func() { do(t, tn.web, http.MethodGet, "http://"+host+"/", "") })
		working.Go(func() { tn.source.registry.Gather() })
		working.Go(func() { tn.source.Close() })
	}
	working.Wait()
	if text := tn.source.text(t, ""); strings.Contains(text, "istio_") {
		t.Errorf("after Close there is\n%s", text)
	}
}

// Keys for tokens are shown with those that are left out, and with their age.
func TestKeysOfTokens(t *testing.T) {
	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, strings.Replace(jwttest.KeySet(jwttest.New("a"), jwttest.New("b")), `"keys":[`, `"keys":[{"kty":"oct","k":"AAAA"},`, 1))
	}))
	defer keys.Close()
	p := newProcess(t, metrics.Config{})
	m, err := mesh.New(t.Context(), mesh.WithObserver(p.Observer()), mesh.WithPolicy(policy.Source{Name: "users.yaml", Data: []byte(`
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: users, namespace: default}
spec: {jwtRules: [{issuer: i, jwksUri: "` + keys.URL + `"}]}
`)}))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	await.True(t, "the keys", func() bool { return m.Status().Ready })
	p.is(t, 2, "mesh_token_keys", "uri", keys.URL, "state", "used")
	p.is(t, 1, "mesh_token_keys", "uri", keys.URL, "state", "skipped")
	p.is(t, float64(m.Status().Keys[0].Fetched.UnixMilli())/1000, "mesh_token_keys_fetched_timestamp_seconds", "uri", keys.URL)
}
