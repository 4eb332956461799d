// Package asserted lists the headers with which a peer asserts something about itself or the mesh. They are trusted only from
// authenticated peers: without an identity, neither handlers nor policies see them.
package asserted

import (
	"net/http"
	"strings"
)

// The headers that do not begin with x-envoy-.
const (
	ClientCert = "X-Forwarded-Client-Cert"
	RequestID  = "X-Request-Id"
	ClientID   = "L5d-Client-Id" // Linkerd's proxies set it to the identity of the client
)

// The headers with which two peers of a mesh describe themselves to each other, for telemetry. The application does not see them.
const (
	PeerMetadata   = "X-Envoy-Peer-Metadata"
	PeerMetadataID = "X-Envoy-Peer-Metadata-Id"
)

// Header reports whether name, a key of an http.Header, is such a header. It also reports true for names with underscores that CGI and
// similar interfaces would confuse with one.
func Header(name string) bool {
	name = confused(name)
	return name == ClientCert || name == RequestID || name == ClientID || strings.HasPrefix(name, "X-Envoy-")
}

// Forged reports whether name, a key of an http.Header, is a header that would hide who its sender is, even from a peer with an identity.
// Sidecars remove ClientID, too. To ClientCert, the mesh appends.
func Forged(name string) bool { return name != ClientCert && identifies(name) }

// Identity reports whether a header of this name, in any spelling, says who the peer is. Policies must not go by one, since what arrives was
// written by the peer.
func Identity(name string) bool { return identifies(http.CanonicalHeaderKey(name)) }

func identifies(name string) bool {
	name = confused(name)
	return name == ClientCert || name == ClientID
}

// confused returns the header that CGI and similar interfaces would take for name.
func confused(name string) string {
	if strings.IndexByte(name, '_') < 0 {
		return name
	}
	return http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-"))
}

// RequestIDKey is the key of the id of an inbound request in its context: a string, which is empty for none. A tracer that decides about the
// id is there, since the header of a peer that is not trusted has another one.
type RequestIDKey struct{}
