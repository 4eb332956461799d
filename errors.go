package mesh

import (
	"errors"
	"fmt"
	"strings"

	"github.com/nosidecar/mesh/internal/engine"
	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// Errors that a caller may want to tell apart with errors.Is. Those of the layers (breaker.ErrOpen, balancer.ErrNoEndpoints,
// retry.Error, ...) are found through an [Error] in the same way.
var (
	// ErrClosed is returned for calls made after [Mesh.Close].
	ErrClosed = engine.ErrClosed

	// ErrNotInMesh is returned for a host that neither a document nor discovery knows, or that the Sidecar of the workload does not
	// import; see [WithRegistryOnly].
	ErrNotInMesh = engine.ErrNotInMesh
)

// Error is the error of a failed call. It says where the call was going, which layer ended it, and why.
//
// The cause stays visible to errors.Is and errors.As. An error that stems from the caller's own context is returned as
// net/http would return it, not as an Error.
type Error struct {
	// Layer is the layer that ended the call. "endpoint" means that the endpoint, or the way to it, failed. Each of the
	// others is a decision of this process. In the order in which a request passes them: "route", "timeout", "limit",
	// "fault", "breaker", "discovery", "balancer", "identity".
	Layer string

	// Target is where the call was going.
	Target route.Target

	// Flags are the response flags of the call.
	Flags Flags

	// Attempts is how many requests were sent. 0 means that the call was refused before the first.
	Attempts int

	// Err is the cause.
	Err error
}

func newError(f engine.Failure) error {
	return &Error{Layer: string(f.Layer), Target: f.Target, Flags: Flags(f.Flags), Attempts: f.Attempts, Err: failure.Explain(f.Err)}
}

// Error describes the failure in one line.
func (e *Error) Error() string {
	cause := e.Err
	if retried, ok := cause.(*retry.Error); ok {
		cause = retried.Last // the number of attempts is added below
	}
	var b strings.Builder
	fmt.Fprintf(&b, "mesh: %s: ", e.Target)
	if text := cause.Error(); cause == ErrClosed || strings.HasPrefix(text, e.Layer+": ") {
		b.WriteString(text)
	} else {
		fmt.Fprintf(&b, "%s: %s", e.Layer, text)
	}
	if e.Attempts > 1 {
		fmt.Fprintf(&b, " (after %d attempts)", e.Attempts)
	}
	if e.Flags != 0 {
		fmt.Fprintf(&b, " [%s]", e.Flags)
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error {
	return e.Err
}

// Timeout reports whether the call failed for lack of time. http.Client asks its errors for this method, as it asks a
// net.Error.
func (e *Error) Timeout() bool {
	var t interface{ Timeout() bool }
	return errors.As(e.Err, &t) && t.Timeout()
}
