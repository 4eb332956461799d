// Package http2 has a RoundTripper whose type has a name that net/http knows: "*http2.Transport".
//
// An http.Client with a Timeout ends a call in two ways: through its context, and through Request.Cancel, for RoundTrippers that ignore
// contexts. Request.Cancel costs a goroutine and a timer per call. net/http does without it for its own Transport and for a type with this
// name. Our RoundTripper uses contexts, so it does not need Request.Cancel. If net/http stops checking the name, calls cost only what they
// cost without this package.
package http2

import "github.com/nosidecar/mesh/internal/engine/enginehttp"

// Transport is the RoundTripper of a mesh.
type Transport struct {
	*enginehttp.Transport
}
