package mesh

import "strings"

// Flags say why a call ended as it did, with Envoy's response flags. Errors and observers are given the same ones. The zero
// value says that nothing special happened.
type Flags uint32

// The response flags, in the order in which several are printed.
const (
	FlagNoHealthyUpstream    Flags = 1 << iota // UH: no healthy endpoint
	FlagUpstreamTimeout                        // UT: a try or the whole call took too long
	FlagRemoteReset                            // UR: the endpoint reset the call
	FlagConnectFailure                         // UF: no connection could be had
	FlagConnectionTerminated                   // UC: the endpoint closed the connection
	FlagOverflow                               // UO: a circuit is open or a connection pool is full
	FlagNoRoute                                // NR: no route matches, or the host is not of the mesh
	FlagDelayInjected                          // DI: a fault delayed the call
	FlagFaultInjected                          // FI: a fault answered the call
	FlagRateLimited                            // RL: a local rate limit refused the call
	FlagCallerGone                             // DC: the caller gave up
	FlagRetriesExhausted                       // URX: the limit or budget of retries was reached
	FlagNoCluster                              // NC: the subset is not defined
)

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
