package engine

import (
	"context"
	"errors"
	"fmt"

	"github.com/nosidecar/mesh/internal/refusal"
	"github.com/nosidecar/mesh/policy/fault"
	"github.com/nosidecar/mesh/retry"
)

// Refusals that a caller may want to tell apart.
var (
	ErrClosed        = refusal.New("the mesh is closed")
	ErrNotInMesh     = refusal.New("host is not part of the mesh: neither a document, such as a ServiceEntry, nor discovery knows it")
	ErrUnknownSubset = refusal.New("no DestinationRule defines the subset")
)

// Reasons of refusals that are answered with a response, which does not contain the reason.
var (
	errNoRoute      = refusal.New("no route matches")
	errRouteAnswers = refusal.New("the route answers by itself")
	errAborted      = refusal.New(refusal.FaultAborted)
)

// Refusal says that a layer of this process ends a call or an attempt, and why.
type Refusal struct {
	Layer Layer
	Flags Flags

	// Err is the reason. If the context ended during a wait in the layer, it is the context's error, not one of
	// internal/refusal, and is classified as such.
	Err error

	// Answer is the answer that the caller gets. Without one it gets an error.
	Answer Answer

	// Fault is the fault of AnswerFault.
	Fault fault.Decision
}

// Answer is the answer to a call that is refused. An adapter makes a response of it.
type Answer uint8

const (
	NoAnswer          Answer = iota
	AnswerNotFound           // no route matches
	AnswerRule               // the response of the rule: see Call.Rule
	AnswerFault              // Refusal.Fault was injected
	AnswerOverloaded         // there is no room in the pool of the destination
	AnswerRateLimited        // there were too many calls
)

// Error implements error.
func (r *Refusal) Error() string { return r.Err.Error() }

// Unwrap returns the reason.
func (r *Refusal) Unwrap() error { return r.Err }

// refuse returns a refusal that is an error.
func refuse(layer Layer, flags Flags, err error) error {
	return &Refusal{Layer: layer, Flags: flags, Err: refusal.Because(err)}
}

// shut refuses all calls to a target whose DestinationRule is refused and has no last good version: it is not known how to secure
// them.
func (c *cluster) shut() error {
	if c.config.Closed == "" {
		return nil
	}
	return refuse(LayerRoute, FlagNoCluster, refusal.New(c.config.Closed+" is refused and has no last good version: how it secures calls is not known"))
}

// whyUnusable returns the refusal of a call to a target that cannot be used under the documents in force.
func (c *cluster) whyUnusable() error {
	if err := c.shut(); err != nil {
		return err
	}
	return refuse(LayerRoute, FlagNoCluster, ErrUnknownSubset)
}

// prescribe returns a refusal that is answered.
func prescribe(layer Layer, flags Flags, err error, answer Answer) error {
	return &Refusal{Layer: layer, Flags: flags, Err: refusal.Because(err), Answer: answer}
}

// NotInMesh returns the error of a call to a host outside the mesh that is not sent: because of WithRegistryOnly or a Sidecar, or because an
// [Adapter] cannot send it there.
func (c *Call) NotInMesh() error {
	err := ErrNotInMesh
	switch h := c.host; {
	case h.Hidden:
		err = &notImported{h.Document}
	case h.RegistryOnly && h.Routes == nil:
		err = fmt.Errorf("%w, and %s is REGISTRY_ONLY", ErrNotInMesh, h.Document)
	case h.unknown() != nil:
		err = fmt.Errorf("%w: %v", ErrNotInMesh, h.unknown())
	}
	return refuse(LayerRoute, FlagNoRoute, err)
}

// notImported is ErrNotInMesh for a host that a Sidecar does not import.
type notImported struct{ sidecar string }

// Error implements error.
func (e *notImported) Error() string {
	return "host is not part of the mesh for this workload: " + e.sidecar + " does not import it"
}

// Unwrap returns ErrNotInMesh.
func (e *notImported) Unwrap() error { return ErrNotInMesh }

// outsideError is the error of a host outside the mesh. The name may be a typing error, so the text says that nothing knows it.
type outsideError struct {
	error
	sidecar string // that does not import the host; "" if nothing knows it
	unknown error  // what discovery has said; nil if it was not asked
}

// Error implements error.
func (e *outsideError) Error() string {
	if e.sidecar != "" {
		return e.error.Error() + " (" + e.sidecar + " does not import this host: no policy applied)"
	}
	text := e.error.Error() + " (neither a document nor discovery knows this host: no policy applied"
	if e.unknown != nil {
		text += "; " + e.unknown.Error()
	}
	return text + ")"
}

// Unwrap returns the error.
func (e *outsideError) Unwrap() error { return e.error }

// interrupted says in which layer a context ended. err is its cause.
func interrupted(layer Layer, err error) error {
	return &Refusal{Layer: layer, Err: err}
}

// undiscovered says that a wait for endpoints ended with err, or because ctx did.
func undiscovered(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return interrupted(LayerDiscovery, context.Cause(ctx))
	}
	return refuse(LayerDiscovery, FlagNoHealthyUpstream, err)
}

// answerOf returns the refusal in err if it is answered, and nil otherwise.
func answerOf(err error) *Refusal {
	if r, ok := errors.AsType[*Refusal](err); ok && r.Answer != NoAnswer {
		return r
	}
	return nil
}

// explain splits the error of a call into its layer, its flags and its cause. An error that is not a refusal comes from the endpoint,
// or from the way to it.
func explain(err error) (Layer, Flags, error) {
	r, ok := errors.AsType[*Refusal](err)
	if !ok {
		return LayerEndpoint, 0, err
	}
	if retried, ok := err.(*retry.Error); ok && retried.Last == error(r) {
		err = &retry.Error{Attempts: retried.Attempts, Last: r.Err}
	} else if err == error(r) {
		err = r.Err
	}
	return r.Layer, r.Flags, err
}
