// Package deadline bounds calls in time: the error of an exceeded limit, a context that a timer ends, and the watch over
// a whole call, body included.
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

// sendIdle is the limit SendIdle. It is as long as a stream may be idle in Envoy by default.
const sendIdle = 5 * time.Minute

// String returns the name of the limit.
func (k Kind) String() string {
	switch k {
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

// Error is returned when a limit of ours was exceeded. errors.Is(err, context.DeadlineExceeded) holds for it, and
// errors.As finds a net.Error whose Timeout is true. A deadline that the caller set is not reported as an Error.
type Error struct {
	Kind  Kind          // which limit
	Limit time.Duration // how long it was
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

// Timeout reports true: *url.Error and others ask for it by assertion.
func (e *Error) Timeout() bool { return true }

// Unwrap returns context.DeadlineExceeded.
func (e *Error) Unwrap() error { return context.DeadlineExceeded }
