package discovery_test

import (
	"context"
	"errors"
	"iter"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/nosidecar/mesh/discovery"
)

var orders = discovery.Service{
	Host:      "orders.shop.svc.cluster.local",
	Name:      "orders",
	Namespace: "shop",
	Local:     true,
}

// event is something that a watch yielded: a set, as its sorted addresses, or an error.
type event struct {
	set string
	err error
}

// watch collects what a watch yields, from a goroutine that ends with the test's context.
type watch struct {
	mu     sync.Mutex
	events []event
}

func start(t *testing.T, r discovery.Resolver, service discovery.Service) *watch {
	w := &watch{}
	go func() {
		for endpoints, err := range r.Watch(t.Context(), service) {
			w.mu.Lock()
			w.events = append(w.events, event{addresses(endpoints), err})
			w.mu.Unlock()
		}
	}()
	return w
}

// next returns what was yielded since the last call, once everything has settled.
func (w *watch) next() []event {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	events := w.events
	w.events = nil
	return events
}

func addresses(endpoints []discovery.Endpoint) string {
	list := make([]string, len(endpoints))
	for i := range endpoints {
		list[i] = endpoints[i].ID()
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

func at(address string, port int) discovery.Endpoint {
	return discovery.Endpoint{Address: address, Port: port}
}

func want(t *testing.T, events []event, sets ...string) {
	t.Helper()
	got := make([]string, len(events))
	for i, e := range events {
		switch {
		case errors.Is(e.err, discovery.ErrUnknownService):
			got[i] = "unknown"
		case e.err != nil:
			got[i] = "error"
		default:
			got[i] = e.set
		}
	}
	if !slices.Equal(got, sets) {
		t.Errorf("yielded %q, want %q", got, sets)
	}
}

func TestMemory_Watch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m discovery.Memory
		w := start(t, &m, orders)
		want(t, w.next(), "unknown")

		m.Set("orders", at("10.0.0.1", 80))
		want(t, w.next(), "10.0.0.1:80")

		m.Set("orders", at("10.0.0.1", 80), at("10.0.0.2", 80))
		want(t, w.next(), "10.0.0.1:80 10.0.0.2:80")

		m.Set("payments", at("10.0.9.9", 80))
		want(t, w.next())

		m.Set("orders") // an empty set is an answer
		want(t, w.next(), "")

		m.Set("Orders.Shop.svc.cluster.local.", at("10.0.0.3", 80)) // more specific than "orders"
		want(t, w.next(), "10.0.0.3:80")

		m.Set("orders", at("10.0.0.4", 80)) // hidden behind it
		want(t, w.next())

		m.Remove(orders.Host)
		want(t, w.next(), "10.0.0.4:80")

		m.Remove("orders")
		want(t, w.next(), "")

		m.Set("orders.shop", at("10.0.0.5", 80))
		want(t, w.next(), "10.0.0.5:80")
	})
}

func TestMemory_CoalescesToTheLatest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m discovery.Memory
		m.Set("orders", at("10.0.0.1", 1))
		var sets []string
		for endpoints := range m.Watch(t.Context(), orders) {
			sets = append(sets, addresses(endpoints))
			if len(sets) == 2 {
				break
			}
			for port := 2; port <= 9; port++ {
				m.Set("orders", at("10.0.0.1", port))
			}
		}
		if want := []string{"10.0.0.1:1", "10.0.0.1:9"}; !slices.Equal(sets, want) {
			t.Errorf("yielded %q, want %q", sets, want)
		}
	})
}

func TestMemory_SetCopies(t *testing.T) {
	var m discovery.Memory
	endpoints := []discovery.Endpoint{at("10.0.0.1", 80)}
	m.Set("orders", endpoints...)
	endpoints[0].Address = "changed"
	for got := range m.Watch(t.Context(), orders) {
		if got[0].Address != "10.0.0.1" {
			t.Errorf("Set kept the caller's slice: %v", got)
		}
		break
	}
}

func TestMemory_Concurrent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m discovery.Memory
		var watches []*watch
		for range 20 {
			watches = append(watches, start(t, &m, orders))
		}
		for range 4 {
			go func() {
				for port := range 100 {
					m.Set("orders", at("10.0.0.1", 1+port))
				}
			}()
		}
		synctest.Wait()
		m.Set("orders", at("10.0.0.2", 80))
		for i, w := range watches {
			events := w.next()
			if last := events[len(events)-1]; last.set != "10.0.0.2:80" {
				t.Errorf("watch %d ends at %v", i, last)
			}
		}
	})
}

func TestStatic_Watch(t *testing.T) {
	static := discovery.Static{
		"orders.shop":     {at("10.0.0.1", 80)},
		"api.example.com": {at("10.0.0.2", 443)},
		"empty":           nil,
	}
	for _, tt := range []struct {
		name    string
		service discovery.Service
		want    string
	}{
		{"by a shorter name", orders, "10.0.0.1:80"},
		{"by host", discovery.Service{Host: "api.example.com"}, "10.0.0.2:443"},
		{"no endpoints", discovery.Service{Host: "empty"}, ""},
		{"unknown", discovery.Service{Host: "elsewhere"}, "unknown"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := start(t, static, tt.service)
				want(t, w.next(), tt.want)
			})
		})
	}
}

// Every resolver ends its iteration when ctx ends, and yields nothing when it ended before.
func TestResolvers_HonourContext(t *testing.T) {
	var m discovery.Memory
	m.Set("orders", at("10.0.0.1", 80))
	for name, r := range map[string]discovery.Resolver{
		"memory": &m,
		"static": discovery.Static{"orders": {at("10.0.0.1", 80)}},
		"dns":    discovery.DNS{Resolver: newZone()},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				ended := false
				go func() {
					for range r.Watch(ctx, orders) {
					}
					ended = true
				}()
				synctest.Wait()
				cancel()
				synctest.Wait()
				if !ended {
					t.Error("the iteration goes on after ctx ended")
				}
				for range r.Watch(ctx, orders) {
					t.Error("yielded after ctx ended")
				}
			})
		})
	}
}

// Every resolver ends its iteration when the caller stops, whatever was yielded last.
func TestResolvers_StopWhenTold(t *testing.T) {
	var known, gone discovery.Memory
	known.Set("orders", at("10.0.0.1", 80))
	gone.Set("orders", at("10.0.0.1", 80))
	down := newZone()
	down.err = errors.New("down")
	partial := newZone()
	partial.srv[orders.Host] = []*net.SRV{{Target: "a.", Port: 1}}
	partial.srvErr = errors.New("records with invalid names")
	for _, tt := range []struct {
		name     string
		resolver discovery.Resolver
		after    int // how many times the resolver yields before the caller stops
	}{
		{"memory: set", &known, 1},
		{"memory: unknown", &discovery.Memory{}, 1},
		{"memory: removed", &gone, 2},
		{"static: unknown", discovery.Static{}, 1},
		{"dns: unknown", discovery.DNS{Resolver: newZone()}, 1},
		{"dns: error", discovery.DNS{Resolver: down}, 1},
		{"dns: partial answer", discovery.DNS{Resolver: partial, SRV: true}, 1},
		{"dns: set", discovery.DNS{Resolver: partial, SRV: true}, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := 0
				for range tt.resolver.Watch(t.Context(), orders) {
					if n++; n == tt.after {
						break
					}
					gone.Remove("orders")
				}
				if n != tt.after {
					t.Errorf("yielded %d times, want %d", n, tt.after)
				}
			})
		})
	}
}

// script is a resolver that yields what it is told to.
type script struct {
	steps   chan event // an event with neither set nor err ends the iteration
	watches int
}

func (s *script) Watch(ctx context.Context, _ discovery.Service) iter.Seq2[[]discovery.Endpoint, error] {
	return func(yield func([]discovery.Endpoint, error) bool) {
		s.watches++
		for {
			select {
			case step := <-s.steps:
				if step == (event{}) {
					return
				}
				var endpoints []discovery.Endpoint
				if step.set != "none" && step.err == nil {
					for _, address := range strings.Fields(step.set) {
						endpoints = append(endpoints, discovery.Endpoint{Address: address, Port: 80})
					}
				}
				if !yield(endpoints, step.err) {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}
}
