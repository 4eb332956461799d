// Package shared lets all watchers of a service share one watch of it.
package shared

import (
	"context"
	"fmt"
	"sync"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/discovery/internal/source"
)

// Answers holds the results of a watch of a service. Only the latest endpoints and the latest error count; a slow follower skips those in
// between. The zero value is ready for use. It is safe for concurrent use.
type Answers struct {
	mu        sync.Mutex
	followers map[*Follower]struct{}
	count     uint64
	set       answer
	err       answer
}

// answer is one result. Followers get answers in the order of their numbers.
type answer struct {
	number    uint64
	endpoints []discovery.Endpoint
	unknown   bool // there is no such service
	err       error
}

// Follower receives answers about a service. With a Stop that calls Leave it is a [source.Source].
type Follower struct {
	answers *Answers
	service discovery.Service
	wake    func() // is called with locks held
	seen    uint64 // the number of the last answer that was yielded
}

// Join returns a new follower, which calls wake when there is an answer. The caller must call Leave when it is done.
func (a *Answers) Join(service discovery.Service, wake func()) *Follower {
	f := &Follower{answers: a, service: service, wake: wake}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.followers == nil {
		a.followers = make(map[*Follower]struct{})
	}
	a.followers[f] = struct{}{}
	return f
}

// Leave undoes Join, and reports whether no follower is left.
func (f *Follower) Leave() (last bool) {
	f.answers.mu.Lock()
	defer f.answers.mu.Unlock()
	delete(f.answers.followers, f)
	return len(f.answers.followers) == 0
}

// Step yields the answers that are new.
func (f *Follower) Step(_ context.Context, _ bool, yield func([]discovery.Endpoint, error) bool) source.Turn {
	for _, answer := range f.answers.since(f.seen) {
		f.seen = answer.number
		if answer.unknown {
			answer.err = Unknown(f.service)
		}
		if !yield(answer.endpoints, answer.err) {
			break
		}
	}
	return source.Turn{}
}

// Unknown returns the error for a service that does not exist.
func Unknown(service discovery.Service) error {
	return fmt.Errorf("%w: %s", discovery.ErrUnknownService, service.Host)
}

// Set publishes endpoints. They supersede earlier answers and errors.
func (a *Answers) Set(endpoints []discovery.Endpoint) { a.tell(&a.set, answer{endpoints: endpoints}) }

// SetUnknown publishes that there is no such service.
func (a *Answers) SetUnknown() { a.tell(&a.set, answer{unknown: true}) }

// Fail publishes an error. The last endpoints stay in use.
func (a *Answers) Fail(err error) { a.tell(&a.err, answer{err: err}) }

func (a *Answers) tell(kind *answer, what answer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.count++
	what.number = a.count
	*kind = what
	for f := range a.followers {
		f.wake()
	}
}

// Last returns the last answer that is no error: endpoints, or that the service is unknown. told is false if there is none yet.
func (a *Answers) Last() (endpoints []discovery.Endpoint, unknown, told bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.set.endpoints, a.set.unknown, a.set.number > 0
}

// since returns the answers after the number seen.
func (a *Answers) since(seen uint64) (untold []answer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	first, second := a.set, a.err
	if second.number < first.number {
		first, second = second, first
	}
	for _, answer := range []answer{first, second} {
		if answer.number > seen && answer.number >= a.set.number { // later endpoints supersede an error
			untold = append(untold, answer)
		}
	}
	return untold
}
