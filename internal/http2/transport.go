// Package http2 has a RoundTripper whose type has a name that net/http knows: "*http2.Transport".
//
// An http.Client with a Timeout ends calls in two ways: by their contexts, and by Request.Cancel, which is for RoundTrippers that do not look
// at contexts, and costs a goroutine and a timer per call. It leaves the second way out for its own Transport, and for a type of this name.
// Ours looks at contexts, so they are enough. Should net/http stop going by the name, calls only cost what they cost without this package.
package http2

import "github.com/nosidecar/mesh/internal/engine/enginehttp"

// Transport is the RoundTripper of a mesh.
type Transport struct {
	*enginehttp.Transport
}
