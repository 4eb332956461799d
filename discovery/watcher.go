package discovery

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

var (
	errClosed     = errors.New("discovery: watcher closed")
	errWatchEnded = errors.New("discovery: resolver ended the watch; it is begun again")
)

// Watcher shares the watches of a [Resolver]: a service is watched once however many subscribers it has, and only while it
// has any. It keeps the last good set through errors. It is safe for concurrent use.
//
// A watch of a resolver of this module needs a goroutine of the Watcher only while there is something new. One of another
// Resolver has its own.
type Watcher struct {
	resolver Resolver
	onError  func(Service, error)

	running sync.WaitGroup // the goroutines, at most one per watch

	mu      sync.Mutex
	watches map[string]*watch // by Host, the first of those of different Services with the same one
	closed  bool
}

// NewWatcher returns a watcher that calls onError, unless nil, with every error, [ErrUnknownService] included. onError runs
// on the goroutine of the watch and may use the watcher, but not close it. The caller closes the watcher.
func NewWatcher(resolver Resolver, onError func(service Service, err error)) *Watcher {
	if onError == nil {
		onError = func(Service, error) {}
	}
	return &Watcher{resolver: resolver, onError: onError, watches: make(map[string]*watch)}
}

// Subscribe calls update with the endpoints of the service now, if they are known, and after every change. It starts
// watching the service if it is not watched yet. The watch and its last good set carry over to a new subscription that
// begins before the old one is closed.
//
// The calls come one at a time and in order; if update is too slow for the changes, it misses the sets in between. After a set
// of 500 endpoints or more the next one comes 5 µs later for each of them, up to 50 ms: a large service that changes all the time
// is not worth more of a processor. A change after a quiet time comes at once, and the latest set always comes. The first
// call may come before Subscribe returns, the others on a goroutine of the watcher. update may use the watcher and close the
// subscription, but not close the watcher. Invalid endpoints are left out and reported. The slice is shared and must not be
// changed.
func (w *Watcher) Subscribe(service Service, update func(endpoints []Endpoint)) *Subscription {
	sub := &Subscription{update: update}
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return sub
	}
	watched := w.watches[service.Host]
	for watched != nil && watched.service != service {
		watched = watched.other
	}
	if watched == nil {
		watched = &watch{owner: w, service: service, other: w.watches[service.Host]}
		w.watches[service.Host] = watched
		watched.beginLocked()
	}
	sub.watch = watched
	watched.subs = append(watched.subs, sub)
	version, endpoints := watched.version, watched.endpoints
	w.mu.Unlock()

	if version > 0 {
		sub.deliver(version, endpoints)
	}
	return sub
}

// Close ends all watches and waits for their goroutines, and so for running updates. It is idempotent.
func (w *Watcher) Close() error {
	w.mu.Lock()
	w.closed = true
	for _, watched := range w.watches {
		for ; watched != nil; watched = watched.other {
			watched.endLocked()
		}
	}
	clear(w.watches)
	w.mu.Unlock()
	w.running.Wait()
	return nil
}

// removeLocked forgets a watch, if it is there.
func (w *Watcher) removeLocked(gone *watch) {
	host := gone.service.Host
	if w.watches[host] == gone {
		if gone.other == nil {
			delete(w.watches, host)
		} else {
			w.watches[host] = gone.other
		}
		return
	}
	for before := w.watches[host]; before != nil; before = before.other {
		if before.other == gone {
			before.other = gone.other
			return
		}
	}
}

// validate returns the endpoints that can be dialled, and what is wrong with the others.
func validate(endpoints []Endpoint) (valid []Endpoint, errs []error) {
	valid = endpoints
	for i := range endpoints {
		err := endpoints[i].check()
		if err != nil {
			if errs == nil {
				valid = slices.Clone(endpoints[:i])
			}
			errs = append(errs, fmt.Errorf("discovery: endpoint %d left out: %w", i, err))
		} else if errs != nil {
			valid = append(valid, endpoints[i])
		}
	}
	return valid, errs
}

func (e *Endpoint) check() error {
	if e.Address == "" {
		return errors.New("it has no address")
	}
	if strings.ContainsAny(e.Address, ":[]/@ ") {
		if _, err := netip.ParseAddr(e.Address); err != nil {
			return fmt.Errorf("%q is neither an IP address nor a host name: write it without brackets, and the port into Port", e.Address)
		}
	}
	if !isPort(e.Port) {
		return fmt.Errorf("%s has port %d", e.Address, e.Port)
	}
	for _, p := range e.Ports {
		if !isPort(p.Number) || !isPort(p.Target) {
			return fmt.Errorf("%s maps port %d to %d", e.Address, p.Number, p.Target)
		}
	}
	return nil
}

// isPort reports whether n is a port number, or 0 for none.
func isPort(n int) bool {
	return n >= 0 && n <= 65535
}
