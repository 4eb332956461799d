package consul

import (
	"context"
	"slices"
	"sync"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/discovery/internal/shared"
)

// watched is a target that is watched in one or more places, for as long as it has followers.
type watched struct {
	resolver *Resolver
	target   target
	places   []Place
	ctx      context.Context
	cancel   context.CancelFunc
	running  sync.WaitGroup

	answers shared.Answers

	mu     sync.Mutex
	states []state // of the places, in order, as far as they have been asked
	known  bool    // whether it ever had an instance
}

// state is the last answer of a place.
type state struct {
	entries  []*api.ServiceEntry
	answered bool
	err      error // the error since that answer
}

// follower follows the watch of a target.
type follower struct {
	*shared.Follower
	watched *watched
}

// join follows the watch of a target. The first caller starts it.
func (r *Resolver) join(t target, service discovery.Service, wake func()) follower {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.watched[t]
	if w == nil {
		w = &watched{resolver: r, target: t, places: r.places(t)}
		w.ctx, w.cancel = context.WithCancel(context.Background())
		r.watched[t] = w
		w.mu.Lock()
		w.askNextLocked()
		w.mu.Unlock()
	}
	return follower{w.answers.Join(service, wake), w}
}

// Stop undoes join. The last caller waits until the watch has ended.
func (f follower) Stop() {
	w := f.watched
	r := w.resolver
	r.mu.Lock()
	last := f.Leave()
	if last {
		delete(r.watched, w.target)
	}
	r.mu.Unlock()
	if last {
		w.cancel()
		w.running.Wait()
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

// update takes an answer of a place.
func (w *watched) update(i int, entries []*api.ServiceEntry, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		w.states[i] = state{entries: keep(entries, w.states[i].entries), answered: true}
		w.known = w.known || len(entries) > 0
		w.decideLocked()
		return
	}
	if i > 0 && !w.states[i].answered {
		w.states[i].answered = true // the places before it do not wait for it
		w.decideLocked()
	}
	w.states[i].err = err
	w.answers.Fail(err)
}

// decideLocked publishes the endpoints of the first place that has some.
func (w *watched) decideLocked() {
	var first []discovery.Endpoint
	for i := 0; ; i++ {
		if !w.states[i].answered {
			return // the last endpoints stay in use until it has
		}
		endpoints := endpointsOf(w.states[i].entries)
		if i == 0 {
			first = endpoints
		}
		takesCalls := slices.ContainsFunc(endpoints, func(e discovery.Endpoint) bool { return !e.Draining })
		switch {
		case takesCalls:
			w.answers.Set(endpoints)
		case i < len(w.places)-1:
			if i == len(w.states)-1 {
				w.askNextLocked()
			}
			continue
		case w.known:
			w.answers.Set(first)
		default:
			w.answers.SetUnknown()
		}
		for _, s := range w.states[:i+1] {
			if s.err != nil {
				w.answers.Fail(s.err) // again, since an answer of another place does not end it
			}
		}
		return
	}
}
