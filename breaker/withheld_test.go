package breaker_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/breaker"
)

// withheld returns an Outlier, and what its OnWithheld was told since the last call. Its onEvent must be told of nothing else than
// ejections and readmissions.
func withheld(t *testing.T, cfg breaker.OutlierConfig) (*breaker.Outlier, func() []string) {
	t.Helper()
	o, err := breaker.NewOutlier(cfg, func(e breaker.Event) {
		if e.Limit != 0 || e.Needed != 0 {
			t.Errorf("onEvent is told of %+v", e)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	o.OnWithheld = func(e breaker.Event) {
		o.Endpoints() // no lock is held
		if e.Ejected || !e.Until.IsZero() || !e.At.Equal(time.Now()) {
			t.Errorf("OnWithheld is told of %+v", e)
		}
		got = append(got, fmt.Sprintf("%s %s %d/%d %v %.2f", e.Endpoint, e.Reason, e.Failures, e.Calls, e.Limit, e.Needed))
	}
	return o, func() []string {
		defer func() { got = nil }()
		return got
	}
}

// TestOnWithheld: the second of three endpoints that fail stays with the default limit, which is told once.
func TestOnWithheld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, told := withheld(t, breaker.OutlierConfig{})
		list := track(o, 3)
		reportN(list[0], 5, 500)
		if got := told(); !list[0].Ejected() || got != nil {
			t.Errorf("the first endpoint is ejected %v, told %q; want that it is, and nothing", list[0].Ejected(), got)
		}
		reportN(list[1], 4, 500)
		if got := told(); got != nil {
			t.Errorf("told %q before the limit was reached", got)
		}
		for range 20 { // it goes on failing, with sweeps or without, while the first endpoint stays away
			reportN(list[1], 5, 500)
			time.Sleep(time.Second)
			o.Sweep(time.Now())
		}
		if got, want := told(), []string{"1 consecutive_5xx 5/5 0.1 0.67"}; !slices.Equal(got, want) {
			t.Errorf("told %q, want %q", got, want)
		}
		if list[1].Ejected() {
			t.Error("the second endpoint is ejected")
		}
	})
}

// TestOnWithheld_Episodes: an endpoint is told again once it has recovered, and not because it answers once in a while.
func TestOnWithheld_Episodes(t *testing.T) {
	const once = "only consecutive_5xx 5/5 0.1 1.00"
	for _, test := range []struct {
		name    string
		between func(o *breaker.Outlier, only *breaker.Tracker)
		again   bool
	}{
		{"nothing", func(*breaker.Outlier, *breaker.Tracker) {}, false},
		{"a success", func(_ *breaker.Outlier, only *breaker.Tracker) { only.Report(200) }, false},
		{"time without calls", func(*breaker.Outlier, *breaker.Tracker) { time.Sleep(time.Hour) }, false},
		{"sweeps without calls", func(o *breaker.Outlier, _ *breaker.Tracker) {
			for range 5 {
				time.Sleep(10 * time.Second)
				o.Sweep(time.Now())
			}
		}, false},
		{"a success, failures and sweeps", func(o *breaker.Outlier, only *breaker.Tracker) {
			for range 5 {
				only.Report(200)
				reportN(only, 5, 500)
				time.Sleep(10 * time.Second)
				o.Sweep(time.Now())
			}
		}, false},
		{"a success and sweeps", func(o *breaker.Outlier, only *breaker.Tracker) {
			only.Report(200)
			for range 2 {
				time.Sleep(10 * time.Second)
				o.Sweep(time.Now())
			}
		}, true},
		{"a success and time", func(_ *breaker.Outlier, only *breaker.Tracker) { only.Report(200); time.Sleep(time.Minute) }, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o, told := withheld(t, breaker.OutlierConfig{})
				only := o.Track("only")
				reportN(only, 5, 500)
				if got := told(); !slices.Equal(got, []string{once}) {
					t.Fatalf("told %q, want %q", got, once)
				}
				test.between(o, only)
				reportN(only, 5, 500)
				if got := told(); (len(got) == 1 && got[0] == once) != test.again || len(got) > 1 {
					t.Errorf("told %q again, want that it is told: %v", got, test.again)
				}
			})
		})
	}
}

// TestOnWithheld_AfterAnEjection: what happens after an ejection is told anew.
func TestOnWithheld_AfterAnEjection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, told := withheld(t, breaker.OutlierConfig{})
		list := track(o, 2)
		reportN(list[0], 5, 500)
		reportN(list[1], 5, 500)
		time.Sleep(30 * time.Second)
		reportN(list[1], 5, 500) // the first endpoint is back, so there is room
		if !list[1].Ejected() || list[0].Ejected() {
			t.Fatalf("ejected: %v", ejectedIDs(o))
		}
		time.Sleep(10 * time.Second)
		reportN(list[0], 5, 500)
		time.Sleep(50 * time.Second)
		reportN(list[0], 5, 500)
		reportN(list[1], 5, 500)
		want := []string{"1 consecutive_5xx 5/5 0.1 1.00", "0 consecutive_5xx 5/5 0.1 1.00", "1 consecutive_5xx 5/5 0.1 1.00"}
		if got := told(); !slices.Equal(got, want) {
			t.Errorf("told\n%q, want\n%q", got, want)
		}
	})
}

// TestOnWithheld_Compared: rules that compare endpoints tell of those that stay, too, once while they fail.
func TestOnWithheld_Compared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, told := withheld(t, breaker.OutlierConfig{Consecutive5xx: -1, FailureFraction: 0.5, MaxEjectedFraction: 0.2, BaseEjection: time.Hour})
		list := track(o, 5)
		for range 5 {
			for i, tracker := range list {
				reportN(tracker, 100-40*i, 500)
				reportN(tracker, 50, 200)
			}
			time.Sleep(10 * time.Second)
			o.Sweep(time.Now())
		}
		if got, want := told(), []string{"1 failure_percentage 60/110 0.2 0.40"}; !slices.Equal(got, want) {
			t.Errorf("told %q, want %q", got, want)
		}
	})
}

// TestOnWithheld_WithoutCalls: an endpoint that gets no calls need not be ejected.
func TestOnWithheld_WithoutCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, told := withheld(t, breaker.OutlierConfig{})
		list := track(o, 3)
		list[1].SetTakesCalls(false)
		reportN(list[0], 5, 500)
		reportN(list[1], 5, 500)
		if got := told(); got != nil {
			t.Errorf("told %q of an endpoint that drains", got)
		}
	})
}

// TestEndpoints_Withheld: the status of an endpoint that fails and stays says so until it answers well, whether or not anybody wants to
// be told.
func TestEndpoints_Withheld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutlier(t, breaker.OutlierConfig{})
		list := track(o, 3)
		is := func(when string, want breaker.Event) {
			t.Helper()
			if got := o.Endpoints()[1].Withheld; got != want {
				t.Errorf("%s: %+v, want %+v", when, got, want)
			}
		}
		sweep := func() {
			time.Sleep(10 * time.Second)
			o.Sweep(time.Now())
		}
		is("before", breaker.Event{})
		reportN(list[0], 5, 500)
		reportN(list[1], 5, 500)
		first := breaker.Event{Endpoint: "1", At: time.Now(), Reason: breaker.Consecutive5xx, Failures: 5, Calls: 5, Limit: 0.1, Needed: 2. / 3}
		is("when it fails", first)
		for _, e := range o.Endpoints() {
			if e.ID != "1" && e.Withheld != (breaker.Event{}) {
				t.Errorf("%+v stays", e)
			}
		}
		time.Sleep(time.Second)
		reportN(list[1], 5, 500)
		is("when it fails again", first)
		list[1].SetTakesCalls(false)
		is("while it drains", breaker.Event{})
		list[1].SetTakesCalls(true)
		sweep()
		is("without calls", first)
		list[1].Report(200)
		sweep()
		is("after a success", breaker.Event{})
		reportN(list[1], 5, 500)
		first.At = time.Now()
		is("in the next episode", first)
		time.Sleep(20 * time.Second) // the first endpoint is readmitted
		reportN(list[1], 5, 500)
		if is("when it is ejected", breaker.Event{}); !list[1].Ejected() || o.Endpoints()[1].Reason != breaker.Consecutive5xx {
			t.Errorf("%+v is not ejected", o.Endpoints()[1])
		}
	})
}
