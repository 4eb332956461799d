//go:build !race

package accesslog_test

import (
	"log/slog"
	"net/url"
	"runtime"
	"testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/accesslog"
	"github.com/nosidecar/mesh/policy/authz"
)

// A call allocates nothing for its line.
func TestCallsDoNotAllocate(t *testing.T) {
	access, _ := newLog(t, accesslog.Config{Handler: slog.DiscardHandler})
	o, call := access.Observer(), sampleCall()
	in := &mesh.Inbound{Request: call.Request, Status: 200, GRPCStatus: -1, Decision: authz.Decision{Allowed: true}}
	in.Request.URL = &url.URL{Path: "/v1/orders", RawQuery: "full=true"}
	ctx := t.Context()
	if n := testing.AllocsPerRun(1000, func() {
		o.CallEnd(ctx, call)
		o.InboundEnd(ctx, in)
		runtime.Gosched() // to the writer, which gives the records back
	}); n != 0 {
		t.Errorf("%v allocations for a call", n)
	}
}
