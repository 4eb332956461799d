package retry

import (
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestBackoffBounds(t *testing.T) {
	const huge = time.Duration(math.MaxInt64)
	for _, base := range []time.Duration{0, -1, 1, time.Millisecond, 25 * time.Millisecond, time.Hour, huge} {
		for _, limit := range []time.Duration{0, 1, 250 * time.Millisecond, huge} {
			// The last ones are what no random source should return.
			for _, r := range []float64{0, 1e-300, 0.5, math.Nextafter(1, 0), 1, 2, -1, math.NaN(), math.Inf(1)} {
				for n := range 2001 {
					if d := delay(n, base, limit, r); d < 0 || d > max(limit, 0) {
						t.Fatalf("delay(%d, %v, %v, %v) = %v, want 0 to %v", n, base, limit, r, d, limit)
					}
				}
			}
		}
	}
	for n, want := range []time.Duration{0, 25, 75, 175, 250, 250} {
		if got := delay(n, 25, 250, math.Nextafter(1, 0)); want-got > 1 || got > want {
			t.Errorf("delay(%d) = %d, want just below %d", n, got, want)
		}
	}
}

func TestBudgetWindow(t *testing.T) {
	b, err := NewBudget(BudgetConfig{Ratio: 0.5, MinPerSecond: -1, Window: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	take := func(at time.Duration, want int) {
		t.Helper()
		got := 0
		for b.reserve(at) {
			got++
		}
		if got != want {
			t.Errorf("at %v: %d retries, want %d", at, got, want)
		}
	}
	deposit := func(at time.Duration, n int) {
		for range n {
			b.deposit(at)
		}
	}
	left := func(at time.Duration, want int) {
		t.Helper()
		if got := b.left(at); got != want {
			t.Errorf("at %v: %d retries left, want %d", at, got, want)
		}
	}
	take(0, 0)
	left(0, 0)
	deposit(0, 10)
	left(0, 5)
	take(0, 5)
	left(0, 0)
	deposit(5*time.Second, 10)
	take(5*time.Second, 5)
	take(9999*time.Millisecond, 0)
	deposit(10*time.Second, 2) // calls and retries of second 0 are gone: 12 calls, 5 retries
	left(10*time.Second, 1)
	take(10*time.Second, 1)
	left(time.Hour, 0)
	take(time.Hour, 0)
	deposit(time.Hour, 4)
	take(time.Hour, 2)
	take(time.Minute, 0) // a clock that goes back changes nothing
	deposit(time.Hour+9*time.Second, 10)
	take(time.Hour+15*time.Second, 5) // what left the window long ago does not leave it again
}

// Few calls are counted exactly. Of many, up to rarely-1 may leave the window too early, and none too late.
func TestBudgetReadsTheClockRarely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := NewBudget(BudgetConfig{Ratio: 1, MinPerSecond: -1, Window: 10 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		deposit := func(n, least int) {
			t.Helper()
			for range n {
				b.Deposit()
			}
			if got := b.Left(); got < least || got > n {
				t.Errorf("%d calls count, want %d to %d", got, least, n)
			}
			time.Sleep(time.Hour)
		}
		deposit(10, 10)
		deposit(10, 10)
		deposit(1000, 1000)
		deposit(1000, 1000-(rarely-1))
		deposit(1000, 1000-(rarely-1))
		for range 100 {
			b.Deposit()
		}
		time.Sleep(10 * time.Second)
		if got := b.Left(); got != 0 {
			t.Errorf("%d calls count after the window, want 0", got)
		}
	})
}

// TestBudgetCountsConcurrentCalls counts calls on several goroutines while time goes on.
func TestBudgetCountsConcurrentCalls(t *testing.T) {
	b, err := NewBudget(BudgetConfig{Ratio: 1, MinPerSecond: -1, Window: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	var counting sync.WaitGroup
	for caller := range 4 {
		counting.Go(func() {
			for n := range 10_000 {
				b.deposit(time.Duration(caller*1000+n) * time.Millisecond)
			}
		})
	}
	counting.Wait()
	// From then on calls leave the window as they came. Calls whose clock was behind count as of the latest.
	if got := b.left(12999 * time.Millisecond); got < 34_000 || got > 40_000 {
		t.Errorf("%d calls count, want 34000 to 40000", got)
	}
	if got := b.left(22999 * time.Millisecond); got != 0 {
		t.Errorf("%d calls count after the window, want 0", got)
	}
}

func TestBudgetMinPerSecond(t *testing.T) {
	b, err := NewBudget(BudgetConfig{Ratio: -1, MinPerSecond: 0.5})
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		at   time.Duration
		want bool
	}{{0, true}, {0, false}, {time.Second, false}, {2 * time.Second, true}, {time.Hour, true}, {time.Hour, false},
		{time.Minute, false}, {time.Hour + 2*time.Second, true}} { // a clock that goes back takes nothing
		if got := b.reserve(step.at); got != step.want {
			t.Errorf("reserve at %v = %v, want %v", step.at, got, step.want)
		}
	}
}

func TestNewBudget(t *testing.T) {
	for name, config := range map[string]BudgetConfig{
		"ratio":  {Ratio: math.NaN()},
		"floor":  {MinPerSecond: math.Inf(1)},
		"window": {Window: time.Millisecond},
		"past":   {Window: -time.Second},
	} {
		if _, err := NewBudget(config); err == nil {
			t.Errorf("%s: NewBudget(%+v) gave no error", name, config)
		}
	}
	b, err := NewBudget(BudgetConfig{MinPerSecond: 3})
	if err != nil || b.Left() != 3 {
		t.Errorf("a new budget of 3 retries a second has %d left (%v), want 3", b.Left(), err)
	}
	if b, err = NewBudget(BudgetConfig{Off: true}); b.Left() != -1 {
		t.Errorf("no budget has %d left, want -1", b.Left())
	}
	if b != nil || err != nil {
		t.Errorf("NewBudget(off) = %v, %v", b, err)
	}
	b.Deposit()
}

func TestBudgetAllocations(t *testing.T) {
	b, err := NewBudget(BudgetConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() { b.Deposit(); b.take() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// A status below the least one is never retried, and the least one may be.
func TestLeastRetriedStatus(t *testing.T) {
	for _, list := range []string{
		"5xx", "gateway-error", "retriable-4xx", "connect-failure", "429", "503,409", "gateway-error,404", "reset,retriable-4xx,408",
		"envoy-ratelimited", "retriable-headers,5xx", "unavailable,503",
	} {
		on, err := ParseOn(list)
		if err != nil {
			t.Fatal(err)
		}
		least := on.least()
		for code := 100; code <= 599; code++ {
			if retried := on.http(code); retried && code < least || code == least && !retried {
				t.Errorf("%s: the least status is %d, but that %d is retried is %t", list, least, code, retried)
			}
		}
		if on.Conditions&(RateLimited|RetriableHeaders|grpcStatuses) != 0 && least != 0 {
			t.Errorf("%s: the least status is %d, but the header decides", list, least)
		}
	}
}

// TestBudgetMinPerSecond_LateClock: a call that read the clock before another one does not have the same second counted twice.
func TestBudgetMinPerSecond_LateClock(t *testing.T) {
	b, err := NewBudget(BudgetConfig{Ratio: -1, MinPerSecond: 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		at   time.Duration
		want bool
	}{{5 * time.Second, true}, {4 * time.Second, false}, {5 * time.Second, false}, {6 * time.Second, true}} {
		if got := b.reserve(step.at); got != step.want {
			t.Errorf("a retry at %v: %t, want %t", step.at, got, step.want)
		}
	}
}
