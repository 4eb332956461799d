package tlsid

import (
	"errors"
	"testing"
	"time"
)

// The clock of a machine may be set back while the first identity is not valid yet. The keeper goes on waiting for it.
func TestKeeper_ClockIsSetBack(t *testing.T) {
	var failed []error
	k := &Keeper{hooks: Hooks{Failed: func(err error) { failed = append(failed, err) }}}
	k.state.Store(newState(nil, nil))
	now := time.Now()
	next := &Identity{notBefore: now.Add(time.Minute), notAfter: now.Add(time.Hour)}
	if got := k.wake(next, now); got != next || len(failed) > 0 {
		t.Errorf("woken too early, the keeper waits for %v, and tells of %v", got, failed)
	}
	if _, err := k.Identity(); !errors.Is(err, ErrNoIdentity) {
		t.Errorf("the identity before its time: %v", err)
	}
}

// What is not valid by a wrong clock comes into force soon after the clock was set right, though nothing tells of that.
func TestKeeper_ClockIsSetRight(t *testing.T) {
	now := time.Now()
	for name, late := range map[string]*Identity{
		"behind": {notBefore: now.Add(time.Hour), notAfter: now.Add(2 * time.Hour)},
		"ahead":  {notBefore: now.Add(-2 * time.Hour), notAfter: now.Add(-time.Hour)},
	} {
		t.Run(name, func(t *testing.T) {
			var failed []error
			k := &Keeper{hooks: Hooks{Failed: func(err error) { failed = append(failed, err) }}}
			k.state.Store(newState(nil, nil))
			if next := k.take(late, nil); next != late || len(failed) != 1 {
				t.Fatalf("the keeper waits for %v, and tells of %v", next, failed)
			}
			if d := k.alarm(late, now); d < 0 || d > 10*time.Second {
				t.Errorf("the keeper looks at the clock after %v", d)
			}
			right := &Identity{notBefore: now.Add(-time.Minute), notAfter: now.Add(time.Hour)} // as if the clock had been set
			if next := k.wake(right, now); next != nil {
				t.Errorf("the keeper still waits for %v", next)
			}
			if identity, err := k.Identity(); identity != right || err != nil {
				t.Errorf("the identity is %v, %v", identity, err)
			}
		})
	}
}

// While a valid identity is awaited, the end of the one in force is told once.
func TestKeeper_ExpiryIsToldOnce(t *testing.T) {
	now := time.Now()
	var failed []error
	k := &Keeper{hooks: Hooks{Failed: func(err error) { failed = append(failed, err) }}}
	k.state.Store(newState(&Identity{notBefore: now.Add(-time.Hour), notAfter: now.Add(-time.Minute)}, nil))
	next := &Identity{notBefore: now.Add(time.Hour), notAfter: now.Add(2 * time.Hour)}
	for range 3 {
		k.wake(next, now)
	}
	if len(failed) != 1 {
		t.Errorf("told of %v, want one error", failed)
	}
}
