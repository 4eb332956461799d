package retry

import (
	"cmp"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/nosidecar/mesh/internal/fraction"
)

// LimiterConfig bounds how many retries are in flight at a time, waiting ones included. It is comparable. The zero value
// sets no bound.
type LimiterConfig struct {
	// MaxRetries is the bound. 0: none.
	MaxRetries int

	// Fraction bounds the retries to a fraction of the calls in flight, from 0 to 1. 0: no such bound. It cannot be combined
	// with MaxRetries.
	Fraction float64

	// MinConcurrency is the number of retries that Fraction always permits. 0: 3. It requires Fraction.
	MinConcurrency int
}

// Limiter bounds the retries to a destination that are in flight. A nil Limiter sets no bound. A Limiter is safe for
// concurrent use.
type Limiter struct {
	max     int64
	part    float64 // > 0: of the calls, and max is the minimum
	active  func() int64
	calls   atomic.Int64 // calls in flight, if active is nil
	retries atomic.Int64
}

// Validate returns an error that names the field if the settings cannot be honoured.
func (c LimiterConfig) Validate() error {
	switch {
	case c.MaxRetries < 0:
		return fmt.Errorf("retry: LimiterConfig.MaxRetries is %d, want 0 or more", c.MaxRetries)
	case c.MinConcurrency < 0:
		return fmt.Errorf("retry: LimiterConfig.MinConcurrency is %d, want 0 or more", c.MinConcurrency)
	case !fraction.Valid(c.Fraction):
		return fmt.Errorf("retry: LimiterConfig.Fraction is %v, want 0 to 1", c.Fraction)
	case c.Fraction > 0 && c.MaxRetries > 0:
		return errors.New("retry: LimiterConfig has both Fraction and MaxRetries, want one of them")
	case c.Fraction == 0 && c.MinConcurrency > 0:
		return errors.New("retry: LimiterConfig has MinConcurrency without Fraction, want both")
	}
	return nil
}

// NewLimiter returns a Limiter, or nil if config sets no bound. The error is that of [LimiterConfig.Validate].
//
// Fraction applies to the number that active returns; active must be cheap and safe for concurrent use. If active is nil,
// Fraction applies to the calls inside [Loop.Do], which end with the response headers.
func NewLimiter(config LimiterConfig, active func() int64) (*Limiter, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	if config.Fraction > 0 {
		return &Limiter{max: int64(cmp.Or(config.MinConcurrency, 3)), part: config.Fraction, active: active}, nil
	}
	if config.MaxRetries == 0 {
		return nil, nil
	}
	return &Limiter{max: int64(config.MaxRetries)}, nil
}

// Acquire takes a slot for a retry. It reports false if there is none. The caller must Release a slot that it acquired.
func (l *Limiter) Acquire() bool {
	if l == nil {
		return true
	}
	if l.retries.Add(1) > l.most() {
		l.retries.Add(-1)
		return false
	}
	return true
}

// Release gives back a slot.
func (l *Limiter) Release() {
	if l != nil {
		l.retries.Add(-1)
	}
}

func (l *Limiter) most() int64 {
	if l.part == 0 {
		return l.max
	}
	calls := l.calls.Load()
	if l.active != nil {
		calls = l.active()
	}
	return max(l.max, int64(l.part*float64(calls)))
}

// Retries returns how many retries are in flight, and how many may be. most is 0 for a nil Limiter, which sets no bound.
func (l *Limiter) Retries() (active, most int) {
	if l == nil {
		return 0, 0
	}
	return int(l.retries.Load()), int(l.most())
}

// counts reports whether calls in flight are counted here.
func (l *Limiter) counts() bool {
	return l != nil && l.part > 0 && l.active == nil
}
