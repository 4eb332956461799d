package mesh_test

import (
	"crypto/elliptic"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/consul/connecttest"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/tlsid"
)

// datacentre is services whose identities are those of Consul Connect.
type datacentre struct {
	*connecttest.CA
	registry discovery.Memory
}

func newDatacentre(t testing.TB) *datacentre {
	return &datacentre{CA: connecttest.New(t, elliptic.P256())}
}

// member makes the mesh of a process of a service.
func (d *datacentre) member(t testing.TB, service, documents string, opts ...mesh.Option) *mesh.Mesh {
	t.Helper()
	return newMesh(t, documents, append([]mesh.Option{
		mesh.WithDiscovery(&d.registry), mesh.WithIdentity(connecttest.Source(d.Identity("dc1", service))),
	}, opts...)...)
}

// register makes an endpoint known under a name, as one that takes mTLS as account.
func (d *datacentre) register(name, account string, e discovery.Endpoint) {
	e.ServiceAccount, e.Labels = account, map[string]string{"security.istio.io/tlsMode": "istio"}
	d.registry.Set(name, e)
}

func connectID(datacenter, service string) string {
	return "spiffe://" + connecttest.Domain + "/ns/default/dc/" + datacenter + "/svc/" + service
}

func TestConnectIdentitiesAreExpectedByService(t *testing.T) {
	noLeaks(t)
	d := newDatacentre(t)
	far := newMesh(t, "", mesh.WithDiscovery(&d.registry), mesh.WithIdentity(connecttest.Source(d.Identity("dc2", "payment"))))
	d.register("payment", "payment", serveMesh(t, far, whoCalls))
	d.register("impostor", "payment", serveMesh(t, d.member(t, "Payment", ""), whoCalls)) // another case is another service
	c := d.member(t, "order", "").Client()
	if a := get(t, c, "http://payment/"); a.body != connectID("dc1", "order")+" over HTTP/2.0" {
		t.Errorf("the server says %q", a.body)
	}
	_, err := c.Get("http://impostor/")
	mismatch, ok := errors.AsType[*tlsid.MismatchError](err)
	if !ok || mismatch.Presented.String() != connectID("dc1", "Payment") || mismatch.Expected.String() != connectID("*", "payment") {
		t.Errorf("a call to the endpoint of another service: %v", err)
	}
}

func TestConnectRefusesPeersOfAnotherForm(t *testing.T) {
	noLeaks(t)
	d := newDatacentre(t)
	d.register("payment", "payment", serveMesh(t, d.member(t, "payment", ""), whoCalls))
	// A document that names an ID has the last word.
	d.register("named", "payment", serveMesh(t, d.member(t, "other", ""), whoCalls))
	named := `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: named}
spec: {host: named, trafficPolicy: {tls: {mode: ISTIO_MUTUAL, subjectAltNames: ["` + connectID("dc1", "other") + `"]}}}
`
	if a := get(t, d.member(t, "order", named).Client(), "http://named/"); a.status != http.StatusOK {
		t.Errorf("the ID that a document names: %d", a.status)
	}

	// Without an identity of Connect, accounts are Istio's, which no peer of Connect is.
	istio, err := tlsid.NewDevCA(connecttest.Domain)
	if err != nil {
		t.Fatal(err)
	}
	istio.RotateEvery = -1
	caller := newMesh(t, "", mesh.WithDiscovery(&d.registry), mesh.WithIdentity(istio.Source("default", "order")))
	if r, err := caller.Client().Get("http://payment/"); err == nil {
		r.Body.Close()
		t.Errorf("a caller with an identity of Istio's form got %d", r.StatusCode)
	}
}

func TestConnectOverRawConnections(t *testing.T) {
	noLeaks(t)
	d := newDatacentre(t)
	listen := func(service string) discovery.Endpoint {
		inner := rawtest.Listen(t)
		rawtest.Serve(t, d.member(t, service, "").ListenTCP(inner), func(c net.Conn) { io.WriteString(c, "hello from "+service) })
		return endpointOf(t, inner.Addr().String())
	}
	d.register("db", "db", listen("db"))
	d.register("impostor", "db", listen("other"))
	m := d.member(t, "order", "")
	conn, err := m.DialContext(t.Context(), "tcp", "db:5432")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if text, _ := io.ReadAll(conn); string(text) != "hello from db" {
		t.Errorf("read %q", text)
	}
	if conn, err := m.DialContext(t.Context(), "tcp", "impostor:5432"); err == nil {
		conn.Close()
		t.Error("connected to another service")
	} else if _, ok := errors.AsType[*tlsid.MismatchError](err); !ok {
		t.Errorf("a connection to another service: %v", err)
	}
}

func TestAuthorizationPoliciesNamePeersOfConnect(t *testing.T) {
	noLeaks(t)
	d := newDatacentre(t)
	for principals, want := range map[string]int{
		strings.TrimPrefix(connectID("dc1", "order"), "spiffe://"): http.StatusOK,
		"*/ns/default/dc/dc1/svc/order":                            http.StatusOK,
		connecttest.Domain + "/ns/default/*":                       http.StatusOK,
		strings.TrimPrefix(connectID("dc2", "order"), "spiffe://"): http.StatusForbidden,
		"cluster.local/ns/default/sa/order":                        http.StatusForbidden,
	} {
		d.register("payment", "payment", serveMesh(t, d.member(t, "payment", `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: callers}
spec: {rules: [{from: [{source: {principals: ["`+principals+`"]}}]}]}
`), whoCalls))
		if a := get(t, d.member(t, "order", "").Client(), "http://payment/"); a.status != want {
			t.Errorf("%s: %d, want %d", principals, a.status, want)
		}
	}
}

// The endpoints are known before the identity, and with it how their IDs are formed.
func TestConnectIdentityThatComesLate(t *testing.T) {
	noLeaks(t)
	d := newDatacentre(t)
	d.register("payment", "payment", serveMesh(t, d.member(t, "payment", ""), whoCalls))
	late := make(lateSource)
	m := newMesh(t, "", mesh.WithDiscovery(&d.registry), mesh.WithLateIdentity(late), mesh.WithWorkload(policy.Workload{TrustDomain: connecttest.Domain}))
	if _, err := m.Client().Get("http://payment/"); !errors.Is(err, tlsid.ErrNoIdentity) {
		t.Fatalf("without an identity: %v", err)
	}
	own := d.Identity("dc1", "order")
	for range 3 { // the third is taken when the first is in force
		late <- own
	}
	if a := get(t, m.Client(), "http://payment/"); a.status != http.StatusOK {
		t.Errorf("with an identity: %d", a.status)
	}
}

func TestExpectConnect(t *testing.T) {
	domain := spiffeid.RequireTrustDomainFromString(connecttest.Domain)
	expected, err := tlsid.ExpectConnect(domain, "default", "web")
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]bool{
		connectID("dc1", "web"): true, connectID("dc-2.east_1", "web"): true,
		connectID("dc1", "webs"): false, connectID("dc1", "Web"): false, connectID("dc1/x", "web"): false,
		"spiffe://other.consul/ns/default/dc/dc1/svc/web":                    false,
		"spiffe://" + connecttest.Domain + "/ns/other/dc/dc1/svc/web":        false,
		"spiffe://" + connecttest.Domain + "/ns/default/sa/web":              false,
		"spiffe://" + connecttest.Domain + "/ap/p/ns/default/dc/dc1/svc/web": false,
	} {
		if got := expected.Check(spiffeid.RequireFromString(id)) == nil; got != want {
			t.Errorf("Check(%s): %v, want %v", id, got, want)
		}
	}
	for _, name := range []string{"", "a b", "a/b", "..", "ü", "*"} {
		if _, err := tlsid.ExpectConnect(domain, "default", name); err == nil {
			t.Errorf("the service %q: accepted", name)
		}
	}
}
