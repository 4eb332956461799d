package limit

import (
	"fmt"
	"math"
	"time"

	"golang.org/x/time/rate"
)

// RateConfig has the settings of a [Rate]. Values are comparable. The zero value means no limit.
type RateConfig struct {
	// PerSecond is the number of tokens that the bucket gains per second. Each call takes one. 0 means no limit.
	PerSecond float64

	// Burst is the capacity of the bucket, which is full at first. 0 means the tokens of one second, and at least 1.
	Burst int
}

// Rate is a token bucket. A nil *Rate and the zero value mean no limit. It is safe for concurrent use.
type Rate struct {
	bucket *rate.Limiter // nil means no limit
}

// Validate returns an error that names the first field whose value is invalid.
func (c RateConfig) Validate() error {
	switch {
	case !(c.PerSecond >= 0 && c.PerSecond <= math.MaxFloat64): // also NaN
		return fmt.Errorf("limit: RateConfig.PerSecond is %v, want 0 or more", c.PerSecond)
	case c.Burst < 0:
		return fmt.Errorf("limit: RateConfig.Burst is %d, want 0 or more", c.Burst)
	case c.Burst > 0 && c.PerSecond == 0:
		return fmt.Errorf("limit: RateConfig.Burst is %d without PerSecond, want both", c.Burst)
	}
	return nil
}

// NewRate returns a full bucket. The error is that of [RateConfig.Validate].
func NewRate(config RateConfig) (*Rate, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	if config.PerSecond == 0 {
		return &Rate{}, nil
	}
	burst := config.Burst
	if burst == 0 {
		burst = int(min(math.Ceil(config.PerSecond), math.MaxInt32))
	}
	return &Rate{bucket: rate.NewLimiter(rate.Limit(config.PerSecond), burst)}, nil
}

// Allow takes a token and reports whether there was one.
func (r *Rate) Allow() bool {
	return r == nil || r.bucket == nil || r.bucket.AllowN(time.Now(), 1)
}
