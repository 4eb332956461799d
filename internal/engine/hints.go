package engine

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/url"
	"slices"
	"syscall"

	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/policy"
)

// hintedError is an error of an attempt, with its possible cause.
type hintedError struct {
	error
	hint string
}

// Error implements error.
func (e *hintedError) Error() string { return e.error.Error() + " (" + e.hint + ")" }

// Unwrap returns the error.
func (e *hintedError) Unwrap() error { return e.error }

// hint says what the caller may have to change about a failure that has its cause in how connections are secured. It is "" for other
// failures.
func (a *Attempt) hint(kind failure.Kind, err error) string {
	if kind == failure.Connect {
		if hint := a.tlsHint(err); hint != "" {
			return hint
		}
	}
	return a.plaintextHint(kind, err)
}

// tlsHint says why a TLS handshake may have failed.
func (a *Attempt) tlsHint(err error) string {
	if _, plaintext := errors.AsType[tls.RecordHeaderError](err); plaintext && a.conns != nil && a.conns.Secured() {
		return "the endpoint does not answer with TLS: is it behind Mesh.Listen or a sidecar?"
	}
	if refused, ok := errors.AsType[*tls.CertificateVerificationError](err); ok && a.call.ownTLS && ofMesh(refused.UnverifiedCertificates) {
		return "the certificate of the endpoint is one of a mesh: call it by a URL with http, and the mesh uses mutual TLS"
	}
	return ""
}

// ofMesh reports whether certificates are those of a workload with a SPIFFE ID.
func ofMesh(certificates []*x509.Certificate) bool {
	return len(certificates) > 0 && slices.ContainsFunc(certificates[0].URIs, func(u *url.URL) bool { return u.Scheme == "spiffe" })
}

// plaintextHint says why the attempt was sent in plaintext, if the endpoint cut the connection off, as one does that takes only TLS.
// It is "" for other failures.
func (a *Attempt) plaintextHint(kind failure.Kind, err error) string {
	c := a.call
	if !cutOff(kind, err) || c.kind == Raw || c.ownTLS || a.conns == nil || a.conns.Secured() {
		return ""
	}
	const sent, maybe = "it was sent plaintext, ", ", and the endpoint may take TLS only"
	config := &a.cluster.config
	entry := c.engine.Plan().Host(c.target.Host).Entry
	switch {
	case config.TLS.Mode == policy.TLSAuto && entry != nil && entry.Unplaced:
		return sent + "as " + entry.Document + " has no location, which means MESH_EXTERNAL: write MESH_INTERNAL if the endpoint takes mutual TLS"
	case c.engine.identity == nil && config.TLS.Mode == policy.TLSAuto && !config.TLS.External && a.endpoint.host.Endpoint().Labels[tlsModeLabel] == "istio":
		return sent + "as this process has no identity, for which there is mesh.WithIdentity" + maybe
	case c.engine.identity == nil:
		return "" // no peer expects mutual TLS of this process
	case config.TLS.Mode == policy.TLSDisable:
		return sent + "as its DestinationRule says DISABLE" + maybe
	case config.TLS.External && entry != nil:
		return sent + "as " + entry.Document + " is MESH_EXTERNAL" + maybe
	}
	return sent + "as nothing says that the endpoint takes mutual TLS: no PeerAuthentication has it STRICT, and it lacks the label " + tlsModeLabel
}

// cutOff reports whether the other end closed a connection that it had accepted. For gRPC, a connection is established with
// the first HTTP/2 frame.
func cutOff(kind failure.Kind, err error) bool {
	switch kind {
	case failure.Reset, failure.Unsent:
		return true
	case failure.Connect:
		return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
	}
	return false
}
