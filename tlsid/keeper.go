package tlsid

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/internal/pause"
)

// Hooks are called for changes to the identity of a [Keeper]. Each may be nil. They are called one at a time, on the
// keeper's goroutine and with no lock held; a hook that blocks delays the next rotation. They must not call Close.
type Hooks struct {
	// Rotated is called with each new identity once it is in force, and with the one before it: nil for the first. This is
	// the time to retire connections that were made with the old one.
	Rotated func(old, new *Identity)

	// Failed is called with each error of the source, for each identity refused because of the time, and with an
	// [*ExpiredError] when the identity in force expires. The identity in force does not change.
	Failed func(error)
}

// Keeper keeps the latest identity of a source, and makes TLS configurations that always use it. It is safe for
// concurrent use. [Keep] makes one; the zero value is of no use.
type Keeper struct {
	hooks  Hooks
	cancel context.CancelFunc
	done   chan struct{} // closed when no goroutine is left

	state atomic.Pointer[state] // never nil

	expired *Identity // whose expiry was reported; only for the keeper's goroutine
}

// state is what is known at one time. It is immutable.
type state struct {
	identity *Identity // in force; nil before the first
	last     error     // the source's last error since
	none     error     // what Identity returns when identity is nil
	over     bool      // nothing more will come
	changed  chan struct{}
}

func newState(identity *Identity, last error) *state {
	s := &state{identity: identity, last: last, none: ErrNoIdentity, changed: make(chan struct{})}
	if last != nil {
		s.none = &noIdentityError{last}
	}
	return s
}

// Keep starts keeping the identity of source. It does not wait for the first: [Keeper.Wait] does. The caller closes the
// keeper.
//
// An identity that is not valid yet comes into force when it is; one that has expired is refused, unless the clock is set back so that it is valid.
// Keep panics if source is nil.
func Keep(source Source, hooks Hooks) *Keeper {
	if source == nil {
		panic("tlsid: Keep: the source is nil") // here, since nobody could recover from a panic of the goroutine below
	}
	ctx, cancel := context.WithCancel(context.Background())
	k := &Keeper{hooks: hooks, cancel: cancel, done: make(chan struct{})}
	k.state.Store(newState(nil, nil))
	go k.run(ctx, source)
	return k
}

// Close stops following the source and waits for its goroutines. The identity in force stays in force until it expires. It
// may be called more than once.
func (k *Keeper) Close() {
	k.cancel()
	<-k.done
}

// Wait waits until there is a valid identity, but no longer than ctx. The caller gives ctx a deadline: an unreachable source
// may stay silent forever. The error joins the cause of ctx with the source's last error.
func (k *Keeper) Wait(ctx context.Context) error {
	for {
		s := k.state.Load()
		_, err := s.at(time.Now())
		if err == nil {
			return nil
		}
		if s.over {
			return err
		}
		select {
		case <-s.changed:
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", err, context.Cause(ctx))
		}
	}
}

// Identity returns the identity in force. It checks the clock each time: the error is an [*ExpiredError] once the identity
// has expired, and wraps [ErrNoIdentity] before the first has come.
func (k *Keeper) Identity() (*Identity, error) {
	return k.state.Load().at(time.Now())
}

// Latest returns the identity in force, expired or not, or nil before the first, and the last error of the source if it has
// failed since. It is meant for monitoring, not for decisions.
func (k *Keeper) Latest() (*Identity, error) {
	s := k.state.Load()
	return s.identity, s.last
}

// Peer returns who is at the other end of the connection of state, verified at now against the bundles in force. It trusts
// nothing that the handshake concluded, so it works for any connection, whichever listener terminated TLS. Call it for each
// request: certificates expire and bundles change while a connection lives. A certificate that was already verified with the
// identity in force costs one map look-up and no allocation.
//
// The error is [ErrNoPeer], a [*PeerError] that says what is wrong with the peer's certificate, or that of [Keeper.Identity]:
// without a valid identity there are no valid bundles.
func (k *Keeper) Peer(state *tls.ConnectionState, now time.Time) (Peer, error) {
	if state == nil || len(state.PeerCertificates) == 0 {
		return Peer{}, ErrNoPeer
	}
	identity, err := k.state.Load().at(now)
	if err != nil {
		return Peer{}, err
	}
	return identity.Verify(state, now)
}

func (s *state) at(now time.Time) (*Identity, error) {
	if s.identity == nil {
		return nil, s.none
	}
	if err := s.identity.valid(now); err != nil {
		return nil, err
	}
	return s.identity, nil
}

var (
	errEnded  = errors.New("tlsid: the source ended")
	errNil    = errors.New("tlsid: the source yielded neither an identity nor an error")
	errClosed = errors.New("tlsid: the keeper is closed")
)

// update is one step of a source.
type update struct {
	identity *Identity
	err      error
}

// run follows the source until ctx ends. A separate goroutine iterates over the source, so that this one can watch the
// clock.
func (k *Keeper) run(ctx context.Context, source Source) {
	defer close(k.done)
	updates := make(chan update)
	go func() {
		defer close(updates)
		rotations, errs := pause.Pace{Burst: 100, Each: 100 * time.Millisecond}, pause.Errors() // the source may never wait
		for identity, err := range source.Watch(ctx) {
			if err == nil && identity == nil {
				err = errNil
			}
			pace := &rotations
			if err != nil {
				pace = &errs
			}
			if pace.Wait(ctx) != nil {
				return
			}
			select {
			case updates <- update{identity, err}:
			case <-ctx.Done():
				return
			}
		}
	}()

	alarm := time.NewTimer(time.Hour)
	defer alarm.Stop()
	incoming := (<-chan update)(updates) // nil once the source has ended
	var next *Identity                   // has come, but is not valid by the clock
	for {
		if wait := k.alarm(next, time.Now()); wait < 0 {
			alarm.Stop()
		} else {
			alarm.Reset(wait)
		}

		select {
		case <-ctx.Done():
			for range updates { // until the source has noticed too
			}
			k.end(errClosed)
			return
		case u, ok := <-incoming:
			switch {
			case !ok:
				incoming = nil
				k.end(errEnded)
			case u.err != nil:
				k.fail(u.err)
			default:
				next = k.take(u.identity, next)
			}
		case <-alarm.C:
			next = k.wake(next, time.Now())
		}
	}
}

// look is how often the clock is looked at while an identity is not valid by it. Whoever sets a wrong clock right tells nobody.
const look = 10 * time.Second

// alarm returns after how long wake is to be called, or -1 if it need not be. next is an identity that has come, but is not valid now; nil if there
// is none.
func (k *Keeper) alarm(next *Identity, now time.Time) time.Duration {
	wait := time.Duration(-1)
	if current := k.state.Load().identity; current != nil && !now.After(current.notAfter) {
		wait = current.notAfter.Sub(now) + 1
	}
	if next == nil {
		return wait
	}
	until := look
	if early := next.notBefore.Sub(now); early > 0 {
		until = min(early, look)
	}
	if wait < 0 {
		return until
	}
	return min(wait, until)
}

// wake puts next in force if it is valid now. Otherwise it returns next, and reports, once, whether the identity in force has expired. The clock
// may have been set since the alarm was set, so that neither is the case.
func (k *Keeper) wake(next *Identity, now time.Time) *Identity {
	if next != nil && next.valid(now) == nil {
		return k.take(next, nil)
	}
	if current := k.state.Load().identity; current != nil && current != k.expired {
		if err := current.valid(now); err != nil {
			k.expired = current
			k.fail(err)
		}
	}
	return next
}

// take puts an identity in force if it is valid now. It returns the identity that is to be in force later: this one if it is not valid yet; and
// if this one has expired, still pending, or this one if there is no other, since the clock may be wrong.
func (k *Keeper) take(identity, pending *Identity) (next *Identity) {
	before := k.state.Load()
	var early *NotYetValidError
	switch err := identity.valid(time.Now()); {
	case errors.As(err, &early):
		k.fail(err)
		return identity
	case err != nil:
		k.fail(err)
		if _, none := before.at(time.Now()); none != nil {
			return cmp.Or(pending, identity)
		}
		return pending
	case identity.equal(before.identity):
		if before.last != nil {
			k.publish(newState(before.identity, nil))
		}
	default:
		k.publish(newState(identity, nil))
		if k.hooks.Rotated != nil {
			k.hooks.Rotated(before.identity, identity)
		}
	}
	return nil
}

// fail records an error and changes nothing else.
func (k *Keeper) fail(err error) {
	k.publish(newState(k.state.Load().identity, err))
	if k.hooks.Failed != nil {
		k.hooks.Failed(err)
	}
}

// end records that nothing more will come, and why if the source did not say.
func (k *Keeper) end(why error) {
	before := k.state.Load()
	if before.identity != nil || before.last != nil {
		why = before.last
	}
	s := newState(before.identity, why)
	s.over = true
	k.publish(s)
}

// publish replaces the state and wakes the goroutines that wait for that. Only the keeper's goroutine calls it.
func (k *Keeper) publish(s *state) {
	close(k.state.Swap(s).changed)
}
