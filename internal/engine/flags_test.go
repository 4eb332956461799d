package engine_test

import (
	"testing"

	"github.com/nosidecar/mesh/internal/engine"
)

// Calls without a response have the code with which a sidecar would have answered, or none if nobody was there to get it.
func TestCodesOfFlags(t *testing.T) {
	for code, all := range map[int][]engine.Flags{
		503: {engine.FlagNoHealthyUpstream, engine.FlagConnectFailure, engine.FlagOverflow, engine.FlagConnectionTerminated,
			engine.FlagRemoteReset, engine.FlagNoCluster, engine.FlagConnectFailure | engine.FlagRetriesExhausted},
		504: {engine.FlagUpstreamTimeout, engine.FlagUpstreamTimeout | engine.FlagConnectFailure},
		404: {engine.FlagNoRoute},
		429: {engine.FlagRateLimited},
		0:   {engine.FlagCallerGone, engine.FlagCallerGone | engine.FlagUpstreamTimeout, 0},
	} {
		for _, f := range all {
			if got := f.Code(0); got != code {
				t.Errorf("a call that ended with %v has the code %d, want %d", f, got, code)
			}
			if got := f.Code(418); got != 418 {
				t.Errorf("a response with the status 418 and %v has the code %d", f, got)
			}
		}
	}
}
