package retry

import (
	"math"
	"time"
)

// delay returns the wait before the n-th retry, counted from 1: a random part, r in [0, 1), of
// min((2^n-1)*base, limit). Full jitter spreads the retries of many clients over the whole interval.
func delay(n int, base, limit time.Duration, r float64) time.Duration {
	if base <= 0 || limit <= 0 {
		return 0
	}
	top := min((math.Exp2(float64(n))-1)*float64(base), float64(limit))
	d := r * top
	// Clamped before the conversion: a float beyond int64 converts to anything.
	if !(d > 0) {
		return 0
	}
	if d >= float64(limit) {
		return limit
	}
	return time.Duration(d)
}
