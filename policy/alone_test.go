package policy_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/policy/route"
)

// feed is the history of a feed whose documents stand alone.
type feed struct {
	t        *testing.T
	workload policy.Workload
	static   []policy.Source
	plan     *policy.Plan
	findings policy.Findings
}

func newFeed(t *testing.T) *feed {
	return &feed{t: t, workload: policy.Workload{Namespace: "shop", Labels: map[string]string{"app": "web"}}}
}

// object is an object of the cluster.
type object struct {
	kind, namespace, name string
	uid                   int
	created               int // the second
	annotations, spec     string
}

var groups = map[string]string{
	"VirtualService": "networking.istio.io/v1", "DestinationRule": "networking.istio.io/v1", "ServiceEntry": "networking.istio.io/v1",
	"Sidecar": "networking.istio.io/v1", "EnvoyFilter": "networking.istio.io/v1alpha3", "WasmPlugin": "extensions.istio.io/v1alpha1",
	"AuthorizationPolicy": "security.istio.io/v1", "PeerAuthentication": "security.istio.io/v1", "RequestAuthentication": "security.istio.io/v1",
	"Telemetry": "telemetry.istio.io/v1", "ServiceProfile": "linkerd.io/v1alpha2", "TrafficSplit": "split.smi-spec.io/v1alpha4",
	"HTTPRouteGroup": "specs.smi-spec.io/v1alpha4", "TrafficTarget": "access.smi-spec.io/v1alpha3", "Server": "policy.linkerd.io/v1beta3",
	"ServerAuthorization": "policy.linkerd.io/v1beta1", "HTTPRoute": "gateway.networking.k8s.io/v1",
}

func (o object) source() policy.Source {
	if o.namespace == "" {
		o.namespace = "shop"
	}
	api := groups[o.kind]
	if api == "" {
		o.kind, api, _ = strings.Cut(o.kind, " of ")
	}
	metadata := fmt.Sprintf("name: %s, namespace: %s, creationTimestamp: \"2026-01-01T00:00:%02dZ\"", o.name, o.namespace, o.created)
	if o.uid > 0 {
		metadata += fmt.Sprintf(", uid: \"%d\"", o.uid)
	}
	if o.annotations != "" {
		metadata += ", annotations: {" + o.annotations + "}"
	}
	return policy.Source{
		Name: o.namespace + "/" + o.kind + "/" + o.name, Alone: true,
		Data: fmt.Appendf(nil, "{apiVersion: %s, kind: %s, metadata: {%s}, spec: %s}", api, o.kind, metadata, o.spec),
	}
}

func (f *feed) yields(objects ...object) {
	f.t.Helper()
	sources := make([]policy.Source, len(objects))
	for i := range objects {
		sources[i] = objects[i].source()
	}
	f.takes(sources...)
}

func (f *feed) takes(sources ...policy.Source) {
	f.t.Helper()
	plan, findings := policy.Recompile(f.plan, append(slices.Clone(f.static), sources...), f.workload)
	if plan == nil {
		f.t.Fatalf("the documents of a feed stand alone, but there is no plan:\n%v", findings)
	}
	f.plan, f.findings = plan, findings
}

// refused checks which documents are refused, and what is in force instead: "Kind namespace/name: last good".
func (f *feed) refused(want ...string) {
	f.t.Helper()
	var got []string
	for _, d := range f.findings {
		if what := fmt.Sprintf("%s %s/%s: %s", d.Kind, d.Namespace, d.Name, d.InForce); d.InForce != "" && !slices.Contains(got, what) {
			if got = append(got, what); d.Since.IsZero() {
				f.t.Errorf("%s: it is not known since when", what)
			}
		} else if d.Severity == policy.Error && d.InForce == "" {
			f.t.Errorf("%v does not say what is in force", d)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		f.t.Errorf("refused are\n%q\nwant\n%q\nof\n%v", got, want, f.findings)
	}
}

// says checks that a finding has a text.
func (f *feed) says(text string) {
	f.t.Helper()
	if !strings.Contains(f.findings.Error(), text) {
		f.t.Errorf("no finding says %q:\n%v", text, f.findings)
	}
}

// routed checks which document routes a host.
func (f *feed) routed(host, want string) {
	f.t.Helper()
	if got := f.plan.Host(host).Document; got != want {
		f.t.Errorf("%s is routed by %q, want %q", host, got, want)
	}
}

// status returns the status with which the first route of a host answers.
func (f *feed) status(host string) int {
	f.t.Helper()
	routes := f.plan.Host(host).Routes
	if routes == nil || routes.Rule(0).Route.Direct == nil {
		return 0
	}
	return routes.Rule(0).Route.Direct.Status
}

// asked returns the decision about a request.
func (f *feed) asked(path string, principal ...string) authz.Decision {
	r := &authz.Request{Method: "GET", Target: path, Host: "web", Source: netip.MustParseAddr("10.0.0.9"), Destination: netip.MustParseAddrPort("10.0.0.1:80")}
	if len(principal) > 0 {
		r.Principal = principal[0]
	}
	return f.plan.Inbound().Authorize(r)
}

// denies checks that all requests are denied because of a document.
func (f *feed) denies(document string) {
	f.t.Helper()
	if d := f.asked("/"); d.Allowed || !strings.Contains(d.Reason, document) {
		f.t.Errorf("the decision is %+v, want a denial that names %s", d, document)
	}
}

func (f *feed) allows(path string) {
	f.t.Helper()
	if d := f.asked(path); !d.Allowed {
		f.t.Errorf("a request for %s is denied: %s", path, d.Reason)
	}
}

const bad = "{hosts: [a], http: [{rout: []}]}"

func answering(host string, status int) string {
	return fmt.Sprintf("{hosts: [%s], http: [{directResponse: {status: %d}}]}", host, status)
}

func TestAlone_RefusedVersionKeepsLastGood(t *testing.T) {
	for _, test := range []struct{ kind, good, bad string }{
		{"VirtualService", answering("a", 201), bad},
		{"DestinationRule", "{host: a, subsets: [{name: v1, labels: {version: v1}}]}", "{host: a, subsets: [{name: v1, labels: {version: v2}}], trafficPolicy: {loadBalancer: {simple: NEVER}}}"},
		{"ServiceEntry", "{hosts: [a.example], location: MESH_EXTERNAL, ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 10.0.0.1}]}", "{hosts: [a.example], ports: [], resolution: NEVER}"},
		{"ServiceProfile", "{routes: [{name: r, condition: {method: GET}, timeout: 3s}]}", "{routes: [{condition: {}}]}"},
		{"TrafficSplit", "{service: a, backends: [{service: b, weight: 1}]}", "{service: a, backends: [{service: c, weight: 1}], matches: [{kind: X}]}"},
	} {
		t.Run(test.kind, func(t *testing.T) {
			name := "a"
			if test.kind == "ServiceProfile" {
				name = "a.shop.svc.cluster.local"
			}
			good := object{kind: test.kind, name: name, uid: 1, spec: test.good}
			changed := good
			changed.spec = test.bad
			f := newFeed(t)
			f.yields(good)
			f.refused()
			want := dumped(f)
			f.yields(changed)
			f.refused(test.kind + " shop/" + name + ": last good")
			if got := dumped(f); got != want {
				t.Errorf("in force is\n%s\nwant the last good version\n%s", got, want)
			}
			f.yields(good)
			f.refused()
		})
	}
}

// dumped returns what a plan says about the hosts of the tests.
func dumped(f *feed) string { return dump(f.plan, nil, []string{"a", "b", "c", "a.example"}, nil) }

func TestAlone_RefusedWithoutLastGoodIsLeftOut(t *testing.T) {
	f := newFeed(t)
	f.yields(object{kind: "VirtualService", name: "a", spec: bad}, object{kind: "VirtualService", name: "b", spec: answering("b", 202)})
	f.refused("VirtualService shop/a: nothing")
	f.routed("a", "")
	f.routed("b", "VirtualService shop/b")
	f.says("rout")
}

func TestAlone_RefusedElderKeepsItsHost(t *testing.T) {
	elder := object{kind: "VirtualService", name: "z", uid: 1, created: 1, spec: answering("a", 201)}
	younger := object{kind: "VirtualService", name: "b", uid: 2, created: 2, spec: answering("a", 202)}
	f := newFeed(t)
	f.yields(younger, elder)
	f.routed("a", "VirtualService shop/z")
	elder.spec = bad
	f.yields(younger, elder)
	f.refused("VirtualService shop/z: last good")
	if got := f.status("a"); got != 201 {
		t.Errorf("the host answers %d, want 201 of the elder", got)
	}
}

func TestAlone_RefusedElderWithoutLastGoodReservesNothing(t *testing.T) {
	f := newFeed(t)
	f.yields(object{kind: "VirtualService", name: "z", created: 1, spec: bad}, object{kind: "VirtualService", name: "b", created: 2, spec: answering("a", 202)})
	f.refused("VirtualService shop/z: nothing")
	f.routed("a", "VirtualService shop/b")
}

func TestAlone_RefusedYoungerChangesNothing(t *testing.T) {
	elder := object{kind: "VirtualService", name: "z", created: 1, spec: answering("a", 201)}
	f := newFeed(t)
	f.yields(elder, object{kind: "VirtualService", name: "b", created: 2, spec: bad})
	f.routed("a", "VirtualService shop/z")
}

func TestAlone_ClaimsAreByAgeThenNamespaceAndName(t *testing.T) {
	claim := func(namespace, name string, created int) object {
		return object{kind: "VirtualService", namespace: namespace, name: name, created: created, spec: answering("a.shop.svc.cluster.local", 200)}
	}
	for _, test := range []struct {
		objects []object
		want    string
	}{
		{[]object{claim("shop", "a", 2), claim("shop", "b", 1)}, "shop/b"},
		{[]object{claim("shop", "b", 1), claim("shop", "a", 1)}, "shop/a"},
		{[]object{claim("shop", "a", 1), claim("depot", "z", 1)}, "depot/z"},
	} {
		f := newFeed(t)
		f.yields(test.objects...)
		f.routed("a", "VirtualService "+test.want)
		slices.Reverse(test.objects)
		f.yields(test.objects...)
		f.routed("a", "VirtualService "+test.want)
	}
	f := newFeed(t)
	own := claim("shop", "zz", 9).source()
	own.Alone = false
	f.static = []policy.Source{own}
	f.yields(claim("shop", "a", 1))
	f.routed("a", "VirtualService shop/zz")
}

func TestAlone_OneNameTwice(t *testing.T) {
	older := object{kind: "VirtualService", name: "a", uid: 1, created: 1, spec: answering("a", 201)}
	newer := object{kind: "VirtualService", name: "a", uid: 2, created: 2, spec: answering("a", 202)}
	f := newFeed(t)
	f.yields(newer, older)
	f.refused("VirtualService shop/a: nothing")
	if got := f.status("a"); got != 201 {
		t.Errorf("in force is the version that answers %d, want 201 of the older object", got)
	}
	own := newer.source()
	own.Alone = false
	f.static = []policy.Source{own}
	f.yields(older)
	if got := f.status("a"); got != 202 {
		t.Errorf("in force is the version that answers %d, want 202 of the program's own document", got)
	}
	f = newFeed(t)
	allow := object{kind: "AuthorizationPolicy", name: "x", uid: 1, spec: "{rules: [{}]}"}
	f.yields(allow, allow) // one object through two versions of the API
	f.refused("AuthorizationPolicy shop/x: nothing")
	f.allows("/")
}

func TestAlone_Delegates(t *testing.T) {
	root := object{kind: "VirtualService", name: "root", uid: 1, spec: "{hosts: [a], http: [{match: [{uri: {prefix: /v2}}], delegate: {name: child}}, {directResponse: {status: 200}}]}"}
	child := object{kind: "VirtualService", name: "child", uid: 2, spec: "{http: [{directResponse: {status: 202}}]}"}
	broken := child
	broken.spec = "{http: [{rout: []}]}"
	t.Run("refused", func(t *testing.T) {
		f := newFeed(t)
		f.yields(root, child)
		f.yields(root, broken)
		f.refused("VirtualService shop/child: last good")
		if got := f.status("a"); got != 202 {
			t.Errorf("the route of the delegate answers %d, want 202", got)
		}
	})
	t.Run("refused without a last good one", func(t *testing.T) {
		f := newFeed(t)
		f.yields(root, broken)
		f.refused("VirtualService shop/child: nothing")
		f.routed("a", "VirtualService shop/root")
		f.says("there is no VirtualService without hosts of this name that shop sees: the route is left out")
	})
	t.Run("refused root", func(t *testing.T) {
		badRoot := root
		badRoot.spec = bad
		newChild := child
		newChild.spec = "{http: [{directResponse: {status: 203}}]}"
		f := newFeed(t)
		f.yields(root, child)
		f.yields(badRoot, newChild)
		f.refused("VirtualService shop/root: last good")
		if got := f.status("a"); got != 203 {
			t.Errorf("the new delegate under the last good root answers %d, want 203", got)
		}
		f = newFeed(t)
		f.yields(badRoot, child)
		f.refused("VirtualService shop/root: nothing")
		f.routed("a", "")
	})
}

func TestAlone_DestinationRuleWithTLSFailsCalls(t *testing.T) {
	rule := object{kind: "DestinationRule", name: "a", uid: 1, spec: "{host: a, trafficPolicy: {tls: {mode: SIMPLE, subjectAltNames: [a.example]}, loadBalancer: {simple: NEVER}}}"}
	closed := func(f *feed, host string) string { return f.plan.Cluster(route.Target{Host: host, Port: 80}).Closed }
	f := newFeed(t)
	f.yields(rule, object{kind: "DestinationRule", name: "b", spec: "{host: b}"})
	f.refused("DestinationRule shop/a: denial")
	if closed(f, "a") != "DestinationRule shop/a" || closed(f, "b") != "" {
		t.Errorf("closed are %q and %q, want the host of the refused rule alone", closed(f, "a"), closed(f, "b"))
	}
	for _, test := range []struct{ spec, closed, inForce string }{
		{"{host: a, trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: MUTUAL}}]}}", "DestinationRule shop/a", "denial"},
		{"{host: a, subsets: [{name: v1, trafficPolicy: {tls: {}}}, {nme: x}]}", "DestinationRule shop/a", "denial"},
		{"{host: a, trafficPolicy: {tls: {mode: DISABLE}, loadBalancer: {simple: NEVER}}}", "", "nothing"},
		{"{host: [a], trafficPolicy: {tls: {mode: SIMPLE}}}", "DestinationRule shop/a", "denial"},
		{"{hosts: [a], trafficPolicy: {tls: {mode: SIMPLE}}}", "", "nothing"},
		{"{host: a, exportTo: [depot], trafficPolicy: {tls: {mode: NEVER}}}", "", "nothing"},
		{"{host: a, exportTo: depot, trafficPolicy: {tls: {mode: SIMPLE}}}", "DestinationRule shop/a", "denial"},
		{"{host: a, workloadSelector: {matchLabels: {app: other}}, trafficPolicy: {tls: {mode: NEVER}}}", "", "nothing"},
	} {
		f := newFeed(t)
		rule := rule
		rule.spec = test.spec
		f.yields(rule)
		f.refused("DestinationRule shop/a: " + test.inForce)
		if got := closed(f, "a"); got != test.closed {
			t.Errorf("%s: calls are closed by %q, want %q", test.spec, got, test.closed)
		}
	}
	good := rule
	good.spec = "{host: a, trafficPolicy: {tls: {mode: SIMPLE}}}"
	f.yields(good)
	f.refused()
	if got := closed(f, "a"); got != "" {
		t.Errorf("after it was mended, calls are closed by %q", got)
	}
	f.yields(rule)
	f.refused("DestinationRule shop/a: last good")
	if c := f.plan.Cluster(route.Target{Host: "a", Port: 80}); c.Closed != "" || c.TLS.Mode != policy.TLSSimple {
		t.Errorf("the cluster is %+v, want the settings of the last good rule", c)
	}
}

func TestAlone_DestinationRuleWithoutTLS(t *testing.T) {
	canary := object{kind: "VirtualService", name: "a", spec: "{hosts: [a], http: [{route: [{destination: {host: a, subset: v2}, weight: 1}, {destination: {host: a, subset: v1}, weight: 99}]}]}"}
	rule := object{kind: "DestinationRule", name: "a", spec: "{host: a, subsets: [{name: v1, labels: {v: v1}}, {name: v2, labels: {v: v2}}], trafficPolicy: {loadBalancer: {simple: NEVER}}}"}
	f := newFeed(t)
	f.yields(canary, rule)
	f.refused("DestinationRule shop/a: nothing")
	for _, subset := range []string{"v1", "v2"} {
		if c := f.plan.Cluster(route.Target{Host: "a", Subset: subset}); !c.Missing || c.Closed != "" {
			t.Errorf("the subset %s is %+v, want one that no document defines", subset, c)
		}
	}
	f.says("no DestinationRule defines the subset")
	rule.spec = "{host: a, subsets: [{name: v1, labels: {v: v1}}, {name: v2, labels: {v: v2}}]}"
	f.yields(rule, canary) // mended, and in another order
	f.refused()
	if c := f.plan.Cluster(route.Target{Host: "a", Subset: "v2"}); c.Missing || c.Subset["v"] != "v2" {
		t.Errorf("after it was mended the subset is %+v", c)
	}
}

const (
	forbidsAdmin = "{action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}"
	badRules     = "{rules: [{form: []}]}"
)

func TestAlone_AuthorizationPolicy(t *testing.T) {
	everybody := object{kind: "AuthorizationPolicy", name: "all", spec: "{rules: [{}]}"}
	t.Run("last good", func(t *testing.T) {
		p := object{kind: "AuthorizationPolicy", name: "x", uid: 1, spec: forbidsAdmin}
		f := newFeed(t)
		f.yields(p)
		p.spec = "{action: DENY, selector: {matchLabels: {app: other}}, rules: [{to: [{operation: {paths: ['/{']}}]}]}"
		f.yields(p)
		f.refused("AuthorizationPolicy shop/x: last good")
		f.allows("/")
		if f.asked("/admin").Allowed {
			t.Error("what the last good version denies is allowed")
		}
		p.uid = 2
		f.yields(p, everybody)
		f.refused("AuthorizationPolicy shop/x: nothing") // it is another object, and not about this workload
		p.spec = badRules
		f.yields(p, everybody)
		f.refused("AuthorizationPolicy shop/x: denial")
		f.denies("AuthorizationPolicy shop/x")
		f.yields(everybody)
		f.refused()
		f.allows("/admin")
	})
	for _, test := range []struct {
		what, namespace, annotations, spec string
		denies                             bool
	}{
		{"ALLOW", "", "", badRules, true},
		{"DENY", "", "", "{action: DENY, rules: [{form: []}]}", true},
		{"CUSTOM", "", "", "{action: CUSTOM, provider: {name: x}, rules: [{}]}", true},
		{"AUDIT", "", "", "{action: AUDIT, rules: [{form: []}]}", false},
		{"dry run", "", `istio.io/dry-run: "true"`, badRules, false},
		{"no dry run", "", `istio.io/dry-run: "false"`, badRules, true},
		{"unreadable dry run", "", `istio.io/dry-run: [true]`, badRules, true},
		{"unreadable action", "", "", "{action: [AUDIT], rules: [{}]}", true},
		{"unknown action", "", "", "{action: audit, rules: [{}]}", true},
		{"selects another", "", "", "{selector: {matchLabels: {app: other}}, rules: [{form: []}]}", false},
		{"selects this", "", "", "{selector: {matchLabels: {app: web}}, rules: [{form: []}]}", true},
		{"empty selector", "", "", "{selector: {}, rules: [{form: []}]}", true},
		{"selector of a wrong type", "", "", "{selector: [{app: other}], rules: [{}]}", true},
		{"labels of a wrong type", "", "", "{selector: {matchLabels: {app: [other]}}, rules: [{}]}", true},
		{"number for a label", "", "", "{selector: {matchLabels: {app: 1}}, rules: [{}]}", true},
		{"empty key", "", "", `{selector: {matchLabels: {"": other}}, rules: [{}]}`, true},
		{"other field of the selector", "", "", "{selector: {matchLabel: {app: other}}, rules: [{}]}", true},
		{"root namespace", "istio-system", "", badRules, true},
		{"root namespace, selects another", "istio-system", "", "{selector: {matchLabels: {app: other}}, rules: [{form: []}]}", false},
		{"root namespace, unreadable selector", "istio-system", "", "{selector: [], rules: [{form: []}]}", true},
		{"another namespace", "depot", "", badRules, false},
		{"for a gateway", "", "", "{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edge}], rules: [{form: []}]}", false},
		{"for a waypoint", "", "", "{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: waypoint}], rules: [{}]}", true},
		{"for all waypoints", "", "", "{targetRefs: [{group: gateway.networking.k8s.io, kind: GatewayClass, name: istio-waypoint}], rules: [{}]}", true},
		{"for a service", "", "", `{targetRefs: [{group: "", kind: Service, name: web}], rules: [{form: []}]}`, true},
	} {
		t.Run(test.what, func(t *testing.T) {
			f := newFeed(t)
			f.yields(object{kind: "AuthorizationPolicy", namespace: test.namespace, name: "x", annotations: test.annotations, spec: test.spec}, everybody)
			namespace := test.namespace
			if namespace == "" {
				namespace = "shop"
			}
			if !test.denies {
				f.refused("AuthorizationPolicy " + namespace + "/x: nothing")
				f.allows("/")
				return
			}
			f.refused("AuthorizationPolicy " + namespace + "/x: denial")
			f.denies("AuthorizationPolicy " + namespace + "/x")
		})
	}
}

func TestAlone_PeerAuthentication(t *testing.T) {
	strict := object{kind: "PeerAuthentication", name: "default", uid: 1, spec: "{mtls: {mode: STRICT}}"}
	t.Run("last good", func(t *testing.T) {
		for _, mode := range []string{"STRICT", "PERMISSIVE"} {
			p := strict
			p.spec = "{mtls: {mode: " + mode + "}}"
			f := newFeed(t)
			f.yields(p)
			p.spec = "{mtls: {mode: SOME}}"
			f.yields(p)
			f.refused("PeerAuthentication shop/default: last good")
			if d := f.asked("/"); d.Allowed != (mode == "PERMISSIVE") {
				t.Errorf("with %s in force the decision is %+v", mode, d)
			}
		}
	})
	t.Run("of workloads", func(t *testing.T) {
		f := newFeed(t)
		f.yields(strict, object{kind: "PeerAuthentication", name: "x", spec: "{selector: {matchLabels: {app: other}}, mtls: {mode: SOME}}"})
		f.refused("PeerAuthentication shop/x: nothing")
		if d := f.asked("/", "cluster.local/ns/shop/sa/a"); !d.Allowed {
			t.Errorf("a peer with an identity is denied: %s", d.Reason)
		}
		if f.asked("/").Allowed {
			t.Error("the one of the namespace is not in force")
		}
		f.yields(strict, object{kind: "PeerAuthentication", name: "x", spec: "{selector: {matchLabels: {app: web}}, mtls: {mode: SOME}}"})
		f.refused("PeerAuthentication shop/x: denial")
		f.denies("PeerAuthentication shop/x")
	})
	t.Run("two for the same workloads", func(t *testing.T) {
		f := newFeed(t)
		f.yields(strict, object{kind: "PeerAuthentication", name: "x", created: 9, spec: "{mtls: {mode: SOME}}"})
		f.denies("PeerAuthentication shop/x")
		if f.asked("/", "cluster.local/ns/shop/sa/a").Allowed {
			t.Error("the other one counts")
		}
	})
}

func TestAlone_KindsThatAreNotEnforced(t *testing.T) {
	for _, test := range []struct {
		kind, spec string
		denies     bool
	}{
		{"RequestAuthentication", "{jwtRules: [{}]}", true},
		{"RequestAuthentication", "{selector: {matchLabels: {app: other}}, jwtRules: [{}]}", false},
		{"Server", "{podSelector: {matchLabels: {app: web}}, port: 0}", true},
		{"Server", "{podSelector: {matchLabels: {app: other}}, port: 0}", false},
		{"Server", "{podSelector: {matchExpressions: [{key: app, operator: Exists}]}, port: 0}", true},
		{"Server", "{podSelector: {matchLabels: {app: other}}, externalWorkloadSelector: {matchLabels: {app: web}}, port: 80}", true},
		{"Server", "{podSelector: {matchLabels: {app: other}}, externalWorkloadSelector: {matchLabels: {app: other}}, port: 80}", false},
		{"Server", "{port: 80}", true},
		{"ServerAuthorization", "{server: {name: x}}", false},
		{"AuthorizationPolicy of policy.linkerd.io/v1alpha1", "{targetRef: {kind: Server, name: x}}", true},
		{"AuthorizationPolicy of policy.linkerd.io/v1alpha1", "{targetRef: {kind: Server, name: x}, requiredAuthenticationRefs: [{kind: x}]}", false},
		{"HTTPRoute of policy.linkerd.io/v1beta3", "{parentRefs: [{group: policy.linkerd.io, kind: Server, name: x, port: 80}]}", true},
		{"HTTPRoute", "{parentRefs: [{name: edge}, {group: policy.linkerd.io, kind: Server, name: x, port: 80}]}", true},
		{"HTTPRoute", "{parentRefs: [{group: policy.linkerd.io, kind: Server, name: x}], rules: [{filters: [{type: URLRewrite, urlRewrite: {hostname: x}}]}]}", true},
		{"HTTPRoute", "{parentRefs: {kind: Server}}", true},
		{"HTTPRoute of policy.linkerd.io/v1beta3", "{parentRefs: [{group: core, kind: Service, name: x, port: 0}]}", false},
		{"MeshTLSAuthentication of policy.linkerd.io/v1alpha1", "{}", false},
		{"TrafficTarget", "{destination: {kind: ServiceAccount, name: x, namespace: shop}}", true},
		{"WasmPlugin", "{phase: AUTHN}", false},
		{"EnvoyFilter", "{}", false},
		{"Sidecar", "{}", false},
		{"Telemetry", "{metrics: nonsense}", false},
		{"HTTPRoute", "{rules: nonsense}", false},
	} {
		f := newFeed(t)
		f.yields(object{kind: test.kind, name: "x", spec: test.spec})
		kind, _, _ := strings.Cut(test.kind, " of ")
		if !test.denies {
			f.refused(kind + " shop/x: nothing")
			f.allows("/")
			continue
		}
		f.refused(kind + " shop/x: denial")
		f.denies(kind + " shop/x")
	}
}

// TestAlone_TrafficTargetOfAnotherNamespace: it may be about a service account of this one.
func TestAlone_TrafficTargetOfAnotherNamespace(t *testing.T) {
	for text, denies := range map[string]bool{
		"kind: TrafficTarget, apiVersion: access.smi-spec.io/v1alpha3, spec: {destination: {kind: ServiceAccount, name: x, namespace: shop}}":                    true,
		"kind: TrafficTarget, apiVersion: access.smi-spec.io/v1alpha3, spec: {destination: {kind: ServiceAccount, name: x, namespace: [shop]}}":                  true,
		"kind: TrafficTarget, apiVersion: access.smi-spec.io/v1alpha3, spec: {destination: {kind: ServiceAccount, name: x, namespace: a, namespace: shop}}":      true,
		"kind: TrafficTarget, apiVersion: access.smi-spec.io/v1alpha1, destination: {kind: ServiceAccount, name: x, namespace: shop}":                            true,
		"kind: TrafficTarget, apiVersion: access.smi-spec.io/v1alpha3, spec: {destination: {kind: ServiceAccount, name: x, namespace: other}}":                   false,
		"kind: TrafficTarget, apiVersion: access.smi-spec.io/v1alpha3, spec: {destination: {kind: ServiceAccount, name: x}}":                                     false,
		"kind: AuthorizationPolicy, apiVersion: policy.linkerd.io/v1alpha1, spec: {targetRef: {kind: Server, name: x}, destination: {name: x, namespace: shop}}": false,
	} {
		f := ofFile(t, "{metadata: {name: x, namespace: other}, "+text+"}")
		if got := !f.asked("/").Allowed; got != denies {
			t.Errorf("%s denies: %t, want %t", text, got, denies)
		}
	}
}

func TestAlone_VirtualServiceForGatewaysIsLeftOut(t *testing.T) {
	f := newFeed(t)
	f.yields(object{kind: "VirtualService", name: "x", spec: "{hosts: [a], gateways: [edge], http: [{route: [{destination: {host: b}}]}]}"})
	f.refused()
	f.routed("a", "")
}

func TestAlone_DeletedRefusedDocument(t *testing.T) {
	p := object{kind: "AuthorizationPolicy", name: "x", uid: 1, spec: badRules}
	v := object{kind: "VirtualService", name: "a", uid: 2, spec: answering("a", 201)}
	f := newFeed(t)
	f.yields(v, p)
	f.denies("AuthorizationPolicy shop/x")
	v.spec = bad
	f.yields(v)
	f.refused("VirtualService shop/a: last good")
	f.allows("/")
	f.yields()
	f.refused()
	f.routed("a", "")
	v.uid = 3 // deleted and made again
	f.yields(v)
	f.refused("VirtualService shop/a: nothing")
}

func TestAlone_MadeAgainUnderOneName(t *testing.T) {
	v := object{kind: "VirtualService", name: "a", uid: 1, spec: answering("a", 201)}
	f := newFeed(t)
	f.yields(v)
	v.uid, v.spec = 2, bad
	f.yields(v)
	f.refused("VirtualService shop/a: nothing")
	f.routed("a", "")
}

func TestAlone_Renamed(t *testing.T) {
	first := object{kind: "AuthorizationPolicy", name: "a", uid: 1, created: 1, spec: "{rules: [{to: [{operation: {paths: [/x]}}]}]}"}
	second := first
	second.name, second.uid, second.created = "b", 2, 2
	f := newFeed(t)
	for _, objects := range [][]object{{first}, {first, second}, {second}} {
		f.yields(objects...)
		f.allows("/x")
		if f.asked("/y").Allowed {
			t.Error("what no document allows is allowed")
		}
	}
}

func TestAlone_SinceTheFirstBadVersion(t *testing.T) {
	p := object{kind: "VirtualService", name: "a", uid: 1, spec: bad}
	f := newFeed(t)
	f.yields(p)
	since := f.findings[0].Since
	for i := range 10 {
		p.spec = fmt.Sprintf("{hosts: [a], http: [{rout%d: []}]}", i)
		f.yields(p)
		if got := f.findings[0].Since; !got.Equal(since) {
			t.Fatalf("after it was rewritten it is refused since %v, want %v", got, since)
		}
	}
	p.spec = answering("a", 201)
	f.yields(p)
	f.refused()
	p.spec = bad
	f.yields(p)
	if !f.findings[0].Since.After(since) {
		t.Error("after it was mended and broken again, it is refused since the first time")
	}
}

func TestAlone_SourceThatIsNoYAMLKeepsItsDocuments(t *testing.T) {
	f := newFeed(t)
	text := "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: %s, namespace: shop}\nspec: {hosts: [%[1]s], http: [{directResponse: {status: 201}}]}\n---\n"
	file := policy.Source{Name: "teams.yaml", Alone: true, Data: fmt.Appendf(nil, text+text, "a", "b")}
	file.Data = []byte(fmt.Sprintf(text, "a") + fmt.Sprintf(text, "b"))
	other := policy.Source{Name: "other.yaml", Alone: true, Data: []byte(fmt.Sprintf(text, "c"))}
	f.takes(file, other)
	f.refused()
	file.Data = []byte("kind: [\n" + string(file.Data))
	other.Data = []byte(fmt.Sprintf(text, "d"))
	f.takes(file, other)
	f.says("not valid YAML")
	for _, host := range []string{"a", "b", "d"} {
		f.routed(host, "VirtualService shop/"+host)
	}
	f.routed("c", "")
	file.Data = []byte(fmt.Sprintf(text, "b"))
	f.takes(file, other)
	f.refused()
	f.routed("a", "")
}

func TestAlone_UnreadableProtectionDenies(t *testing.T) {
	f := newFeed(t)
	f.takes(policy.Source{Name: "x.yaml", Alone: true, Data: []byte("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: x\n  namespace: shop\nspec: [\n")})
	f.refused("AuthorizationPolicy shop/x: denial")
	f.takes(policy.Source{Name: "x.yaml", Alone: true, Data: []byte("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: x\n  namespace: depot\nspec: [\n")})
	f.refused("AuthorizationPolicy depot/x: nothing")
	f.takes(policy.Source{Name: "x.yaml", Alone: true, Data: []byte("{{ AuthorizationPolicy")})
	if d := f.asked("/"); d.Allowed {
		t.Error("a text that may be an AuthorizationPolicy denies nothing")
	}
	f.takes(policy.Source{Name: "x.yaml", Alone: true, Data: []byte("{{ VirtualService")})
	f.allows("/")
}

func TestAlone_TooLargeDocument(t *testing.T) {
	v := object{kind: "VirtualService", name: "a", uid: 1, spec: answering("a", 201)}
	other := object{kind: "VirtualService", name: "b", uid: 2, spec: answering("b", 202)}
	f := newFeed(t)
	f.yields(v, other)
	large := v.source()
	large.Data = []byte(strings.Replace(string(large.Data), "{hosts", "{x: \""+strings.Repeat("x", 1<<20)+"\", hosts", 1))
	f.takes(large, other.source())
	f.says("larger than")
	if got := f.status("a"); got != 201 {
		t.Errorf("the host answers %d, want 201 of the last good version", got)
	}
	f.routed("b", "VirtualService shop/b")
}

func TestAlone_FloodLeavesOutTheNewest(t *testing.T) {
	t.Cleanup(policy.SetMostAlone(20))
	var sources []policy.Source
	for i := range 22 {
		sources = append(sources, object{kind: "ServiceEntry", name: fmt.Sprintf("n%02d", 21-i), created: i, spec: "{hosts: [a.example]}"}.source())
	}
	for i := range 30 {
		sources = append(sources, object{kind: "PeerAuthentication", namespace: "other", name: fmt.Sprint("p", i), created: i, spec: "{mtls: {mode: STRICT}}"}.source())
	}
	sources = append(sources, object{kind: "AuthorizationPolicy", name: "x", created: 59, spec: forbidsAdmin}.source())
	sources = append(sources, object{kind: "VirtualService", namespace: "third", name: "y", created: 59, spec: answering("y.example", 207)}.source())
	f := newFeed(t)
	f.takes(sources...)
	if f.asked("/admin").Allowed {
		t.Error("a flood of other documents keeps an AuthorizationPolicy from taking effect")
	}
	if !f.asked("/").Allowed || f.status("y.example") != 207 {
		t.Error("a flood in one namespace has documents of another refused")
	}
	f.says("ServiceEntry shop/n00: error: there are more than 20 documents")
	f.says("ServiceEntry shop/n01: error: there are more than 20 documents")
	if n := strings.Count(f.findings.Error(), "there are more than"); n != 2+10 {
		t.Errorf("%d documents are refused for their number, want the 2 and 10 newest:\n%v", n, f.findings)
	}
}

func TestAlone_OwnDocumentsStayAllOrNothing(t *testing.T) {
	static := policy.Source{Name: "own.yaml", Data: object{kind: "VirtualService", name: "own", spec: bad}.source().Data}
	plan, findings := policy.Compile([]policy.Source{static, object{kind: "VirtualService", name: "b", spec: answering("b", 202)}.source()}, policy.Workload{})
	if plan != nil || findings.Err() == nil {
		t.Errorf("a bad document of the program itself is no error: %v", findings)
	}
}

// TestAlone_GoodOnlyApart: of documents that are good by themselves and not together, the one that has changed is refused.
func TestAlone_GoodOnlyApart(t *testing.T) {
	route := func(pattern string) object {
		return object{kind: "VirtualService", name: "b", uid: 3, spec: "{hosts: [b], http: [{match: [{uri: {regex: '" + pattern + "'}}], route: [{destination: {host: b}}]}]}"}
	}
	profile := func(pattern string) object {
		return object{kind: "ServiceProfile", name: "b.shop.svc.cluster.local", uid: 4, spec: "{routes: [{name: r, condition: {pathRegex: '" + pattern + "'}, timeout: 3s}]}"}
	}
	const simple, anchored = "/a.*", "(/a$|/b)" // an anchor inside cannot be combined with another condition
	f := newFeed(t)
	f.yields(route(simple), profile(simple))
	f.refused()
	f.yields(route(simple), profile(anchored))
	f.refused("ServiceProfile shop/b.shop.svc.cluster.local: last good")
	f.says("cannot be enforced for calls to b.shop.svc.cluster.local")
	f = newFeed(t)
	f.yields(profile(anchored))
	f.refused()
	f.yields(route(simple), profile(anchored))
	f.refused("VirtualService shop/b: nothing")
	f = newFeed(t)
	f.static = []policy.Source{{Name: "own.yaml", Data: profile(anchored).source().Data}}
	f.yields(route(simple))
	f.refused("VirtualService shop/b: nothing")
}

// TestAlone_AnotherNamespaceIsNotToBlame: a VirtualService that leads to a service of another namespace, and cannot be enforced together with
// its ServiceProfile, is refused, whichever of them has changed.
func TestAlone_AnotherNamespaceIsNotToBlame(t *testing.T) {
	route := object{kind: "VirtualService", name: "b", uid: 3, spec: "{hosts: [b], http: [{match: [{uri: {regex: '/a.*'}}], route: [{destination: {host: c.other.svc.cluster.local}}]}]}"}
	profile := func(pattern string) object {
		return object{kind: "ServiceProfile", namespace: "other", name: "c.other.svc.cluster.local", uid: 4, spec: "{routes: [{name: r, condition: {pathRegex: '" + pattern + "'}, timeout: 3s}]}"}
	}
	const simple, anchored = "/a.*", "(/a$|/b)"
	f := newFeed(t)
	f.yields(route, profile(anchored))
	f.refused("VirtualService shop/b: nothing")
	f = newFeed(t)
	f.yields(route, profile(simple))
	f.refused()
	f.yields(route, profile(anchored))
	f.refused("VirtualService shop/b: nothing")
	f.says("with ServiceProfile other/c.other.svc.cluster.local")
	f.yields(route, profile(simple))
	f.refused()
}

// TestAlone_SearchIsBounded: documents that are good only without each other are not refused one by one for ever, at the cost of all others.
func TestAlone_SearchIsBounded(t *testing.T) {
	profile := func(namespace string, n int) object {
		name := fmt.Sprintf("c%02d.%s.svc.cluster.local", n, namespace)
		return object{kind: "ServiceProfile", namespace: namespace, name: name, uid: 100 + n, spec: "{routes: [{name: r, condition: {pathRegex: '(/a$|/b)'}, timeout: 3s}]}"}
	}
	leads := func(namespace string, to ...int) string {
		var routes []string
		for _, n := range to {
			routes = append(routes, fmt.Sprintf("{match: [{uri: {regex: '/%d.*'}}], route: [{destination: {host: c%02d.%s.svc.cluster.local}}]}", n, n, namespace))
		}
		return strings.Join(routes, ", ")
	}
	const n = 30
	var all []int
	var objects []object
	for i := range n {
		all, objects = append(all, i), append(objects, profile("shop", i))
	}
	f := newFeed(t)
	f.yields(append(objects, object{kind: "VirtualService", name: "wide", uid: 1, spec: "{hosts: [wide], http: [" + leads("shop", all...) + "]}"})...)
	f.says("VirtualService shop/wide: spec: error: cannot be enforced") // and not each of the 30 profiles
	if n := len(f.findings); n > 15 {
		t.Errorf("%d documents are refused", n)
	}

	// Many for one host, each of which gets it when those before it are refused.
	objects = []object{profile("other", 0), {kind: "VirtualService", namespace: "other", name: "b", uid: 2, created: 59, spec: answering("b.shop.svc.cluster.local", 207)}}
	for i := range n {
		objects = append(objects, object{kind: "VirtualService", name: fmt.Sprintf("b%02d", i), uid: 10 + i, created: i, spec: "{hosts: [b], http: [" + leads("other", 0) + "]}"})
	}
	f = newFeed(t)
	f.yields(objects...)
	f.says("is left out with VirtualService shop/b08, which cannot be enforced")
	f.routed("b.shop.svc.cluster.local", "VirtualService other/b") // which comes last
	for _, d := range f.findings {
		if d.Namespace != "shop" {
			t.Errorf("of another namespace: %v", d)
		}
	}
}

// TestAlone_JoinedRoutesAreBounded: few documents make many routes together. One namespace may have some of them, and costs no other any.
func TestAlone_JoinedRoutesAreBounded(t *testing.T) {
	defer policy.SetMostJoined(400)()
	var routes, parts []string
	for i := range 10 {
		routes = append(routes, fmt.Sprintf("{match: [{uri: {prefix: /%d}}], route: [{destination: {host: pay.shop.svc.cluster.local}}]}", i))
		parts = append(parts, fmt.Sprintf("{name: r%d, condition: {method: GET}, timeout: 3s}", i))
	}
	leads := func(namespace, name string, uid int) object {
		return object{kind: "VirtualService", namespace: namespace, name: name, uid: uid, spec: "{hosts: [" + name + "], http: [" + strings.Join(routes, ", ") + "]}"}
	}
	objects := []object{
		{kind: "ServiceProfile", name: "pay.shop.svc.cluster.local", uid: 1, spec: "{routes: [" + strings.Join(parts, ", ") + "]}"},
		leads("other", "z", 2),
	}
	for i := range 4 {
		objects = append(objects, leads("shop", fmt.Sprint("a", i), 10+i))
	}
	f := newFeed(t)
	for range 2 { // once more, with what is known from the first time
		f.yields(objects...)
		f.refused("VirtualService shop/a3: nothing")
		f.says("with ServiceProfiles and TrafficSplits, the documents of namespace shop make more than 400 routes and matches")
		f.routed("a2.shop.svc.cluster.local", "VirtualService shop/a2")
		f.routed("z.other.svc.cluster.local", "VirtualService other/z")
	}
}

// TestAlone_OwnDocumentsComeFirst: where a document of a feed contradicts one of the program itself, that of the feed is refused.
func TestAlone_OwnDocumentsComeFirst(t *testing.T) {
	f := newFeed(t)
	f.workload = policy.Workload{}
	f.static = []policy.Source{{Name: "own.yaml", Data: []byte("apiVersion: consul.hashicorp.com/v1alpha1\nkind: ServiceResolver\nmetadata: {name: api}\nspec: {connectTimeout: 3s}\n")}}
	route := object{kind: "VirtualService", namespace: "default", name: "api", uid: 1, spec: answering("api", 201)}
	f.yields(route)
	f.refused("VirtualService default/api: nothing")
	f.says("is a service that service-resolver")
}

// TestAlone_RowsNameTests: each row of the table in the documentation names a test that there is.
func TestAlone_RowsNameTests(t *testing.T) {
	if rows := meshtest.RowsNameTests(t, "../docs/feeds.md", "## Documents that stand alone", "*_test.go", "../*_test.go", "kubernetes/*_test.go"); rows < 59 {
		t.Errorf("the table has %d rows, want at least 59", rows)
	}
}
