package discovery_test

import (
	"context"
	"fmt"
	"iter"
	"runtime"
	"testing"
	"testing/synctest"

	"github.com/nosidecar/mesh/discovery"
)

// moved is a resolver around another one. It yields the same endpoints on another port.
type moved struct {
	discovery.Resolver
	port int
}

func (m moved) Watch(ctx context.Context, service discovery.Service) iter.Seq2[[]discovery.Endpoint, error] {
	return func(yield func([]discovery.Endpoint, error) bool) {
		for endpoints, err := range m.Resolver.Watch(ctx, service) {
			var changed []discovery.Endpoint
			for _, e := range endpoints {
				changed = append(changed, at(e.Address, m.port))
			}
			if !yield(changed, err) {
				return
			}
		}
	}
}

// movedMemory is one that embeds what it is around.
type movedMemory struct{ *discovery.Memory }

func (m movedMemory) Watch(ctx context.Context, service discovery.Service) iter.Seq2[[]discovery.Endpoint, error] {
	return moved{m.Memory, 7}.Watch(ctx, service)
}

// TestWatcher_ResolverAroundAnother: what a resolver yields counts, and not what the one inside it would yield to the watcher.
func TestWatcher_ResolverAroundAnother(t *testing.T) {
	var m discovery.Memory
	for name, r := range map[string]discovery.Resolver{
		"that holds it":   moved{&m, 7},
		"that embeds it":  movedMemory{&m},
		"a pointer":       &movedMemory{&m},
		"two around it":   moved{moved{&m, 6}, 7},
		"around a static": moved{discovery.Static{"orders": {at("10.0.0.1", 80)}}, 7},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m = discovery.Memory{}
				m.Set("orders", at("10.0.0.1", 80))
				w := discovery.NewWatcher(r, nil)
				defer w.Close()
				var l log
				w.Subscribe(orders, l.update)
				l.want(t, "set 10.0.0.1:7")
			})
		})
	}
}

// TestWatcher_Goroutines: between changes no service has a goroutine.
func TestWatcher_Goroutines(t *testing.T) {
	const services = 100
	var m discovery.Memory
	z, static := newZone(), discovery.Static{}
	for i := range services {
		name := fmt.Sprintf("s%d", i)
		m.Set(name, at("10.0.0.1", 80))
		z.addrs[name], static[name] = []string{"10.0.0.1"}, []discovery.Endpoint{at("10.0.0.1", 80)}
	}
	for name, r := range map[string]discovery.Resolver{
		"memory": &m, "static": static, "dns": discovery.DNS{Resolver: z}, "*dns": &discovery.DNS{Resolver: z},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := discovery.NewWatcher(r, nil)
				defer w.Close()
				before, updates := runtime.NumGoroutine(), make(chan struct{}, services)
				for i := range services {
					w.Subscribe(discovery.Service{Host: fmt.Sprintf("s%d", i)}, func([]discovery.Endpoint) { updates <- struct{}{} })
				}
				synctest.Wait()
				// One that is just ending is still counted.
				if n := runtime.NumGoroutine() - before; n > services/10 || len(updates) != services {
					t.Errorf("%d services have %d goroutines and %d sets, want no goroutine and a set for each", services, n, len(updates))
				}
			})
		})
	}
}
