package consul

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/discovery"
)

// errUnknown stands for discovery.ErrUnknownService, whose text depends on the name that was asked for.
var errUnknown = errors.New("unknown")

// watched is a target that is watched in one or more places, for as long as anybody listens.
type watched struct {
	resolver *Resolver
	target   target
	places   []Place
	ctx      context.Context
	cancel   context.CancelFunc
	running  sync.WaitGroup

	listeners map[chan struct{}]struct{} // guarded by Resolver.mu

	mu     sync.Mutex
	states []state // of the places, in order, as far as they have been asked
	known  bool    // whether it ever had an instance
	count  uint64  // of what was told
	set    news    // the last answer: endpoints, or errUnknown
	err    news    // the last error
}

// state is what a place said last.
type state struct {
	entries  []*api.ServiceEntry
	answered bool
}

// news is something that listeners are told. They are told in the order of the numbers, and only the latest of each kind.
type news struct {
	number    uint64
	endpoints []discovery.Endpoint
	err       error
}

// join returns the watch of a target, which begins with the first that joins. wake is sent to when there is something new.
func (r *Resolver) join(t target, wake chan struct{}) *watched {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.watched[t]
	if w == nil {
		w = &watched{resolver: r, target: t, places: r.places(t), listeners: make(map[chan struct{}]struct{})}
		w.ctx, w.cancel = context.WithCancel(context.Background())
		r.watched[t] = w
		w.mu.Lock()
		w.askNextLocked()
		w.mu.Unlock()
	}
	w.listeners[wake] = struct{}{}
	return w
}

// leave ends what join began. The last to leave waits until the watch has ended.
func (r *Resolver) leave(t target, w *watched, wake chan struct{}) {
	r.mu.Lock()
	delete(w.listeners, wake)
	last := len(w.listeners) == 0
	if last {
		delete(r.watched, t)
	}
	r.mu.Unlock()
	if last {
		w.cancel()
		w.running.Wait()
	}
}

// since returns what listeners have not been told yet.
func (w *watched) since(seen uint64) (untold []news) {
	w.mu.Lock()
	defer w.mu.Unlock()
	first, second := w.set, w.err
	if second.number < first.number {
		first, second = second, first
	}
	for _, n := range []news{first, second} {
		if n.number > seen && n.number >= w.set.number { // an error before an answer is over
			untold = append(untold, n)
		}
	}
	return untold
}

func (w *watched) wake() {
	w.resolver.mu.Lock()
	defer w.resolver.mu.Unlock()
	for wake := range w.listeners {
		select {
		case wake <- struct{}{}:
		default: // it has yet to look
		}
	}
}

// askNextLocked begins to watch the next place.
func (w *watched) askNextLocked() {
	i := len(w.states)
	w.states = append(w.states, state{})
	w.running.Go(func() {
		for entries, err := range w.resolver.read(w.target, w.places[i]).All(w.ctx) {
			w.update(i, entries, err)
		}
	})
}

// update takes what a place said.
func (w *watched) update(i int, entries []*api.ServiceEntry, err error) {
	w.mu.Lock()
	if err != nil {
		if i > 0 && !w.states[i].answered {
			w.states[i].answered = true // the answer of those before it does not wait
			w.decideLocked()
		}
		w.count++
		w.err = news{number: w.count, err: err}
	} else {
		w.states[i] = state{keep(entries, w.states[i].entries), true}
		w.known = w.known || len(entries) > 0
		w.decideLocked()
	}
	w.mu.Unlock()
	w.wake()
}

// decideLocked chooses the place whose endpoints are told.
func (w *watched) decideLocked() {
	var first []discovery.Endpoint
	for i := 0; ; i++ {
		if !w.states[i].answered {
			return // what was told last holds until it has
		}
		endpoints := endpointsOf(w.states[i].entries)
		if i == 0 {
			first = endpoints
		}
		takesCalls := slices.ContainsFunc(endpoints, func(e discovery.Endpoint) bool { return !e.Draining })
		switch {
		case takesCalls:
			w.tellLocked(news{endpoints: endpoints})
			return
		case i < len(w.places)-1:
			if i == len(w.states)-1 {
				w.askNextLocked()
			}
		case w.known:
			w.tellLocked(news{endpoints: first})
			return
		default:
			w.tellLocked(news{err: errUnknown})
			return
		}
	}
}

// tellLocked tells endpoints, or that the service is unknown.
func (w *watched) tellLocked(n news) {
	w.count++
	n.number = w.count
	w.set = n
}
