package field

import (
	"math"
	"net/http"
	"strconv"
	"time"
)

// RetryAfter returns the wait that a Retry-After, given as all its values, asks for: a number of seconds or a date in any of
// HTTP's three forms (RFC 9110, section 10.2.3). What is malformed, past or beyond a Duration is no wish at all: 0.
func RetryAfter(values []string, now time.Time) time.Duration {
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

// Pushback returns when a gRPC server would have a call tried again, negative for never, if its grpc-retry-pushback-ms, given
// as all its values, says so (gRFC A6). What it says in words that are not known means never.
func Pushback(values []string) (after time.Duration, told bool) {
	if len(values) == 0 {
		return 0, false
	}
	ms, err := strconv.ParseInt(values[0], 10, 32)
	if err != nil || len(values) > 1 {
		return -1, true
	}
	return time.Duration(ms) * time.Millisecond, true
}
