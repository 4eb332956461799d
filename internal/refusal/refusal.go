// Package refusal marks the errors with which a layer refuses a call before anything was sent.
//
// A refusal of ours must be distinguished from a failure of the peer: it does not count against an endpoint, and is not retried, because
// the layer would refuse the call again.
package refusal

import "errors"

// Error is a refusal. Layers publish their sentinels as values of this type.
type Error struct {
	text  string
	cause error
}

// FaultAborted is Envoy's text for a call that an injected fault aborts.
const FaultAborted = "fault filter abort"

// New returns a refusal with the given text. Like errors.New, it returns a distinct value each time.
func New(text string) error {
	return &Error{text: text}
}

// Because returns a refusal with err as its cause, or err itself if it already is a refusal.
func Because(err error) error {
	if Is(err) {
		return err
	}
	return &Error{text: err.Error(), cause: err}
}

// Unwrap returns the cause, or nil if there is none.
func (e *Error) Unwrap() error {
	return e.cause
}

// Error implements error.
func (e *Error) Error() string {
	return e.text
}

// Is reports whether err is or wraps a refusal.
func Is(err error) bool {
	var refused *Error
	return errors.As(err, &refused)
}
