package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/policy"
)

// TestAgreement makes calls through a mesh and compares what becomes of them with what route says.
func TestAgreement(t *testing.T) {
	shop := []string{"testdata/shop.yaml"}
	istio := []string{filepath.Join(seed, "01-istio-routing-destination-retry-timeout.yaml")}
	canary := []string{filepath.Join(seed, "03-canary.yaml"), "testdata/versions.yaml"}
	tiers := []string{filepath.Join(seed, "04-ab-testing.yaml"), "testdata/versions.yaml"}
	mirroring := []string{filepath.Join(seed, "05-mirroring.yaml"), "testdata/versions.yaml"}
	n := newNetwork(t)
	complete := []string{filepath.Join(seed, "10-complete-setup.yaml")}
	for _, test := range []outbound{
		{name: "redirect", documents: shop, url: "http://shop/old/cart?a=1&b=%20"},
		{name: "redirect of the whole path", documents: shop, url: "http://shop:8080/older"},
		{name: "direct response", documents: shop, url: "http://shop/closed"},
		{name: "no route", documents: shop, url: "http://shop/"},
		{name: "path and authority", documents: shop, method: "POST", url: "http://shop/api/cart/42?x=1"},
		{name: "other method", documents: shop, url: "http://shop/api/cart/42?x=1"},
		{name: "path by regex", documents: shop, url: "http://shop.default/users/a%20b/orders%2F1"},
		{name: "path by regex, its start cut off", documents: shop, url: "http://shop/strip/cart"},
		{name: "weights and authorities", documents: shop, url: "http://shop/split"},
		{name: "faults", documents: shop, url: "http://shop/faulty"},
		{name: "mirrors", documents: shop, url: "http://shop/mirrored"},
		{name: "retries", documents: shop, method: "POST", url: "http://shop/retried"},
		{name: "labels", documents: shop, labels: "app=other,tier=web", url: "http://shop/"},
		{name: "namespace", documents: shop, namespace: "team", headers: []string{"X-Team: red"}, url: "http://shop.default/"},
		{name: "other namespace", documents: shop, namespace: "team", url: "http://shop/closed"},
		{name: "port", documents: shop, url: "http://shop:8080/by-port"},
		{name: "other port", documents: shop, url: "http://shop:8081/by-port"},
		{name: "header", documents: shop, headers: []string{"x-canary: yes"}, url: "http://shop/"},
		{name: "several values", documents: shop, headers: []string{"x-canary: yes", "X-Canary: yes"}, url: "http://shop/"},
		{name: "Host header", documents: shop, headers: []string{"Host: shop.example.com"}, url: "http://10.0.0.7/?v=2"},
		{name: "unknown Host header", documents: shop, headers: []string{"Host: elsewhere"}, url: "http://shop/mirrored"},
		{name: "no document", documents: shop, url: "http://plain/a/b"},
		{name: "seed 01, by header", documents: istio, headers: []string{"version: v2"}, url: "http://user-service/users/42"},
		{name: "seed 01, by weight", documents: istio, url: "http://user-service/users/42"},
		{name: "seed 01, retries", documents: istio, url: "http://order-service/"},
		{name: "seed 03", documents: canary, url: "http://myapp/"},
		{name: "seed 04, premium", documents: tiers, headers: []string{"user-tier: premium"}, url: "http://myapp/"},
		{name: "seed 04, default", documents: tiers, url: "http://myapp/"},
		{name: "seed 05", documents: mirroring, url: "http://myapp/"},
		{name: "seed 10, no route", documents: complete, namespace: "myapp", url: "http://user-service:3000/health"},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, n) })
	}
}

// outbound is a request and who makes it.
type outbound struct {
	name      string
	documents []string
	namespace string
	labels    string
	method    string
	headers   []string
	url       string
}

// args are the arguments of the command.
func (o *outbound) args() []string {
	args := []string{"route"}
	add := func(flag string, values ...string) {
		for _, value := range values {
			if value != "" {
				args = append(args, flag, value)
			}
		}
	}
	add("-f", o.documents...)
	add("-n", o.namespace)
	add("-l", o.labels)
	add("-X", o.method)
	add("-H", o.headers...)
	return append(args, o.url)
}

// client is a mesh for the same documents and caller.
func (o *outbound) client(t *testing.T, n *network) *http.Client {
	t.Helper()
	workload := policy.Workload{Namespace: o.namespace, Labels: map[string]string{}}
	if o.labels != "" {
		for label := range strings.SplitSeq(o.labels, ",") {
			key, value, _ := strings.Cut(label, "=")
			workload.Labels[key] = value
		}
	}
	opts := []mesh.Option{mesh.WithWorkload(workload), mesh.WithDiscovery(n.endpoints)}
	for _, path := range o.documents {
		opts = append(opts, mesh.WithPolicyDir(path))
	}
	m, err := mesh.New(context.Background(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	client := m.Client()
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return client
}

// call makes the request.
func (o *outbound) call(t *testing.T, client *http.Client) (resp *http.Response, body string) {
	t.Helper()
	req, err := http.NewRequest(o.method, o.url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range o.headers {
		name, value, _ := strings.Cut(line, ": ")
		if name == "Host" {
			req.Host = value
		} else {
			req.Header.Add(name, value)
		}
	}
	resp, err = client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(data)
}

func (o *outbound) run(t *testing.T, n *network) {
	code, stdout, stderr := command(o.args()...)
	if code != 0 {
		t.Fatalf("mesh %q = %d: %s", o.args(), code, stderr)
	}
	var said answer
	if err := json.Unmarshal([]byte(stdout), &said); err != nil {
		t.Fatal(err)
	}
	client := o.client(t, n)
	n.requests.Store(0)
	resp, body := o.call(t, client)

	status, sent := http.StatusOK, true
	switch {
	case said.Action == "redirect":
		status, sent = said.Redirect.Status, false
		if got := resp.Header.Get("Location"); got != said.Redirect.Location {
			t.Errorf("redirected to %q, route said %q", got, said.Redirect.Location)
		}
	case said.Action == "directResponse":
		status, sent = said.Direct.Status, false
		if body != said.Direct.Body {
			t.Errorf("answered with %q, route said %q", body, said.Direct.Body)
		}
	case said.Action == "notFound":
		status, sent = http.StatusNotFound, false
	case said.Fault != nil:
		status, sent = said.Fault.Abort.HTTPStatus, false
	case said.Destinations[0].Host == failing:
		status = http.StatusServiceUnavailable
		if got, want := int(n.requests.Load()), 1+said.Retry.Attempts; got != want {
			t.Errorf("%d tries reached the server, route said %d", got, want)
		}
	}
	if resp.StatusCode != status {
		t.Errorf("answered with status %d, route said %d", resp.StatusCode, status)
	}
	if !sent {
		if got := n.requests.Load(); got != 0 {
			t.Errorf("%d requests reached a server, route said that none would", got)
		}
		return
	}
	for _, m := range said.Mirrors {
		if m.Percent == 100 {
			for n.server(m.Host, m.Subset) != <-n.copies { // another mirror may be drawn, too
			}
		}
	}
	o.destinations(t, n, client, said, body)
}

// destinations compares where requests arrive, and as what.
func (o *outbound) destinations(t *testing.T, n *network, client *http.Client, said answer, body string) {
	expected := make(map[string]destination)
	for _, d := range said.Destinations {
		if d.Weight > 0 {
			expected[n.server(d.Host, d.Subset)] = d
		}
	}
	met := make(map[string]bool)
	for calls := 1; ; calls++ {
		var got arrival
		if err := json.Unmarshal([]byte(body), &got); err != nil {
			t.Fatalf("answered with %q: %v", body, err)
		}
		d, ok := expected[got.Server]
		if !ok {
			t.Fatalf("the request went to %s, route said %+v", got.Server, said.Destinations)
		}
		met[got.Server] = true
		want := o.unchanged()
		if said.Path != "" {
			want.Path = said.Path
		}
		if authority := said.Authority + d.Authority; authority != "" {
			want.Host = authority
		}
		if want.Server = got.Server; got != want {
			t.Fatalf("arrived as %+v, route said %+v", got, want)
		}
		switch {
		case len(met) == len(expected):
			return
		case calls == 2000: // the least share is 5%
			t.Fatalf("%d requests met %v, route said %+v", calls, met, said.Destinations)
		}
		_, body = o.call(t, client)
	}
}

// unchanged is the request as it would arrive if nothing changed it.
func (o *outbound) unchanged() arrival {
	_, rest, _ := strings.Cut(o.url, "://")
	host, path, _ := strings.Cut(rest, "/")
	path, _, _ = strings.Cut("/"+path, "?")
	for _, line := range o.headers {
		if value, ok := strings.CutPrefix(line, "Host: "); ok {
			host = value
		}
	}
	return arrival{Host: host, Path: path}
}

// network is servers on the loopback, by service and version.
type network struct {
	endpoints discovery.Static
	requests  atomic.Int64
	copies    chan string // servers that got mirrored copies
}

// arrival is what a server says about a request that it got.
type arrival struct {
	Server string
	Host   string
	Path   string // escaped
}

// failing is the service whose answers are all 503.
const failing = "failing.default.svc.cluster.local"

func newNetwork(t *testing.T) *network {
	t.Helper()
	leak.Check(t)
	n := &network{endpoints: make(discovery.Static), copies: make(chan string, 100)}
	for _, service := range []string{"shop", "user-service", "myapp"} {
		n.add(t, service+".default", "v1")
		n.add(t, service+".default", "v2")
	}
	for _, service := range []string{"cart.default", "failing.default", "order-service.default", "plain.default", "shop.team"} {
		n.add(t, service, "")
	}
	return n
}

func (n *network) add(t *testing.T, service, version string) {
	server := n.server(service+".svc.cluster.local", version)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.Host, "-shadow") {
			n.copies <- server
			return
		}
		n.requests.Add(1)
		if strings.HasPrefix(server, failing) {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		json.NewEncoder(w).Encode(arrival{Server: server, Host: r.Host, Path: r.URL.EscapedPath()})
	}))
	t.Cleanup(srv.Close)
	host, port, err := net.SplitHostPort(srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	endpoint := discovery.Endpoint{Address: host}
	if endpoint.Port, err = strconv.Atoi(port); err != nil {
		t.Fatal(err)
	}
	if version != "" {
		endpoint.Labels = map[string]string{"version": version}
	}
	n.endpoints[service] = append(n.endpoints[service], endpoint)
}

// server is the name of the server of a destination.
func (n *network) server(host, subset string) string {
	return host + " " + subset
}
