package mesh

import "github.com/nosidecar/mesh/internal/engine"

// Flags say why a call ended as it did, with Envoy's response flags. Errors and observers get the same flags. The zero value
// says that nothing special happened.
type Flags uint32

// The response flags, in the order in which several are printed.
const (
	FlagNoHealthyUpstream    = Flags(engine.FlagNoHealthyUpstream)    // UH: no healthy endpoint
	FlagUpstreamTimeout      = Flags(engine.FlagUpstreamTimeout)      // UT: an attempt or the whole call took too long
	FlagRemoteReset          = Flags(engine.FlagRemoteReset)          // UR: the endpoint reset the call
	FlagConnectFailure       = Flags(engine.FlagConnectFailure)       // UF: no connection could be made
	FlagConnectionTerminated = Flags(engine.FlagConnectionTerminated) // UC: the endpoint closed the connection
	FlagOverflow             = Flags(engine.FlagOverflow)             // UO: a circuit is open or a connection pool is full
	FlagNoRoute              = Flags(engine.FlagNoRoute)              // NR: no route matches, or the host is not part of the mesh
	FlagDelayInjected        = Flags(engine.FlagDelayInjected)        // DI: a fault delayed the call
	FlagFaultInjected        = Flags(engine.FlagFaultInjected)        // FI: a fault answered the call
	FlagRateLimited          = Flags(engine.FlagRateLimited)          // RL: a local rate limit refused the call
	FlagCallerGone           = Flags(engine.FlagCallerGone)           // DC: the caller gave up
	FlagRetriesExhausted     = Flags(engine.FlagRetriesExhausted)     // URX: the limit or budget of retries was reached
	FlagNoCluster            = Flags(engine.FlagNoCluster)            // NC: no document defines the subset or the port
)

// String returns the short codes joined with commas in Envoy's order, and "-" for none.
func (f Flags) String() string {
	return engine.Flags(f).String()
}
