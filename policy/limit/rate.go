package limit

import (
	"fmt"
	"math"
	"time"

	"golang.org/x/time/rate"
)

// RateConfig is a token bucket. Values are comparable. The zero value does not limit.
type RateConfig struct {
	// PerSecond is how many tokens, one a call, the bucket gains each second. 0 means no limit.
	PerSecond float64

	// Burst is how many tokens the bucket holds, and has at first. 0 means one second's worth, at least 1.
	Burst int
}

// Rate is a token bucket. A nil *Rate and the zero value do not limit. It is safe for concurrent use.
type Rate struct {
	bucket *rate.Limiter // nil: no limit
}

// NewRate returns a full bucket, or an error if a value is out of range.
func NewRate(config RateConfig) (*Rate, error) {
	if config.PerSecond < 0 || math.IsNaN(config.PerSecond) || math.IsInf(config.PerSecond, 0) {
		return nil, fmt.Errorf("limit: PerSecond is %v, want a rate of 0 or more", config.PerSecond)
	}
	if config.Burst < 0 {
		return nil, fmt.Errorf("limit: Burst is %d, want 0 or more", config.Burst)
	}
	if config.PerSecond == 0 {
		if config.Burst > 0 {
			return nil, fmt.Errorf("limit: Burst is %d without PerSecond", config.Burst)
		}
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
	return r.allow(time.Now())
}

func (r *Rate) allow(now time.Time) bool {
	return r == nil || r.bucket == nil || r.bucket.AllowN(now, 1)
}
