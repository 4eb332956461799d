package consul_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/discovery/consul"
)

// web is the service web of the namespace default.
var web = discovery.Service{Host: "web.default.svc.cluster.local", Name: "web", Namespace: "default", Local: true}

// follower writes down what a watch yields.
type follower struct {
	mu   sync.Mutex
	list []string
	sets [][]discovery.Endpoint
}

// follow starts a watch that ends with the test, or when stop is called, which waits for it.
func follow(t *testing.T, r discovery.Resolver, service discovery.Service) (f *follower, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	f = &follower{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for endpoints, err := range r.Watch(ctx, service) {
			f.add(endpoints, err)
		}
	}()
	return f, func() {
		cancel()
		<-done
	}
}

func (f *follower) add(endpoints []discovery.Endpoint, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case errors.Is(err, discovery.ErrUnknownService):
		f.list = append(f.list, "unknown")
	case err != nil && strings.Contains(err.Error(), "denied"):
		f.list = append(f.list, "denied")
	case err != nil:
		f.list = append(f.list, "error")
	default:
		var ids []string
		for _, e := range endpoints {
			id := e.ID()
			if e.Draining {
				id += " drains"
			}
			ids = append(ids, id)
		}
		slices.Sort(ids)
		f.list = append(f.list, strings.Join(ids, ", "))
		f.sets = append(f.sets, endpoints)
	}
}

// want compares what was yielded since the last call.
func (f *follower) want(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.Equal(f.list, want) {
		t.Errorf("yielded %q, want %q", f.list, want)
	}
	f.list = nil
}

func newResolver(t *testing.T, f *fake, config consul.Config) *consul.Resolver {
	t.Helper()
	r, err := consul.New(f.Client(t), config)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// pass lets the watches read as often as they want to.
func pass() {
	time.Sleep(2 * time.Second)
	synctest.Wait()
}

func TestEndpoint(t *testing.T) {
	for _, test := range []struct {
		name    string
		entry   *api.ServiceEntry
		connect bool
		want    *discovery.Endpoint // without Record; nil means none
	}{
		{"address of the node", instance("a", 80), false, &discovery.Endpoint{Address: "10.0.0.1", Port: 80, Weight: 1}},
		{
			"address of the service",
			instance("a", 80, func(e *api.ServiceEntry) { e.Service.Address = "10.9.9.9" }), false,
			&discovery.Endpoint{Address: "10.9.9.9", Port: 80, Weight: 1},
		},
		{
			"several ports",
			instance("a", 0, func(e *api.ServiceEntry) {
				e.Service.Ports = api.ServicePorts{{Name: "admin", Port: 9090}, {Name: "http", Port: 8080, Default: true}}
			}), false,
			&discovery.Endpoint{Address: "10.0.0.1", Port: 8080, Weight: 1, Ports: []discovery.Port{{Name: "http", Number: 8080}, {Name: "admin", Number: 9090}}},
		},
		{
			"metadata and tags",
			instance("a", 80, func(e *api.ServiceEntry) {
				e.Service.Meta = map[string]string{"version": "v2", "track": "stable"}
				e.Service.Tags = []string{"version=v1", "canary", "rule=Host=x"}
			}), false,
			&discovery.Endpoint{Address: "10.0.0.1", Port: 80, Weight: 1,
				Labels: map[string]string{"version": "v2", "track": "stable", "canary": "", "rule": "Host=x"}},
		},
		{
			"weight", instance("a", 80, func(e *api.ServiceEntry) { e.Service.Weights = api.AgentWeights{Passing: 7, Warning: 2} }), false,
			&discovery.Endpoint{Address: "10.0.0.1", Port: 80, Weight: 7},
		},
		{
			"weight of a warning",
			instance("a", 80, check("", api.HealthWarning), func(e *api.ServiceEntry) { e.Service.Weights = api.AgentWeights{Passing: 7, Warning: 2} }), false,
			&discovery.Endpoint{Address: "10.0.0.1", Port: 80, Weight: 2},
		},
		{
			"a warning without a weight of its own takes no calls",
			instance("a", 80, check("", api.HealthWarning), func(e *api.ServiceEntry) { e.Service.Weights = api.AgentWeights{Passing: 7} }), false,
			&discovery.Endpoint{Address: "10.0.0.1", Port: 80, Draining: true},
		},
		{
			"weights that are not told", instance("a", 80, func(e *api.ServiceEntry) { e.Service.Weights = api.AgentWeights{} }), false,
			&discovery.Endpoint{Address: "10.0.0.1", Port: 80, Weight: 1},
		},
		{
			"more weight than Envoy takes", instance("a", 80, func(e *api.ServiceEntry) { e.Service.Weights.Passing = 1000 }), false,
			&discovery.Endpoint{Address: "10.0.0.1", Port: 80, Weight: 128},
		},
		{"critical check of the service", instance("a", 80, check("", api.HealthCritical)), false, nil},
		{"critical node", instance("a", 80, func(e *api.ServiceEntry) { e.Checks[0].Status = api.HealthCritical }), false, nil},
		{"check in a state of the future", instance("a", 80, check("", "unheard")), false, nil},
		{
			"maintenance of the service", instance("a", 80, check("_service_maintenance:a", api.HealthCritical)), false,
			&discovery.Endpoint{Address: "10.0.0.1", Port: 80, Weight: 1, Draining: true},
		},
		{
			"maintenance of the node", instance("a", 80, check("_node_maintenance", api.HealthCritical)), false,
			&discovery.Endpoint{Address: "10.0.0.1", Port: 80, Weight: 1, Draining: true},
		},
		{
			"maintenance and a critical check",
			instance("a", 80, check("_node_maintenance", api.HealthCritical), check("", api.HealthCritical)), false, nil,
		},
		{
			"locality of the service",
			instance("a", 80, func(e *api.ServiceEntry) {
				e.Service.Locality = &api.Locality{Region: "eu", Zone: "eu-1"}
				e.Node.Locality = &api.Locality{Region: "us"}
			}), false,
			&discovery.Endpoint{Address: "10.0.0.1", Port: 80, Weight: 1, Locality: discovery.Locality{Region: "eu", Zone: "eu-1"}},
		},
		{
			"locality of the node",
			instance("a", 80, func(e *api.ServiceEntry) {
				e.Node.Locality = &api.Locality{Region: "us", Zone: "us-2"}
				e.Node.Meta = map[string]string{"region": "eu"}
			}), false,
			&discovery.Endpoint{Address: "10.0.0.1", Port: 80, Weight: 1, Locality: discovery.Locality{Region: "us", Zone: "us-2"}},
		},
		{
			"locality in the metadata of the node",
			instance("a", 80, func(e *api.ServiceEntry) {
				e.Node.Meta = map[string]string{"region": "eu", "zone": "eu-1", "subzone": "rack7"}
			}), false,
			&discovery.Endpoint{Address: "10.0.0.1", Port: 80, Weight: 1, Locality: discovery.Locality{Region: "eu", Zone: "eu-1", SubZone: "rack7"}},
		},
		{
			"a native service of Connect, in its own case",
			instance("a", 80, func(e *api.ServiceEntry) {
				e.Service.Service, e.Service.Connect = "Web", &api.AgentServiceConnect{Native: true}
			}), true,
			&discovery.Endpoint{Address: "10.0.0.1", Port: 80, Weight: 1, ServiceAccount: "Web", Labels: map[string]string{"security.istio.io/tlsMode": "istio"}},
		},
		{
			"a sidecar",
			instance("a", 20000, func(e *api.ServiceEntry) {
				e.Service.Kind, e.Service.Service = api.ServiceKindConnectProxy, "web-sidecar-proxy"
				e.Service.Proxy = &api.AgentServiceConnectProxyConfig{DestinationServiceName: "web"}
			}), true,
			&discovery.Endpoint{Address: "10.0.0.1", Port: 20000, Weight: 1, ServiceAccount: "web", Labels: map[string]string{"security.istio.io/tlsMode": "istio"}},
		},
		{
			"a sidecar whose metadata asks for plain text",
			instance("a", 20000, func(e *api.ServiceEntry) {
				e.Service.Kind, e.Service.Proxy = api.ServiceKindConnectProxy, &api.AgentServiceConnectProxyConfig{DestinationServiceName: "web"}
				e.Service.Meta = map[string]string{"security.istio.io/tlsMode": "disabled"}
			}), true,
			&discovery.Endpoint{Address: "10.0.0.1", Port: 20000, Weight: 1, ServiceAccount: "web", Labels: map[string]string{"security.istio.io/tlsMode": "istio"}},
		},
		{"a service on a unix socket", instance("a", 0, func(e *api.ServiceEntry) { e.Service.SocketPath = "/run/web.sock" }), false, nil},
		{"no address", instance("a", 80, func(e *api.ServiceEntry) { e.Node.Address = "" }), false, nil},
		{"a port that there is not", instance("a", 65536, func(*api.ServiceEntry) {}), false, nil},
		{"a port below 0", instance("a", -80, func(*api.ServiceEntry) {}), false, nil},
		{
			"a port of several that there is not",
			instance("a", 0, func(e *api.ServiceEntry) {
				e.Service.Ports = api.ServicePorts{{Name: "http", Port: 8080, Default: true}, {Name: "admin", Port: 90900}}
			}), false, nil,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				name := "web"
				if test.connect {
					name = "connect/web"
				}
				f.set(name, test.entry)
				w, stop := follow(t, newResolver(t, f, consul.Config{Connect: test.connect}), web)
				defer stop()
				synctest.Wait()
				if len(w.sets) != 1 {
					t.Fatalf("yielded %q, want one set", w.list)
				}
				got := w.sets[0]
				if test.want == nil {
					if len(got) != 0 {
						t.Errorf("endpoints %+v, want none", got)
					}
					return
				}
				if len(got) != 1 {
					t.Fatalf("endpoints %+v, want one", got)
				}
				if record, ok := got[0].Record.(*api.ServiceEntry); !ok || record.Service.ID != "a" {
					t.Errorf("the record is %+v, want the entry", got[0].Record)
				}
				got[0].Record = nil
				if !reflect.DeepEqual(got[0], *test.want) {
					t.Errorf("endpoint %+v, want %+v", got[0], *test.want)
				}
			})
		})
	}
}

func TestNames(t *testing.T) {
	for _, test := range []struct {
		service discovery.Service
		want    string // what is read; "" means nothing
	}{
		{web, "web"},
		{discovery.Service{Host: "web.shop.svc.cluster.local", Name: "web", Namespace: "shop"}, ""},
		{discovery.Service{Host: "web"}, "web"},
		{discovery.Service{Host: "WEB."}, "web"},
		{discovery.Service{Host: "web.default"}, "web"},
		{discovery.Service{Host: "web.default.svc"}, "web"},
		{discovery.Service{Host: "web.service.consul"}, "web"},
		{discovery.Service{Host: "Web.Service.Consul."}, "web"},
		{discovery.Service{Host: "web.service.dc2.consul"}, "dc2/web"},
		{discovery.Service{Host: "web.virtual.consul"}, "web"},
		{discovery.Service{Host: "web.query.consul"}, "query/web"},
		{discovery.Service{Host: "v1.web.service.consul"}, ""}, // a tag is not part of a name
		{discovery.Service{Host: "web.service..consul"}, ""},
		{discovery.Service{Host: "web.consul"}, ""},
		{discovery.Service{Host: "service.consul"}, ""},
		{discovery.Service{Host: "web.shop"}, ""},
		{discovery.Service{Host: "web.example.com"}, ""},
		{discovery.Service{Host: "localhost"}, ""},
		{discovery.Service{Host: "10.0.0.7"}, ""},
		{discovery.Service{Host: "::1"}, ""},
		{discovery.Service{Host: ""}, ""},
		{discovery.Service{Host: "..%2f..%2fkv"}, ""},
		{discovery.Service{Host: "a/b"}, ""},
		{discovery.Service{Host: "a b"}, ""},
	} {
		t.Run(test.service.Host, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				for _, name := range []string{"web", "dc2/web", "query/web"} {
					f.set(name, instance("a", 80))
				}
				w, stop := follow(t, newResolver(t, f, consul.Config{}), test.service)
				defer stop()
				if test.want == "" {
					w.want(t, "unknown")
				} else {
					w.want(t, "10.0.0.1:80")
				}
				f.Lock()
				defer f.Unlock()
				for name, n := range f.reads {
					if name != test.want {
						t.Errorf("%d reads of %q, want only %q", n, name, test.want)
					}
				}
			})
		})
	}
}

func TestChangesAreFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w, stop := follow(t, newResolver(t, f, consul.Config{}), web)
		defer stop()
		w.want(t, "unknown")

		f.set("other", instance("x", 1)) // which wakes the watch of a service that does not exist
		w.want(t)

		f.set("web", instance("a", 80))
		pass()
		w.want(t, "10.0.0.1:80")

		f.set("web", instance("b", 81), instance("a", 80))
		pass()
		w.want(t, "10.0.0.1:80, 10.0.0.1:81")

		f.set("web", instance("a", 80), instance("b", 81))
		pass()
		w.want(t) // another order

		f.set("web", instance("a", 80, func(e *api.ServiceEntry) { e.Checks[0].Output = "slower" }), instance("b", 81))
		pass()
		w.want(t) // it means the same

		f.set("web", instance("a", 80, check("", api.HealthCritical)), instance("b", 81))
		pass()
		w.want(t, "10.0.0.1:81")

		f.set("web", instance("a", 80, check("", api.HealthCritical)), instance("b", 81, check("_node_maintenance", api.HealthCritical)))
		pass()
		w.want(t, "10.0.0.1:81 drains")

		f.set("web")
		pass()
		w.want(t, "") // known, and without endpoints
	})
}

// An answer from which something is missing is no answer, and does not stand for a smaller set. Nor does one with instances that are
// asked for because they take mTLS, and do not.
func TestAnswersThatMakeNoSense(t *testing.T) {
	for name, spoil := range map[string]func(*api.ServiceEntry) *api.ServiceEntry{
		"null":       func(*api.ServiceEntry) *api.ServiceEntry { return nil },
		"no node":    func(e *api.ServiceEntry) *api.ServiceEntry { return &api.ServiceEntry{Service: e.Service} },
		"no service": func(e *api.ServiceEntry) *api.ServiceEntry { return &api.ServiceEntry{Node: e.Node} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				f.set("web", instance("a", 80), instance("b", 81))
				w, stop := follow(t, newResolver(t, f, consul.Config{}), web)
				defer stop()
				w.want(t, "10.0.0.1:80, 10.0.0.1:81")
				f.set("web", instance("a", 80), spoil(instance("b", 81)))
				time.Sleep(time.Minute)
				w.want(t, "error")
				f.set("web", instance("a", 80))
				pass()
				w.want(t, "10.0.0.1:80")
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		f.set("connect/web", instance("plain", 80), instance("a", 81, func(e *api.ServiceEntry) { e.Service.Connect = &api.AgentServiceConnect{Native: true} }))
		w, stop := follow(t, newResolver(t, f, consul.Config{Connect: true}), web)
		defer stop()
		w.want(t, "10.0.0.1:81")
	})
}

func TestErrorsKeepTheLastEndpoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		f.set("web", instance("a", 80))
		w, stop := follow(t, newResolver(t, f, consul.Config{}), web)
		defer stop()
		w.want(t, "10.0.0.1:80")

		f.Change(func() { f.fail["web"] = http.StatusInternalServerError })
		time.Sleep(time.Minute)
		w.want(t, "error")
		late, stopLate := follow(t, newResolver(t, f, consul.Config{}), web)
		defer stopLate()
		late.want(t, "error")

		f.Change(func() { f.fail["web"] = 0 })
		time.Sleep(time.Minute)
		w.want(t, "10.0.0.1:80") // the error is over
		late.want(t, "10.0.0.1:80")

		f.Change(func() { f.filtered = true })
		time.Sleep(time.Minute)
		w.want(t, "denied")
		f.Change(func() { f.filtered = false })
		time.Sleep(time.Minute)
		w.want(t, "10.0.0.1:80")
	})
}

func TestOneReadForManyWatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		f.set("web", instance("a", 80))
		r := newResolver(t, f, consul.Config{})
		var stops []func()
		var all []*follower
		for _, service := range []discovery.Service{web, {Host: "web"}, {Host: "web.service.consul"}} {
			for range 5 {
				w, stop := follow(t, r, service)
				all, stops = append(all, w), append(stops, stop)
			}
		}
		synctest.Wait()
		if reads, blocked := f.count("web"); reads != 2 || blocked != 1 {
			t.Errorf("%d reads, of which %d block, want 2 and 1", reads, blocked)
		}
		stops[0]() // the first does not take the read with it
		f.set("web", instance("b", 81))
		pass()
		all[0].want(t, "10.0.0.1:80")
		for _, w := range all[1:] {
			w.want(t, "10.0.0.1:80", "10.0.0.1:81")
		}
		for _, stop := range stops[1:] {
			stop()
		}
		synctest.Wait()
		if _, blocked := f.count("web"); blocked != 0 {
			t.Errorf("%d reads still block after the last watch", blocked)
		}
		w, stop := follow(t, r, web)
		defer stop()
		w.want(t, "10.0.0.1:81")
	})
}

// Filters of subsets are evaluated on records, and keep what they found for a pointer.
func TestRecordsStayWhileTheySayTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		f.set("web", instance("a", 80), instance("b", 81))
		w, stop := follow(t, newResolver(t, f, consul.Config{}), web)
		defer stop()
		synctest.Wait()
		f.set("web", instance("a", 80), instance("b", 81, func(e *api.ServiceEntry) { e.Node.Meta = map[string]string{"rack": "7"} }))
		pass()
		if len(w.sets) != 2 {
			t.Fatalf("yielded %q, want two sets: one record says something else", w.list)
		}
		if w.sets[0][0].Record != w.sets[1][0].Record {
			t.Error("the record of an instance that did not change is another")
		}
		if w.sets[0][1].Record == w.sets[1][1].Record {
			t.Error("the record of an instance that changed is the same")
		}
	})
}

func TestFailover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		f.set("web", instance("a", 80))
		f.set("dc2/web", instance("b", 82))
		f.set("dc3/web", instance("c", 83))
		w, stop := follow(t, newResolver(t, f, consul.Config{Places: []consul.Place{{}, {Datacenter: "dc2"}, {Datacenter: "dc3"}}}), web)
		defer stop()
		w.want(t, "10.0.0.1:80")
		if reads, _ := f.count("dc2/web"); reads != 0 {
			t.Errorf("%d reads of the second place while the first has endpoints, want none", reads)
		}

		f.set("web", instance("a", 80, check("", api.HealthCritical)))
		pass()
		w.want(t, "10.0.0.1:82")

		f.Change(func() { f.fail["dc2/web"] = http.StatusInternalServerError })
		pass()
		w.want(t, "error") // which is no reason to leave

		f.Change(func() { f.fail["dc2/web"] = 0; f.services["dc2/web"] = nil })
		time.Sleep(time.Minute)
		w.want(t, "10.0.0.1:83")

		f.set("web", instance("a", 80))
		pass()
		w.want(t, "10.0.0.1:80")

		f.set("web")
		pass()
		w.want(t, "10.0.0.1:83")

		f.set("dc3/web")
		pass()
		w.want(t, "")
	})
}

// A place that cannot be reached must not keep the others' answer back.
func TestFailoverToAPlaceThatCannotBeReached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		f.fail["dc2/web"] = http.StatusInternalServerError
		w, stop := follow(t, newResolver(t, f, consul.Config{Places: []consul.Place{{}, {Datacenter: "dc2"}}}), web)
		defer stop()
		pass()
		w.want(t, "unknown", "error")
		f.set("web", instance("a", 80))
		pass()
		w.want(t, "10.0.0.1:80")
		f.set("web")
		pass()
		w.want(t, "", "error")
	})
}

// An error about a place is over when that place answers, not when another does.
func TestErrorsOfAPlaceLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		f.set("dc2/web", instance("b", 82))
		w, stop := follow(t, newResolver(t, f, consul.Config{Places: []consul.Place{{}, {Datacenter: "dc2"}}}), web)
		defer stop()
		pass()
		w.want(t, "10.0.0.1:82")
		f.Change(func() { f.fail["web"] = http.StatusInternalServerError })
		pass()
		w.want(t, "error")
		f.set("dc2/web", instance("b", 83))
		pass()
		w.want(t, "10.0.0.1:83", "error")
		f.Change(func() { f.fail["web"] = 0 })
		time.Sleep(time.Minute)
		w.want(t, "10.0.0.1:83")
		f.set("dc2/web", instance("b", 84))
		pass()
		w.want(t, "10.0.0.1:84")
	})
}

func TestPreparedQuery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		w, stop := follow(t, newResolver(t, f, consul.Config{}), discovery.Service{Host: "near.query.consul"})
		defer stop()
		w.want(t, "unknown")
		f.set("query/near", instance("a", 80))
		time.Sleep(11 * time.Second)
		w.want(t, "10.0.0.1:80")
		f.set("query/near", instance("a", 80), instance("b", 81))
		time.Sleep(11 * time.Second)
		w.want(t, "10.0.0.1:80, 10.0.0.1:81")
		time.Sleep(time.Minute)
		w.want(t)
		if reads, _ := f.count("query/near"); reads < 7 || reads > 11 {
			t.Errorf("%d reads in 82 s, want one in 10", reads)
		}
	})
}

func TestConfigIsChecked(t *testing.T) {
	_, err := consul.New(newFake(t).Client(t), consul.Config{Places: []consul.Place{{}, {Peer: "east", Datacenter: "dc2"}}})
	if err == nil || !strings.Contains(err.Error(), `Config.Places[1] has Datacenter "dc2" and Peer "east"`) {
		t.Errorf("New = %v, want an error that names the place", err)
	}
	t.Setenv("CONSUL_HTTP_ADDR", "gopher://agent")
	if _, err := consul.New(nil, consul.Config{}); err == nil {
		t.Error("New with an environment that cannot be used = nil, want an error")
	}
}

func ExampleNew() {
	client, err := consul.NewClient(nil) // CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN_FILE and so on
	if err != nil {
		fmt.Println(err)
		return
	}
	resolver, err := consul.New(client, consul.Config{Places: []consul.Place{{}, {Datacenter: "dc2"}}})
	if err != nil {
		fmt.Println(err)
		return
	}
	// mesh.New(ctx, mesh.WithDiscovery(resolver)) makes http://web/ the service web of Consul. Without a mesh:
	watcher := discovery.NewWatcher(resolver, nil)
	defer watcher.Close()
	watcher.Subscribe(discovery.Service{Host: "web"}, func(endpoints []discovery.Endpoint) {
		for _, e := range endpoints {
			fmt.Println(e.ID(), e.Labels["version"])
		}
	})
}
