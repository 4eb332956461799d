package kubernetes

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/discovery/internal/shared"
	"github.com/nosidecar/mesh/internal/kubernetes"
)

// mostAlone is how many services of a namespace have watches of their own. With more, the whole namespace is watched at once: the server has
// no index of labels, and compares them for each watch.
const mostAlone = 50

// namespace is a namespace whose services are called.
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
	servicesRead, slicesRead bool
}

// follower follows the watch of a service.
type follower struct {
	*shared.Follower
	watched *watched
}

// join follows the watch of a service. The first caller starts it.
func (r *Resolver) join(in, name string, service discovery.Service, wake func()) follower {
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
		w = newWatched(n, name, service)
		n.watched[name] = w
		w.begin()
	}
	if !n.wide && len(n.watched) > mostAlone {
		n.wide = true
		n.widen()
	}
	return follower{w.answers.Join(service, wake), w}
}

// Stop undoes join. The last caller waits until the watch has ended.
func (f follower) Stop() {
	w := f.watched
	n := w.namespace
	r := n.resolver
	r.mu.Lock()
	last, empty := f.Leave(), false
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

// need calls Resolver.Need once.
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
	n.services, n.slices = newGood[*service](), newGood[*slice]()
	n.running.Go(func() {
		follow(n, kubernetes.Watch[*service]{Resource: services, Decode: decodeService}, n.services, &n.servicesRead)
	})
	n.running.Go(func() {
		follow(n, kubernetes.Watch[*slice]{Resource: slicesOf, Decode: decodeSlice}, n.slices, &n.slicesRead)
	})
}

// follow keeps all objects of a kind in the namespace, and updates the services that they belong to.
func follow[T object[T]](n *namespace, watch kubernetes.Watch[T], kept good[T], read *bool) {
	watch.Client, watch.Namespace = n.resolver.client, n.name
	failing := false
	for state, err := range watch.All(n.ctx) {
		touched := make(map[string]bool)
		n.mu.Lock()
		everyone := failing || !*read
		if err == nil {
			*read = true
			before := first(kept.faults(""))
			kept.take(state, func(about string) { touched[about] = true })
			everyone = everyone || first(kept.faults("")) != before // it may belong to any service
		}
		n.mu.Unlock()
		recovered := failing && err == nil
		failing = err != nil
		for _, w := range n.all() {
			if everyone || touched[w.name] {
				w.update(w.ctx, func() bool { return recovered })
			}
			if err != nil {
				w.say(w.ctx, func() { w.answers.Fail(err) })
			}
		}
	}
}

// found is what was read of a service with the whole namespace.
type found struct {
	service *service
	slices  map[kubernetes.Key]*slice
	fault   error                     // why the service could not be read the last time
	faulty  map[kubernetes.Key]*slice // those that could not be read the last time
}

// lookUp returns what is known about a service, if the whole namespace was read.
func (n *namespace) lookUp(name string) (f found, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.servicesRead || !n.slicesRead {
		return found{}, false
	}
	return found{service: n.services.objects[kubernetes.Key{Namespace: n.name, Name: name}], slices: maps.Clone(n.slices.of[name]),
		fault: first(n.services.faults(name)), faulty: n.slices.faults(name)}, true
}

// sorted returns slices ordered by name, so that the order is stable.
func sorted(all map[kubernetes.Key]*slice) []*slice {
	return slices.SortedFunc(maps.Values(all), func(a, b *slice) int { return strings.Compare(a.name, b.name) })
}
