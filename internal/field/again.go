package field

import (
	"math"
	"net/http"
	"strconv"
	"time"
)

// RetryAfter returns the wait that the values of a Retry-After header ask for: a number of seconds, or a date in any of HTTP's three
// formats (RFC 9110, section 10.2.3). It returns 0 if the value is malformed, in the past or too large.
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

// Pushback returns the delay in the values of grpc-retry-pushback-ms, after which a gRPC server wants a call to be retried (gRFC A6). It
// is negative if the call must not be retried, which is also the meaning of a malformed value. told reports whether there is a value.
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
