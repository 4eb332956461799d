package tlsid_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/tlsid"
)

// journal notes what a keeper's hooks are told.
type journal struct {
	mu   sync.Mutex
	told []string
}

func (j *journal) note(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.told = append(j.told, fmt.Sprintf(format, args...))
}

func (j *journal) hooks() tlsid.Hooks {
	return tlsid.Hooks{
		Rotated: func(old, new *tlsid.Identity) {
			if old == nil {
				j.note("first %s", new.ID())
			} else {
				j.note("rotated")
			}
		},
		Failed: func(err error) {
			var expired *tlsid.ExpiredError
			var early *tlsid.NotYetValidError
			switch {
			case errors.As(err, &expired):
				j.note("expired")
			case errors.As(err, &early):
				j.note("early by %s", early.Skew)
			default:
				j.note("%v", err)
			}
		},
	}
}

// expect says what was told since the last call.
func (j *journal) expect(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	j.mu.Lock()
	defer j.mu.Unlock()
	if !slices.Equal(j.told, want) {
		t.Errorf("hooks were told %q, want %q", j.told, want)
	}
	j.told = nil
}

func TestKeeper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "cluster.local")
		s, told := make(source), new(journal)
		k := tlsid.Keep(s, told.hooks())
		defer k.Close()
		if latest, err := k.Latest(); latest != nil || err != nil {
			t.Errorf("Latest = %v, %v before the first", latest, err)
		}
		expectIdentity := func(want *tlsid.Identity) {
			t.Helper()
			synctest.Wait()
			if got, err := k.Identity(); got != want || err != nil {
				t.Errorf("Identity = %v, %v, want %v", got, err, want)
			}
		}
		issue := func(notBefore, notAfter time.Duration) *tlsid.Identity {
			return newIdentity(t, ca.issue(t, order, lasting(notBefore, notAfter)), ca)
		}

		s <- errors.New("not ready")
		told.expect(t, "not ready")
		if _, err := k.Identity(); !errors.Is(err, tlsid.ErrNoIdentity) || !strings.Contains(err.Error(), "not ready") {
			t.Errorf("Identity = %v, want ErrNoIdentity and why", err)
		}

		first := issue(0, time.Hour)
		s <- first
		told.expect(t, "first "+order)
		expectIdentity(first)
		if _, err := k.Latest(); err != nil {
			t.Errorf("Latest = %v after a success", err)
		}

		// An error changes nothing but what Latest says, and the same identity again is no rotation.
		s <- errors.New("gone")
		told.expect(t, "gone")
		expectIdentity(first)
		if latest, err := k.Latest(); latest != first || err == nil {
			t.Errorf("Latest = %v, %v", latest, err)
		}
		s <- first
		told.expect(t)
		if latest, err := k.Latest(); latest != first || err != nil {
			t.Errorf("Latest = %v, %v", latest, err)
		}

		// An identity of yesterday does not replace one that is valid.
		s <- issue(-2*time.Hour, -time.Hour)
		told.expect(t, "expired")
		expectIdentity(first)

		// One of tomorrow waits for its time; one that comes meanwhile takes its place.
		tomorrow := issue(20*time.Minute, time.Hour)
		s <- tomorrow
		told.expect(t, "early by 20m0s")
		soon := issue(10*time.Minute, 2*time.Hour)
		s <- soon
		told.expect(t, "early by 10m0s")

		// One that has expired takes nobody's place.
		s <- issue(-2*time.Hour, -time.Hour)
		told.expect(t, "expired")
		time.Sleep(10*time.Minute - time.Second)
		told.expect(t)
		expectIdentity(first)
		time.Sleep(time.Second)
		told.expect(t, "rotated")
		expectIdentity(soon)
		time.Sleep(time.Hour)
		told.expect(t)
		expectIdentity(soon)

		// New bundles with the same certificate are a rotation too.
		svid := ca.issue(t, order)
		s <- newIdentity(t, svid, ca)
		told.expect(t, "rotated")
		both := newIdentity(t, svid, ca, newAuthority(t, "other.example"))
		s <- both
		told.expect(t, "rotated")
		expectIdentity(both)
	})
}

func TestKeeperClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // which fails if a goroutine is left
		ca := newAuthority(t, "cluster.local")
		k := keepOne(t, ca.identity(t, order))
		k.Close()
		k.Close()
		if _, err := k.Identity(); err != nil {
			t.Errorf("Identity = %v after Close", err)
		}

		// Who waits when the keeper is closed is told so.
		k = tlsid.Keep(make(source), tlsid.Hooks{})
		waited := make(chan error)
		go func() { waited <- k.Wait(context.Background()) }()
		synctest.Wait()
		k.Close()
		if err := <-waited; !errors.Is(err, tlsid.ErrNoIdentity) || err.Error() != "tlsid: no identity: the keeper is closed" {
			t.Errorf("Wait = %v after Close", err)
		}
		k.Close()
	})
}

// watch is a source made of a function.
type watch func(context.Context) iter.Seq2[*tlsid.Identity, error]

func (w watch) Watch(ctx context.Context) iter.Seq2[*tlsid.Identity, error] { return w(ctx) }

// TestSourceEnds has sources that have nothing more to say.
func TestSourceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "cluster.local")
		ending := func(steps ...any) watch {
			return func(context.Context) iter.Seq2[*tlsid.Identity, error] {
				return func(yield func(*tlsid.Identity, error) bool) {
					for _, step := range steps {
						identity, _ := step.(*tlsid.Identity)
						err, _ := step.(error)
						if !yield(identity, err) {
							return
						}
					}
				}
			}
		}

		told := new(journal)
		k := keepSource(t, ending(ca.identity(t, order)), told.hooks())
		told.expect(t, "first "+order)
		time.Sleep(time.Hour - time.Second)
		if _, err := k.Identity(); err != nil {
			t.Errorf("Identity = %v", err)
		}
		time.Sleep(2 * time.Second)
		told.expect(t, "expired") // the clock is looked at all the same

		for _, tt := range []struct {
			source watch
			want   string
		}{
			{ending(), "tlsid: no identity: the source ended"},
			{ending(errors.New("no such folder")), "tlsid: no identity: no such folder"},
		} {
			k := tlsid.Keep(tt.source, tlsid.Hooks{})
			// There is nothing to wait for: an error at once, with no deadline.
			if err := k.Wait(context.Background()); !errors.Is(err, tlsid.ErrNoIdentity) || err.Error() != tt.want {
				t.Errorf("Wait = %v, want %q", err, tt.want)
			}
			k.Close()
		}
	})
}

// TestWaitForValidity has Wait wait for an identity of the near future, as a clock that is behind makes it.
func TestWaitForValidity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "cluster.local")
		s := make(source, 1)
		s <- newIdentity(t, ca.issue(t, order, lasting(90*time.Second, time.Hour)), ca)
		k := tlsid.Keep(s, tlsid.Hooks{})
		defer k.Close()

		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := k.Wait(ctx)
		var early *tlsid.NotYetValidError
		if !errors.As(err, &early) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Wait = %v, want a NotYetValidError and the deadline", err)
		}
		if want := fmt.Sprintf("certificate of %s is not valid until 2000-01-01T00:01:30Z, in 1m30s: is a clock wrong?", order); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Wait = %v, want %q in it", err, want)
		}
		if err := k.Wait(t.Context()); err != nil {
			t.Error(err)
		}
		if now := time.Now().UTC().Format(time.TimeOnly); now != "00:01:30" {
			t.Errorf("Wait ended at %s", now)
		}
	})
}

// TestKeepNothing: a source that is nil by mistake is found by who has made it.
func TestKeepNothing(t *testing.T) {
	defer func() {
		if got, want := recover(), "tlsid: Keep: the source is nil"; got != want {
			t.Errorf("panic %v, want %q", got, want)
		}
	}()
	tlsid.Keep(nil, tlsid.Hooks{})
}
