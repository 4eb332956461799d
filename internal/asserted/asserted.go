// Package asserted knows the headers with which a peer asserts something about itself or the mesh. From a peer without an
// identity they are not believed: handlers do not see them, and policies do not either.
package asserted

import (
	"net/http"
	"strings"
)

// The headers beside those that begin with x-envoy-.
const (
	ClientCert = "X-Forwarded-Client-Cert"
	RequestID  = "X-Request-Id"
)

// The headers with which two peers of a mesh tell each other what they are, for their metrics. Nobody else sees them.
const (
	PeerMetadata   = "X-Envoy-Peer-Metadata"
	PeerMetadataID = "X-Envoy-Peer-Metadata-Id"
)

// Header reports whether name, a key of an http.Header, is such a header, or with underscores is taken for one by CGI and
// its kin.
func Header(name string) bool {
	if strings.IndexByte(name, '_') >= 0 {
		name = http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-"))
	}
	return name == ClientCert || name == RequestID || strings.HasPrefix(name, "X-Envoy-")
}
