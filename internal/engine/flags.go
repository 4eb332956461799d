package engine

import (
	"strings"

	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/policy/route"
)

// Failure is how a call failed: what mesh.Error says.
type Failure struct {
	Layer    Layer
	Target   route.Target
	Flags    Flags
	Attempts int
	Err      error
}

// Layer names the part of the mesh that ended a call.
type Layer string

// The layers, in the order in which a request passes them.
const (
	LayerRoute     Layer = "route"
	LayerTimeout   Layer = "timeout"
	LayerLimit     Layer = "limit"
	LayerFault     Layer = "fault"
	LayerBreaker   Layer = "breaker"
	LayerDiscovery Layer = "discovery"
	LayerBalancer  Layer = "balancer"
	LayerIdentity  Layer = "identity"
	LayerEndpoint  Layer = "endpoint"
)

// Flags are Envoy's response flags. mesh.Flags has the same bits.
type Flags uint32

// The response flags, in the order in which several are printed.
const (
	FlagNoHealthyUpstream    Flags = 1 << iota // UH
	FlagUpstreamTimeout                        // UT
	FlagRemoteReset                            // UR
	FlagConnectFailure                         // UF
	FlagConnectionTerminated                   // UC
	FlagOverflow                               // UO
	FlagNoRoute                                // NR
	FlagDelayInjected                          // DI
	FlagFaultInjected                          // FI
	FlagRateLimited                            // RL
	FlagCallerGone                             // DC
	FlagRetriesExhausted                       // URX
	FlagNoCluster                              // NC
)

// Code returns the status of a call that ended with the flags: the status of its answer or, without one, the status that a
// sidecar would have sent, and would show in its metrics and logs. It is 0 if the caller is gone.
func (f Flags) Code(status int) int {
	const unavailable = FlagNoHealthyUpstream | FlagConnectFailure | FlagOverflow | FlagConnectionTerminated | FlagRemoteReset |
		FlagNoCluster
	switch {
	case status != 0 || f&FlagCallerGone != 0:
		return status
	case f&FlagUpstreamTimeout != 0:
		return 504
	case f&unavailable != 0:
		return 503
	case f&FlagNoRoute != 0:
		return 404
	case f&FlagRateLimited != 0:
		return 429
	}
	return 0
}

var flagNames = [...]string{"UH", "UT", "UR", "UF", "UC", "UO", "NR", "DI", "FI", "RL", "DC", "URX", "NC"}

// String returns the short codes joined with commas in Envoy's order, and "-" for none.
func (f Flags) String() string {
	if f == 0 {
		return "-"
	}
	var set []string
	for i, name := range flagNames {
		if f&(1<<i) != 0 {
			set = append(set, name)
		}
	}
	return strings.Join(set, ",")
}

// Statuses as they are passed to [Attempt.Answered].
const (
	statusOK     = 200
	statusFailed = 500 // and above: the server is at fault
)

// flagsOf returns the response flags of a failure. ours says whether a timeout of the whole call is ours or the caller's.
func flagsOf(kind failure.Kind, ours bool) Flags {
	switch kind {
	case failure.Canceled, failure.BadRequest:
		return FlagCallerGone
	case failure.RequestTimeout:
		if !ours {
			return FlagCallerGone
		}
		return FlagUpstreamTimeout
	case failure.TryTimeout:
		return FlagUpstreamTimeout
	case failure.Connect:
		return FlagConnectFailure
	case failure.RefusedStream, failure.StreamReset:
		return FlagRemoteReset
	case failure.Unsent, failure.Reset:
		return FlagConnectionTerminated
	}
	return 0 // a refusal has set its own
}
