package workload_test

import (
	"maps"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/workload"
)

// The labels of Istio, of Kubernetes and of habit name a workload, in this order; X_app and X_version have another one.
func TestDescribe(t *testing.T) {
	const (
		name, revision = "service.istio.io/canonical-name", "service.istio.io/canonical-revision"
		app, version   = "app.kubernetes.io/name", "app.kubernetes.io/version"
	)
	all := map[string]string{name: "canon", app: "kube", "app": "plain", revision: "r1", version: "r2", "version": "r3"}
	without := func(names ...string) map[string]string {
		labels := maps.Clone(all)
		for _, n := range names {
			delete(labels, n)
		}
		return labels
	}
	for _, test := range []struct {
		title  string
		name   string
		labels map[string]string
		want   workload.Workload
	}{
		{"all labels", "web", all, workload.Workload{Name: "web", App: "plain", Version: "r3", Service: "canon", Revision: "r1"}},
		{"of Kubernetes and of habit", "web", without(name, revision), workload.Workload{Name: "web", App: "plain", Version: "r3", Service: "kube", Revision: "r2"}},
		{"of habit", "web", without(name, revision, app, version), workload.Workload{Name: "web", App: "plain", Version: "r3", Service: "plain", Revision: "r3"}},
		{"of Istio", "web", without(app, version, "app", "version"), workload.Workload{Name: "web", App: "canon", Version: "r1", Service: "canon", Revision: "r1"}},
		{"no labels", "web", nil, workload.Workload{Name: "web", App: "unknown", Version: "unknown", Service: "web", Revision: "latest"}},
		{"no name", "", without(name, app), workload.Workload{Name: "plain", App: "plain", Version: "r3", Service: "plain", Revision: "r1"}},
		{"named by a label", "web", map[string]string{"service.istio.io/workload-name": "web-v2"}, workload.Workload{
			Name: "web-v2", App: "unknown", Version: "unknown", Service: "web-v2", Revision: "latest"}},
		{"nothing", "", nil, workload.Workload{Name: "unknown", Namespace: "unknown", App: "unknown", Version: "unknown", Service: "unknown", Revision: "latest"}},
	} {
		if test.want.Namespace == "" {
			test.want.Namespace = "shop"
		}
		test.want.Cluster = "east"
		if got := workload.Describe(test.name, "shop", "east", test.labels); got != test.want {
			t.Errorf("%s: %+v, want %+v", test.title, got, test.want)
		}
	}
}

func TestAccountOf(t *testing.T) {
	for id, want := range map[string]workload.Account{
		"spiffe://cluster.local/ns/shop/sa/web":      {Namespace: "shop", Name: "web"},
		"cluster.local/ns/shop/sa/web":               {Namespace: "shop", Name: "web"},
		"spiffe://cluster.local/ns/shop/sa/web/more": {Namespace: "shop", Name: "web/more"},
		"spiffe://cluster.local/ns//sa/web":          {},
		"spiffe://cluster.local/ns/shop":             {},
		"spiffe://cluster.local/shop/web":            {},
		"spiffe://cluster.local":                     {},
		"":                                           {},
	} {
		if got := workload.AccountOf(id); got != want {
			t.Errorf("AccountOf(%q) = %+v, want %+v", id, got, want)
		}
	}
}

func TestNamespaceOf(t *testing.T) {
	for host, want := range map[string]string{
		"web.shop.svc.cluster.local": "shop", "web.shop.svc": "shop", "web.shop.svc.a.b.c": "shop",
		"web.shop": "", "web": "", "": "", "web.shop.example.com": "", "web.shop.svcx": "", "www.example.com": "",
	} {
		if got := workload.NamespaceOf(host); got != want {
			t.Errorf("NamespaceOf(%q) = %q, want %q", host, got, want)
		}
	}
}

// A caller of which only its SPIFFE ID is known has its service account for a workload, since Kiali drops a namespace alone.
func TestByIdentity(t *testing.T) {
	want := workload.Workload{Name: "web", Namespace: "shop", App: "web", Version: "unknown", Service: "web", Revision: "latest", Cluster: "east"}
	if got := workload.ByIdentity("spiffe://cluster.local/ns/shop/sa/web", "east"); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	for _, id := range []string{"", "spiffe://cluster.local/web"} {
		if got, nobody := workload.ByIdentity(id, "east"), workload.Nobody("east"); got != nobody {
			t.Errorf("by %q: %+v, want nobody: %+v", id, got, nobody)
		}
	}
}

func TestByDiscovery(t *testing.T) {
	const id = "spiffe://cluster.local/ns/proved/sa/account"
	labels := map[string]string{"app": "web", "version": "v1"}
	of := func(name, namespace, app, version, revision string) workload.Workload {
		return workload.Workload{Name: name, Namespace: namespace, App: app, Version: version, Service: name, Revision: revision, Cluster: "east"}
	}
	for _, test := range []struct {
		title string
		e     discovery.Endpoint
		id    string
		want  workload.Workload
	}{
		{"labels", discovery.Endpoint{Labels: labels}, "", of("web", "shop", "web", "v1", "v1")},
		{"labels, and an identity", discovery.Endpoint{Labels: labels}, id, of("web", "proved", "web", "v1", "v1")},
		{"an identity", discovery.Endpoint{}, id, of("account", "proved", "account", "unknown", "latest")},
		{"an account", discovery.Endpoint{ServiceAccount: "web"}, "", of("web", "shop", "web", "unknown", "latest")},
		{"an account elsewhere", discovery.Endpoint{ServiceAccount: "other/web"}, "", of("web", "other", "web", "unknown", "latest")},
		{"an identity, whatever discovery says", discovery.Endpoint{ServiceAccount: "other/web"}, id, of("account", "proved", "account", "unknown", "latest")},
		{"an identity without an account", discovery.Endpoint{ServiceAccount: "web"}, "spiffe://cluster.local/x", of("web", "shop", "web", "unknown", "latest")},
		{"nothing", discovery.Endpoint{}, "", workload.Nobody("east")},
	} {
		if got := workload.ByDiscovery(&test.e, test.id, "shop", "east"); got != test.want {
			t.Errorf("%s: %+v, want %+v", test.title, got, test.want)
		}
	}
}

func TestBounded(t *testing.T) {
	for _, text := range []string{strings.Repeat("a", 5000), strings.Repeat("é", 5000), "\xff\xfe", "a\xffb", ""} {
		if got := workload.Bounded(text); len(got) > 253 || !utf8.ValidString(got) || got == "" && strings.Contains(text, "a") {
			t.Errorf("Bounded(%.20q) = %.20q of %d bytes", text, got, len(got))
		}
	}
	w := workload.Describe("\xff", strings.Repeat("n", 300), "", map[string]string{"app": "\xfe", "version": strings.Repeat("v", 300)})
	if w.Name != "unknown" || w.App != "unknown" || w.Namespace != "unknown" || len(w.Version) != 253 || w.Cluster != "unknown" {
		t.Errorf("%+v", w)
	}
}

// What is said wins over the environment, which wins over what is known anyway.
func TestFind(t *testing.T) {
	env := map[string]string{"ISTIO_META_WORKLOAD_NAME": "env", "ISTIO_META_CLUSTER_ID": "west", "ISTIO_META_MESH_ID": "mesh1"}
	for _, test := range []struct {
		title string
		o     workload.Options
		env   map[string]string
		want  workload.Own
	}{
		{"nothing but the host", workload.Options{Host: "pod-1"}, nil, workload.Own{
			Name: "pod-1", Namespace: "default", Cluster: "Kubernetes", Mesh: "unknown",
			Labels: map[string]string{"service.istio.io/canonical-name": "pod-1"}}},
		{"the trust domain", workload.Options{Host: "pod-1", TrustDomain: "example.org"}, nil, workload.Own{
			Name: "pod-1", Namespace: "default", Cluster: "Kubernetes", Mesh: "example.org",
			Labels: map[string]string{"service.istio.io/canonical-name": "pod-1"}}},
		{"the environment", workload.Options{Host: "pod-1", Namespace: "shop", TrustDomain: "example.org", Labels: map[string]string{"app": "web"}}, env, workload.Own{
			Name: "env", Namespace: "shop", Cluster: "west", Mesh: "mesh1",
			Labels: map[string]string{"service.istio.io/canonical-name": "web", "app": "web"}}},
		{"options", workload.Options{Host: "pod-1", Name: "said", Cluster: "east"}, env, workload.Own{
			Name: "said", Namespace: "default", Cluster: "east", Mesh: "mesh1",
			Labels: map[string]string{"service.istio.io/canonical-name": "said"}}},
		{"a label", workload.Options{Host: "pod-1", Name: "said", Labels: map[string]string{
			"service.istio.io/workload-name": "label", "version": "v1", "team": "red"}}, env, workload.Own{
			Name: "label", Namespace: "default", Cluster: "west", Mesh: "mesh1", Labels: map[string]string{
				"service.istio.io/canonical-name": "label", "service.istio.io/canonical-revision": "v1", "version": "v1",
				"service.istio.io/workload-name": "label"}}},
	} {
		got := workload.Find(test.o, func(name string) string { return test.env[name] })
		if got.Name != test.want.Name || got.Namespace != test.want.Namespace || got.Cluster != test.want.Cluster || got.Mesh != test.want.Mesh ||
			!maps.Equal(got.Labels, test.want.Labels) {
			t.Errorf("%s: %+v, want %+v", test.title, got, test.want)
		}
	}
	own := workload.Find(workload.Options{Name: "web", Labels: map[string]string{"version": "v1"}}, func(string) string { return "" })
	want := workload.Workload{Name: "web", Namespace: "default", App: "web", Version: "v1", Service: "web", Revision: "v1", Cluster: "Kubernetes"}
	if got := own.Workload(); got != want {
		t.Errorf("as peers see it: %+v, want %+v", got, want)
	}
}
