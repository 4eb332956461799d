package limit_test

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/policy/limit"
)

func TestRate_Allow(t *testing.T) {
	type step struct {
		after time.Duration
		calls int
		want  int // of the calls, how many are allowed
	}
	for _, tt := range []struct {
		name   string
		config limit.RateConfig
		steps  []step
	}{
		{"no limit", limit.RateConfig{}, []step{{0, 10_000, 10_000}}},
		{"burst, then rate", limit.RateConfig{PerSecond: 10, Burst: 5}, []step{
			{0, 20, 5}, {100 * time.Millisecond, 5, 1}, {10 * time.Second, 20, 5},
		}},
		{"burst of one second", limit.RateConfig{PerSecond: 2.5}, []step{{0, 10, 3}, {400 * time.Millisecond, 10, 1}}},
		{"less than one a second", limit.RateConfig{PerSecond: 0.1}, []step{
			{0, 10, 1}, {9 * time.Second, 10, 0}, {time.Second, 10, 1},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rate, err := limit.NewRate(tt.config)
				if err != nil {
					t.Fatal(err)
				}
				for i, s := range tt.steps {
					time.Sleep(s.after)
					allowed := 0
					for range s.calls {
						if rate.Allow() {
							allowed++
						}
					}
					if allowed != s.want {
						t.Errorf("step %d: %d of %d calls allowed, want %d", i, allowed, s.calls, s.want)
					}
				}
			})
		})
	}
}

func TestRate_Zero(t *testing.T) {
	var none *limit.Rate
	if !none.Allow() || !new(limit.Rate).Allow() {
		t.Error("a rate without limit refuses")
	}
}

func TestNewRate_Errors(t *testing.T) {
	for name, config := range map[string]limit.RateConfig{
		"negative rate":      {PerSecond: -1},
		"not a number":       {PerSecond: math.NaN()},
		"infinite":           {PerSecond: math.Inf(1)},
		"negative burst":     {PerSecond: 1, Burst: -1},
		"burst without rate": {Burst: 1},
	} {
		if _, err := limit.NewRate(config); err == nil {
			t.Errorf("%s: NewRate(%+v) succeeded", name, config)
		}
	}
}
