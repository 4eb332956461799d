package discovery

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
)

// Memory is an in-process registry: a [Resolver] for tests, and for programs that learn about endpoints in their own way.
// The zero value is empty and ready. It is safe for concurrent use and must not be copied.
type Memory struct {
	mu       sync.Mutex
	services map[string]*record
	watchers map[string][]chan<- struct{} // by name, the channels to wake
}

// record is one state of a service. It is replaced, never changed, so its address identifies the state.
type record struct {
	endpoints []Endpoint
}

// Set sets the endpoints of a service, replacing any earlier ones. An empty set means that the service exists but cannot be
// called now. The service is any of [Service.Names]: watchers find it under the most specific name that is set.
func (m *Memory) Set(service string, endpoints ...Endpoint) {
	m.put(canonical(service), &record{slices.Clone(endpoints)})
}

// Remove makes a service unknown. Its watchers see an empty set.
func (m *Memory) Remove(service string) {
	m.put(canonical(service), nil)
}

func (m *Memory) put(name string, r *record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r == nil {
		delete(m.services, name)
	} else {
		if m.services == nil {
			m.services = make(map[string]*record)
		}
		m.services[name] = r
	}
	for _, wake := range m.watchers[name] {
		select {
		case wake <- struct{}{}:
		default: // already woken: it will find the latest
		}
	}
}

// Watch implements [Resolver]. A slow watcher gets the latest set next, and skips those in between.
func (m *Memory) Watch(ctx context.Context, service Service) iter.Seq2[[]Endpoint, error] {
	return func(yield func([]Endpoint, error) bool) {
		names := service.Names()
		for i, name := range names {
			names[i] = canonical(name)
		}
		wake := make(chan struct{}, 1)
		m.register(names, wake)
		defer m.unregister(names, wake)

		var last *record
		for first := true; ctx.Err() == nil; first = false {
			now := m.lookup(names)
			switch {
			case now == nil && first:
				if !yield(nil, unknown(service)) {
					return
				}
			case now == nil && last != nil:
				if !yield(nil, nil) {
					return
				}
			case now != last:
				if !yield(now.endpoints, nil) {
					return
				}
			}
			last = now
			select {
			case <-wake:
			case <-ctx.Done():
			}
		}
	}
}

func (m *Memory) lookup(names []string) *record {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range names {
		if r := m.services[name]; r != nil {
			return r
		}
	}
	return nil
}

func (m *Memory) register(names []string, wake chan<- struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.watchers == nil {
		m.watchers = make(map[string][]chan<- struct{})
	}
	for _, name := range names {
		m.watchers[name] = append(m.watchers[name], wake)
	}
}

func (m *Memory) unregister(names []string, wake chan<- struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range names {
		left := slices.DeleteFunc(m.watchers[name], func(other chan<- struct{}) bool { return other == wake })
		if m.watchers[name] = left; len(left) == 0 {
			delete(m.watchers, name)
		}
	}
}

// canonical returns the form under which a host name is kept: names are case-insensitive and may end in a dot.
func canonical(name string) string {
	return strings.TrimSuffix(strings.ToLower(name), ".")
}

func unknown(service Service) error {
	return fmt.Errorf("%w: %s", ErrUnknownService, service.Host)
}
