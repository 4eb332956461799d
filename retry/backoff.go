package retry

import (
	"math"
	"net/http"
	"strconv"
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

// retryAfter returns the wait that the Retry-After header of a response asks for: a number of seconds or a date in any
// of HTTP's three forms (RFC 9110, section 10.2.3). What is malformed, past or beyond a Duration is no wish at all: 0.
func retryAfter(h http.Header, now time.Time) time.Duration {
	values := h["Retry-After"]
	if len(values) == 0 {
		return 0
	}
	v := values[0]
	if digits(v) {
		seconds, err := strconv.ParseInt(v, 10, 64)
		if err != nil || seconds > int64(math.MaxInt64/time.Second) {
			return 0
		}
		return time.Duration(seconds) * time.Second
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0
	}
	return max(0, at.Sub(now))
}

func digits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}
