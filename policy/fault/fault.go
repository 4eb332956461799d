// Package fault delays and aborts calls on purpose, to test how their callers cope.
//
// Faults mean what they mean in a VirtualService: the delay comes first, then the abort. Each is sampled independently, so a
// call may get both. They are injected once per call, outside retries and per-try timeouts, and do not count against the health
// of an endpoint.
//
// This package is a layer: it works alone and does not import policy documents. It is below policy because documents configure it.
package fault

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/nosidecar/mesh/internal/fraction"
)

// Config describes the faults of a route. Values are comparable. The zero value injects no faults.
type Config struct {
	Delay Delay
	Abort Abort
}

// Delay delays calls before they are sent.
type Delay struct {
	// Fraction is the fraction of calls that are delayed, from 0 to 1, with a precision of one millionth. 0 means none.
	Fraction float64

	// Fixed is how long they are delayed. 0 means not at all.
	Fixed time.Duration
}

// Abort answers calls instead of sending them to the destination.
type Abort struct {
	// Fraction is the fraction of calls that are aborted, from 0 to 1, with a precision of one millionth. 0 means none.
	Fraction float64

	// HTTPStatus is the status of the response, 200 to 599. It is 0 if IsGRPC is set.
	HTTPStatus int

	// GRPCStatus is the gRPC status code of the response, 0 to 16, if IsGRPC is set. An abort has either HTTPStatus or IsGRPC, not both.
	GRPCStatus uint32
	IsGRPC     bool
}

// Validate returns an error that names the first field whose value is invalid.
func (c Config) Validate() error {
	if err := fraction.CheckSample(c.Delay.Fraction); err != nil {
		return fmt.Errorf("fault: Config.Delay.Fraction is %w", err)
	}
	if err := fraction.CheckSample(c.Abort.Fraction); err != nil {
		return fmt.Errorf("fault: Config.Abort.Fraction is %w", err)
	}
	switch {
	case c.Delay.Fixed < 0:
		return fmt.Errorf("fault: Config.Delay.Fixed is %v, want 0 or more", c.Delay.Fixed)
	case c.Abort.IsGRPC && c.Abort.HTTPStatus != 0:
		return fmt.Errorf("fault: Config.Abort has both HTTPStatus %d and IsGRPC, want one of them", c.Abort.HTTPStatus)
	case c.Abort.HTTPStatus != 0 && (c.Abort.HTTPStatus < 200 || c.Abort.HTTPStatus > 599):
		return fmt.Errorf("fault: Config.Abort.HTTPStatus is %d, want 200 to 599", c.Abort.HTTPStatus)
	case c.Abort.GRPCStatus != 0 && !c.Abort.IsGRPC:
		return fmt.Errorf("fault: Config.Abort.GRPCStatus is %d without IsGRPC, want both", c.Abort.GRPCStatus)
	case c.Abort.GRPCStatus > 16:
		return fmt.Errorf("fault: Config.Abort.GRPCStatus is %d, want at most 16", c.Abort.GRPCStatus)
	case c.Abort.Fraction > 0 && c.Abort.HTTPStatus == 0 && !c.Abort.IsGRPC:
		return fmt.Errorf("fault: Config.Abort has no status, want HTTPStatus or IsGRPC")
	}
	return nil
}

// Decision says which faults one call gets. The zero value means none.
type Decision struct {
	Delay time.Duration // how long the call is delayed; 0 means no delay

	Abort      bool // the call is answered instead of being sent
	HTTPStatus int  // the status of the response, or 0 for a gRPC status
	GRPCStatus uint32
	IsGRPC     bool
}

// Decide draws the faults of one call. The function random returns an integer in [0, n). Nil means [rand.Uint32N]. Config must
// be valid.
func (c *Config) Decide(random func(n uint32) uint32) Decision {
	var d Decision
	if hit(c.Delay.Fraction, random) {
		d.Delay = c.Delay.Fixed
	}
	if hit(c.Abort.Fraction, random) {
		d.Abort = true
		d.HTTPStatus, d.GRPCStatus, d.IsGRPC = c.Abort.HTTPStatus, c.Abort.GRPCStatus, c.Abort.IsGRPC
	}
	return d
}

func hit(part float64, random func(n uint32) uint32) bool {
	if part == 0 {
		return false
	}
	if random == nil {
		random = rand.Uint32N
	}
	return random(1_000_000) < fraction.PerMillion(part)
}
