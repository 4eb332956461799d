package breaker_test

import (
	"fmt"
	"testing"

	"github.com/nosidecar/mesh/breaker"
)

// TestWholePercents checks that a circuit opens when exactly as many percent of its calls failed as it is configured with. In
// float64, 0.07*100 is more than 7.
func TestWholePercents(t *testing.T) {
	for percent := 1; percent <= 100; percent++ {
		for _, failures := range []int{percent - 1, percent} {
			c, err := breaker.New(breaker.Config{ConsecutiveFailures: -1, FailureFraction: float64(percent) / 100, MinRequests: 100}, nil)
			if err != nil {
				t.Fatal(err)
			}
			for i := range 100 {
				lease, err := c.Allow()
				if err != nil {
					t.Fatal(err)
				}
				outcome := breaker.Success
				if i >= 100-failures {
					outcome = breaker.Failure
				}
				lease.Done(outcome)
			}
			want := breaker.Closed
			if failures == percent {
				want = breaker.Open
			}
			if got := c.State(); got != want {
				t.Errorf("%d of 100 calls failed under %v: %v, want %v", failures, float64(percent)/100, got, want)
			}
		}
	}
}

// TestEjectedPercents checks that exactly as many endpoints are ejected as the percentage permits.
func TestEjectedPercents(t *testing.T) {
	for percent := 1; percent <= 100; percent++ {
		o, err := breaker.NewOutlier(breaker.OutlierConfig{Consecutive5xx: 1, MaxEjectedFraction: float64(percent) / 100}, nil)
		if err != nil {
			t.Fatal(err)
		}
		trackers := make([]*breaker.Tracker, 100)
		for i := range trackers {
			trackers[i] = o.Track(fmt.Sprint(i))
		}
		ejected := 0
		for _, tracker := range trackers {
			if tracker.Report(503); tracker.Ejected() {
				ejected++
			}
		}
		if ejected != percent {
			t.Errorf("%d of 100 endpoints are ejected, want %d", ejected, percent)
		}
	}
}
