package policy_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
	"github.com/nosidecar/mesh/tlsid"
)

func TestCompile_Nothing(t *testing.T) {
	plan, findings := policy.Compile(nil, policy.Workload{})
	if plan == nil || findings != nil {
		t.Fatalf("Compile(nil) = %v, %v", plan, findings)
	}
	h := plan.Host("user-service:8080")
	want := policy.HostPlan{Service: discovery.Service{
		Host: "user-service.default.svc.cluster.local", Name: "user-service", Namespace: "default", Local: true,
	}}
	if h != want {
		t.Errorf("Host = %+v, want %+v", h, want)
	}
	if c := plan.Cluster(route.Target{Host: h.Service.Host}); !reflect.DeepEqual(c, policy.Cluster{RetryBudget: retry.BudgetConfig{Off: true}}) {
		t.Errorf("Cluster = %+v, want nothing set", c)
	}
	on, err := retry.ParseOn("connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes")
	if err != nil {
		t.Fatal(err)
	}
	wantRetry := retry.Config{Retries: 2, On: on, MaxRetryAfter: -1, AnyMethod: true, NestedRetries: true}
	if got := plan.Defaults().Rule(0).Route.Retry; !got.Equal(wantRetry) {
		t.Errorf("DefaultRetry = %+v, want %+v", got, wantRetry)
	}
}

func TestPlan_Host(t *testing.T) {
	plan := compile(t, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: vs}
spec:
  hosts: [users, reviews.prod, "*.example.com", 10.0.0.7, "2001:db8::1"]
  http: [{route: [{destination: {host: target}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: elsewhere, namespace: prod}
spec:
  hosts: [orders]
  http: [{route: [{destination: {host: orders}}]}]
`)
	service := func(name, namespace string) discovery.Service {
		return discovery.Service{
			Host: name + "." + namespace + ".svc.cluster.local", Name: name, Namespace: namespace, Local: namespace == "default",
		}
	}
	outside := func(host string) discovery.Service { return discovery.Service{Host: host} }
	const vs, elsewhere = "VirtualService default/vs", "VirtualService prod/elsewhere"
	tests := []struct {
		authority string
		service   discovery.Service
		document  string
		known     bool
	}{
		{"users", service("users", "default"), vs, true},
		{"Users:8080", service("users", "default"), vs, true},
		{"users.default", service("users", "default"), vs, true},
		{"users.default.svc", service("users", "default"), vs, true},
		{"users.default.svc:80", service("users", "default"), vs, true},
		{"users.DEFAULT.svc.cluster.local.", service("users", "default"), vs, true},
		{"users.prod", outside("users.prod"), "", false},
		{"orders", service("orders", "default"), "", false},
		{"orders.prod", service("orders", "prod"), elsewhere, true},
		{"reviews.prod", outside("reviews.prod"), vs, true},
		{"reviews.prod.svc", service("reviews", "prod"), "", false},
		{"reviews.prod.svc.cluster.local", service("reviews", "prod"), "", false},
		{"target", service("target", "default"), "", true},
		{"api.example.com:443", outside("api.example.com"), vs, true},
		{"a.b.example.com", outside("a.b.example.com"), vs, true},
		{"example.com", outside("example.com"), "", false},
		{"10.0.0.7:8080", outside("10.0.0.7"), vs, true},
		{"10.0.0.8", outside("10.0.0.8"), "", false},
		{"[2001:DB8:0::1]:80", outside("2001:db8::1"), vs, true},
		{"[2001:db8::1]", outside("2001:db8::1"), vs, true},
		{"2001:db8::2", outside("2001:db8::2"), "", false},
		{"a.b.c.svc.cluster.local", outside("a.b.c.svc.cluster.local"), "", false},
		{"", outside(""), "", false},
		{":80", outside(""), "", false},
	}
	for _, tt := range tests {
		h := plan.Host(tt.authority)
		if h.Service != tt.service || h.Document != tt.document || h.Known != tt.known || (h.Routes != nil) != (tt.document != "") {
			t.Errorf("Host(%q) = %+v, want %+v, document %q, known %v", tt.authority, h, tt.service, tt.document, tt.known)
		}
	}
}

func TestPlan_HostClusterDomain(t *testing.T) {
	plan, findings := policy.Compile(nil, policy.Workload{Namespace: "shop", ClusterDomain: "Corp.Example"})
	if findings != nil {
		t.Fatal(findings)
	}
	if got, want := plan.Host("cart").Service.Host, "cart.shop.svc.corp.example"; got != want {
		t.Errorf("Host = %q, want %q", got, want)
	}
	if s := plan.Host("cart.shop.svc.corp.example").Service; s.Name != "cart" || !s.Local {
		t.Errorf("Service = %+v, want cart, local", s)
	}
}

// TestSample_CompleteSetup compiles the section of the seed that has all features. Its comments take percentages for fractions
// and attempts for tries; what counts is what Istio does.
func TestSample_CompleteSetup(t *testing.T) {
	data, err := os.ReadFile("testdata/seed/10-complete-setup.yaml")
	if err != nil {
		t.Fatal(err)
	}
	source := policy.Source{Name: "seed.yaml", Data: data}
	plan, findings := policy.Compile([]policy.Source{source}, policy.Workload{Namespace: "myapp", Labels: map[string]string{"app": "user-service"}})
	if plan == nil {
		t.Fatal(findings)
	}
	if mode, set := plan.Peers("myapp").Mode(nil, 3000); mode != tlsid.Strict || !set || plan.Inbound().Mode(3000) != tlsid.Strict {
		t.Errorf("mode = %v, inbound %v, want STRICT", mode, plan.Inbound().Mode(3000))
	}
	for _, called := range []struct {
		request
		want bool
	}{
		{request{principal: "cluster.local/ns/myapp/sa/order-service"}, true},
		{request{principal: "cluster.local/ns/myapp/sa/order-service", method: "POST"}, true},
		{request{principal: "cluster.local/ns/myapp/sa/order-service", method: "DELETE"}, false},
		{request{principal: "cluster.local/ns/myapp/sa/other"}, false},
		{request{}, false},
	} {
		if d := plan.Inbound().Authorize(called.view()); d.Allowed != called.want {
			t.Errorf("%+v: allowed %v (%s), want %v", called.request, d.Allowed, d.Reason, called.want)
		}
	}
	h := plan.Host("user-service:3000")
	if h.Document != "VirtualService myapp/user-service" || h.Routes.Len() != 1 {
		t.Fatalf("Host = %+v", h)
	}
	r := h.Routes.Rule(0).Route
	if f := r.Fault; f.Delay.Fraction != 0.001 || f.Delay.Fixed != 5*time.Second || f.Abort.Fraction != 0.0001 || f.Abort.HTTPStatus != 503 {
		t.Errorf("fault = %+v, want 0.1%% of 5s and 0.01%% of 503", f)
	}
	if r.Retry.Retries != 3 || r.Retry.PerTryTimeout != 2*time.Second || r.Retry.On.String() != "5xx,reset" || r.Timeout != 10*time.Second {
		t.Errorf("retry = %+v, timeout = %v", r.Retry, r.Timeout)
	}
	if m := r.Matches; len(m) != 1 || m[0].URI != (route.StringMatch{Kind: route.Prefix, Value: "/api/"}) {
		t.Errorf("matches = %+v", m)
	}
	key := balancer.HashKey{Source: balancer.HeaderKey, Name: "x-user-id"}
	want := policy.Cluster{
		Balancer: balancer.Config{Algorithm: balancer.RingHash, HashKey: key},
		Eject:    true,
		Outlier:  breaker.OutlierConfig{Consecutive5xx: 5, Interval: 10 * time.Second, BaseEjection: 30 * time.Second},
		Pool: limit.PoolConfig{
			MaxConnections: 100, MaxPendingRequests: 50, MaxRequests: 100, MaxRequestsPerConnection: 2,
		},
		RetryBudget: retry.BudgetConfig{Off: true},
	}
	if c := plan.Cluster(r.Destinations[0].Target); !reflect.DeepEqual(c, want) {
		t.Errorf("Cluster = %+v\nwant      %+v", c, want)
	}
	if got := r.Destinations[0].Target; got != (route.Target{Host: "user-service.myapp.svc.cluster.local", Port: 3000}) {
		t.Errorf("target = %+v", got)
	}
}

// TestCompile_ManySources checks that an error in one file neither hides those in others nor what is right in them, and
// that findings come in the order of the files.
func TestCompile_ManySources(t *testing.T) {
	const document = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: %}\nspec: {host: a%}\n"
	with := func(name, rest string) []byte {
		return []byte(strings.Replace(strings.Replace(document, "%", name, 1), "%", rest, 1))
	}
	sources := []policy.Source{
		{Name: "z.yaml", Data: []byte("kind: [")},
		{Name: "b.yaml", Data: with("b", ", hots: x")},
		{Name: "a.yaml", Data: with("a", "")},
		{Name: "c.yaml", Data: with("a", "")},
	}
	plan, findings := policy.Compile(sources, policy.Workload{})
	if plan != nil {
		t.Error("a plan in spite of errors")
	}
	want := []string{
		"z.yaml:1: error: not valid YAML: did not find expected node content",
		`b.yaml:4: DestinationRule default/b: spec.hots: error: unknown field "hots", did you mean "host"?`,
		"c.yaml:3: DestinationRule default/a: metadata.name: error: DestinationRule default/a is defined twice, " +
			"first in a.yaml:1: remove or rename one of them",
	}
	if got := strings.Split(findings.Error(), "\n"); !slices.Equal(got, want) {
		t.Errorf("findings:\n%s\nwant:\n%s", findings, strings.Join(want, "\n"))
	}
}

// TestCompile_Equal checks what a reload relies on: the same documents give equal clusters, whatever their order in maps.
func TestCompile_Equal(t *testing.T) {
	data, err := os.ReadFile("testdata/istio/destinations.yaml")
	if err != nil {
		t.Fatal(err)
	}
	source := policy.Source{Name: "destinations.yaml", Data: data}
	first, findings := policy.Compile([]policy.Source{source}, workload)
	if first == nil {
		t.Fatal(findings)
	}
	for range 10 {
		again, _ := policy.Compile([]policy.Source{source}, workload)
		for _, d := range first.Host("targets").Routes.Rule(0).Route.Destinations {
			if a, b := first.Cluster(d.Target), again.Cluster(d.Target); !reflect.DeepEqual(a, b) {
				t.Fatalf("Cluster(%v) = %+v, then %+v", d.Target, a, b)
			}
		}
		if h := again.Host("targets").Routes.Rule(0).Route; !h.Retry.Equal(first.Defaults().Rule(0).Route.Retry) {
			t.Fatalf("retry = %+v", h.Retry)
		}
	}
}

func TestReadDir(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"b.yaml": "b", "a.yml": "a", "c.txt": "c", "f.json": "f", ".hidden.yaml": "h", "sub/d.yaml": "d", "..data/e.yaml": "e",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// A ConfigMap is mounted as links into a hidden folder.
	if err := os.Symlink(filepath.Join("..data", "e.yaml"), filepath.Join(dir, "e.yaml")); err != nil {
		t.Fatal(err)
	}
	sources, err := policy.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range sources {
		rel, _ := filepath.Rel(dir, s.Name)
		got = append(got, filepath.ToSlash(rel)+"="+string(s.Data))
	}
	if want := []string{"a.yml=a", "b.yaml=b", "e.yaml=e", "f.json=f", "sub/d.yaml=d"}; !slices.Equal(got, want) {
		t.Errorf("ReadDir = %q, want %q", got, want)
	}
	if one, err := policy.ReadDir(filepath.Join(dir, "c.txt")); err != nil || len(one) != 1 || string(one[0].Data) != "c" {
		t.Errorf("ReadDir of a file = %v, %v", one, err)
	}
	if _, err := policy.ReadDir(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadDir of nothing: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sub", "g.hcl"), []byte("Kind = \"service-router\""), 0o644); err != nil {
		t.Fatal(err)
	}
	sources, err = policy.ReadDir(dir)
	if _, findings := policy.Compile(sources, policy.Workload{}); err != nil || !strings.Contains(findings.Error(), "g.hcl:1: error: HCL is read by package policy/consul") {
		t.Errorf("ReadDir with a file in HCL: %v; findings %v", err, findings)
	}
}

// FuzzCompile feeds documents of all kinds. Whatever comes in, the answer is a plan whose clusters the layers accept, or
// an error with a place.
func FuzzCompile(f *testing.F) {
	for _, pattern := range []string{"testdata/*/*.yaml"} {
		paths, err := filepath.Glob(pattern)
		if err != nil || len(paths) == 0 {
			f.Fatalf("no seeds: %v", err)
		}
		for _, path := range paths {
			data, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			for doc := range strings.SplitSeq(string(data), "\n---\n") {
				f.Add(doc)
			}
		}
	}
	f.Fuzz(func(t *testing.T, data string) {
		plan, findings := policy.Compile([]policy.Source{{Name: "f.yaml", Data: []byte(data)}}, workload)
		if (plan == nil) != (findings.Err() != nil) {
			t.Fatalf("plan %v, findings %v", plan, findings)
		}
		for _, finding := range findings {
			if finding.Line < 1 || finding.Message == "" || finding.File != "f.yaml" {
				t.Errorf("finding without a place: %+v", finding)
			}
		}
		if plan == nil {
			return
		}
		plan.Inbound().Authorize(request{principal: data, path: "/" + data, header: "X: " + data}.view())
		if rules := plan.Peers("default"); !rules.Equal(plan.Peers("default")) {
			t.Error("Peers changes")
		}
		for _, authority := range append(hostsOf(data), "a", "a.b:80", "[::1]:80", data) {
			h := plan.Host(authority)
			targets := []route.Target{{Host: authority}, {Host: h.Service.Host, Port: 8080}}
			if h.Entry != nil && !h.Entry.Equal(plan.Host(authority).Entry) {
				t.Errorf("Host(%q).Entry changes", authority)
			}
			for i := range h.Routes.Len() {
				e := h.Routes.Rule(i)
				for _, d := range e.Route.Destinations {
					targets = append(targets, d.Target)
				}
				for match := -1; match < len(e.Route.Matches); match++ {
					if o := h.Origin(e, match); o.Route >= 0 && o.Document == "" || o.Route < -1 || o.Match < -1 {
						t.Errorf("Host(%q).Origin(%d, %d) = %+v", authority, i, match, o)
					}
				}
			}
			for _, target := range targets {
				c := plan.Cluster(target)
				if _, err := balancer.New(c.Balancer, balancer.Hooks{}); err != nil {
					t.Errorf("Cluster(%+v): %v", target, err)
				}
				if _, err := limit.NewPool(c.Pool); err != nil {
					t.Errorf("Cluster(%+v): %v", target, err)
				}
				if _, err := retry.NewLimiter(c.RetryLimit, nil); err != nil {
					t.Errorf("Cluster(%+v): %v", target, err)
				}
				if _, err := retry.NewBudget(c.RetryBudget); err != nil {
					t.Errorf("Cluster(%+v): %v", target, err)
				}
				if _, err := breaker.NewOutlier(c.Outlier, nil); err != nil {
					t.Errorf("Cluster(%+v): %v", target, err)
				}
			}
		}
	})
}
