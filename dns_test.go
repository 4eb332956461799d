package mesh_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/retry"
)

// Without a resolver endpoints come from DNS, and a client works like any other.
func TestWithoutDiscovery(t *testing.T) {
	noLeaks(t)
	api := serve(t, func(w http.ResponseWriter, r *http.Request) { w.Write([]byte(r.Host)) })
	_, port, _ := net.SplitHostPort(api.ID())
	c := newMesh(t, "").Client()
	for _, host := range []string{"localhost:" + port, "127.0.0.1:" + port, "LOCALHOST:" + port} {
		if a := get(t, c, "http://"+host+"/"); a.status != http.StatusOK || a.body != host {
			t.Errorf("%s: %d %q", host, a.status, a.body)
		}
	}
}

// Documents apply to what DNS finds.
func TestWithoutDiscoveryDocumentsApply(t *testing.T) {
	noLeaks(t)
	calls := 0
	api := serve(t, func(w http.ResponseWriter, r *http.Request) {
		calls++
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	_, port, _ := net.SplitHostPort(api.ID())
	c := newMesh(t, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: local}
spec:
  hosts: [localhost]
  http:
  - route: [{destination: {host: localhost}}]
    retries: {attempts: 2, retryOn: "5xx"}
`).Client()
	if a := get(t, c, "http://localhost:"+port+"/"); a.status != http.StatusServiceUnavailable || retry.Attempts(a.resp) != 3 || calls != 3 {
		t.Errorf("status %d after %d calls, want 503 after 3", a.status, calls)
	}
}

// Whoever sets how names are looked up has those in documents looked up so, too, but not by SRV records.
func TestNamesInDocumentsAreLookedUpAsServicesAre(t *testing.T) {
	noLeaks(t)
	api := serve(t, func(w http.ResponseWriter, r *http.Request) { w.Write([]byte(r.Host)) })
	_, port, _ := net.SplitHostPort(api.ID())
	documents := `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: partner}
spec:
  hosts: [partner.example]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: ` + port + `}]
`
	own := &names{}
	own.address.Store("127.0.0.1")
	for name, dns := range map[string]discovery.Resolver{"value": discovery.DNS{Resolver: own, SRV: true}, "pointer": &discovery.DNS{Resolver: own, SRV: true}} {
		if a := get(t, newMesh(t, documents, mesh.WithDiscovery(dns)).Client(), "http://partner.example/"); a.body != "partner.example" {
			t.Errorf("%s: %d %q", name, a.status, a.body)
		}
	}
}

// DNS has no labels, so a subset has no endpoints. That is told when the documents are loaded.
func TestSubsetsWithoutLabelsAreToldAtLoad(t *testing.T) {
	documents := readSeed(t, "01-istio-routing-destination-retry-timeout.yaml")
	for name, test := range map[string]struct {
		opts []mesh.Option
		want int
	}{
		"DNS":      {nil, 2},
		"registry": {[]mesh.Option{mesh.WithDiscovery(discovery.Static{})}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			told := 0
			newMesh(t, documents, append(test.opts, mesh.WithObserver(mesh.Observer{PolicyLoad: func(l mesh.PolicyLoad) {
				for _, f := range l.Findings {
					if strings.HasPrefix(f.Field, "spec.subsets[") && strings.Contains(f.Message, "DNS, which has no labels") {
						told++
					}
				}
			}}))...)
			if told != test.want {
				t.Errorf("%d subsets were warned of, want %d", told, test.want)
			}
		})
	}
}

// A host that the template leaves to a proxy, and no document names, is outside the mesh.
func TestProxyIsForHostsOutside(t *testing.T) {
	noLeaks(t)
	proxied := make(chan string, 1)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { proxied <- r.URL.String() }))
	t.Cleanup(proxy.Close)
	proxyURL, _ := url.Parse(proxy.URL)
	c := newMesh(t, "", mesh.WithTransport(&http.Transport{Proxy: http.ProxyURL(proxyURL)})).Client()
	if a := get(t, c, "http://outside.invalid/x"); a.status != http.StatusOK {
		t.Fatalf("status %d", a.status)
	}
	if got := <-proxied; got != "http://outside.invalid/x" {
		t.Errorf("the proxy saw %s", got)
	}
}

// names is a name server that knows one address, whatever the name.
type names struct{ address atomic.Value }

func (n *names) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr(n.address.Load().(string))}, nil
}

func (n *names) LookupSRV(context.Context, string, string, string) (string, []*net.SRV, error) {
	return "", nil, errors.New("no records")
}

// An address that changes is looked up again once it cannot be connected to, and not only when that is due.
func TestChangedAddressIsFoundAfterAConnectFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		var zone names
		zone.address.Store(f.Add(t, says("hello")).Address)
		m := f.Mesh(t, virtualService("retries: {attempts: 0}"), mesh.WithDiscovery(discovery.DNS{Resolver: &zone, Interval: time.Hour}))
		get(t, m.Client(), "http://api/")
		old := zone.address.Load()
		zone.address.Store("10.9.9.9")
		time.Sleep(2 * time.Hour) // nobody is there any more
		zone.address.Store(old)
		if a, err := try(m.Client(), "http://api/"); err == nil {
			t.Fatalf("a call to nobody is answered: %+v", a)
		}
		time.Sleep(2 * time.Second)
		if a := get(t, m.Client(), "http://api/"); a.body != "hello" {
			t.Errorf("body %q", a.body)
		}
	})
}
