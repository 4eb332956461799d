package discovery

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/nosidecar/mesh/internal/pause"
)

const backoffBase = 500 * time.Millisecond

// backoff returns how long to wait after that many failures in a row, at least 1: twice as long each time up to limit, and
// at random between half of that and all of it, so that the clients of a server that comes back do not all arrive at once.
func backoff(failures int, limit time.Duration) time.Duration {
	d := limit
	if shift := failures - 1; shift < 20 {
		d = min(limit, backoffBase<<shift)
	}
	return d/2 + rand.N(d/2+1)
}

// sleepUnless waits for d, or until it is asked to stop, but for no less than least. It reports whether it was asked, and
// whether the wait ended before ctx did.
func sleepUnless(ctx context.Context, d time.Duration, ask <-chan struct{}, least time.Duration) (asked, ok bool) {
	began := time.Now()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return false, true
	case <-ctx.Done():
		return false, false
	case <-ask:
		return true, pause.For(ctx, min(d, least)-time.Since(began)) == nil
	}
}
