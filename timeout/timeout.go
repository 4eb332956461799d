// Package timeout limits how long a call may take as a whole, and how long its response body may be silent. A server is told
// how long its caller will wait.
//
// The limit on a single try belongs to the retries: see package retry.
package timeout

import (
	"errors"
	"fmt"
	"time"

	"github.com/nosidecar/mesh/internal/deadline"
)

// Config says how long calls may take. It is comparable. The zero Config sets no limit of its own, and tells servers of
// the deadline that a caller set.
type Config struct {
	// Request bounds a whole call: all tries, the waits between them and the response body. The clock stands still from the
	// first byte of a request body to its last, so that neither an upload nor a stream both ways is cut: as in Envoy, what
	// counts is the wait for the answer. Bodies of up to 64 KiB in memory are sent in no time. A server that takes nothing
	// more of the body for five minutes, and sends nothing either, ends the call (SendIdle). 0: no limit. Where the caller's
	// own deadline comes first, that one holds.
	Request time.Duration

	// BodyIdle bounds the silence in a response body: one wait for more of it. Only time spent in Read counts, so that a
	// slow reader is not punished. 0: no limit.
	BodyIdle time.Duration

	// NoPropagation leaves out the header that tells the server the time left.
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
	SendIdle = Kind(deadline.SendIdle) // five minutes in which a server takes nothing more of a request, where there is another limit
)

// String returns the name of the limit, such as "request timeout".
func (k Kind) String() string {
	return deadline.Kind(k).String()
}

// Exceeded returns the limit that was exceeded and so caused err, and how long it was. It knows the errors of this package and
// those of a per-try timeout; for all others, such as that of a deadline that the caller set, it returns 0.
//
// For all its errors, errors.Is(err, context.DeadlineExceeded) holds and Timeout reports true, as for those of the caller.
func Exceeded(err error) (Kind, time.Duration) {
	if e, ok := errors.AsType[*deadline.Error](err); ok {
		return Kind(e.Kind), e.Limit
	}
	return 0, 0
}

// Header tells the server how many milliseconds the caller will wait, at least 1.
const Header = deadline.Header
