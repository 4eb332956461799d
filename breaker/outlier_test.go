package breaker_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/internal/refusal"
)

func newOutlier(t *testing.T, cfg breaker.OutlierConfig) *breaker.Outlier {
	t.Helper()
	o, err := breaker.NewOutlier(cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// track tracks n endpoints, named "0" to "n-1".
func track(o *breaker.Outlier, n int) []*breaker.Tracker {
	list := make([]*breaker.Tracker, n)
	for i := range list {
		list[i] = o.Track(fmt.Sprint(i))
	}
	return list
}

func reportN(t *breaker.Tracker, n int, r breaker.Result) {
	for range n {
		t.Report(r)
	}
}

func ejectedIDs(o *breaker.Outlier) []string {
	var ids []string
	for _, s := range o.Endpoints() {
		if s.Ejected {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

func TestTracker_ConsecutiveRules(t *testing.T) {
	list := func(results ...any) []breaker.Result { // numbers repeat what follows them
		var all []breaker.Result
		n := 1
		for _, r := range results {
			switch r := r.(type) {
			case int:
				n = r
			case breaker.Result:
				for range n {
					all = append(all, r)
				}
				n = 1
			}
		}
		return all
	}
	const (
		s200 = breaker.Result(200)
		s404 = breaker.Result(404)
		s429 = breaker.Result(429)
		s500 = breaker.Result(500)
		s502 = breaker.Result(502)
		s503 = breaker.Result(503)
		s504 = breaker.Result(504)
	)
	split := breaker.OutlierConfig{SplitLocalOrigin: true}
	gateway := breaker.OutlierConfig{Consecutive5xx: -1, ConsecutiveGateway: 3}
	for _, test := range []struct {
		name    string
		cfg     breaker.OutlierConfig
		results []breaker.Result
		want    breaker.Reason // of the last result; "" if it must not eject
	}{
		{"five 5xx", breaker.OutlierConfig{}, list(s500, s502, s503, s504, breaker.Result(599)), breaker.Consecutive5xx},
		{"four", breaker.OutlierConfig{}, list(4, s500), ""},
		{"any other status starts again", breaker.OutlierConfig{}, list(4, s500, s404, 4, s500), ""},
		{"and then five", breaker.OutlierConfig{}, list(4, s500, s200, 5, s500), breaker.Consecutive5xx},
		{"no result does not", breaker.OutlierConfig{}, list(4, s500, 9, breaker.NoResult, s500), breaker.Consecutive5xx},
		{"threshold of one", breaker.OutlierConfig{Consecutive5xx: 1}, list(s500), breaker.Consecutive5xx},
		{"off", breaker.OutlierConfig{Consecutive5xx: -1}, list(1000, s500), ""},
		{"local failures are 5xx", breaker.OutlierConfig{},
			list(s500, breaker.ConnectFailure, breaker.Timeout, breaker.Reset, s500), breaker.Consecutive5xx},
		{"gateway rule is off", breaker.OutlierConfig{Consecutive5xx: -1}, list(1000, s503), ""},
		{"gateway rule", gateway, list(s502, s503, s504), breaker.ConsecutiveGateway},
		{"a 500 starts the gateway count again", gateway, list(2, s503, s500, 2, s503), ""},
		{"a 500 is no gateway error", gateway, list(99, s500), ""},
		{"but it goes on with the 5xx", breaker.OutlierConfig{ConsecutiveGateway: 3}, list(2, s503, s500, s503, s503),
			breaker.Consecutive5xx},
		{"local failures are gateway errors", gateway, list(breaker.Timeout, breaker.ConnectFailure, breaker.Reset),
			breaker.ConsecutiveGateway},
		{"split: five local failures", split, list(5, breaker.Timeout), breaker.ConsecutiveLocalOrigin},
		{"split: local failures are not 5xx", split, list(4, s500, 4, breaker.Timeout), ""},
		{"split: nor do they end a run of 5xx", split, list(4, s500, 4, breaker.Timeout, s500), breaker.Consecutive5xx},
		{"split: any response ends a run of them", split, list(4, breaker.Reset, s500, 4, breaker.Reset), ""},
		{"split: threshold", breaker.OutlierConfig{SplitLocalOrigin: true, ConsecutiveLocalOrigin: 2},
			list(2, breaker.Reset), breaker.ConsecutiveLocalOrigin},
		{"split: off", breaker.OutlierConfig{SplitLocalOrigin: true, ConsecutiveLocalOrigin: -1},
			list(1000, breaker.ConnectFailure), ""},
		{"other codes", breaker.OutlierConfig{ErrorCodes: breaker.Codes(429, 503)},
			list(s429, s503, s429, s503, s429), breaker.Consecutive5xx},
		{"a 5xx that is not one of them", breaker.OutlierConfig{ErrorCodes: breaker.Codes(429)}, list(99, s500), ""},
		{"local failures always are", breaker.OutlierConfig{ErrorCodes: breaker.Codes(429)},
			list(5, breaker.Timeout), breaker.Consecutive5xx},
	} {
		t.Run(test.name, func(t *testing.T) {
			var events []breaker.Event
			o, err := breaker.NewOutlier(test.cfg, func(e breaker.Event) { events = append(events, e) })
			if err != nil {
				t.Fatal(err)
			}
			tracker := track(o, 2)[0]
			for i, r := range test.results {
				if tracker.Ejected() {
					t.Fatalf("ejected after %d of %d results", i, len(test.results))
				}
				tracker.Report(r)
			}
			if got, want := tracker.Ejected(), test.want != ""; got != want {
				t.Fatalf("Ejected() = %v, want %v", got, want)
			}
			if test.want != "" && (len(events) != 1 || events[0].Reason != test.want || events[0].Endpoint != "0") {
				t.Errorf("events are %+v, want one for %s", events, test.want)
			}
		})
	}
}

func TestOutlier_MaxEjectionPercent(t *testing.T) {
	for _, test := range []struct {
		name       string
		percent    int
		total      int
		want, then int // ejected when all fail, the first ones first; and after the ejected ones are gone
	}{
		{"the only one stays", 0, 1, 0, 0},
		{"one of two goes", 0, 2, 1, 0},
		{"one of three", 0, 3, 1, 1},
		{"one of ten", 0, 10, 1, 1},
		{"one of nineteen", 0, 19, 1, 1},
		{"two of twenty", 0, 20, 2, 1},
		{"half of five", 50, 5, 2, 1},
		{"all of four", 100, 4, 4, 0},
		{"99 percent of four", 99, 4, 3, 0},
		{"the only one goes", 100, 1, 1, 0},
		{"99 percent of a hundred", 99, 100, 99, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := newOutlier(t, breaker.OutlierConfig{MaxEjectedFraction: float64(test.percent) / 100})
			trackers := track(o, test.total)
			failAll := func() {
				for _, tracker := range trackers {
					reportN(tracker, 5, 500)
				}
			}
			failAll()
			ejected := ejectedIDs(o)
			if len(ejected) != test.want {
				t.Fatalf("%d ejected, want %d", len(ejected), test.want)
			}
			for _, id := range ejected {
				o.Forget(id)
			}
			if got := ejectedIDs(o); got != nil {
				t.Fatalf("%v still ejected", got)
			}
			failAll() // the forgotten ones must not count
			if got := ejectedIDs(o); len(got) != test.then {
				t.Errorf("then %d ejected, want %d", len(got), test.then)
			}
		})
	}
}

func TestOutlier_RefusedEjectionStartsTheCountAgain(t *testing.T) {
	o := newOutlier(t, breaker.OutlierConfig{})
	a, b, c := o.Track("a"), o.Track("b"), o.Track("c")
	reportN(a, 5, 500)
	reportN(b, 9, 500) // refused after 5
	o.Forget("a")
	if b.Ejected() {
		t.Fatal("ejected without another failure")
	}
	b.Report(500)
	if !b.Ejected() || c.Ejected() {
		t.Errorf("b ejected %v, c ejected %v", b.Ejected(), c.Ejected())
	}
}

// The steps of this test are Envoy's: a sweep every 10 s from the start, 30 s more for each ejection in a row.
func TestOutlier_EjectionTimes(t *testing.T) {
	type step struct {
		at     time.Duration
		eject  bool
		sweep  bool
		until  time.Duration // of the ejection in force at the end of the step; 0: none
		factor int
	}
	const s = time.Second
	for _, test := range []struct {
		name  string
		cfg   breaker.OutlierConfig
		steps []step
	}{
		{"readmitted by the first sweep that may", breaker.OutlierConfig{}, []step{
			{at: 3 * s, eject: true, until: 33 * s, factor: 1},
			{at: 33 * s, sweep: true, until: 33 * s, factor: 1}, // the sweep at 30 s was too early, the next is at 40 s
			{at: 40*s - 1, sweep: true, until: 33 * s, factor: 1},
			{at: 40 * s, sweep: true, factor: 1},
			{at: 50 * s, sweep: true, factor: 0},
			{at: 60 * s, sweep: true, factor: 0},
		}},
		{"longer each time", breaker.OutlierConfig{}, []step{
			{at: 0, eject: true, until: 30 * s, factor: 1},
			{at: 30 * s, sweep: true, factor: 1},
			{at: 31 * s, eject: true, until: 91 * s, factor: 2},
			{at: 100 * s, sweep: true, factor: 2},
			{at: 101 * s, eject: true, until: 191 * s, factor: 3},
			{at: 200 * s, sweep: true, factor: 3},
			{at: 210 * s, sweep: true, factor: 2},
			{at: 215 * s, eject: true, until: 305 * s, factor: 3},
		}},
		{"missed sweeps are made up for", breaker.OutlierConfig{}, []step{
			{at: 0, eject: true, until: 30 * s, factor: 1},
			{at: 30 * s, sweep: true, factor: 1},
			{at: 30 * s, eject: true, until: 90 * s, factor: 2},
			{at: 90 * s, sweep: true, factor: 2},
			{at: 90 * s, eject: true, until: 180 * s, factor: 3},
			{at: 205 * s, sweep: true, factor: 1}, // readmitted at 180 s, healthy at 190 s and 200 s
			{at: time.Hour, sweep: true, factor: 0},
		}},
		{"an ejection sweeps by itself", breaker.OutlierConfig{}, []step{
			{at: 0, eject: true, until: 30 * s, factor: 1},
			{at: 30 * s, sweep: true, factor: 1},
			{at: 30 * s, eject: true, until: 90 * s, factor: 2},
			{at: 90 * s, sweep: true, factor: 2},
			{at: 101 * s, eject: true, until: 161 * s, factor: 2}, // healthy at 100 s: 2 less 1 plus 1
		}},
		{"bounded", breaker.OutlierConfig{MaxEjection: 45 * s}, []step{
			{at: 0, eject: true, until: 30 * s, factor: 1},
			{at: 30 * s, sweep: true, factor: 1},
			{at: 30 * s, eject: true, until: 75 * s, factor: 2},
			{at: 80 * s, sweep: true, factor: 2},
			{at: 80 * s, eject: true, until: 125 * s, factor: 3},
			{at: 130 * s, sweep: true, factor: 3},
			{at: 130 * s, eject: true, until: 175 * s, factor: 3}, // grows no more
		}},
		{"a base above the bound", breaker.OutlierConfig{BaseEjection: 600 * s}, []step{
			{at: 0, eject: true, until: 600 * s, factor: 1},
			{at: 600 * s, sweep: true, factor: 1},
			{at: 600 * s, eject: true, until: 1200 * s, factor: 2},
		}},
		{"other times", breaker.OutlierConfig{Interval: s, BaseEjection: 2500 * time.Millisecond}, []step{
			{at: 0, eject: true, until: 2500 * time.Millisecond, factor: 1},
			{at: 3*s - 1, sweep: true, until: 2500 * time.Millisecond, factor: 1},
			{at: 3 * s, sweep: true, factor: 1},
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				o := newOutlier(t, test.cfg)
				tracker := track(o, 2)[0]
				for i, step := range test.steps {
					time.Sleep(step.at - time.Since(start))
					if step.eject {
						reportN(tracker, 5, 503)
					}
					if step.sweep {
						o.Sweep(time.Now())
					}
					got := o.Endpoints()[0]
					want := breaker.EndpointStatus{ID: "0", Multiplier: step.factor}
					if step.until > 0 {
						want.Ejected, want.Reason, want.Until = true, breaker.Consecutive5xx, start.Add(step.until)
					}
					if got != want {
						t.Fatalf("step %d: %+v, want %+v", i, got, want)
					}
				}
			})
		})
	}
}

// An endpoint that always fails is ejected for longer each time, also by the rules that compare endpoints, whose sweeps are those that
// shorten the ejections of endpoints that have recovered.
func TestOutlier_EjectionsOfComparedEndpointsGrow(t *testing.T) {
	for name, cfg := range map[string]breaker.OutlierConfig{
		"failures": {FailureFraction: 0.5},
		"success":  {SuccessRate: true},
		"both":     {FailureFraction: 0.5, SuccessRate: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg.Consecutive5xx, cfg.BaseEjection, cfg.MaxEjection = -1, 20*time.Second, time.Hour
				o := newOutlier(t, cfg)
				endpoints := track(o, 5)
				var ejections []time.Duration
				failing, was := breaker.Result(500), 0
				sweep := func() {
					for i, e := range endpoints {
						if i > 0 {
							reportN(e, 200, 200)
						} else {
							reportN(e, 200, failing)
						}
					}
					time.Sleep(10 * time.Second)
					o.Sweep(time.Now())
					if s := o.Endpoints()[0]; s.Ejected && s.Multiplier != was {
						ejections, was = append(ejections, time.Until(s.Until)), s.Multiplier
					}
				}
				for range 15 {
					sweep()
				}
				want := []time.Duration{20 * time.Second, 40 * time.Second, 60 * time.Second}
				if !slices.Equal(ejections, want) {
					t.Errorf("ejected for %v, want %v", ejections, want)
				}
				failing = 200
				for range 2 {
					sweep()
				}
				if s := o.Endpoints()[0]; s.Ejected || s.Multiplier != 1 {
					t.Errorf("after two sweeps in good health: %+v, want the multiplier 1", s)
				}
				time.Sleep(25 * time.Second) // a sweep is missed, and the next one finds it failing
				failing = 500
				sweep()
				if s := o.Endpoints()[0]; !s.Ejected || s.Multiplier != 1 {
					t.Errorf("after two more: %+v, want the first multiplier again", s)
				}
			})
		})
	}
}

func TestOutlier_Jitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutlier(t, breaker.OutlierConfig{Jitter: 5 * time.Second, MaxEjectedFraction: 1})
		distinct := make(map[time.Duration]bool)
		for _, tracker := range track(o, 50) {
			reportN(tracker, 5, 500)
		}
		for _, s := range o.Endpoints() {
			if !s.Ejected {
				continue
			}
			d := time.Until(s.Until)
			if d < 30*time.Second || d > 35*time.Second {
				t.Errorf("ejected for %v, want 30 s to 35 s", d)
			}
			distinct[d] = true
		}
		if len(distinct) < 10 {
			t.Errorf("49 ejections last only %d different times", len(distinct))
		}
	})
}

func TestOutlier_CountsStartAgainAfterReadmission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutlier(t, breaker.OutlierConfig{})
		tracker := track(o, 2)[0]
		reportN(tracker, 5, 500)
		reportN(tracker, 99, 500) // calls that were under way
		time.Sleep(30 * time.Second)
		o.Sweep(time.Now())
		reportN(tracker, 4, 500) // and some that took longer
		if tracker.Ejected() {
			t.Error("ejected after four failures")
		}
		tracker.Report(500)
		if !tracker.Ejected() {
			t.Error("not ejected after five failures")
		}
	})
}

func TestOutlier_SuccessRate(t *testing.T) {
	for _, test := range []struct {
		name  string
		cfg   breaker.OutlierConfig
		fails []int // of 100 calls each
		calls int   // 0 means 100
		want  []string
	}{
		{"one of five sticks out", breaker.OutlierConfig{SuccessRate: true}, []int{0, 0, 50, 0, 0}, 0, []string{"2"}},
		{"all are alike", breaker.OutlierConfig{SuccessRate: true}, []int{50, 50, 50, 50, 50}, 0, nil},
		{"four are too few", breaker.OutlierConfig{SuccessRate: true}, []int{0, 0, 90, 0}, 0, nil},
		{"99 calls are too few", breaker.OutlierConfig{SuccessRate: true}, []int{0, 0, 90, 0, 0}, 99, nil},
		{"minimums can be set", breaker.OutlierConfig{SuccessRate: true, SuccessRateMinHosts: 3, SuccessRateVolume: 10,
			SuccessRateFactor: 1}, []int{0, 5, 0}, 10, []string{"1"}},
		// Mean 80, deviation 40: the limit is 80 - 1.9*40 = 4 by default, and 0 with a factor of 2, which 0 is not below.
		{"factor 1.9", breaker.OutlierConfig{SuccessRate: true}, []int{0, 0, 0, 0, 100}, 0, []string{"4"}},
		{"factor 2", breaker.OutlierConfig{SuccessRate: true, SuccessRateFactor: 2}, []int{0, 0, 0, 0, 100}, 0, nil},
		{"worst first", breaker.OutlierConfig{SuccessRate: true, SuccessRateFactor: 0.5},
			[]int{0, 40, 60, 50, 0, 0, 0, 0, 0, 0}, 0, []string{"2"}},
		{"not without the option", breaker.OutlierConfig{}, []int{0, 0, 90, 0, 0}, 0, nil},
		{"failure percentage", breaker.OutlierConfig{FailureFraction: 0.85, MaxEjectedFraction: 0.5}, []int{84, 85, 86, 0, 0}, 0,
			[]string{"1", "2"}},
		{"failure percentage: too few endpoints", breaker.OutlierConfig{FailureFraction: 0.85}, []int{99, 0, 0, 0}, 0, nil},
		{"failure percentage: too few calls", breaker.OutlierConfig{FailureFraction: 0.85}, []int{49, 0, 0, 0, 0}, 49, nil},
		{"failure percentage: minimums can be set", breaker.OutlierConfig{FailureFraction: 0.5, FailureFractionMinHosts: 2,
			FailureFractionVolume: 4}, []int{2, 0}, 4, []string{"0"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				test.cfg.Consecutive5xx = -1
				o := newOutlier(t, test.cfg)
				if test.calls == 0 {
					test.calls = 100
				}
				for i, tracker := range track(o, len(test.fails)) {
					reportN(tracker, test.fails[i], 500)
					reportN(tracker, test.calls-test.fails[i], 200)
				}
				time.Sleep(10*time.Second - 1)
				o.Sweep(time.Now())
				if got := ejectedIDs(o); got != nil {
					t.Fatalf("%v ejected before the sweep is due", got)
				}
				time.Sleep(time.Nanosecond)
				o.Sweep(time.Now())
				if got := ejectedIDs(o); !slices.Equal(got, test.want) {
					t.Errorf("ejected %v, want %v", got, test.want)
				}
				// What was counted is not counted again.
				time.Sleep(time.Hour)
				o.Sweep(time.Now())
				if got := ejectedIDs(o); got != nil {
					t.Errorf("%v ejected an hour later", got)
				}
			})
		})
	}
}

func TestOutlier_StateFollowsTheID(t *testing.T) {
	o := newOutlier(t, breaker.OutlierConfig{})
	a := o.Track("a")
	o.Track("b")
	reportN(a, 4, 500)
	if o.Track("a") != a {
		t.Error("Track returned another tracker for the same ID")
	}
	o.Track("a").Report(500)
	if !a.Ejected() {
		t.Error("not ejected")
	}
	o.Forget("a")
	o.Forget("unknown")
	if a.Ejected() {
		t.Error("ejected after Forget")
	}
	reportN(a, 5, 500)
	if a.Ejected() || o.Track("a") == a {
		t.Error("a forgotten tracker goes on")
	}
}

func TestOutlier_EventsMayUseIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var o *breaker.Outlier
		var got []string
		o, err := breaker.NewOutlier(breaker.OutlierConfig{MaxEjectedFraction: 0.5}, func(e breaker.Event) {
			o.Sweep(time.Now())
			got = append(got, fmt.Sprint(e.Endpoint, " ", e.Ejected, " ", e.At.Sub(start), " ", e.Reason, " ", ejectedIDs(o)))
			if e.Endpoint == "0" && e.Ejected {
				reportN(o.Track("1"), 5, breaker.Timeout)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		reportN(track(o, 4)[0], 5, 500)
		time.Sleep(time.Minute)
		o.Sweep(time.Now())
		want := []string{
			"0 true 0s consecutive_5xx [0]",
			"1 true 0s consecutive_5xx [0 1]",
			"0 false 1m0s  []",
			"1 false 1m0s  []",
		}
		if !slices.Equal(got, want) {
			t.Errorf("events\n%q, want\n%q", got, want)
		}
	})
}

func TestOutlier_ReportsAndUpdatesTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		balance := make(map[string]int) // unguarded: one event at a time
		o, err := breaker.NewOutlier(
			breaker.OutlierConfig{Interval: time.Microsecond, BaseEjection: time.Microsecond, MaxEjectedFraction: 0.4, SuccessRate: true},
			func(e breaker.Event) {
				if e.Ejected {
					balance[e.Endpoint]++
				} else {
					balance[e.Endpoint]--
				}
			})
		if err != nil {
			t.Fatal(err)
		}
		track(o, 10)
		var workers sync.WaitGroup
		for w := range 4 {
			workers.Go(func() {
				for i := range 500 {
					id := fmt.Sprint((w + i) % 10)
					reportN(o.Track(id), 5, breaker.Result(200+i%3*150))
					if i%50 == 0 && w == 0 {
						o.Track(fmt.Sprint("extra", i))
						o.Forget(fmt.Sprint("extra", i))
					}
					if got := len(ejectedIDs(o)); got > 4 {
						t.Errorf("%d of 10 ejected", got)
					}
					o.Ejected(id)
					time.Sleep(time.Microsecond)
				}
			})
		}
		workers.Wait()
		time.Sleep(time.Hour)
		o.Sweep(time.Now())
		if len(balance) == 0 {
			t.Error("nothing was ejected")
		}
		for id, n := range balance {
			if n != 0 {
				t.Errorf("%s: ejected %d times more than readmitted", id, n)
			}
		}
	})
}

func TestOutlier_HTTP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// What a balancer requires.
		var o interface {
			Report(endpoint string, resp *http.Response, err error)
			Ejected(endpoint string) bool
		} = newOutlier(t, breaker.OutlierConfig{})
		if o.Ejected("a") || o.Ejected("b") {
			t.Fatal("ejected from the start")
		}
		for range 5 {
			o.Report("a", &http.Response{StatusCode: 503}, nil)
			o.Report("b", &http.Response{StatusCode: 200}, nil)
			o.Report("b", nil, context.Canceled)
		}
		if !o.Ejected("a") || o.Ejected("b") {
			t.Errorf("a is ejected %v, b %v", o.Ejected("a"), o.Ejected("b"))
		}
		time.Sleep(30 * time.Second)
		if o.Ejected("a") {
			t.Error("still ejected after 30 s")
		}
	})
}

func TestOutlier_HTTPSweepsForRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutlier(t, breaker.OutlierConfig{Consecutive5xx: -1, SuccessRate: true})
		for round := range 2 {
			for i := range 500 {
				code := 200
				if i%10 == 0 {
					code = 500
				}
				o.Report(fmt.Sprint(i%5), &http.Response{StatusCode: code}, nil)
			}
			if got := ejectedIDs(o); len(got) != round {
				t.Errorf("round %d: %v ejected", round, got)
			}
			time.Sleep(10 * time.Second)
		}
	})
}

func TestOutlier_HTTPForgetsEndpointsThatAreGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutlier(t, breaker.OutlierConfig{})
		o.Track("tracked")
		for i := range 100 {
			o.Ejected("steady")
			o.Report(fmt.Sprint("short-lived ", i), &http.Response{StatusCode: 200}, nil)
			time.Sleep(time.Minute)
		}
		list := o.Endpoints()
		ids := fmt.Sprint(list)
		if len(list) > 20 || !strings.Contains(ids, "{tracked ") || !strings.Contains(ids, "{steady ") {
			t.Errorf("endpoints are %v, want tracked, steady, and only the latest of the others", list)
		}
	})
}

// An endpoint that is seldom used is not forgotten, however much time there is between its calls in all.
func TestOutlier_HTTPKeepsEndpointsThatAreSeldomUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutlier(t, breaker.OutlierConfig{})
		for range 4 {
			o.Report("seldom", &http.Response{StatusCode: 500}, nil)
		}
		for i := range 360 {
			if i%6 == 0 && o.Ejected("seldom") {
				t.Fatal("ejected after 4 failures")
			}
			o.Report("often", &http.Response{StatusCode: 200}, nil)
			o.Sweep(time.Now())
			time.Sleep(10 * time.Second)
		}
		o.Report("seldom", &http.Response{StatusCode: 500}, nil)
		if !o.Ejected("seldom") {
			t.Error("not ejected after 5 failures: the first four are forgotten")
		}
	})
}

func TestResultOf(t *testing.T) {
	inURL := func(err error) error { return &url.Error{Op: "Get", URL: "http://a/", Err: err} }
	for _, test := range []struct {
		name   string
		status int // 0: no response
		err    error
		want   breaker.Result
	}{
		{"nothing", 0, nil, breaker.NoResult},
		{"200", 200, nil, 200},
		{"503", 503, nil, 503},
		{"refused below", 0, inURL(refusal.New("no endpoints")), breaker.NoResult},
		{"cancelled", 0, inURL(context.Canceled), breaker.NoResult},
		{"cancelled in the body", 200, context.Canceled, breaker.NoResult},
		{"deadline", 0, inURL(context.DeadlineExceeded), breaker.Timeout},
		{"i/o timeout", 0, inURL(&net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}), breaker.Timeout},
		{"timeout in the body", 200, context.DeadlineExceeded, breaker.Timeout},
		{"dial timeout", 0, &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}, breaker.Timeout},
		{"dial", 0, inURL(&net.OpError{Op: "dial", Err: errors.New("connection refused")}), breaker.ConnectFailure},
		{"read", 0, inURL(&net.OpError{Op: "read", Err: errors.New("connection reset by peer")}), breaker.Reset},
		{"reset in the body", 200, errors.New("stream error"), breaker.Reset},
	} {
		t.Run(test.name, func(t *testing.T) {
			var resp *http.Response
			if test.status != 0 {
				resp = &http.Response{StatusCode: test.status}
			}
			if got := breaker.ResultOf(resp, test.err); got != test.want {
				t.Errorf("ResultOf(%d, %v) = %d, want %d", test.status, test.err, got, test.want)
			}
		})
	}
}

func TestCodes(t *testing.T) {
	codes := breaker.Codes(100, 163, 164, 599)
	for code := -1; code < 700; code++ {
		if got, want := codes.Has(code), code == 100 || code == 163 || code == 164 || code == 599; got != want {
			t.Errorf("Has(%d) = %v", code, got)
		}
	}
	if codes != breaker.Codes(599, 164, 163, 100) {
		t.Error("equal sets are not ==")
	}
}

func TestNewOutlier_Rejects(t *testing.T) {
	for _, test := range []struct {
		name string
		cfg  breaker.OutlierConfig
	}{
		{"local origin without split", breaker.OutlierConfig{ConsecutiveLocalOrigin: 5}},
		{"threshold too high", breaker.OutlierConfig{Consecutive5xx: math.MaxInt}},
		{"over 100 percent", breaker.OutlierConfig{MaxEjectedFraction: 1.01}},
		{"negative percent", breaker.OutlierConfig{MaxEjectedFraction: -1}},
		{"failure percentage over 100", breaker.OutlierConfig{FailureFraction: 1.01}},
		{"negative volume", breaker.OutlierConfig{SuccessRateVolume: -1}},
		{"negative factor", breaker.OutlierConfig{SuccessRateFactor: -1}},
		{"negative interval", breaker.OutlierConfig{Interval: -1}},
		{"endless ejection", breaker.OutlierConfig{MaxEjection: math.MaxInt64}},
		{"negative base", breaker.OutlierConfig{BaseEjection: -1}},
		{"negative jitter", breaker.OutlierConfig{Jitter: -1}},
		{"bound below base", breaker.OutlierConfig{BaseEjection: time.Minute, MaxEjection: time.Second}},
		{"no such status", breaker.OutlierConfig{ErrorCodes: breaker.Codes(500, 600)}},
		{"no status at all", breaker.OutlierConfig{ErrorCodes: breaker.Codes(-1)}},
		{"status zero", breaker.OutlierConfig{ErrorCodes: breaker.Codes(0, 500)}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := breaker.NewOutlier(test.cfg, nil); err == nil {
				t.Error("NewOutlier() = nil, want an error")
			}
		})
	}
}

func TestOutlier_Allocations(t *testing.T) {
	o := newOutlier(t, breaker.OutlierConfig{SuccessRate: true, Consecutive5xx: -1})
	tracker := o.Track("a")
	resp := &http.Response{StatusCode: 200}
	now := time.Now()
	if got := testing.AllocsPerRun(1000, func() {
		o.Sweep(now)
		tracker.Report(200)
		tracker.Report(500)
		tracker.Ejected()
		o.Report("a", resp, nil)
		o.Ejected("a")
	}); got != 0 {
		t.Errorf("%v allocations, want none", got)
	}
}

// TestEndpointsWithoutCallsDoNotCount ejects no endpoint if the only one that takes calls is the one that fails.
func TestEndpointsWithoutCallsDoNotCount(t *testing.T) {
	for _, test := range []struct {
		name  string
		takes []bool
		want  []string
	}{
		{"all take calls", []bool{true, true, true}, []string{"0"}},
		{"one other takes calls", []bool{true, false, true}, []string{"0"}},
		{"no other takes calls", []bool{true, false, false}, nil},
	} {
		o := newOutlier(t, breaker.OutlierConfig{Consecutive5xx: 1})
		trackers := track(o, len(test.takes))
		for i, takes := range test.takes {
			trackers[i].SetTakesCalls(takes)
		}
		trackers[0].Report(breaker.Reset)
		if got := ejectedIDs(o); !slices.Equal(got, test.want) {
			t.Errorf("%s: ejected %v, want %v", test.name, got, test.want)
		}
	}
	o := newOutlier(t, breaker.OutlierConfig{Consecutive5xx: 1})
	trackers := track(o, 3)
	trackers[1].Report(breaker.Reset)
	trackers[1].SetTakesCalls(false) // an ejected one that drains makes room
	trackers[0].Report(breaker.Reset)
	if got := ejectedIDs(o); !slices.Equal(got, []string{"0", "1"}) {
		t.Errorf("ejected %v", got)
	}
}

// TestOutlier_EventsCount: the Event of an ejection has the numbers of the calls that caused it.
func TestOutlier_EventsCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events []breaker.Event
		o, err := breaker.NewOutlier(breaker.OutlierConfig{
			Consecutive5xx: 3, FailureFraction: 0.4, FailureFractionVolume: 5, FailureFractionMinHosts: 1, MaxEjectedFraction: 1,
			Interval: time.Second, BaseEjection: time.Minute,
		}, func(e breaker.Event) { events = append(events, e) })
		if err != nil {
			t.Fatal(err)
		}
		trackers := track(o, 2)
		reportN(trackers[0], 3, 500)
		for range 3 {
			reportN(trackers[1], 1, 500)
			reportN(trackers[1], 1, 200)
		}
		time.Sleep(time.Second)
		o.Sweep(time.Now())
		time.Sleep(time.Minute)
		o.Sweep(time.Now())
		var got []string
		for _, e := range events {
			got = append(got, fmt.Sprintf("%s %v %s %d/%d", e.Endpoint, e.Ejected, e.Reason, e.Failures, e.Calls))
		}
		want := "[0 true consecutive_5xx 3/3 1 true failure_percentage 3/6 0 false  0/0 1 false  0/0]"
		if fmt.Sprint(got) != want {
			t.Errorf("events %v, want %s", got, want)
		}
	})
}

// TestReadmittedWithCountsAtZero: what was counted before an ejection does not count after it.
func TestReadmittedWithCountsAtZero(t *testing.T) {
	cfg := breaker.OutlierConfig{Consecutive5xx: 5, FailureFraction: 0.5, MaxEjectedFraction: 1}
	mixed := func(tracker *breaker.Tracker) { // fails most of 100 calls, the last 4 included, and never 5 in a row
		for range 20 {
			tracker.Report(200)
			reportN(tracker, 4, 500)
		}
	}
	others := func(list []*breaker.Tracker) {
		for _, tracker := range list[1:] {
			reportN(tracker, 100, 200)
		}
	}
	t.Run("failures in a row", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			o := newOutlier(t, cfg)
			list := track(o, 6)
			mixed(list[0])
			others(list)
			time.Sleep(10 * time.Second)
			if o.Sweep(time.Now()); !list[0].Ejected() {
				t.Fatal("not ejected for its share of failures")
			}
			time.Sleep(time.Minute)
			if o.Sweep(time.Now()); list[0].Ejected() {
				t.Fatal("not readmitted")
			}
			if reportN(list[0], 4, 500); list[0].Ejected() {
				t.Error("ejected again after 4 failures, want 5")
			}
			if list[0].Report(500); !list[0].Ejected() {
				t.Error("not ejected again after 5 failures")
			}
		})
	})
	t.Run("the share of failures", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			cfg := cfg
			cfg.BaseEjection = time.Second // it is over before the next sweep
			o := newOutlier(t, cfg)
			list := track(o, 6)
			mixed(list[0])
			others(list)
			if list[0].Report(500); !list[0].Ejected() {
				t.Fatal("not ejected after 5 failures in a row")
			}
			time.Sleep(10 * time.Second)
			if o.Sweep(time.Now()); list[0].Ejected() {
				t.Errorf("%+v is ejected again by the sweep that readmits it", o.Endpoints()[0])
			}
		})
	})
}

// TestForgottenTrackerDoesNothing: calls to an endpoint that is gone may still end, and eject nothing.
func TestForgottenTrackerDoesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		events := 0
		o, err := breaker.NewOutlier(breaker.OutlierConfig{}, func(breaker.Event) { events++ })
		if err != nil {
			t.Fatal(err)
		}
		list := track(o, 3)
		o.Forget("0")
		reportN(list[0], 5, 500)
		if list[0].Ejected() || events != 0 {
			t.Errorf("ejected %v, with %d events", list[0].Ejected(), events)
		}
		if reportN(list[1], 5, 500); !list[1].Ejected() || events != 1 {
			t.Errorf("an endpoint that is not gone: ejected %v, with %d events", list[1].Ejected(), events)
		}
	})
}
