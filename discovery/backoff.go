package discovery

import (
	"math/rand/v2"
	"time"
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
