// Package deadline bounds the duration of calls. It has the error of an exceeded limit, a context that a timer ends, and the limits of a
// whole call including its body.
package deadline

import (
	"context"
	"time"
)

// Kind says which limit was exceeded.
type Kind uint8

const (
	// Request is the limit on a whole call: all tries, the waits between them, and the response body.
	Request Kind = iota + 1
	// PerTry is the limit on one try's wait for response headers.
	PerTry
	// BodyIdle is the limit on one wait for more of the response body.
	BodyIdle
	// SendIdle is the limit on one wait for the peer to take more of the request body, while the other limits stand still.
	SendIdle
)

// sendIdle is the duration of SendIdle. It is Envoy's default for idle streams.
const sendIdle = 5 * time.Minute

// stall is the error of SendIdle.
var stall = &Error{Kind: SendIdle, Limit: sendIdle}

// String returns the name of the limit, and "none" for the zero value.
func (k Kind) String() string {
	switch k {
	case 0:
		return "none"
	case Request:
		return "request timeout"
	case PerTry:
		return "per-try timeout"
	case BodyIdle:
		return "body idle timeout"
	case SendIdle:
		return "send idle timeout"
	}
	return "timeout"
}

// Error is the error of a call that exceeded one of our limits. errors.Is(err, context.DeadlineExceeded) is true for it, and errors.As finds
// a net.Error whose Timeout is true. A deadline that the caller has set is not reported as an Error.
type Error struct {
	Kind  Kind          // the limit that was exceeded
	Limit time.Duration // its duration
}

// Error implements error.
func (e *Error) Error() string {
	switch e.Kind {
	case Request:
		return "request timeout: call not complete after " + e.Limit.String()
	case PerTry:
		return "per-try timeout: no response headers after " + e.Limit.String()
	case BodyIdle:
		return "body idle timeout: nothing received for " + e.Limit.String()
	case SendIdle:
		return "send idle timeout: the peer took nothing of the request for " + e.Limit.String()
	}
	return "timeout after " + e.Limit.String()
}

// Timeout returns true. *url.Error and others look for this method.
func (e *Error) Timeout() bool { return true }

// Unwrap returns context.DeadlineExceeded.
func (e *Error) Unwrap() error { return context.DeadlineExceeded }
