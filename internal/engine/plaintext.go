package engine

import (
	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/policy"
)

// hintedError is an error of an attempt, with what may be its cause.
type hintedError struct {
	error
	hint string
}

// Error implements error.
func (e *hintedError) Error() string { return e.error.Error() + " (" + e.hint + ")" }

// Unwrap returns the error.
func (e *hintedError) Unwrap() error { return e.error }

// plaintextHint says why the attempt went out in plaintext, if its endpoint cut the connection off, as those do that take TLS
// only. It is "" for other failures.
func (a *Attempt) plaintextHint(kind failure.Kind) string {
	c := a.call
	if kind != failure.Reset && kind != failure.Unsent || c.kind == Raw || c.ownTLS || a.conns == nil || a.conns.socket.config != nil {
		return ""
	}
	const sent, maybe = "it was sent plaintext, ", ", and the endpoint may take TLS only"
	config := &c.cluster.config
	entry := c.engine.Plan().Host(c.target.Host).Entry
	switch {
	case config.TLS.Mode == policy.TLSAuto && entry != nil && entry.Unplaced:
		return sent + "as " + entry.Document + " has no location, which means MESH_EXTERNAL: write MESH_INTERNAL if the endpoint takes mutual TLS"
	case c.engine.identity == nil:
		return "" // nobody expects mutual TLS of this process
	case config.TLS.Mode == policy.TLSDisable:
		return sent + "as its DestinationRule says DISABLE" + maybe
	case config.TLS.External && entry != nil:
		return sent + "as " + entry.Document + " is MESH_EXTERNAL" + maybe
	}
	return sent + "as nothing says that the endpoint takes mutual TLS: no PeerAuthentication has it STRICT, and it lacks the label " + tlsModeLabel
}
