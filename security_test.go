package mesh_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/tlsid"
)

// town is a set of services that have identities of one development CA, over the loopback.
type town struct {
	*tlsid.DevCA
	registry discovery.Memory
}

func newTown(t testing.TB) *town {
	t.Helper()
	ca, err := tlsid.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	ca.RotateEvery = -1
	return &town{DevCA: ca}
}

// identity returns an identity of a service account of the town's default namespace.
func (w *town) identity(t testing.TB, account string) *tlsid.Identity {
	t.Helper()
	id, err := w.Identity("default", account)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// member makes the mesh of a process that runs as a service account of the namespace default, with labels app=account.
func (w *town) member(t testing.TB, account, documents string, opts ...mesh.Option) *mesh.Mesh {
	t.Helper()
	return newMesh(t, documents, append([]mesh.Option{
		mesh.WithDiscovery(&w.registry),
		mesh.WithIdentity(w.Source("default", account)),
		mesh.WithWorkload(policy.Workload{Labels: map[string]string{"app": account}}),
	}, opts...)...)
}

// serve starts a service of m and registers it under its account, reachable at http://account/.
func (w *town) serve(t testing.TB, m *mesh.Mesh, account string, h http.HandlerFunc) discovery.Endpoint {
	t.Helper()
	e := serveMesh(t, m, h)
	e.ServiceAccount = account
	w.registry.Set(account, e)
	return e
}

// serveMesh serves h behind the inbound side of m.
func serveMesh(t testing.TB, m *mesh.Mesh, h http.HandlerFunc) discovery.Endpoint {
	t.Helper()
	ln := rawtest.Listen(t)
	srv := &http.Server{Handler: m.Handler(h)}
	var serving sync.WaitGroup
	serving.Go(func() { srv.Serve(m.Listen(ln)) })
	t.Cleanup(func() {
		srv.Close()
		serving.Wait()
	})
	return endpointOf(t, ln.Addr().String())
}

func addressOf(e discovery.Endpoint) string { return fmt.Sprintf("%s:%d", e.Address, e.Port) }

const strict = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: default}
spec: {mtls: {mode: STRICT}}
`

// whoCalls answers with the identity of the peer and its protocol.
func whoCalls(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "%s over %s", mesh.PeerID(r.Context()), r.Proto)
}

func TestMutualTLS(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	w.serve(t, w.member(t, "payment-service", strict), "payment-service", whoCalls)
	c := w.member(t, "order-service", strict).Client()
	for range 3 {
		a := get(t, c, "http://payment-service/")
		if want := "spiffe://cluster.local/ns/default/sa/order-service over HTTP/2.0"; a.body != want {
			t.Fatalf("the service saw %q, want %q", a.body, want)
		}
		if a.resp.TLS == nil || a.resp.Request.URL.Scheme != "http" {
			t.Errorf("TLS %v, request of scheme %s; want TLS, and the caller's own request", a.resp.TLS, a.resp.Request.URL.Scheme)
		}
	}
}

// The modes of a DestinationRule and of PeerAuthentication, against a server that takes both.
func TestClientSecurity(t *testing.T) {
	rule := func(tls string) string {
		return "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d, namespace: default}\nspec:\n" +
			"  host: payment-service\n  trafficPolicy: {tls: " + tls + "}\n"
	}
	peers := func(mode string) string { return strings.Replace(strict, "STRICT", mode, 1) }
	const istio = "istio"
	for _, test := range []struct {
		name      string
		documents string
		endpoint  string // its tlsMode label
		account   string // its service account
		scheme    string
		want      string // of the body: the caller's account, or plaintext; else of the error
	}{
		{name: "nothing said, nothing known", want: "plaintext"},
		{name: "the endpoint takes mTLS", endpoint: istio, want: "order-service"},
		{name: "the endpoint takes none", endpoint: "disabled", want: "plaintext"},
		{name: "STRICT", documents: peers("STRICT"), want: "order-service"},
		{name: "PERMISSIVE", documents: peers("PERMISSIVE"), want: "plaintext"},
		{name: "PERMISSIVE, the endpoint takes mTLS", documents: peers("PERMISSIVE"), endpoint: istio, want: "order-service"},
		{name: "DISABLE", documents: peers("DISABLE"), endpoint: istio, want: "plaintext"},
		{name: "rule DISABLE before STRICT", documents: rule("{mode: DISABLE}") + "---" + strict, want: "plaintext"},
		{name: "rule ISTIO_MUTUAL", documents: rule("{mode: ISTIO_MUTUAL}"), want: "order-service"},
		{name: "account of another namespace", documents: strict, account: "other/payment-service",
			want: "expected spiffe://cluster.local/ns/other/sa/payment-service"},
		{name: "another account", documents: strict, account: "user-service",
			want: "tlsid: peer is spiffe://cluster.local/ns/default/sa/payment-service, expected spiffe://cluster.local/ns/default/sa/user-service"},
		{name: "account not known", documents: strict, account: "-", want: "it is not known which SPIFFE ID the endpoint has"},
		{name: "names of the rule", account: "-", want: "order-service",
			documents: rule("{mode: ISTIO_MUTUAL, subjectAltNames: ['spiffe://cluster.local/ns/default/sa/payment-service']}")},
		{name: "other names in the rule", want: "expected spiffe://cluster.local/ns/default/sa/x",
			documents: rule("{mode: ISTIO_MUTUAL, subjectAltNames: ['spiffe://cluster.local/ns/default/sa/x']}")},
		{name: "the caller's own TLS", endpoint: istio, scheme: "https", want: "certificate is not valid for any names"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newTown(t)
			e := w.serve(t, w.member(t, "payment-service", ""), "payment-service", func(w http.ResponseWriter, r *http.Request) {
				_, account, secure := strings.Cut(mesh.PeerID(r.Context()), "/sa/")
				if !secure {
					account = "plaintext"
				}
				io.WriteString(w, account)
			})
			if test.endpoint != "" {
				e = labeled(e, "security.istio.io/tlsMode", test.endpoint)
			}
			switch test.account {
			case "":
				e.ServiceAccount = "payment-service"
			case "-":
				e.ServiceAccount = ""
			default:
				e.ServiceAccount = test.account
			}
			w.registry.Set("payment-service", e)
			scheme := test.scheme
			if scheme == "" {
				scheme = "http"
			}
			a, err := try(w.member(t, "order-service", test.documents).Client(), scheme+"://payment-service/")
			if err != nil {
				var failure *mesh.Error
				if !errors.As(err, &failure) || !strings.Contains(err.Error(), test.want) {
					t.Fatalf("error %v, want a *mesh.Error with %q", err, test.want)
				}
				return
			}
			if a.body != test.want {
				t.Errorf("the service saw %q, want %q", a.body, test.want)
			}
		})
	}
}

// A process without an identity does not talk in plaintext to what must be talked to with mTLS.
func TestNoIdentity(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	w.serve(t, w.member(t, "payment-service", ""), "payment-service", whoCalls)
	m := newMesh(t, strict, mesh.WithDiscovery(&w.registry))
	_, err := try(m.Client(), "http://payment-service/")
	var failure *mesh.Error
	if !errors.As(err, &failure) || failure.Layer != "identity" || !strings.Contains(err.Error(), "mesh.WithIdentity") {
		t.Errorf("error %v, want one of the layer identity that says what to do", err)
	}
	if _, err := m.Identity(); !errors.Is(err, tlsid.ErrNoIdentity) {
		t.Errorf("Identity() = %v, want tlsid.ErrNoIdentity", err)
	}
}

// The identity of an endpoint may change while its address stays.
func TestEndpointIdentityChanges(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	e := w.serve(t, w.member(t, "payment-service", ""), "payment-service", whoCalls)
	m := w.member(t, "order-service", strict)
	get(t, m.Client(), "http://payment-service/")
	e.ServiceAccount = "refund-service"
	w.registry.Set("payment-service", e)
	var err error
	if !await.Done(func() bool {
		_, err = try(m.Client(), "http://payment-service/")
		return err != nil
	}) {
		t.Fatal("the connection to an endpoint that is somebody else now is used on")
	}
	var mismatch *tlsid.MismatchError
	if !errors.As(err, &mismatch) {
		t.Errorf("error %v, want a *tlsid.MismatchError", err)
	}
	e.ServiceAccount = "payment-service"
	w.registry.Set("payment-service", e)
	if !await.Done(func() bool { _, err = try(m.Client(), "http://payment-service/"); return err == nil }) {
		t.Fatalf("the endpoint is itself again, but %v", err)
	}
}

// SIMPLE and MUTUAL are TLS to servers that are not in the mesh.
func TestOriginatedTLS(t *testing.T) {
	noLeaks(t)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(whoCalls))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that are meant to fail
	srv.StartTLS()
	t.Cleanup(srv.Close)
	ca := t.TempDir() + "/ca.pem"
	writePEM(t, ca, "CERTIFICATE", srv.Certificate().Raw)
	for _, test := range []struct{ name, tls, want string }{
		{"roots of a file", "{mode: SIMPLE, caCertificates: " + ca + ", sni: example.com}", " over HTTP/1.1"},
		{"another name", "{mode: SIMPLE, caCertificates: " + ca + ", subjectAltNames: [other.example]}", "other.example"},
		{"name of the host", "{mode: SIMPLE, caCertificates: " + ca + "}", "api.partner"},
		{"roots of the system", "{mode: SIMPLE, sni: example.com}", "unknown authority"},
		{"no such file", "{mode: SIMPLE, caCertificates: /nowhere/ca.pem}", "/nowhere/ca.pem"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newMesh(t, `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: d, namespace: default}
spec:
  host: api.partner
  trafficPolicy: {tls: `+test.tls+`}
`, mesh.WithDiscovery(discovery.Static{"api.partner": {endpointOf(t, srv.Listener.Addr().String())}}))
			a, err := try(m.Client(), "http://api.partner/")
			if err != nil {
				a.body = err.Error()
			}
			if !strings.Contains(a.body, test.want) {
				t.Errorf("got %q, want %q", a.body, test.want)
			}
		})
	}
}

// One port takes both kinds of connections, and the documents change which while it is open.
func TestListenModes(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	var refused atomic.Int32
	server := w.member(t, "payment-service", "", mesh.WithObserver(mesh.Observer{ConnectionRefused: func(net.Addr, tlsid.Refusal) {
		refused.Add(1)
	}}))
	e := w.serve(t, server, "payment-service", whoCalls)
	plain := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(plain.CloseIdleConnections)
	secure := w.member(t, "order-service", strict).Client()

	url := "http://" + addressOf(e)
	if a := get(t, plain, url); a.body != " over HTTP/1.1" {
		t.Errorf("PERMISSIVE: a plaintext peer is %q", a.body)
	}
	if a := get(t, secure, "http://payment-service/"); !strings.Contains(a.body, "order-service") {
		t.Errorf("PERMISSIVE: an mTLS peer is %q", a.body)
	}

	apply := func(documents string) {
		t.Helper()
		if err := server.Apply(policy.Source{Name: "test.yaml", Data: []byte(documents)}); err != nil {
			t.Fatal(err)
		}
	}
	apply(strict)
	if _, err := try(plain, url); err == nil {
		t.Error("STRICT: a plaintext connection that was open goes on")
	}
	conn, err := net.Dial("tcp", addressOf(e))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: payment-service\r\n\r\n")
	if answer, _ := io.ReadAll(conn); len(answer) != 0 {
		t.Errorf("STRICT: plaintext is answered with %q, want nothing", answer)
	}
	conn.Close()
	if refused.Load() == 0 {
		t.Error("no observer was told of the connection that was refused")
	}
	get(t, secure, "http://payment-service/")

	apply(strings.Replace(strict, "STRICT", "DISABLE", 1))
	get(t, plain, url)
	if _, err := try(secure, "http://payment-service/"); err == nil {
		t.Error("DISABLE: an mTLS connection is taken")
	}
}

const allowOrders = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: orders, namespace: default}
spec:
  selector: {matchLabels: {app: payment-service}}
  action: ALLOW
  rules:
  - from: [{source: {principals: ["cluster.local/ns/default/sa/order-service"]}}]
    to: [{operation: {methods: ["GET"], paths: ["/v1/charge"]}}]
`

func TestAuthorization(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	var mu sync.Mutex
	var seen []mesh.Inbound
	server := w.member(t, "payment-service", strict+"---"+allowOrders, mesh.WithObserver(mesh.Observer{
		InboundEnd: func(_ context.Context, in *mesh.Inbound) {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, *in)
		},
	}))
	w.serve(t, server, "payment-service", whoCalls)
	order, other := w.member(t, "order-service", strict).Client(), w.member(t, "web", strict).Client()

	if a := get(t, order, "http://payment-service/v1/charge"); a.status != http.StatusOK {
		t.Errorf("order-service got %d", a.status)
	}
	for name, c := range map[string]*http.Client{"order-service": order, "web": other} {
		a := get(t, c, "http://payment-service/v1/refund")
		if a.status != http.StatusForbidden || a.body != "RBAC: access denied" {
			t.Errorf("%s got %d %q, want 403 and no details", name, a.status, a.body)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(seen) != 3 {
		t.Fatalf("observers were told of %d requests, want 3", len(seen))
	}
	if in := seen[0]; in.Peer != "spiffe://cluster.local/ns/default/sa/order-service" || !in.Decision.Allowed ||
		in.Decision.Policy != "default/orders" || in.Status != http.StatusOK || in.Duration <= 0 {
		t.Errorf("the first was told as %+v", in)
	}
	if in := seen[1]; in.Decision.Allowed || in.Status != http.StatusForbidden || in.Decision.Reason == "" {
		t.Errorf("the second was told as %+v", in)
	}
}

// A change of the documents takes effect with the next request, on an open connection and on a new one.
func TestNoResumptionPastADenial(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	server := w.member(t, "payment-service", strict)
	e := w.serve(t, server, "payment-service", whoCalls)
	id, err := w.Identity("default", "order-service")
	if err != nil {
		t.Fatal(err)
	}
	resumed := false
	tr := &http.Transport{TLSClientConfig: &tls.Config{
		Certificates: []tls.Certificate{*id.Certificate()}, InsecureSkipVerify: true,
		ClientSessionCache: tls.NewLRUClientSessionCache(10),
		VerifyConnection: func(s tls.ConnectionState) error {
			resumed = resumed || s.DidResume
			return nil
		},
	}}
	t.Cleanup(tr.CloseIdleConnections)
	c, url := &http.Client{Transport: tr}, "https://"+addressOf(e)
	for range 3 {
		get(t, c, url)
		tr.CloseIdleConnections()
	}
	get(t, c, url) // leaves a connection open
	deny := strings.Replace(strings.Replace(allowOrders, "action: ALLOW", "action: DENY", 1), `    to: [{operation: {methods: ["GET"], paths: ["/v1/charge"]}}]`, "", 1)
	if err := server.Apply(policy.Source{Name: "test.yaml", Data: []byte(strict + "---" + deny)}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if a := get(t, c, url); a.status != http.StatusForbidden {
			t.Errorf("after the denial the status is %d, want 403", a.status)
		}
		tr.CloseIdleConnections()
	}
	if resumed {
		t.Error("a TLS session was resumed")
	}
}

// A rotation moves calls to new connections, on both ends, and drops none.
func TestRotationRetiresConnections(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	w.serve(t, w.member(t, "payment-service", strict), "payment-service", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.TLS.PeerCertificates[0].SerialNumber.String())
	})
	var rotated atomic.Int32
	c := w.member(t, "order-service", strict, mesh.WithObserver(mesh.Observer{Identity: func(_ *tlsid.Identity, err error) {
		if err == nil {
			rotated.Add(1)
		}
	}})).Client()
	serials := map[string]bool{}
	for i := range 5 {
		before := rotated.Load()
		if i > 0 {
			w.Rotate()
			if !await.Done(func() bool { return rotated.Load() > before }) {
				t.Fatal("no rotation")
			}
		}
		for range 3 {
			serials[get(t, c, "http://payment-service/").body] = true
		}
		if len(serials) != i+1 {
			t.Fatalf("after %d rotations the service has seen %d certificates, want %d", i, len(serials), i+1)
		}
	}
}

// After the source is gone its last identity is not used beyond its end, over connections that are open neither.
func TestExpiredIdentityIsNotUsed(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	w.TTL, w.RotateEvery = 1200*time.Millisecond, 400*time.Millisecond
	w.serve(t, w.member(t, "payment-service", strict), "payment-service", whoCalls)
	var failed atomic.Bool
	m := w.member(t, "order-service", strict, mesh.WithIdentity(once{w.DevCA}), mesh.WithObserver(
		mesh.Observer{Identity: func(_ *tlsid.Identity, err error) {
			var expired *tlsid.ExpiredError
			if errors.As(err, &expired) {
				failed.Store(true)
			}
		}}))
	if _, err := try(m.Client(), "http://payment-service/"); err != nil && !failed.Load() {
		t.Fatal(err) // on a busy machine, the identity may have expired by now
	}
	if !await.Done(failed.Load) {
		t.Fatal("nobody was told that the identity has expired")
	}
	_, err := try(m.Client(), "http://payment-service/")
	var expired *tlsid.ExpiredError
	if !errors.As(err, &expired) {
		t.Errorf("error %v, want a *tlsid.ExpiredError", err)
	}
	if _, err := m.Identity(); !errors.As(err, &expired) {
		t.Errorf("Identity() = %v, want a *tlsid.ExpiredError", err)
	}
}

// New waits for an identity, but not for ever; with WithLateIdentity not at all.
func TestStartWithoutIdentity(t *testing.T) {
	noLeaks(t)
	synctest.Test(t, func(t *testing.T) { // where the source speaks before time passes
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := mesh.New(ctx, mesh.WithIdentity(silent{}))
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "the agent is away") {
			t.Errorf("New = %v, want the deadline's error with what the source said", err)
		}
	})

	w := newTown(t)
	w.serve(t, w.member(t, "payment-service", strict), "payment-service", whoCalls)
	late := make(lateSource)
	m := newMesh(t, strict, mesh.WithDiscovery(&w.registry), mesh.WithLateIdentity(late))
	if _, err := m.Identity(); !errors.Is(err, tlsid.ErrNoIdentity) {
		t.Errorf("Identity() = %v, want tlsid.ErrNoIdentity", err)
	}
	if _, err := try(m.Client(), "http://payment-service/"); !errors.Is(err, tlsid.ErrNoIdentity) {
		t.Errorf("a call fails with %v, want tlsid.ErrNoIdentity", err)
	}
	id, err := w.Identity("default", "order-service")
	if err != nil {
		t.Fatal(err)
	}
	late <- id
	if !await.Done(func() bool { _, err := m.Identity(); return err == nil }) {
		t.Fatal("the identity came, and is not there")
	}
	get(t, m.Client(), "http://payment-service/")
}

func TestIdentityOfAnotherTrustDomain(t *testing.T) {
	w := newTown(t)
	_, err := mesh.New(t.Context(), mesh.WithIdentity(w.Source("default", "x")), mesh.WithWorkload(policy.Workload{TrustDomain: "other.example"}))
	if err == nil || !strings.Contains(err.Error(), "and the workload is of other.example") {
		t.Errorf("New = %v, want an error that names the trust domain", err)
	}
}

// What a peer outside the mesh says of itself does not reach the handler; what one inside says does.
func TestForwardedIdentityIsSanitised(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	server := w.member(t, "payment-service", "", mesh.WithServer(mesh.ServerConfig{RestartTraces: true}))
	e := w.serve(t, server, "payment-service", func(w http.ResponseWriter, r *http.Request) {
		for _, name := range []string{"X-Forwarded-Client-Cert", "X-Envoy-Attempt-Count", "X-Envoy-Peer-Metadata-Id",
			"X-Request-Id", "Traceparent", "X-User"} {
			w.Header()["Seen-"+name] = r.Header[name]
		}
		if _, bounded := r.Context().Deadline(); bounded {
			w.Header().Set("Seen-Deadline", "yes")
		}
	})
	forged := []string{"X-Forwarded-Client-Cert", "By=x;URI=spiffe://cluster.local/ns/default/sa/admin-service",
		"X-Envoy-Attempt-Count", "3", "X-Envoy-Peer-Metadata-Id", "admin", "X-Request-Id", "1", "Traceparent", "00-1",
		"X-User", "me", "X-Envoy-Expected-Rq-Timeout-Ms", "60000"}
	plain := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(plain.CloseIdleConnections)
	a := get(t, plain, "http://"+addressOf(e), forged...)
	for name, values := range a.header {
		if strings.HasPrefix(name, "Seen-") && name != "Seen-X-User" {
			t.Errorf("a plaintext peer made the handler see %s: %q", name, values)
		}
	}
	if a.header.Get("Seen-X-User") != "me" {
		t.Error("a header that asserts nothing about the mesh is gone")
	}

	secure := w.member(t, "order-service", strict).Client()
	a = get(t, secure, "http://payment-service/", forged...)
	cert := a.header.Get("Seen-X-Forwarded-Client-Cert")
	last := cert[strings.LastIndex(cert, ",")+1:]
	if !strings.HasPrefix(last, "By=spiffe://cluster.local/ns/default/sa/payment-service;Hash=") ||
		!strings.HasSuffix(last, ";URI=spiffe://cluster.local/ns/default/sa/order-service") {
		t.Errorf("x-forwarded-client-cert ends in %q, want who the peer is", last)
	}
	if a.header.Get("Seen-X-Request-Id") != "1" || a.header.Get("Seen-Traceparent") != "00-1" || a.header.Get("Seen-Deadline") != "yes" {
		t.Errorf("a peer in the mesh is not believed: %v", a.header)
	}
}

// Slow handlers fill the limit. Further requests are refused at once.
func TestServerLimits(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	server := w.member(t, "payment-service", "", mesh.WithServer(mesh.ServerConfig{MaxRequests: 1}))
	entered, leave := make(chan bool), make(chan bool)
	e := w.serve(t, server, "payment-service", func(http.ResponseWriter, *http.Request) { entered <- true; <-leave })
	plain := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(plain.CloseIdleConnections)
	var slow sync.WaitGroup
	slow.Go(func() { get(t, plain, "http://"+addressOf(e)) })
	<-entered
	if a := get(t, plain, "http://"+addressOf(e)); a.status != http.StatusServiceUnavailable || a.header.Get("X-Envoy-Overloaded") != "true" {
		t.Errorf("beyond the limit: %d %v, want 503 with x-envoy-overloaded", a.status, a.header)
	}
	leave <- true
	slow.Wait()
}

// Sixty silent connections delay no other peer.
func TestSilentConnectionsDelayNobody(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	e := w.serve(t, w.member(t, "payment-service", ""), "payment-service", whoCalls)
	for range 60 {
		conn, err := net.Dial("tcp", addressOf(e))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	secure := w.member(t, "order-service", strict)
	for range 20 {
		get(t, secure.Client(), "http://payment-service/")
		secure.Client().CloseIdleConnections()
	}
}

func TestDialContext(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	server := w.member(t, "postgres", strict)
	e := echoTCP(t, server.ListenTCP)
	e.ServiceAccount = "postgres"
	dead := e
	dead.Port = unusedPort(t)
	w.registry.Set("postgres", dead, e)

	client := w.member(t, "order-service", strict)
	dial := func() (net.Conn, string, error) {
		conn, err := client.DialContext(t.Context(), "tcp", "postgres:5432")
		if err != nil {
			return nil, "", err
		}
		fmt.Fprintln(conn, "hello")
		line, err := bufio.NewReader(conn).ReadString('\n')
		return conn, line, err
	}
	var conns []net.Conn
	for range 10 { // whichever is picked first, the dead one or not
		conn, line, err := dial()
		if err != nil || line != "hello\n" {
			t.Fatalf("echo %q, %v", line, err)
		}
		conns = append(conns, conn)
	}

	deny := `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: default}
spec:
  action: DENY
  rules: [{from: [{source: {principals: ["cluster.local/ns/default/sa/order-service"]}}], to: [{operation: {methods: [GET]}}]}]
`
	if err := server.Apply(policy.Source{Name: "test.yaml", Data: []byte(strict + "---" + deny)}); err != nil {
		t.Fatal(err)
	}
	for _, conn := range conns {
		conn.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !strings.Contains(fmt.Sprint(err), "reset") {
			t.Errorf("a connection that is denied now reads %v, want its end", err)
		}
		conn.Close()
	}
	if conn, _, err := dial(); err == nil {
		conn.Close()
		t.Error("a connection that is denied carries data")
	} else if conn != nil {
		conn.Close()
	}

	if _, err := client.DialContext(t.Context(), "udp", "postgres:5432"); err == nil {
		t.Error("udp is dialled")
	}
	strictest := newMesh(t, "", mesh.WithDiscovery(&w.registry), mesh.WithRegistryOnly())
	if _, err := strictest.DialContext(t.Context(), "tcp", "nowhere.example:1"); !errors.Is(err, mesh.ErrNotInMesh) {
		t.Errorf("a host outside the mesh: %v, want ErrNotInMesh", err)
	}
}

// Nothing rewrites the path on its way to the application, so it is told how that reads paths.
func TestPathsAsTheApplicationReadsThem(t *testing.T) {
	noLeaks(t)
	const health = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: health, namespace: default}
spec: {action: ALLOW, rules: [{to: [{operation: {paths: [/healthz]}}]}]}
`
	for _, test := range []struct {
		name  string
		paths authz.Normalization
		want  string
	}{{"a mux that cleans", authz.Base, "200"}, {"a router that does not", authz.None, "403"}} {
		t.Run(test.name, func(t *testing.T) {
			w := newTown(t)
			m := w.member(t, "app", health, mesh.WithWorkload(policy.Workload{Paths: test.paths}))
			e := w.serve(t, m, "app", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.URL.Path) })
			for path, want := range map[string]string{"/healthz": "200", "/admin/../healthz": test.want, "/admin": "403"} {
				conn, err := net.Dial("tcp", addressOf(e))
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n", path)
				if answer, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 "+want) {
					t.Errorf("%s: %.40q, %v; want %s", path, answer, err, want)
				}
			}
		})
	}
}

// As in Istio, an endpoint of a ServiceEntry that has a service account takes mutual TLS, unless its labels or a PeerAuthentication say
// otherwise.
func TestServiceEntry_ServiceAccount(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	e := w.serve(t, w.member(t, "vm", ""), "vm", whoCalls)
	const secured, plaintext = "spiffe://cluster.local/ns/default/sa/order over HTTP/2.0", " over HTTP/1.1"
	for _, test := range []struct {
		name, labels, mode string
		anonymous          bool
		want               string
	}{
		{name: "nothing else is said", labels: "{}", mode: "PERMISSIVE", want: secured},
		{name: "a label", labels: "{security.istio.io/tlsMode: disabled}", mode: "PERMISSIVE", want: plaintext},
		{name: "a PeerAuthentication", labels: "{}", mode: "DISABLE", want: plaintext},
		{name: "no identity", labels: "{}", mode: "PERMISSIVE", anonymous: true, want: plaintext},
	} {
		t.Run(test.name, func(t *testing.T) {
			documents := fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: vm, namespace: default}
spec:
  hosts: [vm.example.com]
  location: MESH_INTERNAL
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: %d}]
  resolution: STATIC
  endpoints: [{address: %s, serviceAccount: vm, labels: %s}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: all, namespace: istio-system}
spec: {mtls: {mode: %s}}
`, e.Port, e.Address, test.labels, test.mode)
			caller := newMesh(t, documents)
			if !test.anonymous {
				caller = w.member(t, "order", documents)
			}
			if a := get(t, caller.Client(), "http://vm.example.com/"); a.body != test.want {
				t.Errorf("the server saw %q, want %q", a.body, test.want)
			}
		})
	}
}

// A service outside the cluster domain whose ServiceEntry is of the mesh takes what its namespace's PeerAuthentication says.
func TestServiceEntryInTheMesh(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	e := w.serve(t, w.member(t, "vm", strict), "vm", whoCalls)
	for location, want := range map[string]string{"MESH_INTERNAL": "order-service", "MESH_EXTERNAL": "EOF"} {
		a, err := try(w.member(t, "order-service", strict+fmt.Sprintf(`---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: vm, namespace: default}
spec:
  hosts: [vm.example.com]
  location: %s
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: %s, ports: {http: %d}, serviceAccount: vm}]
`, location, e.Address, e.Port)).Client(), "http://vm.example.com/")
		if got := fmt.Sprint(a.body, err); !strings.Contains(got, want) && !strings.Contains(got, "reset") {
			t.Errorf("%s: %s, want %q", location, got, want)
		}
	}
}
