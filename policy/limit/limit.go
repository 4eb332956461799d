// Package limit bounds what this process sends to a destination: the calls in flight, the connections, and the rate of calls.
//
// [Pool] is the connection pool of a destination, with the meaning that Envoy gives to the connectionPool of a DestinationRule. Its
// slots bound the calls, and its [Conns] bound the connections to each endpoint. [Rate] is a token bucket. Both only decide.
// [Transport] and [RateTransport] apply them to an http.Client, and answer refused calls as Envoy does. [Handler] bounds the load of
// a server.
//
// This package is a layer: it works alone and does not import policy documents. It is below policy because documents configure it.
package limit

import "github.com/nosidecar/mesh/internal/refusal"

// ErrOverflow means that a [Pool] has no room for a call. The call was not sent, and is not retried.
var ErrOverflow = refusal.New("limit: connection pool overflow")

// ErrRateLimited means that a [Rate] has no token for a call. The call was not sent.
var ErrRateLimited = refusal.New("limit: rate limited")
