// Package timeout limits how long a call may take as a whole, and how long its response body may be silent. A server is told
// how long its caller will wait.
//
// The limit on a single try is part of package retry.
package timeout

import (
	"errors"
	"fmt"
	"time"

	"github.com/nosidecar/mesh/internal/deadline"
)

// Config says how long calls may take. It is comparable. The zero Config sets no limit of its own, and tells servers the
// deadline that a caller set.
type Config struct {
	// Request bounds a whole call: all tries, the waits between them and the response body. The clock is stopped from the
	// first byte of a request body to its last, so neither an upload nor a bidirectional stream is cut off: as in Envoy, only the
	// wait for the answer counts. A body of up to 64 KiB in memory counts as sent at once. If the server reads no more of the body
	// for five minutes, and sends nothing either, the call ends (SendIdle). 0: no limit. If the caller's own deadline comes first,
	// that applies.
	Request time.Duration

	// BodyIdle bounds the silence in a response body: one wait for more of it. Only time spent in Read counts, so a slow
	// reader is not penalized. 0: no limit.
	BodyIdle time.Duration

	// NoPropagation omits the header that tells the server the remaining time.
	NoPropagation bool
}

// Validate returns an error that names the field if the settings cannot be honoured.
func (c Config) Validate() error {
	switch {
	case c.Request < 0:
		return fmt.Errorf("timeout: Config.Request is %v, want 0 or more", c.Request)
	case c.BodyIdle < 0:
		return fmt.Errorf("timeout: Config.BodyIdle is %v, want 0 or more", c.BodyIdle)
	}
	return nil
}

// Kind is one of the limits. The zero value is none of them.
type Kind uint8

const (
	Request  = Kind(deadline.Request)  // Config.Request
	PerTry   = Kind(deadline.PerTry)   // PerTryTimeout of package retry
	BodyIdle = Kind(deadline.BodyIdle) // Config.BodyIdle
	SendIdle = Kind(deadline.SendIdle) // the server read nothing more of a request body for five minutes; see Config.Request
)

// String returns the name of the limit, such as "request timeout", and "none" for the zero value.
func (k Kind) String() string {
	return deadline.Kind(k).String()
}

// Exceeded returns the limit whose expiry caused err, and how long it was. It recognizes the errors of this package and of
// per-try timeouts; for all others, such as an exceeded deadline that the caller set, it returns 0.
//
// For these errors, errors.Is(err, context.DeadlineExceeded) is true and Timeout reports true, as for a deadline of the
// caller.
func Exceeded(err error) (Kind, time.Duration) {
	if e, ok := errors.AsType[*deadline.Error](err); ok {
		return Kind(e.Kind), e.Limit
	}
	return 0, 0
}

// Header tells the server how many milliseconds the caller will wait, at least 1.
const Header = deadline.Header
