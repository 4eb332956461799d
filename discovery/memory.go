package discovery

import (
	"context"
	"iter"
	"slices"
	"strings"
	"sync"

	"github.com/nosidecar/mesh/discovery/internal/source"
)

// Memory is an in-process registry: a [Resolver] for tests, and for programs that learn about endpoints in their own way.
// The zero value is empty and ready. It is safe for concurrent use and must not be copied.
type Memory struct {
	mu       sync.Mutex
	services map[string]*record
	watchers map[string][]*memoryWatch // by the first label of the names that they look for
}

// record is one state of a service. It is replaced, never changed, so its address identifies the state.
type record struct {
	endpoints []Endpoint
}

// Set sets the endpoints of a service, replacing any earlier ones. An empty set means that the service exists but cannot be
// called now. The service is any of [Service.Names]: watchers find it under the most specific name that is set.
//
// Set does not check the endpoints. A [Watcher] leaves out those that cannot be dialled, such as "localhost:8080" without Port, and reports why:
// a mesh logs it, and the error of a call that finds no other endpoint says it.
func (m *Memory) Set(service string, endpoints ...Endpoint) {
	m.put(canonical(service), &record{slices.Clone(endpoints)})
}

// Remove makes a service unknown. Its watchers see an empty set.
func (m *Memory) Remove(service string) {
	m.put(canonical(service), nil)
}

func (m *Memory) put(name string, r *record) {
	m.mu.Lock()
	if r == nil {
		delete(m.services, name)
	} else {
		if m.services == nil {
			m.services = make(map[string]*record)
		}
		m.services[name] = r
	}
	var woken []*memoryWatch
	for _, w := range m.watchers[label(name)] {
		if slices.Contains(w.names, name) {
			woken = append(woken, w)
		}
	}
	m.mu.Unlock()
	for _, w := range woken {
		w.wake() // without the lock: it takes others
	}
}

// label returns the first label of a name. A service has the same one under all its names.
func label(name string) string {
	first, _, _ := strings.Cut(name, ".")
	return first
}

// Watch implements [Resolver]. A slow watcher gets the latest set next, and skips those in between.
func (m *Memory) Watch(ctx context.Context, service Service) iter.Seq2[[]Endpoint, error] {
	return source.Watch[*Memory](ctx, func(wake func()) source.Source[Endpoint] {
		names := service.Names()
		for i, name := range names {
			names[i] = canonical(name)
		}
		return &memoryWatch{memory: m, names: names, wake: wake}
	})
}

// memoryWatch is one Watch of a Memory.
type memoryWatch struct {
	memory *Memory
	names  []string // the most specific first
	wake   func()
	last   *record // as yielded

	// Guarded by Memory.mu.
	registered, stopped bool
}

// Step implements source.Source.
func (w *memoryWatch) Step(_ context.Context, _ bool, yield func([]Endpoint, error) bool) source.Turn {
	now, first := w.look()
	switch {
	case now == nil && first:
		yield(nil, unregistered(w.names))
	case now == nil && w.last != nil:
		yield(nil, nil)
	case now != w.last:
		yield(now.endpoints, nil)
	}
	w.last = now
	return source.Turn{}
}

// look returns the present state of the service, nil if there is none. The first look registers the watch.
func (w *memoryWatch) look() (now *record, first bool) {
	m := w.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	if first = !w.registered && !w.stopped; first {
		if m.watchers == nil {
			m.watchers = make(map[string][]*memoryWatch)
		}
		for _, label := range w.labels() {
			m.watchers[label] = append(m.watchers[label], w)
		}
		w.registered = true
	}
	for _, name := range w.names {
		if r := m.services[name]; r != nil {
			return r, first
		}
	}
	return nil, first
}

// Stop implements source.Source.
func (w *memoryWatch) Stop() {
	m := w.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	w.stopped = true
	if !w.registered {
		return
	}
	w.registered = false
	for _, label := range w.labels() {
		left := slices.DeleteFunc(m.watchers[label], func(other *memoryWatch) bool { return other == w })
		if m.watchers[label] = left; len(left) == 0 {
			delete(m.watchers, label)
		}
	}
}

// labels returns the first labels of the names: one, unless somebody has made up a service whose names have nothing in common.
func (w *memoryWatch) labels() []string {
	labels := make([]string, 0, 4)
	for _, name := range w.names {
		if first := label(name); !slices.Contains(labels, first) {
			labels = append(labels, first)
		}
	}
	return labels
}

// canonical returns the form under which a host name is kept: names are case-insensitive and may end in a dot.
func canonical(name string) string {
	return strings.TrimSuffix(strings.ToLower(name), ".")
}
