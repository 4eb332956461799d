package mesh

import (
	"context"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/nosidecar/mesh/internal/asserted"
	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/policy/jwt"
	"github.com/nosidecar/mesh/tlsid"
)

var traceHeaders = [...]string{
	"Traceparent", "Tracestate", "Baggage", "B3", "X-B3-Traceid", "X-B3-Spanid", "X-B3-Parentspanid", "X-B3-Sampled", "X-B3-Flags",
}

// isPlain reports whether the inbound side neither removes a header of that name, nor looks at it, except for the deadline. peer says
// that it comes from a peer with an identity.
func isPlain(name string, peer bool) bool {
	switch name {
	case "Connection", "Host", "Upgrade":
		return false
	case asserted.ClientCert, asserted.PeerMetadata, asserted.PeerMetadataID:
		return false
	}
	if peer {
		return !asserted.Forged(name)
	}
	return !asserted.Header(name)
}

// sanitized returns the header that the handler gets, or nil if that is the one that arrived. h is changed only if it was edited, and so is a
// copy of that one. room is for the value of x-forwarded-client-cert; it may be nil for a peer without an identity.
func (in *inbound) sanitized(h http.Header, room *[1]string) http.Header {
	var copied http.Header
	if in.edited {
		copied = h
	}
	in.sanitize(h, func(name string, values []string) {
		if copied == nil {
			copied = maps.Clone(h)
		}
		if name == asserted.ClientCert && len(values) > 0 {
			copy(room[:], values)
			copied[name] = room[:]
			return
		}
		setOrDelete(copied, name, slices.Clone(values))
	})
	return copied
}

// sanitize calls set for each header that the handler gets with other values than those that arrived, or not at all. What a peer
// without an identity claims about itself or the mesh is removed; a peer with an identity is named. sanitize itself does not
// change h. set must not change the values, which are shared.
func (in *inbound) sanitize(h http.Header, set func(name string, values []string)) {
	s, tokens := &in.mesh.server, in.rules.Tokens()
	if in.plain && in.id == "" && !s.RestartTraces {
		return
	}
	details := s.details(in.peer, in.mesh)
	if details == nil {
		s.strip(h, tokens, set)
		return
	}
	if in.plain {
		set(asserted.ClientCert, details)
		return
	}
	if before := strings.Join(h[asserted.ClientCert], ","); before != "" && isClosed(before) {
		details = []string{before + "," + details[0]} // from its own peers, as in Istio (APPEND_FORWARD)
	}
	set(asserted.ClientCert, details)
	if options, changed := connectionOptions(h["Connection"], tokens); changed {
		set("Connection", options)
	}
	for _, name := range [...]string{"Host", asserted.PeerMetadata, asserted.PeerMetadataID} {
		if _, sent := h[name]; sent {
			set(name, nil)
		}
	}
	removeForged(h, set)
}

// removeForged is about peers with an identity. It is a function of its own to keep the stack small.
func removeForged(h http.Header, set func(name string, values []string)) {
	for name := range h {
		if asserted.Forged(name) {
			set(name, nil)
		}
	}
}

// isClosed reports whether all quotes in a value of x-forwarded-client-cert are closed, whether or not its reader knows that a backslash
// escapes them. If not, what follows, which is about the peer itself, would be part of what the peer wrote.
func isClosed(value string) bool {
	open, escaped := false, false // as a reader sees it that knows
	for i := range len(value) {
		switch c := value[i]; {
		case escaped:
			escaped = false
		case c == '\\':
			escaped = true
		case c == '"':
			open = !open
		}
	}
	return !open && !escaped && strings.Count(value, `"`)%2 == 0
}

// details returns the value of x-forwarded-client-cert for a peer, or nil if it has no identity, or nothing can be said about it.
func (s *server) details(peer tlsid.Peer, m *Mesh) []string {
	if peer.ID.IsZero() {
		return nil
	}
	own, _ := m.identity.Latest() // valid when the peer was verified: the clock is not read again
	if own == nil {
		return nil
	}
	return s.certs.Load().of(peer, own)
}

func (s *server) strip(h http.Header, tokens *jwt.Authenticator, set func(name string, values []string)) {
	for name := range h {
		// A host header may come in addition to :authority in HTTP/2. Handlers look at Request.Host, which has only one of them.
		if asserted.Header(name) || name == "Host" {
			set(name, nil)
		}
	}
	if options, changed := connectionOptions(h["Connection"], tokens); changed {
		set("Connection", options)
	}
	if s.RestartTraces {
		for _, name := range traceHeaders {
			if _, sent := h[name]; sent {
				set(name, nil)
			}
		}
	}
}

// requestID returns the value of x-request-id for the handler, if that is not the one in h, the header that arrived: a tracer has made an id
// for the request, or does not trust the one that it came with.
func (in *inbound) requestID(ctx context.Context, h http.Header) []string {
	if !in.mesh.server.observed {
		return nil
	}
	id, _ := ctx.Value(asserted.RequestIDKey{}).(string)
	if id == "" || id == field.First(h, asserted.RequestID) {
		return nil
	}
	return []string{id}
}

// identified returns the header for the handler with its requestID. seen is that header without it, or nil if that is the one that arrived.
func (in *inbound) identified(ctx context.Context, arrived, seen http.Header) http.Header {
	id := in.requestID(ctx, arrived)
	if id == nil {
		return seen
	}
	if seen == nil {
		seen = maps.Clone(arrived)
	}
	seen[asserted.RequestID] = id
	return seen
}

func setOrDelete(h http.Header, name string, values []string) {
	if len(values) == 0 {
		delete(h, name)
	} else {
		h[name] = values
	}
}

// saidByMesh reports whether a header is about the peer, or about the user whom a token names.
func saidByMesh(name string, tokens *jwt.Authenticator) bool {
	return asserted.Header(name) || tokens.Output(name)
}

// connectionOptions returns the values of a Connection header without the options that would make a proxy behind the handler
// remove the headers about the peer and its user: proxies remove the headers that are named there.
func connectionOptions(values []string, tokens *jwt.Authenticator) (kept []string, changed bool) {
	return field.ConnectionOptions(values, func(name string) bool {
		return saidByMesh(name, tokens) || strings.HasPrefix(name, "X-Forwarded-") || name == "Forwarded"
	})
}

// forwardedCerts caches the values of x-forwarded-client-cert for recent peers, under one identity of ours, by the end of
// the signature of their certificates.
type forwardedCerts [256]atomic.Pointer[forwardedCert]

type forwardedCert struct {
	certificate *x509.Certificate // as in tlsid.Peer, which is the same for all connections of a peer
	details     []string          // one value, which is shared
}

func (f *forwardedCerts) of(peer tlsid.Peer, own *tlsid.Identity) []string {
	var end uint64
	if n := len(peer.Certificate.Signature); n >= 8 {
		end = binary.LittleEndian.Uint64(peer.Certificate.Signature[n-8:])
	}
	place := &f[end%uint64(len(f))]
	if known := place.Load(); known != nil && known.certificate == peer.Certificate {
		return known.details
	}
	subject := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(printable(peer.Certificate.Subject.String()))
	details := []string{"By=" + own.ID().String() + ";Hash=" + peer.Hash() + `;Subject="` + subject + `";URI=` + peer.ID.String()}
	place.Store(&forwardedCert{peer.Certificate, details})
	return details
}

// printable returns a distinguished name with its control characters escaped as in RFC 4514, section 2.4: a header must not
// have any.
func printable(name string) string {
	if !strings.ContainsFunc(name, isControl) {
		return name
	}
	var out strings.Builder
	for _, r := range name {
		if isControl(r) {
			for _, b := range []byte(string(r)) {
				fmt.Fprintf(&out, `\%02X`, b)
			}
		} else {
			out.WriteRune(r)
		}
	}
	return out.String()
}

func isControl(r rune) bool { return r < ' ' || 0x7f <= r && r < 0xa0 || r == 0x2028 || r == 0x2029 }
