package breaker

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/nosidecar/mesh/internal/fraction"
	"github.com/nosidecar/mesh/internal/statusset"
)

// OutlierConfig says when an endpoint is ejected and for how long. The zero OutlierConfig ejects after 5 consecutive 5xx
// responses or local failures. The rules and defaults are those of Envoy's outlier detection. OutlierConfigs can be
// compared with ==.
type OutlierConfig struct {
	// Consecutive5xx ejects an endpoint after this many errors with no success between them. An error is a response with one
	// of ErrorCodes or, unless SplitLocalOrigin is set, a local failure: a connection that could not be made (counted as
	// 503), a timeout (504) or a reset (503). 0 means 5; negative switches the rule off.
	Consecutive5xx int

	// ConsecutiveGateway does the same, but counts only the errors that are 502, 503 or 504; any other response starts the
	// count again. 0 means that there is no such rule.
	ConsecutiveGateway int

	// SplitLocalOrigin counts local failures separately from the responses of the endpoint.
	SplitLocalOrigin bool

	// ConsecutiveLocalOrigin ejects an endpoint after this many local failures with no response between them. It requires
	// SplitLocalOrigin. 0 means 5; negative switches the rule off.
	ConsecutiveLocalOrigin int

	// ErrorCodes are the statuses that count as errors. A status below 500 counts like a 500. The zero value means 500 to
	// 599.
	ErrorCodes StatusSet

	// Interval is the time between two sweeps. A sweep readmits endpoints, and applies the two rules that compare
	// endpoints. 0 means 10 seconds.
	Interval time.Duration

	// BaseEjection is how long an endpoint is ejected the first time. The duration grows by this amount with each further
	// ejection, and shrinks by it with each sweep that finds the endpoint healthy. Unlike in Envoy, a sweep that ejects an endpoint does
	// not find it healthy. 0 means 30 seconds.
	BaseEjection time.Duration

	// MaxEjection bounds the duration, before Jitter. 0 means 300 seconds, or BaseEjection if that is longer.
	MaxEjection time.Duration

	// Jitter is the maximum random time added to each ejection, so that endpoints do not all come back at once. 0 means
	// none.
	Jitter time.Duration

	// MaxEjectedFraction is how many of the endpoints that take calls may be ejected at a time, as a fraction from 0 to 1. An
	// ejection that would exceed it does not happen, except that one of at least two endpoints may always be ejected. The
	// last endpoint is ejected only if the value is 1: then calls fail at once. [Outlier.OnWithheld] is told of ejections that do not
	// happen. 0 means 0.1.
	MaxEjectedFraction float64

	// SuccessRate ejects, at each sweep, the endpoints whose success rate since the last sweep is far below the mean: by
	// more than SuccessRateFactor standard deviations. With SplitLocalOrigin it looks at responses only.
	SuccessRate bool

	// SuccessRateMinHosts is the number of endpoints with enough calls that the rule needs. 0 means 5.
	SuccessRateMinHosts int

	// SuccessRateVolume is the number of calls since the last sweep that an endpoint needs to be considered. 0 means 100.
	SuccessRateVolume int

	// SuccessRateFactor is the number of standard deviations for SuccessRate, those of the population. 0 means 1.9.
	SuccessRateFactor float64

	// FailureFraction ejects, at each sweep, the endpoints with at least this fraction of failed calls since the last sweep.
	// It lies between 0 and 1. With SplitLocalOrigin it looks at responses only. 0 means that there is no such rule.
	FailureFraction float64

	// FailureFractionMinHosts is the number of endpoints with enough calls that the rule needs. 0 means 5.
	FailureFractionMinHosts int

	// FailureFractionVolume is the number of calls since the last sweep that an endpoint needs to be considered. 0 means 50.
	FailureFractionVolume int
}

const (
	maxConsecutive = 1<<streakBits - 1
	maxDuration    = 10 * 365 * 24 * time.Hour // leaves room to add several
)

// Validate returns an error that names the field if the settings cannot be honoured.
func (c OutlierConfig) Validate() error {
	_, err := c.withDefaults()
	return err
}

// withDefaults returns c with its defaults filled in.
func (c OutlierConfig) withDefaults() (OutlierConfig, error) {
	if err := c.check(); err != nil {
		return c, err
	}
	c.Consecutive5xx = cmp.Or(c.Consecutive5xx, 5)
	if c.SplitLocalOrigin {
		c.ConsecutiveLocalOrigin = cmp.Or(c.ConsecutiveLocalOrigin, 5)
	}
	c.ErrorCodes = cmp.Or(c.ErrorCodes, serverErrors())
	c.Interval = cmp.Or(c.Interval, 10*time.Second)
	c.BaseEjection = cmp.Or(c.BaseEjection, 30*time.Second)
	c.MaxEjection = cmp.Or(c.MaxEjection, max(300*time.Second, c.BaseEjection))
	c.MaxEjectedFraction = cmp.Or(c.MaxEjectedFraction, 0.1)
	c.SuccessRateMinHosts = cmp.Or(c.SuccessRateMinHosts, 5)
	c.SuccessRateVolume = cmp.Or(c.SuccessRateVolume, 100)
	c.SuccessRateFactor = cmp.Or(c.SuccessRateFactor, 1.9)
	c.FailureFractionMinHosts = cmp.Or(c.FailureFractionMinHosts, 5)
	c.FailureFractionVolume = cmp.Or(c.FailureFractionVolume, 50)
	if c.MaxEjection < c.BaseEjection {
		return c, fmt.Errorf("breaker: OutlierConfig.MaxEjection is %v, want at least BaseEjection (%v)", c.MaxEjection, c.BaseEjection)
	}
	return c, nil
}

// check checks each field by itself.
func (c *OutlierConfig) check() error {
	for _, f := range []struct {
		name  string
		value int
	}{
		{"ConsecutiveGateway", c.ConsecutiveGateway},
		{"SuccessRateMinHosts", c.SuccessRateMinHosts},
		{"SuccessRateVolume", c.SuccessRateVolume},
		{"FailureFractionMinHosts", c.FailureFractionMinHosts},
		{"FailureFractionVolume", c.FailureFractionVolume},
	} {
		if f.value < 0 {
			return fmt.Errorf("breaker: OutlierConfig.%s is %d, want 0 or more", f.name, f.value)
		}
	}
	if n := max(c.Consecutive5xx, c.ConsecutiveGateway, c.ConsecutiveLocalOrigin); n > maxConsecutive {
		return fmt.Errorf("breaker: OutlierConfig counts up to %d consecutive failures, want at most %d", n, maxConsecutive)
	}
	for _, f := range []struct {
		name  string
		value time.Duration
	}{
		{"Interval", c.Interval},
		{"BaseEjection", c.BaseEjection},
		{"MaxEjection", c.MaxEjection},
		{"Jitter", c.Jitter},
	} {
		if f.value < 0 || f.value > maxDuration {
			return fmt.Errorf("breaker: OutlierConfig.%s is %v, want 0 to %v", f.name, f.value, maxDuration)
		}
	}
	if !fraction.Valid(c.MaxEjectedFraction) {
		return fmt.Errorf("breaker: OutlierConfig.MaxEjectedFraction is %v, want 0 to 1", c.MaxEjectedFraction)
	}
	if !fraction.Valid(c.FailureFraction) {
		return fmt.Errorf("breaker: OutlierConfig.FailureFraction is %v, want 0 to 1", c.FailureFraction)
	}
	if !(c.SuccessRateFactor >= 0 && c.SuccessRateFactor <= math.MaxFloat64) {
		return fmt.Errorf("breaker: OutlierConfig.SuccessRateFactor is %v, want 0 or more", c.SuccessRateFactor)
	}
	if !c.ErrorCodes.set.Valid() {
		return fmt.Errorf("breaker: OutlierConfig.ErrorCodes has a code that is not within %d to %d", statusset.Min, statusset.Max)
	}
	if c.ConsecutiveLocalOrigin != 0 && !c.SplitLocalOrigin {
		return errors.New("breaker: OutlierConfig has ConsecutiveLocalOrigin without SplitLocalOrigin, want both")
	}
	return nil
}

// StatusSet is a set of HTTP status codes from 100 to 599. The zero value is empty. It is comparable.
type StatusSet struct {
	set statusset.Set
}

// Codes returns the set of the given codes. With a code outside 100 to 599, [OutlierConfig.Validate] rejects it.
func Codes(codes ...int) StatusSet { return StatusSet{statusset.Of(codes...)} }

// serverErrors are the statuses from 500 to 599.
func serverErrors() (s StatusSet) {
	for code := 500; code <= statusset.Max; code++ {
		s.set.Add(code)
	}
	return s
}
