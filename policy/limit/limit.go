// Package limit bounds what this process sends to a destination: how many calls at once, over how many connections and
// at what rate.
//
// [Pool] is a destination's connection pool, as Envoy reads the connectionPool of a DestinationRule: its slots bound the
// calls, its [Conns] the connections to each endpoint. [Rate] is a token bucket. Both only decide; [Transport] and
// [RateTransport] apply them to an http.Client, and answer a call that is refused as Envoy does.
//
// This is a layer: it works alone and imports no documents. It is below policy because documents configure it.
package limit

import "github.com/nosidecar/mesh/internal/refusal"

// ErrOverflow means that a [Pool] has no room for a call. The call was not sent, and is not retried.
var ErrOverflow = refusal.New("limit: connection pool overflow")

// ErrRateLimited means that a [Rate] has no token for a call. The call was not sent.
var ErrRateLimited = refusal.New("limit: rate limited")
