package discovery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// Subscription is one subscriber of a [Watcher]. It is safe for concurrent use.
type Subscription struct {
	watch  *watch // nil if the watcher was closed already
	update func([]Endpoint)

	mu         sync.Mutex // may be taken with Watcher.mu held
	updated    bool       // the first update has returned
	closed     bool
	pending    bool   // endpoints have yet to be delivered
	delivering bool   // a goroutine is calling update, and will deliver what is pending
	version    uint64 // of endpoints
	endpoints  []Endpoint
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
	first := !s.updated
	s.mu.Unlock()
	defer s.mu.Lock()
	s.update(endpoints)
	if first {
		s.mu.Lock()
		s.updated = true
		s.mu.Unlock()
		s.watch.tell()
	}
}

// Wait waits until the service has an answer. It returns nil once the first call of update has returned, even if there are
// no endpoints, and an error that is [ErrUnknownService] while the resolver does not know the service. If ctx ends first, it
// returns the cause, and with it the resolver's last error.
func (s *Subscription) Wait(ctx context.Context) error {
	for {
		answered, news, err := s.answer()
		if answered {
			return err
		}
		select {
		case <-news:
			continue
		case <-ctx.Done():
		}
		if lastErr := s.Err(); lastErr != nil {
			return fmt.Errorf("%w: %w", context.Cause(ctx), lastErr)
		}
		return context.Cause(ctx)
	}
}

// answer returns what Wait returns, if that is known, and otherwise a channel that is closed when there may be news.
func (s *Subscription) answer() (answered bool, news <-chan struct{}, err error) {
	if s.watch == nil {
		return true, nil, errClosed
	}
	w := s.watch.owner
	w.mu.Lock()
	defer w.mu.Unlock()
	s.mu.Lock()
	updated, closed := s.updated, s.closed
	s.mu.Unlock()
	switch {
	case updated: // and a service that was known stays known
		return true, nil, nil
	case s.watch.unknown && errors.Is(s.watch.lastErr, ErrUnknownService):
		return true, nil, s.watch.lastErr
	case s.watch.unknown:
		return true, nil, unknown(s.watch.service)
	case closed || s.watch.ended:
		return true, nil, errClosed
	}
	return false, s.watch.newsLocked(), nil
}

// Err returns the resolver's last error. If a set of endpoints came after it, it returns what is wrong with the first of them
// that was left out, and nil if none was.
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
	if s.watch != nil {
		s.watch.ask()
	}
}

// Close ends the subscription and, if it was the last one of the service, the watch. No call of update begins after Close
// returns; one may still be running. Close is idempotent.
func (s *Subscription) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	if s.watch == nil {
		return
	}
	w := s.watch.owner
	w.mu.Lock()
	defer w.mu.Unlock()
	s.watch.tellLocked()
	s.watch.subs = slices.DeleteFunc(s.watch.subs, func(other *Subscription) bool { return other == s })
	if len(s.watch.subs) == 0 {
		s.watch.endLocked()
		w.removeLocked(s.watch)
	}
}
