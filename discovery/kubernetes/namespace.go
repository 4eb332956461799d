package kubernetes

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/kubernetes"
)

// mostAlone is how many services of a namespace are each watched alone. With more, all of the namespace is watched at once: the
// server does not look labels up, it compares them for each watch.
const mostAlone = 50

// namespace is a namespace of which services are called.
type namespace struct {
	resolver *Resolver
	name     string
	ctx      context.Context
	cancel   context.CancelFunc
	running  sync.WaitGroup

	watched map[string]*watched // by the name of the service; guarded by Resolver.mu
	wide    bool                // all of it is watched at once; guarded by Resolver.mu

	mu                       sync.Mutex // may be taken while watched.mu is held, not the reverse
	closed                   bool
	needing, ready           bool // whether Need was called, and has returned
	services                 good[*service]
	slices                   good[*slice]
	of                       map[string]map[kubernetes.Key]*slice // by the name of their service
	servicesRead, slicesRead bool
}

// join returns the watch of a service, which begins with the first that joins. wake is sent to when there is something new.
func (r *Resolver) join(in, name string, asked discovery.Service, wake chan struct{}) *watched {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.namespaces[in]
	if n == nil {
		n = &namespace{resolver: r, name: in, watched: make(map[string]*watched)}
		n.ctx, n.cancel = context.WithCancel(context.Background())
		r.namespaces[in] = n
	}
	w := n.watched[name]
	if w == nil {
		w = newWatched(n, name, asked)
		n.watched[name] = w
		w.begin()
	}
	w.listeners[wake] = struct{}{}
	if !n.wide && len(n.watched) > mostAlone {
		n.wide = true
		n.widen()
	}
	return w
}

// leave ends what join began. The last to leave waits until the watch has ended.
func (r *Resolver) leave(w *watched, wake chan struct{}) {
	n := w.namespace
	r.mu.Lock()
	delete(w.listeners, wake)
	last, empty := len(w.listeners) == 0, false
	if last {
		delete(n.watched, w.name)
		if empty = len(n.watched) == 0; empty {
			delete(r.namespaces, n.name)
		}
	}
	r.mu.Unlock()
	if last {
		w.cancel()
	}
	if empty {
		n.cancel()
		n.mu.Lock()
		n.closed = true
		n.mu.Unlock()
		n.running.Wait()
	}
	if last {
		w.end()
	}
}

// all returns the watches of services.
func (n *namespace) all() []*watched {
	n.resolver.mu.Lock()
	defer n.resolver.mu.Unlock()
	return slices.Collect(maps.Values(n.watched))
}

// need calls for what else is needed of the namespace, once.
func (n *namespace) need() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.needing || n.closed {
		return
	}
	n.needing = true
	n.running.Go(func() {
		if n.resolver.Need != nil {
			n.resolver.Need(n.ctx, n.name)
		}
		n.mu.Lock()
		n.ready = true
		n.mu.Unlock()
		for _, w := range n.all() {
			w.update(w.ctx, func() bool { return false })
		}
	})
}

// isReady reports whether Need has returned.
func (n *namespace) isReady() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ready
}

// widen watches all services of the namespace at once.
func (n *namespace) widen() {
	n.services, n.slices, n.of = make(good[*service]), make(good[*slice]), make(map[string]map[kubernetes.Key]*slice)
	n.running.Go(func() {
		follow(n, kubernetes.Watch[*service]{Resource: services, Decode: decodeService}, n.services, &n.servicesRead,
			func(key kubernetes.Key, old, now *service) []string { return []string{key.Name} })
	})
	n.running.Go(func() {
		follow(n, kubernetes.Watch[*slice]{Resource: slicesOf, Decode: decodeSlice}, n.slices, &n.slicesRead,
			func(key kubernetes.Key, old, now *slice) (touched []string) {
				if old != nil {
					delete(n.of[old.service], key)
					touched = append(touched, old.service)
				}
				if now != nil {
					if n.of[now.service] == nil {
						n.of[now.service] = make(map[kubernetes.Key]*slice)
					}
					n.of[now.service][key] = now
					touched = append(touched, now.service)
				}
				return touched
			})
	})
}

// follow keeps everything of a kind in the namespace, and hands it to the services that it is about. touched is called with n.mu held.
func follow[T object[T]](n *namespace, watch kubernetes.Watch[T], kept good[T], read *bool, touched func(key kubernetes.Key, old, now T) []string) {
	watch.Client, watch.Namespace = n.resolver.client, n.name
	failing := false
	for state, err := range watch.All(n.ctx) {
		about := make(map[string]bool)
		n.mu.Lock()
		everyone := failing || !*read
		if err == nil {
			*read = true
			err = kept.take(state, func(key kubernetes.Key, old, now T) {
				for _, name := range touched(key, old, now) {
					about[name] = true
				}
			})
		}
		n.mu.Unlock()
		recovered := failing && err == nil
		failing = err != nil
		for _, w := range n.all() {
			if everyone || about[w.name] {
				w.update(w.ctx, func() bool { return recovered })
			}
			if err != nil {
				w.fail(w.ctx, err)
			}
		}
	}
}

// lookUp returns what is known of a service if the whole namespace was read.
func (n *namespace) lookUp(name string) (s *service, of []*slice, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.servicesRead || !n.slicesRead {
		return nil, nil, false
	}
	return n.services[kubernetes.Key{Namespace: n.name, Name: name}], sorted(n.of[name]), true
}

// sorted returns slices in the order of their names, which they keep from one set to the next.
func sorted(all map[kubernetes.Key]*slice) []*slice {
	keys := slices.SortedFunc(maps.Keys(all), func(a, b kubernetes.Key) int { return strings.Compare(a.Name, b.Name) })
	list := make([]*slice, len(keys))
	for i, key := range keys {
		list[i] = all[key]
	}
	return list
}
