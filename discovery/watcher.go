package discovery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nosidecar/mesh/internal/pause"
)

// restartLimit bounds the wait before a watch that ended too early is restarted.
const restartLimit = 30 * time.Second

var (
	errClosed     = errors.New("discovery: watcher closed")
	errWatchEnded = errors.New("discovery: resolver ended the watch; it is begun again")
)

// Watcher shares the watches of a [Resolver]: a service is watched once however many subscribers it has, and only while it
// has any. It keeps the last good set through errors. It is safe for concurrent use.
type Watcher struct {
	resolver Resolver
	onError  func(Service, error)

	running sync.WaitGroup // the goroutines, one per watch

	mu      sync.Mutex
	watches map[Service]*watch
	closed  bool
}

// NewWatcher returns a watcher that calls onError, unless nil, with every error, [ErrUnknownService] included. onError runs
// on the goroutine of the watch and may use the watcher, but not close it. The caller closes the watcher.
func NewWatcher(resolver Resolver, onError func(service Service, err error)) *Watcher {
	if onError == nil {
		onError = func(Service, error) {}
	}
	return &Watcher{resolver: resolver, onError: onError, watches: make(map[Service]*watch)}
}

// watch is one watched service.
type watch struct {
	owner   *Watcher
	service Service
	cancel  context.CancelCauseFunc
	stopped <-chan struct{}
	refresh chan struct{} // holds a request to look again

	// The rest is guarded by Watcher.mu. No subscriber is called while it is held.

	subs      []*Subscription
	endpoints []Endpoint
	version   uint64        // counts the sets; 0 means none yet
	lastErr   error         // the last error since the last set
	unknown   error         // set if the resolver said so and no set has come before or since
	answered  chan struct{} // closed once there is a set or the service is unknown
}

// Subscribe calls update with the endpoints of the service now, if they are known, and after every change. It starts
// watching the service if it is not watched yet. The watch and its last good set carry over to a new subscription that
// begins before the old one is closed.
//
// The calls come one at a time and in order; if update is too slow for the changes, it misses the sets in between. After a set
// of 500 endpoints or more the next one comes 5 us later for each of them, up to 50 ms: a large service that changes all the time
// is not worth more of a processor. A change after a quiet time comes at once, and the latest set always comes. The first
// call may come before Subscribe returns, the others on a goroutine of the watcher. update may use the watcher and close the
// subscription, but not close the watcher. Invalid endpoints are left out and reported. The slice is shared and must not be
// changed.
func (w *Watcher) Subscribe(service Service, update func(endpoints []Endpoint)) *Subscription {
	sub := &Subscription{update: update, updated: make(chan struct{}), done: make(chan struct{})}
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return sub
	}
	watched := w.watches[service]
	if watched == nil {
		ctx, cancel := context.WithCancelCause(context.Background())
		watched = &watch{
			owner:    w,
			service:  service,
			cancel:   cancel,
			stopped:  ctx.Done(),
			refresh:  make(chan struct{}, 1),
			answered: make(chan struct{}),
		}
		w.watches[service] = watched
		ctx = context.WithValue(ctx, refreshKey{}, (<-chan struct{})(watched.refresh))
		w.running.Go(func() { watched.run(ctx) })
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
	for service, watched := range w.watches {
		watched.cancel(errClosed)
		delete(w.watches, service)
	}
	w.mu.Unlock()
	w.running.Wait()
	return nil
}

func (s *watch) run(ctx context.Context) {
	for failures := 1; ; failures++ {
		for endpoints, err := range s.owner.resolver.Watch(ctx, s.service) {
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				s.fail(err)
				continue
			}
			failures = 0
			s.set(endpoints)
			pause.For(ctx, rest(len(endpoints)))
		}
		if ctx.Err() != nil {
			return
		}
		s.fail(errWatchEnded)
		if pause.For(ctx, backoff(max(failures, 1), restartLimit)) != nil {
			return
		}
	}
}

// A set costs its subscribers time in proportion to its size. So after a large one the next is taken from the resolver only
// after a while, also in proportion to its size. What changes meanwhile is one set for the resolver to yield.
const (
	restFrom   = 500 // endpoints
	restEach   = 5 * time.Microsecond
	restAtMost = 50 * time.Millisecond
)

// rest returns how long after a set of n endpoints the next one is taken.
func rest(n int) time.Duration {
	if n < restFrom {
		return 0
	}
	return min(time.Duration(n)*restEach, restAtMost)
}

func (s *watch) set(endpoints []Endpoint) {
	valid, err := validate(endpoints)
	if err != nil {
		s.owner.onError(s.service, err)
	}
	s.owner.mu.Lock()
	s.endpoints = valid
	s.version++
	version := s.version
	s.lastErr, s.unknown = nil, nil
	s.answerLocked()
	subs := slices.Clone(s.subs)
	s.owner.mu.Unlock()
	for _, sub := range subs {
		sub.deliver(version, valid)
	}
}

func (s *watch) fail(err error) {
	s.owner.mu.Lock()
	s.lastErr = err
	if s.version == 0 && errors.Is(err, ErrUnknownService) {
		s.unknown = err
		s.answerLocked()
	}
	s.owner.mu.Unlock()
	s.owner.onError(s.service, err)
}

func (s *watch) answerLocked() {
	select {
	case <-s.answered:
	default:
		close(s.answered)
	}
}

// Subscription is one subscriber of a [Watcher]. It is safe for concurrent use.
type Subscription struct {
	watch  *watch // nil if the watcher was closed already
	update func([]Endpoint)

	updated chan struct{} // closed when the first update has returned
	done    chan struct{} // closed with the subscription

	mu         sync.Mutex
	closed     bool
	version    uint64 // of endpoints
	endpoints  []Endpoint
	pending    bool // endpoints have yet to be delivered
	delivering bool // a goroutine is calling update, and will deliver what is pending
}

// deliver calls update with the endpoints, unless a newer set was delivered. If another goroutine is calling update, it
// leaves the delivery to that one.
func (s *Subscription) deliver(version uint64, endpoints []Endpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if version <= s.version {
		return
	}
	s.version, s.endpoints, s.pending = version, endpoints, true
	if s.delivering {
		return
	}
	s.delivering = true
	defer func() { s.delivering = false }()
	for s.pending && !s.closed {
		s.pending = false
		s.callUnlocked(s.endpoints)
	}
}

// callUnlocked calls update with s.mu released, and takes it again even after a panic.
func (s *Subscription) callUnlocked(endpoints []Endpoint) {
	s.mu.Unlock()
	defer s.mu.Lock()
	s.update(endpoints)
	select {
	case <-s.updated:
	default: // calls come one at a time
		close(s.updated)
	}
}

// Wait waits until the service has an answer. It returns nil once the first call of update has returned, even if there are
// no endpoints, and an error that is [ErrUnknownService] while the resolver does not know the service. If ctx ends first, it
// returns the cause, joined with the resolver's last error.
func (s *Subscription) Wait(ctx context.Context) error {
	w := s.watch
	if w == nil {
		return errClosed
	}
	select {
	case <-s.updated: // and a service that was known stays known
		return nil
	default:
	}
	answered := w.answered
	for {
		select {
		case <-s.updated:
			return nil
		case <-answered:
			if err := w.answer(); err != nil {
				return err
			}
			answered = nil // there is a set, and it is on its way
			continue
		case <-s.done:
			return errClosed
		case <-w.stopped:
			return errClosed
		case <-ctx.Done():
		}
		w.owner.mu.Lock()
		lastErr := w.lastErr
		w.owner.mu.Unlock()
		if lastErr == nil {
			return context.Cause(ctx)
		}
		return errors.Join(context.Cause(ctx), lastErr)
	}
}

func (s *watch) answer() error {
	s.owner.mu.Lock()
	defer s.owner.mu.Unlock()
	return s.unknown
}

// Err returns the resolver's last error, or nil if a set of endpoints came after it.
func (s *Subscription) Err() error {
	if s.watch == nil {
		return errClosed
	}
	s.watch.owner.mu.Lock()
	defer s.watch.owner.mu.Unlock()
	return s.watch.lastErr
}

// Refresh asks the resolver to look again soon, because an endpoint could not be connected to: it may be gone. Of the
// resolvers here only [DNS] polls, and so acts on it: at once, or a second after its latest lookup, and less and less often
// while nothing new comes. Refresh does not wait, and may be called for every failure.
func (s *Subscription) Refresh() {
	if s.watch == nil {
		return
	}
	select {
	case s.watch.refresh <- struct{}{}:
	default: // already requested
	}
}

type refreshKey struct{}

// Close ends the subscription and, if it was the last one of the service, the watch. No call of update begins after Close
// returns; one may still be running. Close is idempotent.
func (s *Subscription) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.done)
	}
	s.mu.Unlock()
	if s.watch == nil {
		return
	}
	w := s.watch.owner
	w.mu.Lock()
	defer w.mu.Unlock()
	s.watch.subs = slices.DeleteFunc(s.watch.subs, func(other *Subscription) bool { return other == s })
	if len(s.watch.subs) == 0 {
		s.watch.cancel(errClosed)
		if w.watches[s.watch.service] == s.watch {
			delete(w.watches, s.watch.service)
		}
	}
}

// validate returns the endpoints that can be dialled, and what is wrong with the others.
func validate(endpoints []Endpoint) ([]Endpoint, error) {
	var errs []error
	valid := endpoints
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
	return valid, errors.Join(errs...)
}

func (e *Endpoint) check() error {
	if e.Address == "" {
		return errors.New("it has no address")
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
