package kubernetes_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/discovery/kubernetes"
	"github.com/nosidecar/mesh/internal/kubernetes/kubetest"
)

const selects = "selector: {app: orders}, " + http80

// start returns a server with these objects, and a resolver of it.
func start(t *testing.T, objects ...string) (*kubetest.Server, *kubernetes.Resolver) {
	s := newServer()
	s.Apply(objects...)
	return s, &kubernetes.Resolver{Client: clientOf(t, s)}
}

func TestResolver_FollowsChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := start(t)
		l := listen(t, r, orders)
		l.want("the start", "unknown")
		s.Apply(sliceOf("a", "orders", "10.0.0.1"))
		l.want("a slice without Service", "unknown")
		s.Apply(serviceOf("orders", http80))
		l.want("the Service", "10.0.0.1 http:80>8080")
		s.Apply(sliceOf("b", "orders", "10.0.0.2"))
		l.want("a second slice", "10.0.0.1 http:80>8080; 10.0.0.2 http:80>8080")
		s.Apply(serviceOf("orders", "ports: [{name: http, port: 81}]"))
		l.want("another port", "10.0.0.1 http:81>8080; 10.0.0.2 http:81>8080")
		s.Apply(sliceOf("a", "users", "10.0.0.1"))
		l.want("a slice that moved to another service", "10.0.0.2 http:81>8080")
		s.Delete("EndpointSlice", "shop", "b")
		l.want("the last slice", "")
		s.Apply(sliceOf("b", "orders", "10.0.0.3"))
		s.Delete("Service", "shop", "orders")
		l.want("the end of the Service", "")
		before := l.number()
		s.Apply(sliceOf("b", "orders", "10.0.0.4"))
		l.want("a change of the slices that are left", "")
		s.Apply(serviceOf("orders", http80))
		l.want("the Service once more", "10.0.0.4 http:80>8080")
		if n := l.number() - before; n != 1 {
			t.Errorf("%d answers since the Service was deleted, want 1: the endpoints of the past are none", n)
		}
		if errs := l.errors(); len(errs) > 0 {
			t.Errorf("errors: %q", errs)
		}
	})
}

// What makes no difference is not told.
func TestResolver_TellsNothingTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := start(t, serviceOf("orders", selects), sliceOf("a", "orders", "10.0.0.1 "+ref("u1")), podOf("one", "u1", "app: orders", "a"))
		l := listen(t, r, orders)
		l.want("the start", "10.0.0.1 http:80>8080 shop/a [app:orders]")
		s.Apply(strings.Replace(serviceOf("orders", selects), "metadata: {", "metadata: {annotations: {a: b}, ", 1),
			strings.Replace(sliceOf("a", "orders", "10.0.0.1 "+ref("u1")), "metadata: {", "metadata: {annotations: {a: b}, ", 1),
			strings.Replace(podOf("one", "u1", "app: orders", "a"), "spec: {", "status: {phase: Running}, spec: {", 1))
		s.EndWatches()
		s.Expire()
		l.want("changes of other fields", "10.0.0.1 http:80>8080 shop/a [app:orders]")
		time.Sleep(time.Minute)
		if n := l.number(); n != 1 {
			t.Errorf("%d answers, want 1", n)
		}
	})
}

func TestResolver_Denied(t *testing.T) {
	for _, plural := range []string{"services", "endpointslices", "pods"} {
		t.Run(plural, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, r := start(t, serviceOf("orders", selects), sliceOf("a", "orders", "10.0.0.1 "+ref("u1")), podOf("one", "u1", "app: orders", "a"))
				r.DNS.Resolver = lookup{orders.Host + ".": nil}
				const want = "10.0.0.1 http:80>8080 shop/a [app:orders]"
				s.Deny(plural, "shop")
				l := listen(t, r, orders)
				l.want("a denial", "none")
				if errs := l.errors(); len(errs) != 1 || !strings.Contains(errs[0], "denied") || !strings.Contains(errs[0], plural) {
					t.Errorf("errors %q, want one that says that %s are denied", errs, plural)
				}
				s.Allow(plural, "shop")
				time.Sleep(10 * time.Minute)
				l.want("the rights", want)

				s.Deny(plural, "shop")
				s.EndWatches()
				time.Sleep(10 * time.Minute)
				l.want("the rights were taken", want)
				if errs := l.errors(); len(errs) != 2 || !strings.Contains(errs[1], "denied") {
					t.Errorf("errors %q, want two denials", errs)
				}
				answers := l.number()
				s.Allow(plural, "shop")
				time.Sleep(10 * time.Minute)
				l.want("the rights were given back", want)
				if l.number() == answers {
					t.Error("no answer ends the error")
				}
				s.Apply(sliceOf("a", "orders", "10.0.0.2 "+ref("u1")))
				l.want("a change", strings.Replace(want, "10.0.0.1", "10.0.0.2", 1))
			})
		})
	}
}

// lookup is a DNS in which only these names exist; those with nil answer with an address of their own.
type lookup map[string][]string

func (l lookup) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	addresses, ok := l[host]
	if !ok {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	found := []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	for i, a := range addresses {
		found = append(found[:i], netip.MustParseAddr(a))
	}
	return found, nil
}

func (lookup) LookupSRV(context.Context, string, string, string) (string, []*net.SRV, error) {
	return "", nil, errors.New("nobody asks for that")
}

// A call to example.com may be one to the service example of a namespace com, in which this process has no rights, as nobody has.
func TestResolver_DeniedWhatDoesNotExist(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := start(t)
		s.Deny("services", "com")
		r.DNS.Resolver = lookup{}
		r.Need = func(context.Context, string) { t.Error("a namespace that does not exist is needed") }
		l := listen(t, r, discovery.Service{Host: "example.com.svc.cluster.local", Name: "example", Namespace: "com"})
		l.want("the start", "unknown")
	})
}

func TestResolver_UnknownNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := start(t, serviceOf("orders", http80), sliceOf("a", "orders", "10.0.0.1"))
		for host, want := range map[string]string{
			"orders.shop.svc": "10.0.0.1 http:80>8080", "orders.shop.svc.cluster.local.": "10.0.0.1 http:80>8080", "Orders.Shop.SVC": "10.0.0.1 http:80>8080",
			"orders.shop": "unknown", "example.com": "unknown", "localhost": "unknown", "10.0.0.1": "unknown", "a.orders.shop.svc": "unknown",
			"..svc": "unknown", "a/b.shop.svc": "unknown", "users.shop.svc": "unknown", "": "unknown",
		} {
			l := listen(t, r, discovery.Service{Host: host})
			l.want("asking for "+host, want)
			l.Close()
		}
		for _, request := range s.Requests() {
			if strings.Contains(request, "com") || strings.Contains(request, "a/b") {
				t.Errorf("asked for %s", request)
			}
		}
	})
}

// The own namespace is that of the client.
func TestResolver_BareName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		s.Namespace = "shop"
		s.Apply(serviceOf("orders", http80), sliceOf("a", "orders", "10.0.0.1"))
		l := listen(t, &kubernetes.Resolver{Client: clientOf(t, s)}, discovery.Service{Host: "orders"})
		l.want("the start", "10.0.0.1 http:80>8080")
	})
}

// An endpoint whose pod is not known yet would get calls of other subsets, or plain text.
func TestResolver_EndpointsWaitForTheirPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := start(t, serviceOf("orders", selects), sliceOf("a", "orders", "10.0.0.1 "+ref("u1")), podOf("one", "u1", "app: orders, v: '1'", "a"))
		l := listen(t, r, orders)
		const one, two = "10.0.0.1 http:80>8080 shop/a [app:orders v:1]", "10.0.0.2 http:80>8080 shop/b [app:orders v:2]"
		l.want("the start", one)
		s.Apply(sliceOf("a", "orders", "10.0.0.1 "+ref("u1"), "10.0.0.2 "+ref("u2")))
		l.want("a slice that comes before its pod", one)
		s.Apply(podOf("two", "u2", "app: orders, v: '2'", "b"))
		l.want("the pod", one+"; "+two)
		s.Delete("Pod", "shop", "one")
		l.want("the end of a pod, of which its slice has yet to hear", one+"; "+two)
		s.Apply(sliceOf("a", "orders", "10.0.0.2 "+ref("u2")))
		l.want("the end of its endpoint", two)
		s.Apply(sliceOf("a", "orders", "10.0.0.1 "+ref("u1"), "10.0.0.2 "+ref("u2")))
		l.want("an endpoint whose pod is gone", two)

		s.Apply(serviceOf("orders", "selector: {app: others}, "+http80))
		l.want("another selector, before the slices follow", two)
		s.Apply(podOf("three", "u3", "app: others", "c"))
		s.Apply(sliceOf("a", "orders", "10.0.0.3 "+ref("u3")))
		l.want("other pods", "10.0.0.3 http:80>8080 shop/c [app:others]")
		s.Apply(serviceOf("orders", http80))
		l.want("no selector", "10.0.0.3 http:80>8080")
		s.Apply(serviceOf("orders", "selector: {app: others}, "+http80))
		l.want("the selector once more", "10.0.0.3 http:80>8080 shop/c [app:others]")
		for _, answer := range l.answers {
			if strings.Contains(answer, ">8080;") && answer != one+"; "+two {
				t.Errorf("an endpoint without its labels: %s", answer)
			}
		}
	})
}

// Pods are read only where they are needed, and then only those of the service.
func TestResolver_Pods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := start(t, serviceOf("orders", selects), sliceOf("a", "orders", "10.0.0.1 "+ref("u1")), podOf("one", "u1", "app: orders", "a"),
			serviceOf("users", "selector: {app: users, tier: back}, "+http80), sliceOf("b", "users", "10.0.0.2 "+ref("u2")), podOf("two", "u2", "app: users, tier: back", "b"))
		r.Pods = func(service discovery.Service) bool { return service.Name == "users" }
		l := listen(t, r, orders)
		l.want("the start", "10.0.0.1 http:80>8080")
		l = listen(t, r, discovery.Service{Host: "users.shop.svc.cluster.local", Name: "users", Namespace: "shop"})
		l.want("the start", "10.0.0.2 http:80>8080 shop/b [app:users tier:back]")
		var pods []string
		for _, request := range s.Requests() {
			if strings.Contains(request, "/pods") {
				pods = append(pods, request)
			}
		}
		if len(pods) != 1 || !strings.Contains(pods[0], "/namespaces/shop/pods?") || !strings.Contains(pods[0], "labelSelector=app%3Dusers%2Ctier%3Dback") {
			t.Errorf("pods were asked for by %q, want one request for those of users", pods)
		}
	})
}

// What is read grows with what is called: three requests for a service, one for a service that does not exist, and none for who joins.
func TestResolver_Requests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := start(t, serviceOf("orders", selects), sliceOf("a", "orders", "10.0.0.1"))
		for i := range 100 {
			s.Apply(serviceOf(fmt.Sprintf("other-%d", i), selects))
		}
		all := []*listener{listen(t, r, orders), listen(t, r, orders)}
		all[0].want("the start", "10.0.0.1 http:80>8080")
		all = append(all, listen(t, r, orders))
		all[2].want("the start", "10.0.0.1 http:80>8080")
		if got := s.Requests(); len(got) != 3 || s.Watches() != 3 {
			t.Errorf("%d watches, and requests %q, want 3", s.Watches(), got)
		}
		l := listen(t, r, discovery.Service{Host: "none.shop.svc"})
		l.want("the start", "unknown")
		all = append(all, l)
		if got := s.Requests(); len(got) != 4 || s.Watches() != 4 {
			t.Errorf("%d watches, and requests %q, want 4", s.Watches(), got)
		}
		for i, l := range all {
			l.Close()
			synctest.Wait()
			if i == 1 && s.Watches() != 4 {
				t.Errorf("%d watches while one listens, want 4", s.Watches())
			}
		}
		if n := s.Watches(); n != 0 {
			t.Errorf("%d watches are open when nobody listens", n)
		}
	})
}

// A server, or what is in front of it, may not know what was asked for. The endpoints of others are not taken for those of the service.
func TestResolver_SelectorsThatAreIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := start(t, serviceOf("orders", selects), sliceOf("a", "orders", "10.0.0.1 "+ref("u1")), podOf("one", "u1", "app: orders", "a"),
			serviceOf("users", "selector: {app: users}, "+http80), sliceOf("b", "users", "10.0.0.2 "+ref("u2")), podOf("two", "u2", "app: users", "b"))
		s.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
			q := r.URL.Query()
			q.Del("labelSelector")
			q.Del("fieldSelector")
			r.URL.RawQuery = q.Encode()
			return false
		})
		l := listen(t, r, orders)
		l.want("the start", "10.0.0.1 http:80>8080 shop/a [app:orders]")
		s.Apply(sliceOf("b", "users", "10.0.0.3 "+ref("u2")))
		l.want("a change of another service", "10.0.0.1 http:80>8080 shop/a [app:orders]")
	})
}

// Many services of a namespace are followed by one watch, and none of them loses an endpoint when that begins.
func TestResolver_ManyServices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := start(t)
		r.Pods = func(discovery.Service) bool { return false }
		name := func(i int) string { return fmt.Sprintf("s-%d", i) }
		const many = 60
		for i := range many + 10 {
			s.Apply(serviceOf(name(i), http80), sliceOf(name(i), name(i), fmt.Sprintf("10.0.0.%d", i)))
		}
		var all []*listener
		for i := range many {
			all = append(all, listen(t, r, discovery.Service{Host: name(i) + ".shop.svc"}))
			synctest.Wait()
			if i == 49 {
				time.Sleep(time.Second)
				if n := s.Watches(); n != 100 {
					t.Errorf("%d watches for 50 services, want 100", n)
				}
			}
		}
		for i, l := range all {
			l.want("the start of many", fmt.Sprintf("10.0.0.%d http:80>8080", i))
			if n := l.number(); n != 1 {
				t.Errorf("%s: %d answers, want 1", name(i), n)
			}
		}
		if n := s.Watches(); n != 2 {
			t.Errorf("%d watches for %d services, want 2", n, many)
		}
		late := listen(t, r, discovery.Service{Host: name(many) + ".shop.svc"})
		late.want("the start", fmt.Sprintf("10.0.0.%d http:80>8080", many))
		none := listen(t, r, discovery.Service{Host: "none.shop.svc"})
		none.want("the start", "unknown")
		asked := len(s.Requests())

		s.Apply(sliceOf(name(1), name(1), "10.0.1.1"), serviceOf(name(2), "ports: [{name: http, port: 81}]"), serviceOf("none", http80))
		s.Apply(sliceOf(name(3), name(4), "10.0.0.3"))
		s.Delete("Service", "shop", name(5))
		all[1].want("a change of a slice", "10.0.1.1 http:80>8080")
		all[2].want("a change of the Service", "10.0.0.2 http:81>8080")
		all[3].want("its slice went to another service", "")
		all[4].want("the slice of another service came", "10.0.0.3 http:80>8080; 10.0.0.4 http:80>8080")
		all[5].want("the end of the Service", "")
		all[6].want("changes of others", "10.0.0.6 http:80>8080")
		none.want("a new Service", "")
		if n := all[6].number(); n != 1 {
			t.Errorf("%d answers of a service that nothing happened to, want 1", n)
		}

		s.Deny("endpointslices", "shop")
		s.EndWatches()
		time.Sleep(5 * time.Minute)
		all[6].want("a denial", "10.0.0.6 http:80>8080")
		if errs := all[6].errors(); len(errs) != 1 || !strings.Contains(errs[0], "denied") {
			t.Errorf("errors %q, want a denial", errs)
		}
		s.Allow("endpointslices", "shop")
		time.Sleep(5 * time.Minute)
		if n := all[6].number(); n < 2 {
			t.Error("no answer ends the error")
		}
		if n := len(s.Requests()) - asked; n > 40 {
			t.Errorf("%d requests since, want few", n)
		}
		for _, l := range append(all, late, none) {
			l.Close()
		}
		synctest.Wait()
		if n := s.Watches(); n != 0 {
			t.Errorf("%d watches are open when nobody listens", n)
		}
	})
}

// A service that is an other name is looked up. It may become a service with endpoints, and the reverse.
func TestResolver_ExternalName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := start(t, serviceOf("orders", "type: ExternalName, externalName: orders.example.com"))
		names := lookup{"orders.example.com": {"192.0.2.7"}, "new.example.com": {"192.0.2.8"}}
		r.DNS.Resolver = names
		l := listen(t, r, orders)
		l.want("the start", "192.0.2.7")
		s.Apply(serviceOf("orders", "type: ExternalName, externalName: new.example.com"))
		l.want("another name", "192.0.2.8")
		s.Apply(serviceOf("orders", http80), sliceOf("a", "orders", "10.0.0.1"))
		l.want("another type", "10.0.0.1 http:80>8080")
		s.Apply(serviceOf("orders", "type: ExternalName, externalName: none.example.com"))
		l.want("a name that does not exist", "")
		if errs := l.errors(); len(errs) != 1 || !strings.Contains(errs[0], `externalName "none.example.com"`) {
			t.Errorf("errors %q, want one about the name", errs)
		}
		s.Apply(serviceOf("orders", "type: ExternalName, externalName: orders.example.com"))
		l.want("a name that does", "192.0.2.7")
		s.Delete("Service", "shop", "orders")
		l.want("the end of the Service", "")
	})
}

// Whatever calls need of a namespace is read before they get endpoints of it.
func TestResolver_Need(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := start(t, serviceOf("orders", http80), sliceOf("a", "orders", "10.0.0.1"), serviceOf("users", http80))
		release := make(chan struct{})
		var needed atomic.Int64
		var canceled atomic.Bool
		r.Need = func(ctx context.Context, namespace string) {
			if namespace != "shop" {
				t.Errorf("namespace %q is needed, want shop", namespace)
			}
			needed.Add(1)
			select {
			case <-release:
			case <-ctx.Done():
				canceled.Store(true)
			}
		}
		l, users := listen(t, r, orders), listen(t, r, discovery.Service{Host: "users.shop.svc"})
		listen(t, r, discovery.Service{Host: "none.shop.svc"}).want("the start", "unknown")
		l.want("the start", "none")
		users.want("the start", "none")
		close(release)
		l.want("what is needed was read", "10.0.0.1 http:80>8080")
		users.want("what is needed was read", "")
		s.Apply(sliceOf("a", "orders", "10.0.0.2"))
		l.want("a change", "10.0.0.2 http:80>8080")
		if n := needed.Load(); n != 1 {
			t.Errorf("needed %d times, want once", n)
		}
		if canceled.Load() {
			t.Error("canceled")
		}
	})
}

// Who stops listening does not wait for what is needed.
func TestResolver_NeedEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, r := start(t, serviceOf("orders", http80))
		r.Need = func(ctx context.Context, namespace string) { <-ctx.Done() }
		l := listen(t, r, orders)
		l.want("the start", "none")
		l.Close()
	})
}

// Through all that can happen to a watch, calls keep their endpoints, and miss no change.
func TestResolver_Gaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := start(t, serviceOf("orders", selects), sliceOf("a", "orders", "10.0.0.1 "+ref("u1")), podOf("one", "u1", "app: orders", "a"))
		l := listen(t, r, orders)
		l.want("the start", "10.0.0.1 http:80>8080 shop/a [app:orders]")
		for i, gap := range []func(){
			s.EndWatches,
			s.Expire,
			func() { s.Expire(); s.EndWatches() },
			func() {
				s.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
					kubetest.Fail(w, http.StatusTooManyRequests, "TooManyRequests", "later")
					return true
				})
				s.EndWatches()
			},
			func() {
				s.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
					fmt.Fprint(w, "<html>")
					return true
				})
				s.EndWatches()
			},
		} {
			gap()
			time.Sleep(time.Minute)
			s.Apply(sliceOf("a", "orders", fmt.Sprintf("10.0.1.%d %s", i, ref("u1"))))
			s.Intercept(nil)
			time.Sleep(5 * time.Minute)
			l.want(fmt.Sprintf("gap %d", i), fmt.Sprintf("10.0.1.%d http:80>8080 shop/a [app:orders]", i))
		}
		for _, answer := range l.answers {
			if answer == "" || answer == "unknown" {
				t.Errorf("endpoints were lost: %q", l.answers)
			}
		}
	})
}

// What cannot be read is told, and leaves what was there: whether a service is read alone, or with many others of its namespace.
func TestResolver_WhatCannotBeRead(t *testing.T) {
	for _, many := range []bool{false, true} {
		t.Run(map[bool]string{false: "alone", true: "with many others"}[many], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const broken = "ports: 7"
				s, r := start(t, serviceOf("orders", http80), sliceOf("a", "orders", "10.0.0.1"), sliceOf("b", "orders", "10.0.0.2"), serviceOf("late", broken))
				r.Pods = func(discovery.Service) bool { return false }
				told := func(l *listener, want ...string) {
					t.Helper()
					errs := l.errors()
					for i, text := range want {
						if i >= len(errs) || !strings.Contains(errs[i], text) {
							t.Fatalf("errors %q, want %q", errs, want)
						}
					}
					if len(errs) != len(want) {
						t.Errorf("errors %q, want %q", errs, want)
					}
				}
				var others []*listener
				for i := 0; many && i < 55; i++ {
					s.Apply(serviceOf(fmt.Sprintf("s-%d", i), http80))
					others = append(others, listen(t, r, discovery.Service{Host: fmt.Sprintf("s-%d.shop.svc", i)}))
				}
				l := listen(t, r, orders)
				l.want("the start", "10.0.0.1 http:80>8080; 10.0.0.2 http:80>8080")
				s.Apply(serviceOf("orders", broken))
				l.want("a Service that cannot be read", "10.0.0.1 http:80>8080; 10.0.0.2 http:80>8080")
				told(l, "Service shop/orders")
				s.Apply(sliceOf("a", "orders", "10.0.0.3"))
				l.want("a change", "10.0.0.3 http:80>8080; 10.0.0.2 http:80>8080")
				s.Apply(serviceOf("orders", "ports: [{name: http, port: 81}]"))
				l.want("a Service that can be read again", "10.0.0.3 http:81>8080; 10.0.0.2 http:81>8080")
				told(l, "Service shop/orders")

				s.Apply(rawSlice("a", "orders", "addressType: IPv4, ports: 7", "10.0.0.4"))
				l.want("a slice that cannot be read", "10.0.0.3 http:81>8080; 10.0.0.2 http:81>8080")
				told(l, "Service shop/orders", "EndpointSlice shop/a")
				s.Apply(sliceOf("b", "orders", "10.0.0.5"))
				l.want("a change of another", "10.0.0.3 http:81>8080; 10.0.0.5 http:81>8080")
				answers := l.number()
				s.Apply(sliceOf("a", "orders", "10.0.0.3"))
				l.want("the slice as it was", "10.0.0.3 http:81>8080; 10.0.0.5 http:81>8080")
				if l.number() != answers+1 {
					t.Error("no answer ends the error")
				}
				s.Apply(rawSlice("c", "orders", "addressType: IPv4, ports: 7", "10.0.0.6"))
				l.want("a new slice that cannot be read", "10.0.0.3 http:81>8080; 10.0.0.5 http:81>8080")
				s.Delete("EndpointSlice", "shop", "c")
				l.want("its end", "10.0.0.3 http:81>8080; 10.0.0.5 http:81>8080")
				told(l, "Service shop/orders", "EndpointSlice shop/a", "EndpointSlice shop/c")

				late := listen(t, r, discovery.Service{Host: "late.shop.svc"})
				late.want("a Service that cannot be read from the start", "none")
				told(late, "Service shop/late")
				s.Delete("Service", "shop", "late")
				late.want("its end", "unknown")
				s.Apply(serviceOf("late", broken))
				late.want("another that cannot be read", "unknown")
				s.Apply(serviceOf("late", http80))
				late.want("one that can", "")
				for _, l := range others {
					if errs := l.errors(); len(errs) > 0 {
						t.Fatalf("errors %q of a service that nothing happened to", errs)
					}
				}
			})
		})
	}
}

// What could not be read when the whole namespace is read holds from before.
func TestResolver_WhatCannotBeReadWhenManyAreCalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := start(t, serviceOf("orders", http80), sliceOf("a", "orders", "10.0.0.1"), sliceOf("b", "orders", "10.0.0.2"))
		r.Pods = func(discovery.Service) bool { return false }
		l := listen(t, r, orders)
		l.want("the start", "10.0.0.1 http:80>8080; 10.0.0.2 http:80>8080")
		s.Apply(serviceOf("orders", "ports: 7"), rawSlice("a", "orders", "addressType: IPv4, ports: 7", "10.0.0.4"))
		l.want("what cannot be read", "10.0.0.1 http:80>8080; 10.0.0.2 http:80>8080")
		for i := range 55 {
			s.Apply(serviceOf(fmt.Sprintf("s-%d", i), http80))
			listen(t, r, discovery.Service{Host: fmt.Sprintf("s-%d.shop.svc", i)})
		}
		l.want("many more", "10.0.0.1 http:80>8080; 10.0.0.2 http:80>8080")
		if n := s.Watches(); n != 2 {
			t.Errorf("%d watches, want 2", n)
		}
		s.Apply(sliceOf("b", "orders", "10.0.0.5"))
		l.want("a change of the other slice", "10.0.0.1 http:80>8080; 10.0.0.5 http:80>8080")
		s.Delete("EndpointSlice", "shop", "a")
		l.want("the end of what cannot be read", "10.0.0.5 http:80>8080")
		s.Delete("Service", "shop", "orders")
		l.want("the end of the Service", "")
	})
}

// A slice that could never be read is reported. If it does not even say which service it is of, every service that is called is told.
func TestResolver_SliceThatCouldNeverBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := start(t)
		r.Pods = func(discovery.Service) bool { return false }
		var all []*listener
		for i := range 55 {
			name := fmt.Sprintf("s-%d", i)
			s.Apply(serviceOf(name, http80), sliceOf(name, name, "10.0.0.1"))
			all = append(all, listen(t, r, discovery.Service{Host: name + ".shop.svc"}))
		}
		all[0].want("the start", "10.0.0.1 http:80>8080")
		told := func(l *listener, want ...string) {
			t.Helper()
			time.Sleep(time.Second)
			errs := l.errors()
			if len(errs) != len(want) {
				t.Fatalf("errors %q, want %q", errs, want)
			}
			for i, text := range want {
				if !strings.Contains(errs[i], text) {
					t.Errorf("error %q, want %q", errs[i], text)
				}
			}
		}
		s.Apply(rawSlice("x", "7", "addressType: IPv4", "10.0.0.2"))
		for _, l := range all {
			told(l, "EndpointSlice shop/x: ")
			l.want("what cannot be read", "10.0.0.1 http:80>8080")
		}
		answers := all[0].number()
		s.Delete("EndpointSlice", "shop", "x")
		all[0].want("its end", "10.0.0.1 http:80>8080")
		if all[0].number() != answers+1 {
			t.Error("no answer ends the error")
		}
		s.Apply(rawSlice("y", "s-1", "addressType: 7", "10.0.0.2"))
		told(all[0], "EndpointSlice shop/x: ")
		told(all[1], "EndpointSlice shop/x: ", "EndpointSlice shop/y: ")
		s.Apply(serviceOf("s-1", "ports: 7"))
		told(all[1], "EndpointSlice shop/x: ", "EndpointSlice shop/y: ", "Service shop/s-1: ")
		if text := all[1].errors()[2]; !strings.Contains(text, "EndpointSlice shop/y: ") {
			t.Errorf("error %q does not name the slice, too", text)
		}
	})
}

func TestResolver_TellsOfAddressesThatAreNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := start(t, serviceOf("orders", http80), sliceOf("a", "orders", "10.01.0.1", "10.0.0.2"))
		l := listen(t, r, orders)
		l.want("the start", "10.0.0.2 http:80>8080")
		s.Apply(sliceOf("b", "orders", "10.0.0.3"))
		l.want("another", "10.0.0.2 http:80>8080; 10.0.0.3 http:80>8080")
		if errs := l.errors(); len(errs) != 1 || !strings.Contains(errs[0], `"10.01.0.1"`) || !strings.Contains(errs[0], "shop/orders") {
			t.Errorf("errors %q, want one about the address", errs)
		}
	})
}

// Many come and go while everything changes. There is nothing left, and the last to come has the last state.
func TestResolver_ComeAndGo(t *testing.T) {
	s := newServer()
	r := &kubernetes.Resolver{Client: (*kubernetes.Client)(s.Start(t)), Need: func(context.Context, string) {}, Pods: func(discovery.Service) bool { return true }}
	const services = 55
	name := func(i int) string { return fmt.Sprintf("s-%d", i%services) }
	for i := range services {
		s.Apply(serviceOf(name(i), selects), sliceOf(name(i), name(i), "10.0.0.1"))
	}
	var running sync.WaitGroup
	for i := range 2 * services {
		running.Go(func() {
			for round := range 3 {
				ctx, cancel := context.WithCancel(t.Context())
				for range r.Watch(ctx, discovery.Service{Host: name(i) + ".shop.svc"}) {
					if round == i%2 {
						break
					}
					cancel()
				}
				cancel()
			}
		})
	}
	for i := range 200 {
		s.Apply(sliceOf(name(i), name(i), fmt.Sprintf("10.0.1.%d", i)))
	}
	running.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	got := "none"
	for endpoints, err := range r.Watch(ctx, discovery.Service{Host: name(199) + ".shop.svc"}) {
		if err != nil {
			t.Error(err)
		}
		if got = text(endpoints); got == "10.0.1.199 http:80>8080" {
			return
		}
	}
	t.Errorf("%s, want 10.0.1.199", got)
}
