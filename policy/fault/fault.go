// Package fault delays and aborts calls on purpose, to test what depends on them.
//
// Faults mean what they mean in a VirtualService: the delay comes first, then the abort, each sampled by itself, so that
// a call may meet both. They come once per call, outside retries and timeouts of tries, and say nothing of the health
// of an endpoint.
//
// This is a layer: it works alone and imports no documents. It is below policy because documents configure it.
package fault

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"
)

// million is the PerMillion of a fault that meets every call.
const million = 1_000_000

// Config is the faults of a route. Values are comparable. The zero value has none.
type Config struct {
	Delay Delay
	Abort Abort
}

// Delay holds calls back.
type Delay struct {
	// PerMillion is how many calls in a million are delayed; see [PerMillion]. 0 means none.
	PerMillion uint32

	// Fixed is how long they are delayed.
	Fixed time.Duration
}

// Abort answers calls in place of the destination.
type Abort struct {
	// PerMillion is how many calls in a million are aborted; see [PerMillion]. 0 means none.
	PerMillion uint32

	// HTTPStatus is the status of the answer, 200 to 599. 0 means that IsGRPC is set.
	HTTPStatus int

	// GRPCStatus is the gRPC status code of the answer, if IsGRPC is set. Exactly one of HTTPStatus and IsGRPC is set.
	GRPCStatus uint32
	IsGRPC     bool
}

// PerMillion returns a percentage, 0 to 100, as calls in a million. It cuts off what is left, as Istio does with float64
// values: 0.57 becomes 5699. What is not a percentage becomes a value that [Config.Validate] rejects.
func PerMillion(percent float64) uint32 {
	if !(percent >= 0 && percent <= 100) { // also NaN
		return math.MaxUint32
	}
	return uint32(percent * 10_000)
}

// Validate reports what is wrong with c.
func (c Config) Validate() error {
	switch {
	case c.Delay.PerMillion > million:
		return fmt.Errorf("fault: Delay.PerMillion is %d, want at most %d", c.Delay.PerMillion, million)
	case c.Delay.Fixed < 0:
		return fmt.Errorf("fault: Delay.Fixed is %v, want 0 or more", c.Delay.Fixed)
	case c.Abort.PerMillion > million:
		return fmt.Errorf("fault: Abort.PerMillion is %d, want at most %d", c.Abort.PerMillion, million)
	case c.Abort.IsGRPC && c.Abort.HTTPStatus != 0:
		return fmt.Errorf("fault: Abort has both HTTPStatus %d and a gRPC status", c.Abort.HTTPStatus)
	case c.Abort.HTTPStatus != 0 && (c.Abort.HTTPStatus < 200 || c.Abort.HTTPStatus > 599):
		return fmt.Errorf("fault: Abort.HTTPStatus is %d, want 200 to 599", c.Abort.HTTPStatus)
	case c.Abort.GRPCStatus != 0 && !c.Abort.IsGRPC:
		return fmt.Errorf("fault: Abort.GRPCStatus is %d without IsGRPC", c.Abort.GRPCStatus)
	case c.Abort.GRPCStatus > 16:
		return fmt.Errorf("fault: Abort.GRPCStatus is %d, want at most 16", c.Abort.GRPCStatus)
	case c.Abort.PerMillion > 0 && c.Abort.HTTPStatus == 0 && !c.Abort.IsGRPC:
		return fmt.Errorf("fault: Abort has no status")
	}
	return nil
}

// Decision is what one call meets. The zero value is nothing.
type Decision struct {
	Delay time.Duration // how long the call is held back first; 0 for not at all

	Abort      bool // whether the call is answered rather than sent
	HTTPStatus int  // the answer's status, or 0
	GRPCStatus uint32
	IsGRPC     bool
}

// Decide draws what one call meets. The function random returns an integer in [0, n), as [rand.Uint32N] does, which nil
// stands for. Config must be valid.
func (c *Config) Decide(random func(n uint32) uint32) Decision {
	var d Decision
	if c.Delay.Fixed > 0 && hit(c.Delay.PerMillion, random) {
		d.Delay = c.Delay.Fixed
	}
	if hit(c.Abort.PerMillion, random) {
		d.Abort = true
		d.HTTPStatus, d.GRPCStatus, d.IsGRPC = c.Abort.HTTPStatus, c.Abort.GRPCStatus, c.Abort.IsGRPC
	}
	return d
}

func hit(perMillion uint32, random func(n uint32) uint32) bool {
	switch {
	case perMillion == 0:
		return false
	case random == nil:
		return rand.Uint32N(million) < perMillion
	}
	return random(million) < perMillion
}
