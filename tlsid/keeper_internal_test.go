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
