package breaker_test

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/internal/refusal"
)

func newCircuit(t *testing.T, cfg breaker.Config) *breaker.Circuit {
	t.Helper()
	c, err := breaker.New(cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func allow(t *testing.T, c *breaker.Circuit) breaker.Lease {
	t.Helper()
	lease, err := c.Allow()
	if err != nil {
		t.Fatalf("Allow() = %v, want a lease", err)
	}
	return lease
}

func report(t *testing.T, c *breaker.Circuit, outcomes ...breaker.Outcome) {
	t.Helper()
	for _, outcome := range outcomes {
		lease := allow(t, c)
		lease.Done(outcome)
	}
}

func repeat(n int, o breaker.Outcome) []breaker.Outcome {
	list := make([]breaker.Outcome, n)
	for i := range list {
		list[i] = o
	}
	return list
}

func wantState(t *testing.T, c *breaker.Circuit, want breaker.State) {
	t.Helper()
	if got := c.State(); got != want {
		t.Fatalf("State() = %v, want %v", got, want)
	}
}

const (
	ok      = breaker.Success
	fail    = breaker.Failure
	ignored = breaker.Ignored
)

func TestCircuit(t *testing.T) {
	type step struct {
		at    time.Duration // when the call begins, since the start
		call  breaker.Outcome
		takes time.Duration
		times int // 0 means 1
		want  breaker.State
	}
	const no = -time.Second // takes: the call is refused
	rate := breaker.Config{ConsecutiveFailures: -1, FailureFraction: 0.5, MinRequests: 4}
	slow := breaker.Config{ConsecutiveFailures: -1, SlowCallFraction: 0.5, SlowCall: time.Second, MinRequests: 4}
	second := time.Second
	for _, test := range []struct {
		name  string
		cfg   breaker.Config
		steps []step
	}{
		{"four failures are not five", breaker.Config{}, []step{
			{call: fail, times: 4, want: breaker.Closed},
			{call: fail, want: breaker.Open},
			{takes: no, want: breaker.Open},
		}},
		{"a success starts the count again", breaker.Config{ConsecutiveFailures: 3}, []step{
			{call: fail, times: 2, want: breaker.Closed},
			{call: ok, want: breaker.Closed},
			{call: fail, times: 2, want: breaker.Closed},
			{call: fail, want: breaker.Open},
		}},
		{"an ignored call does not", breaker.Config{ConsecutiveFailures: 3}, []step{
			{call: fail, times: 2, want: breaker.Closed},
			{call: ignored, want: breaker.Closed},
			{call: fail, want: breaker.Open},
		}},
		{"consecutive failures may lie far apart", breaker.Config{ConsecutiveFailures: 3, FailureFraction: 1}, []step{
			{call: fail, want: breaker.Closed},
			{at: time.Hour, call: fail, want: breaker.Closed},
			{at: 2 * time.Hour, call: fail, want: breaker.Open},
		}},
		{"closes after a good probe", breaker.Config{}, []step{
			{call: fail, times: 5, want: breaker.Open},
			{at: 30*second - 1, takes: no, want: breaker.Open},
			{at: 30 * second, call: ok, want: breaker.Closed},
			{at: 30 * second, call: fail, times: 4, want: breaker.Closed},
		}},
		{"what opened it is forgotten", breaker.Config{
			ConsecutiveFailures: -1, FailureFraction: 0.5, MinRequests: 4, Window: time.Minute, OpenDuration: second,
		}, []step{
			{call: fail, times: 4, want: breaker.Open},
			{at: second, call: ok, want: breaker.Closed},
			{at: second, call: fail, times: 3, want: breaker.Closed},
			{at: second, call: fail, want: breaker.Open},
		}},
		{"opens again after a bad probe", breaker.Config{OpenDuration: second}, []step{
			{call: fail, times: 5, want: breaker.Open},
			{at: second, call: fail, want: breaker.Open},
			{at: 2*second - 1, takes: no, want: breaker.Open},
			{at: 2 * second, call: ok, want: breaker.Closed},
		}},
		{"wants all probes to be good", breaker.Config{OpenDuration: second, Probes: 3}, []step{
			{call: fail, times: 5, want: breaker.Open},
			{at: second, call: ok, times: 2, want: breaker.HalfOpen},
			{at: second, call: fail, want: breaker.Open},
			{at: 2 * second, call: ok, times: 2, want: breaker.HalfOpen},
			{at: 2 * second, call: ignored, times: 9, want: breaker.HalfOpen},
			{at: 2 * second, call: ok, want: breaker.Closed},
		}},
		{"failure rate waits for enough requests", rate, []step{
			{call: fail, times: 3, want: breaker.Closed},
			{call: fail, want: breaker.Open},
		}},
		{"failure rate is looked at when a call fails", rate, []step{
			{call: fail, times: 3, want: breaker.Closed},
			{call: ok, want: breaker.Closed},
			{call: fail, want: breaker.Open},
		}},
		{"failure rate is a share", rate, []step{
			{call: ok, times: 6, want: breaker.Closed},
			{call: fail, times: 5, want: breaker.Closed},
			{call: fail, want: breaker.Open},
		}},
		{"failure rate leaves out ignored calls", rate, []step{
			{call: ok, times: 3, want: breaker.Closed},
			{call: ignored, times: 100, want: breaker.Closed},
			{call: fail, times: 2, want: breaker.Closed},
			{call: fail, want: breaker.Open},
		}},
		{"failures leave the window", rate, []step{
			{call: fail, times: 3, want: breaker.Closed},
			{at: 10 * second, call: ok, times: 3, want: breaker.Closed},
			{at: 10 * second, call: fail, times: 2, want: breaker.Closed},
			{at: 19*second + second/2, call: fail, want: breaker.Open},
		}},
		{"one bucket leaves at a time", rate, []step{
			{call: ok, times: 6, want: breaker.Closed},
			{at: 5 * second, call: fail, times: 3, want: breaker.Closed},
			{at: 9 * second, call: fail, want: breaker.Closed},
			{at: 10 * second, call: fail, want: breaker.Open},
		}},
		{"the window is empty after closing", rate, []step{
			{call: fail, times: 4, want: breaker.Open},
			{at: 30 * second, call: ok, want: breaker.Closed},
			{at: 30 * second, call: fail, times: 3, want: breaker.Closed},
		}},
		{"slow calls open it", slow, []step{
			{call: ok, times: 2, want: breaker.Closed},
			{call: ok, takes: second, want: breaker.Closed},
			{at: second, call: ok, takes: second, want: breaker.Open},
		}},
		{"just not slow", slow, []step{
			{call: ok, takes: second - 1, times: 9, want: breaker.Closed},
		}},
		{"slow failures are slow calls", slow, []step{
			{call: ok, times: 3, want: breaker.Closed},
			{call: fail, takes: second, want: breaker.Closed},
			{at: second, call: fail, takes: second, want: breaker.Closed},
			{at: 2 * second, call: fail, takes: second, want: breaker.Open},
		}},
		{"fast failures are not", slow, []step{
			{call: fail, times: 99, want: breaker.Closed},
		}},
		{"a slow success is a success to the other rules",
			breaker.Config{ConsecutiveFailures: 2, FailureFraction: 0.5, SlowCallFraction: 1, SlowCall: second, MinRequests: 2}, []step{
				{call: fail, want: breaker.Closed},
				{call: ok, takes: 2 * second, want: breaker.Open}, // 1 of 2 failed; looked at because the call was slow
			}},
		{"a slow success ends a run of failures",
			breaker.Config{ConsecutiveFailures: 2, SlowCallFraction: 1, SlowCall: second, MinRequests: 2}, []step{
				{call: fail, want: breaker.Closed},
				{call: ok, takes: 2 * second, want: breaker.Closed},
				{at: 2 * second, call: fail, want: breaker.Closed},
				{at: 2 * second, call: fail, want: breaker.Open},
			}},
		{"a slow probe is a bad probe", slow, []step{
			{call: ok, takes: second, want: breaker.Closed},
			{at: second, call: ok, takes: second, want: breaker.Closed},
			{at: 2 * second, call: ok, takes: second, want: breaker.Closed},
			{at: 3 * second, call: ok, takes: second, want: breaker.Open},
			{at: 34 * second, call: ok, takes: second, want: breaker.Open},
			{at: 65 * second, call: ok, want: breaker.Closed},
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				c := newCircuit(t, test.cfg)
				for i, s := range test.steps {
					time.Sleep(s.at - time.Since(start))
					for range max(s.times, 1) {
						lease, err := c.Allow()
						if refused := s.takes < 0; refused != (err != nil) {
							t.Fatalf("step %d: Allow() = %v, want refused %v", i, err, refused)
						}
						time.Sleep(s.takes)
						lease.Done(s.call)
					}
					if got := c.State(); got != s.want {
						t.Fatalf("step %d: state %v, want %v", i, got, s.want)
					}
				}
			})
		})
	}
}

func TestCircuit_AnsweredEndsTheSlowCallClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCircuit(t, breaker.Config{SlowCallFraction: 1, SlowCall: time.Second, MinRequests: 1})
		for _, wait := range []time.Duration{0, time.Second - 1} {
			lease := allow(t, c)
			time.Sleep(wait)
			lease.Answered()
			time.Sleep(time.Hour) // a long body
			lease.Answered()      // too late to matter
			lease.Done(ok)
			wantState(t, c, breaker.Closed)
		}
		time.Sleep(c.Config().Window)
		lease := allow(t, c)
		time.Sleep(time.Second)
		lease.Answered()
		lease.Done(ok)
		wantState(t, c, breaker.Open)
	})
}

// gobreaker drops the result of a call that began before its window.
func TestCircuit_CallsLongerThanTheWindowCount(t *testing.T) {
	for _, cfg := range []breaker.Config{
		{ConsecutiveFailures: 4},
		{ConsecutiveFailures: -1, FailureFraction: 1, MinRequests: 4},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newCircuit(t, cfg)
			var leases [4]breaker.Lease
			for i := range leases {
				leases[i] = allow(t, c)
			}
			time.Sleep(time.Minute)
			for i := range leases {
				wantState(t, c, breaker.Closed)
				leases[i].Done(fail)
			}
			wantState(t, c, breaker.Open)
		})
	}
}

func TestCallerCancelsDoNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCircuit(t, breaker.Config{ConsecutiveFailures: 3})
		report(t, c, repeat(5, ignored)...)
		wantState(t, c, breaker.Closed)

		report(t, c, repeat(3, fail)...)
		time.Sleep(30 * time.Second)
		for range 100 { // each gives the probe back
			report(t, c, ignored)
			wantState(t, c, breaker.HalfOpen)
		}
		report(t, c, ok)
		wantState(t, c, breaker.Closed)
	})
}

func TestLateResultsDoNotClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCircuit(t, breaker.Config{})
		var early [4]breaker.Lease
		for i := range early {
			early[i] = allow(t, c)
		}
		report(t, c, repeat(5, fail)...)
		early[0].Done(ok)
		wantState(t, c, breaker.Open)

		time.Sleep(30 * time.Second)
		early[1].Done(ok)
		wantState(t, c, breaker.HalfOpen)
		probe := allow(t, c)
		early[2].Done(fail)
		wantState(t, c, breaker.HalfOpen)
		probe.Done(ok)
		wantState(t, c, breaker.Closed)

		report(t, c, repeat(4, fail)...)
		early[3].Done(fail)
		wantState(t, c, breaker.Closed)
		report(t, c, fail)
		wantState(t, c, breaker.Open)
	})
}

// halfOpen returns a circuit that is about to let probes through.
func halfOpen(t *testing.T, cfg breaker.Config) *breaker.Circuit {
	t.Helper()
	c := newCircuit(t, cfg)
	report(t, c, repeat(c.Config().ConsecutiveFailures, fail)...)
	time.Sleep(c.Config().OpenDuration)
	wantState(t, c, breaker.HalfOpen)
	return c
}

func TestProbesAreLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := halfOpen(t, breaker.Config{ProbeTimeout: time.Minute})
		hung := allow(t, c)
		time.Sleep(time.Minute - 1)
		if _, err := c.Allow(); !errors.Is(err, breaker.ErrOpen) {
			t.Fatalf("Allow() while the probe is under way = %v, want ErrOpen", err)
		}
		time.Sleep(time.Nanosecond)
		for range 3 {
			// Lost without a word, as when the goroutine exits.
			exited := make(chan error)
			go func() {
				defer close(exited)
				if _, err := c.Allow(); err != nil {
					exited <- err
				}
				runtime.Goexit()
			}()
			if err := <-exited; err != nil {
				t.Fatalf("Allow() after the lease ran out = %v", err)
			}
			if _, err := c.Allow(); !errors.Is(err, breaker.ErrOpen) {
				t.Fatalf("Allow() beside a probe = %v, want ErrOpen", err)
			}
			time.Sleep(time.Minute)
		}
		probe := allow(t, c)
		hung.Done(fail) // its place is another's now
		wantState(t, c, breaker.HalfOpen)
		probe.Done(ok)
		wantState(t, c, breaker.Closed)
	})
}

func TestConcurrentCallersMakeExactlyTheProbes(t *testing.T) {
	for _, probes := range []int{1, 7} {
		t.Run(fmt.Sprint(probes), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := halfOpen(t, breaker.Config{Probes: probes})
				var passed atomic.Int32
				var callers sync.WaitGroup
				begin := make(chan struct{})
				for range 200 {
					callers.Go(func() {
						<-begin
						lease, err := c.Allow()
						if err != nil {
							return
						}
						passed.Add(1)
						time.Sleep(time.Second)
						lease.Done(ok)
					})
				}
				close(begin)
				callers.Wait()
				if got := int(passed.Load()); got != probes {
					t.Errorf("%d calls passed, want %d", got, probes)
				}
				wantState(t, c, breaker.Closed)
			})
		})
	}
}

func TestConcurrentCallersTakeOneReclaimedPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := halfOpen(t, breaker.Config{})
		allow(t, c) // and lost
		time.Sleep(c.Config().ProbeTimeout)
		var passed atomic.Int32
		var callers sync.WaitGroup
		for range 200 {
			callers.Go(func() {
				if _, err := c.Allow(); err == nil {
					passed.Add(1)
				}
			})
		}
		callers.Wait()
		if got := passed.Load(); got != 1 {
			t.Errorf("%d calls passed, want 1", got)
		}
	})
}

func TestCallbackMayUseTheCircuit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c *breaker.Circuit
		var got []string
		c, err := breaker.New(breaker.Config{OpenDuration: time.Second}, func(change breaker.Change) {
			got = append(got, fmt.Sprintf("%v to %v at %d, now %v", change.From, change.To, change.At.Second(), c.State()))
			if change.To == breaker.Closed {
				// Causes the next change from inside the callback.
				report(t, c, repeat(5, fail)...)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		report(t, c, repeat(5, fail)...)
		time.Sleep(time.Second)
		report(t, c, ok)
		want := []string{
			"closed to open at 0, now open",
			"open to half-open at 1, now half-open",
			"half-open to closed at 1, now closed",
			"closed to open at 1, now open",
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("callbacks\n%q, want\n%q", got, want)
		}
	})
}

func TestCallbacksKeepTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var changes []breaker.Change // unguarded: one callback at a time
		c, err := breaker.New(breaker.Config{ConsecutiveFailures: 1, OpenDuration: time.Microsecond}, func(change breaker.Change) {
			changes = append(changes, change)
			runtime.Gosched()
		})
		if err != nil {
			t.Fatal(err)
		}
		var callers sync.WaitGroup
		for i := range 8 {
			callers.Go(func() {
				for n := range 200 {
					if lease, err := c.Allow(); err == nil {
						lease.Done(breaker.Outcome((i + n) % 2))
					}
					time.Sleep(time.Microsecond)
				}
			})
		}
		callers.Wait()
		last := c.State() // may be a change, too
		if len(changes) < 100 {
			t.Fatalf("only %d changes", len(changes))
		}
		state := breaker.Closed
		for i, change := range changes {
			if change.From != state || change.To == state {
				t.Fatalf("change %d is %v to %v, after %v", i, change.From, change.To, state)
			}
			state = change.To
		}
		if state != last {
			t.Errorf("the last change is to %v, the state is %v", state, last)
		}
	})
}

func TestCircuit_CallbackThatPanicsIsNotTheLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		c, err := breaker.New(breaker.Config{ConsecutiveFailures: 1}, func(breaker.Change) {
			if calls++; calls == 1 {
				panic("first")
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		func() {
			defer func() {
				if got := recover(); got != "first" {
					t.Errorf("recovered %v, want the panic of the callback", got)
				}
			}()
			report(t, c, fail)
		}()
		wantState(t, c, breaker.Open)
		time.Sleep(c.Config().OpenDuration)
		wantState(t, c, breaker.HalfOpen)
		if calls != 2 {
			t.Errorf("%d callbacks, want 2", calls)
		}
	})
}

func TestRefusalsSaySo(t *testing.T) {
	c := newCircuit(t, breaker.Config{})
	report(t, c, repeat(5, fail)...)
	_, err := c.Allow()
	if !errors.Is(err, breaker.ErrOpen) || !refusal.Is(err) {
		t.Errorf("Allow() = %v, want a refusal that is ErrOpen", err)
	}
}

func TestLease_DoneCountsOnce(t *testing.T) {
	c := newCircuit(t, breaker.Config{})
	lease := allow(t, c)
	for range 10 {
		lease.Done(fail)
	}
	wantState(t, c, breaker.Closed)

	var zero breaker.Lease
	zero.Answered()
	zero.Done(fail)
}

func TestCircuit_Allocations(t *testing.T) {
	c := newCircuit(t, breaker.Config{FailureFraction: 1, SlowCallFraction: 1, SlowCall: time.Hour})
	open := newCircuit(t, breaker.Config{ConsecutiveFailures: 1})
	report(t, open, fail)
	if got := testing.AllocsPerRun(1000, func() {
		for _, outcome := range []breaker.Outcome{ok, fail, ignored} {
			lease, err := c.Allow()
			if err != nil {
				t.Fatal(err)
			}
			lease.Done(outcome)
		}
		if _, err := open.Allow(); err == nil {
			t.Fatal("not open")
		}
	}); got != 0 {
		t.Errorf("%v allocations, want none", got)
	}
}

func TestNew_Rejects(t *testing.T) {
	for _, test := range []struct {
		name string
		cfg  breaker.Config
	}{
		{"negative failure rate", breaker.Config{FailureFraction: -0.1}},
		{"failure rate in percent", breaker.Config{FailureFraction: 50}},
		{"failure rate NaN", breaker.Config{FailureFraction: math.NaN()}},
		{"slow call rate in percent", breaker.Config{SlowCallFraction: 50, SlowCall: time.Second}},
		{"slow call rate without duration", breaker.Config{SlowCallFraction: 0.5}},
		{"slow call duration without rate", breaker.Config{SlowCall: time.Second}},
		{"negative slow call duration", breaker.Config{SlowCallFraction: 0.5, SlowCall: -1}},
		{"nothing can open it", breaker.Config{ConsecutiveFailures: -1}},
		{"negative minimum", breaker.Config{MinRequests: -1}},
		{"negative window", breaker.Config{Window: -1}},
		{"negative buckets", breaker.Config{Buckets: -1}},
		{"too many buckets", breaker.Config{Buckets: 1001}},
		{"more buckets than nanoseconds", breaker.Config{Window: 5, Buckets: 10}},
		{"negative open duration", breaker.Config{OpenDuration: -1}},
		{"open duration too short", breaker.Config{OpenDuration: 1}},
		{"negative probes", breaker.Config{Probes: -1}},
		{"too many probes", breaker.Config{Probes: math.MaxInt}},
		{"negative probe timeout", breaker.Config{ProbeTimeout: -1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if c, err := breaker.New(test.cfg, nil); err == nil {
				t.Errorf("New(%+v) = %+v, want an error", test.cfg, c.Config())
			}
		})
	}
}

func TestState_String(t *testing.T) {
	for state, want := range map[breaker.State]string{
		breaker.Closed: "closed", breaker.HalfOpen: "half-open", breaker.Open: "open", 9: "State(9)",
	} {
		if got := state.String(); got != want {
			t.Errorf("State(%d).String() = %q, want %q", uint8(state), got, want)
		}
	}
}

// TestChangesCount: the Change of a circuit that opens has the numbers of the calls that opened it.
func TestChangesCount(t *testing.T) {
	for _, test := range []struct {
		name  string
		cfg   breaker.Config
		calls []string
		want  string
	}{
		{"failures in a row", breaker.Config{ConsecutiveFailures: 2}, []string{"ok", "fail", "fail"}, "2 of 2, 0 slow"},
		{"a rate", breaker.Config{ConsecutiveFailures: -1, FailureFraction: 0.5, MinRequests: 4}, []string{"ok", "fail", "ok", "fail"}, "2 of 4, 0 slow"},
		{"slow calls", breaker.Config{SlowCallFraction: 1, SlowCall: time.Second, MinRequests: 2}, []string{"slow", "slow"}, "0 of 2, 2 slow"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var got []string
				test.cfg.OpenDuration = time.Minute
				c, err := breaker.New(test.cfg, func(change breaker.Change) {
					got = append(got, fmt.Sprintf("%v: %d of %d, %d slow", change.To, change.Failures, change.Calls, change.Slow))
				})
				if err != nil {
					t.Fatal(err)
				}
				call := func(how string) {
					lease, err := c.Allow()
					if err != nil {
						t.Fatal(err)
					}
					outcome := breaker.Success
					switch how {
					case "fail":
						outcome = breaker.Failure
					case "slow":
						time.Sleep(time.Second)
					}
					lease.Done(outcome)
				}
				for _, how := range test.calls {
					call(how)
				}
				time.Sleep(time.Minute)
				call("fail") // the probe
				time.Sleep(time.Minute)
				call("ok")
				want := []string{"open: " + test.want, "half-open: 0 of 0, 0 slow", "open: 1 of 1, 0 slow", "half-open: 0 of 0, 0 slow", "closed: 0 of 0, 0 slow"}
				if fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("changes\n%q, want\n%q", got, want)
				}
			})
		})
	}
}

// A call gets no lease if the callback panics while it is let through as a probe. Then the next call is the probe.
func TestCircuit_CallbackThatPanicsInAProbe(t *testing.T) {
	for _, slow := range []time.Duration{0, time.Second} {
		synctest.Test(t, func(t *testing.T) {
			config := breaker.Config{ConsecutiveFailures: 1, SlowCall: slow}
			if slow > 0 {
				config.SlowCallFraction = 1
			}
			c, err := breaker.New(config, func(change breaker.Change) {
				if change.To == breaker.HalfOpen {
					panic("observer")
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			report(t, c, fail)
			time.Sleep(c.Config().OpenDuration)
			func() {
				defer func() {
					if got := recover(); got != "observer" {
						t.Errorf("recovered %v, want the panic of the callback", got)
					}
				}()
				_, _ = c.Allow()
			}()
			wantState(t, c, breaker.HalfOpen)
			report(t, c, ok)
			wantState(t, c, breaker.Closed)
		})
	}
}

// TestProbesAreForgotten: a circuit that is open for days keeps the probes of now, not those that have ended.
func TestProbesAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := halfOpen(t, breaker.Config{Probes: 3})
		var probes []breaker.Lease
		for range 3 {
			probes = append(probes, allow(t, c))
		}
		for i := range probes {
			probes[i].Done(fail)
		}
		for range 100 {
			time.Sleep(time.Hour)
			probe := allow(t, c)
			probe.Done(fail)
		}
		if n := c.Probes(); n != 1 {
			t.Errorf("%d probes are kept, want the latest", n)
		}
	})
}
