package discovery

import (
	"context"
	"math/rand/v2"
	"time"
)

const backoffBase = 500 * time.Millisecond

// backoff returns how long to wait after so many failures in a row, at least 1: twice as long each time up to limit,
// and at random between half of that and all, so that many clients of a server that comes back do not meet there.
func backoff(failures int, limit time.Duration) time.Duration {
	d := limit
	if shift := failures - 1; shift < 20 {
		d = min(limit, backoffBase<<shift)
	}
	return d/2 + rand.N(d/2+1)
}

// sleep waits for d and reports whether it did so before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
