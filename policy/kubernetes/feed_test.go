package kubernetes_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
	discovery "github.com/nosidecar/mesh/discovery/kubernetes"
	kube "github.com/nosidecar/mesh/internal/kubernetes"
	"github.com/nosidecar/mesh/internal/kubernetes/kubetest"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/kubernetes"
)

var (
	routes   = kube.Resource{Group: "networking.istio.io", Version: "v1", Plural: "virtualservices", Kind: "VirtualService"}
	policies = kube.Resource{Group: "security.istio.io", Version: "v1", Plural: "authorizationpolicies", Kind: "AuthorizationPolicy"}
	services = kube.Resource{Version: "v1", Plural: "services", Kind: "Service"}
	httpOf   = kube.Resource{Group: "policy.linkerd.io", Version: "v1beta3", Plural: "httproutes", Kind: "HTTPRoute"}
)

// noted is what a feed yields: names of sources, or "error: " and its text.
type noted struct {
	mu   sync.Mutex
	list []string
	last []policy.Source
}

// watch follows a feed until the returned function is called.
func watch(t *testing.T, feed *kubernetes.Feed) (n *noted, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	n = &noted{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for sources, err := range feed.Watch(ctx) {
			n.mu.Lock()
			if err != nil {
				n.list = append(n.list, "error: "+err.Error())
			} else {
				var names []string
				for _, s := range sources {
					names = append(names, s.Name)
				}
				n.list, n.last = append(n.list, strings.Join(names, " ")), sources
			}
			n.mu.Unlock()
		}
	}()
	return n, func() {
		cancel()
		<-done
	}
}

// want waits, and compares what was yielded since the last time. Errors are compared by what they say, among other things.
func (n *noted) want(t *testing.T, wait time.Duration, want ...string) {
	t.Helper()
	time.Sleep(wait)
	synctest.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	if !slices.EqualFunc(n.list, want, func(got, want string) bool {
		text, is := strings.CutPrefix(want, "error: ")
		return got == want || is && strings.HasPrefix(got, "error: ") && strings.Contains(got, text)
	}) {
		t.Errorf("the feed yielded %q, want %q", n.list, want)
	}
	n.list = nil
}

// forget drops what was yielded that begins with a prefix.
func (n *noted) forget(prefix string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = slices.DeleteFunc(n.list, func(s string) bool { return strings.HasPrefix(s, prefix) })
}

func TestFeed_YieldsDocumentsFromOldToNew(t *testing.T) {
	t.Run("events", func(t *testing.T) { yieldsDocumentsFromOldToNew(t, false) })
	// Whose items do not say what they are, in the core group.
	t.Run("lists", func(t *testing.T) { yieldsDocumentsFromOldToNew(t, true) })
}

func yieldsDocumentsFromOldToNew(t *testing.T, lists bool) {
	synctest.Test(t, func(t *testing.T) {
		server := kubetest.New(routes, policies, services, httpOf)
		server.NoWatchList = lists
		server.Namespace = "shop"
		server.Apply(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a, namespace: shop, creationTimestamp: "2026-01-02T00:00:00Z", generation: 3, uid: one, resourceVersion: "5", managedFields: [{manager: kubectl}],
  annotations: {team: x}, ownerReferences: [{kind: Deployment}]}
spec: {hosts: [a], http: [{route: [{destination: {host: a}, weight: 100}]}]}
status: {observedGeneration: 3}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: z, namespace: shop, creationTimestamp: "2026-01-01T00:00:00Z"}
spec: {hosts: [z], http: [{route: [{destination: {host: z}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: b, namespace: istio-system, creationTimestamp: "2026-01-02T00:00:00Z"}
spec: {}
---
apiVersion: v1
kind: Service
metadata: {name: a, namespace: shop, creationTimestamp: "2026-01-03T00:00:00Z", labels: {app: a},
  annotations: {team: x, retry.linkerd.io/http: 5xx, balancer.linkerd.io/failure-accrual: consecutive}}
spec: {clusterIP: 10.0.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: policy.linkerd.io/v1beta3
kind: HTTPRoute
metadata: {name: c, namespace: shop, creationTimestamp: "2026-01-04T00:00:00Z"}
spec: {}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: elsewhere, namespace: other, creationTimestamp: "2026-01-02T00:00:00Z"}
spec: {hosts: [z]}
`)
		n, stop := watch(t, &kubernetes.Feed{Client: (*discovery.Client)(server.Memory(t))})
		defer stop()
		const all = "shop/VirtualService/z istio-system/AuthorizationPolicy/b shop/VirtualService/a shop/Service/a shop/HTTPRoute.policy.linkerd.io/c"
		n.want(t, time.Minute, all)
		texts := map[string]string{}
		for _, s := range n.last {
			texts[s.Name] = string(s.Data)
			if !s.Alone {
				t.Errorf("%s does not stand alone", s.Name)
			}
		}
		const route = `{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"annotations":{"team":"x"},"creationTimestamp":"2026-01-02T00:00:00Z","generation":3,"name":"a","namespace":"shop","uid":"one"},"spec":{"hosts":["a"],"http":[{"route":[{"destination":{"host":"a"},"weight":100}]}]}}`
		if got := texts["shop/VirtualService/a"]; got != route {
			t.Errorf("a document is\n%s\nwant\n%s", got, route)
		}
		if got := texts["shop/Service/a"]; strings.Contains(got, "clusterIP") || strings.Contains(got, "labels") || !strings.Contains(got, `"ports":[{"name":"http","port":80}]`) ||
			!strings.Contains(got, `"annotations":{"balancer.linkerd.io/failure-accrual":"consecutive","retry.linkerd.io/http":"5xx"}`) ||
			!strings.Contains(got, `"kind":"Service"`) || !strings.Contains(got, `"apiVersion":"v1"`) {
			t.Errorf("a Service is %s, want its ports and the annotations of Linkerd only", got)
		}
		// What an API server keeps for itself changes nothing; what the document says does.
		server.Apply(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a, namespace: shop, creationTimestamp: "2026-01-02T00:00:00Z", generation: 3, uid: one, managedFields: [{manager: other}], annotations: {team: x}}
spec: {hosts: [a], http: [{route: [{destination: {host: a}, weight: 100}]}]}
status: {observedGeneration: 4}
`)
		n.want(t, time.Minute)
		server.Delete("Service", "shop", "a")
		n.want(t, time.Second, strings.Replace(all, " shop/Service/a", "", 1))
	})
}

func TestFeed_KindsThatComeAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := kubetest.New(services, policies)
		server.Namespace = "shop"
		client := server.Memory(t)
		n, stop := watch(t, &kubernetes.Feed{Client: (*discovery.Client)(client)})
		defer stop()
		n.want(t, time.Minute, "")
		server.Install(routes)
		server.Apply("{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: a, namespace: shop}, spec: {hosts: [a]}}")
		n.want(t, 2*time.Minute, "shop/VirtualService/a")
		server.Reestablish(routes) // somebody edited its definition
		n.want(t, time.Minute)
		server.Expire()
		server.EndWatches()
		n.want(t, time.Minute)
		server.Apply("{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: b, namespace: shop}, spec: {hosts: [b]}}")
		n.want(t, 2*time.Minute, "shop/VirtualService/a shop/VirtualService/b")
		// The version that was read is served no more: another one is, and soon.
		older := routes
		older.Version = "v1beta1"
		server.Install(older)
		server.Uninstall(routes)
		time.Sleep(10 * time.Second)
		n.forget("error: ") // if it takes a moment, it is told
		n.want(t, 0, "shop/VirtualService/a shop/VirtualService/b")
		if text := string(n.last[0].Data); !strings.Contains(text, "networking.istio.io/v1beta1") {
			t.Errorf("the document is %s, want it in the version that is served", text)
		}
	})
}

func TestFeed_WhatMayNotBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := kubetest.New(services, routes, policies)
		server.Namespace = "shop"
		server.Deny("virtualservices", "istio-system")
		client := (*discovery.Client)(server.Memory(t))
		n, stop := watch(t, &kubernetes.Feed{Client: client})
		n.want(t, time.Minute, "", "error: cannot read VirtualService in istio-system: denied")
		stop()
		server.Deny("authorizationpolicies", "shop")
		n, stop = watch(t, &kubernetes.Feed{Client: client})
		defer stop()
		n.want(t, time.Minute, "error: cannot read AuthorizationPolicy in shop: denied", "error: what protects somebody must be readable")
		server.Allow("authorizationpolicies", "shop")
		server.Apply("{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: a, namespace: shop}, spec: {}}")
		n.want(t, 10*time.Minute, "shop/AuthorizationPolicy/a", "error: VirtualService in istio-system")
		// Taken away later: what was read stays.
		server.Deny("authorizationpolicies", "")
		server.EndWatches()
		n.want(t, 10*time.Minute, "error: AuthorizationPolicy in istio-system, AuthorizationPolicy in shop")
		server.Allow("authorizationpolicies", "")
		server.Allow("virtualservices", "istio-system")
		n.want(t, time.Hour, "shop/AuthorizationPolicy/a")
	})
}

func TestFeed_FollowsNamespacesThatCallsNeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := kubetest.New(services, routes, policies)
		server.Namespace = "shop"
		for _, namespace := range []string{"billing", "shared"} {
			server.Apply("{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: a, namespace: "+namespace+"}, spec: {hosts: [a]}}",
				"{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: a, namespace: "+namespace+"}, spec: {}}")
		}
		feed := &kubernetes.Feed{Client: (*discovery.Client)(server.Memory(t)), Namespaces: []string{"shared"}}
		feed.Need(t.Context(), "nobody") // nobody watches: there is nothing to wait for
		n, stop := watch(t, feed)
		defer stop()
		n.want(t, time.Minute, "shared/VirtualService/a")
		before := time.Now()
		feed.Need(t.Context(), "billing")
		n.want(t, 0, "billing/VirtualService/a shared/VirtualService/a")
		if waited := time.Since(before); waited > time.Second {
			t.Errorf("Need waited for %v", waited)
		}
		for _, request := range server.Requests() {
			if strings.Contains(request, "/billing/authorizationpolicies") {
				t.Errorf("who may call others is asked for: %s", request)
			}
		}
	})
}

// Services of the root namespace, such as those of collectors of telemetry, are followed from the first call to one of them. The call waits for
// them, and the other documents of the namespace stay in force meanwhile.
func TestFeed_FollowsServicesOfTheRootNamespaceForCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := kubetest.New(services, policies)
		server.Namespace = "shop"
		server.Apply("{apiVersion: v1, kind: Service, metadata: {name: collector, namespace: istio-system}, spec: {ports: [{port: 4317, name: grpc}]}}",
			"{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: a, namespace: istio-system}, spec: {}}")
		feed := &kubernetes.Feed{Client: (*discovery.Client)(server.Memory(t))}
		n, stop := watch(t, feed)
		defer stop()
		n.want(t, time.Minute, "istio-system/AuthorizationPolicy/a")
		for _, request := range server.Requests() {
			if strings.Contains(request, "/istio-system/services") {
				t.Errorf("Services that are not called are asked for: %s", request)
			}
		}
		before := time.Now()
		feed.Need(t.Context(), "istio-system")
		n.want(t, 0, "istio-system/AuthorizationPolicy/a istio-system/Service/collector")
		if waited := time.Since(before); waited > time.Second {
			t.Errorf("Need waited for %v", waited)
		}
		before = time.Now()
		feed.Need(t.Context(), "istio-system")
		if waited := time.Since(before); waited > 0 {
			t.Errorf("Need waited once more, for %v", waited)
		}
	})
}

// A feed reads what the documents of its mesh are compiled for.
func TestFeed_NamespacesOfTheMesh(t *testing.T) {
	server := kubetest.New(routes, policies, services)
	server.Namespace = "shop"
	for _, namespace := range []string{"istio-system", "mesh-config"} {
		server.Apply("{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: closed, namespace: " + namespace +
			"}, spec: {action: DENY, rules: [{to: [{operation: {paths: [/" + namespace + "]}}]}]}}")
	}
	client := (*discovery.Client)(server.Start(t))
	for _, test := range []struct {
		feed     *kubernetes.Feed
		workload policy.Workload
		denied   string // the path that is
		err      string // of New
	}{
		{workload: policy.Workload{Namespace: "shop"}, denied: "/istio-system"},
		{workload: policy.Workload{Namespace: "shop", RootNamespace: "mesh-config"}, denied: "/mesh-config"},
		{workload: policy.Workload{Namespace: "other"}, err: "the namespace shop are followed, and the workload is in other"},
		{workload: policy.Workload{}, err: "the namespace shop are followed, and the workload is in default"},
		{feed: &kubernetes.Feed{Namespace: "other"}, workload: policy.Workload{Namespace: "other"}, denied: "/istio-system"},
		{feed: &kubernetes.Feed{Namespace: "other"}, workload: policy.Workload{Namespace: "shop"}, err: "the workload is in shop"},
		{workload: policy.Workload{Namespace: "shop", RootNamespace: "../shop"}, err: `"../shop" is not the name of a namespace`},
		{feed: &kubernetes.Feed{Namespaces: []string{""}}, workload: policy.Workload{Namespace: "shop"}, err: `"" is not the name of a namespace`},
		{feed: &kubernetes.Feed{Namespaces: []string{"a/b"}}, workload: policy.Workload{Namespace: "shop"}, err: `"a/b" is not the name of a namespace`},
	} {
		feed := test.feed
		if feed == nil {
			feed = new(kubernetes.Feed)
		}
		feed.Client = client
		m, err := mesh.New(t.Context(), mesh.WithPolicyFeed(feed), mesh.WithEmptyPolicy(), mesh.WithWorkload(test.workload))
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("New with %+v: %v, want %q", test.workload, err, test.err)
			}
			if err == nil {
				m.Close()
			}
			continue
		}
		if err != nil {
			t.Errorf("New with %+v: %v", test.workload, err)
			continue
		}
		for _, path := range []string{"/istio-system", "/mesh-config"} {
			w := httptest.NewRecorder()
			m.Handler(http.NotFoundHandler()).ServeHTTP(w, httptest.NewRequest("GET", path, nil))
			if denied := w.Code == http.StatusForbidden; denied != (path == test.denied) {
				t.Errorf("with %+v, %s is answered with %d", test.workload, path, w.Code)
			}
		}
		m.Close()
	}
}
