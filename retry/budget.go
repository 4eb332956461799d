package retry

import (
	"cmp"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// BudgetConfig says what share of the traffic may be retries. It is comparable. The zero value is a budget of 20% of the
// calls of the last 10 s and 10 retries per second on top: enough for a service with little traffic, without multiplying the
// load on one that is down.
type BudgetConfig struct {
	// Off permits every retry: there is no budget.
	Off bool

	// Ratio is the number of retries permitted per call within Window. It may exceed 1. 0: 0.2. Negative: only MinPerSecond.
	Ratio float64

	// MinPerSecond is the number of retries per second permitted regardless of the traffic. 0: 10. Negative: none.
	MinPerSecond float64

	// Window is how long a call counts, at least 10 ms. 0: 10 s.
	Window time.Duration
}

const slots = 10

// Budget limits the retries of a destination to a share of its calls. A nil Budget permits every retry. A Budget is safe
// for concurrent use and needs no goroutine. It does not read the clock for each of many calls, so a few of them may leave the
// window too early.
type Budget struct {
	// Calls are counted without the lock, and without a division.
	newest atomic.Int64        // number of the newest slot; written with mu held
	calls  [slots]atomic.Int64 // by slot of time, modulo slots
	end    atomic.Int64        // of the newest slot, since start; written with mu held

	ratio     float64
	perSecond float64
	burst     float64
	slot      time.Duration // a tenth of the window
	start     time.Time

	mu       sync.Mutex
	retries  [slots]int64
	sumRetry int64
	tokens   float64 // for perSecond
	filled   time.Duration
}

// Validate returns an error that names the field if the settings cannot be honoured.
func (c BudgetConfig) Validate() error {
	switch {
	case math.IsNaN(c.Ratio) || math.IsInf(c.Ratio, 0):
		return fmt.Errorf("retry: BudgetConfig.Ratio is %v, want a number", c.Ratio)
	case math.IsNaN(c.MinPerSecond) || math.IsInf(c.MinPerSecond, 0):
		return fmt.Errorf("retry: BudgetConfig.MinPerSecond is %v, want a number", c.MinPerSecond)
	case c.Window != 0 && c.Window < 10*time.Millisecond:
		return fmt.Errorf("retry: BudgetConfig.Window is %v, want 0 or at least 10ms", c.Window)
	}
	return nil
}

// NewBudget returns a Budget, or nil if config is Off. The error is that of [BudgetConfig.Validate].
func NewBudget(config BudgetConfig) (*Budget, error) {
	if err := config.Validate(); err != nil || config.Off {
		return nil, err
	}
	b := &Budget{
		ratio:     max(0, cmp.Or(config.Ratio, 0.2)),
		perSecond: max(0, cmp.Or(config.MinPerSecond, 10)),
		slot:      cmp.Or(config.Window, 10*time.Second) / slots,
		start:     time.Now(),
	}
	if b.perSecond > 0 {
		b.burst = max(1, b.perSecond) // one second's worth, but at least one retry
	}
	b.tokens = b.burst
	b.end.Store(int64(b.slot))
	return b, nil
}

// rarely is how many calls are counted per reading of the clock, which costs as much as the rest of a call through a Transport, once a slot
// has as many. So up to rarely-1 calls after a pause may count as made before it, and leave the window too early.
const rarely = 16

// Deposit counts a call: the original one, not its retries.
func (b *Budget) Deposit() {
	if b != nil {
		b.count()
	}
}

func (b *Budget) count() {
	calls := &b.calls[b.newest.Load()%slots]
	if n := calls.Load(); n < rarely || n%rarely == 0 {
		b.deposit(time.Since(b.start))
		return
	}
	calls.Add(1)
}

func (b *Budget) deposit(at time.Duration) {
	if int64(at) >= b.end.Load() {
		b.mu.Lock()
		b.advanceLocked(at)
		b.mu.Unlock()
	}
	b.calls[b.newest.Load()%slots].Add(1)
}

// permitted returns how many retries the calls within the window permit.
func (b *Budget) permitted() float64 {
	calls := int64(0)
	for i := range b.calls {
		calls += b.calls[i].Load()
	}
	return b.ratio * float64(calls)
}

// Left returns how many retries the budget permits now, or -1 if it permits every one.
func (b *Budget) Left() int {
	if b == nil {
		return -1
	}
	return b.left(time.Since(b.start))
}

func (b *Budget) left(at time.Duration) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.advanceLocked(at)
	b.fillLocked(at)
	return max(0, int(b.permitted())-int(b.sumRetry)) + int(b.tokens)
}

// take takes a retry from the budget. It reports false if none is left.
func (b *Budget) take() bool {
	return b == nil || b.reserve(time.Since(b.start))
}

func (b *Budget) reserve(at time.Duration) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := b.advanceLocked(at)
	if float64(b.sumRetry+1) <= b.permitted() {
		b.retries[i]++
		b.sumRetry++
		return true
	}
	b.fillLocked(at)
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// fillLocked adds the tokens of the time since the last call.
func (b *Budget) fillLocked(at time.Duration) {
	b.tokens = min(b.burst, b.tokens+b.perSecond*max(0, at-b.filled).Seconds())
	b.filled = max(at, b.filled)
}

// advanceLocked forgets the slots that have left the window and returns the index of the current one.
func (b *Budget) advanceLocked(at time.Duration) int64 {
	n := int64(at / b.slot)
	newest := max(b.newest.Load(), n-slots) // a longer jump empties every slot, each only once
	for newest < n {
		newest++
		i := newest % slots
		b.calls[i].Store(0)
		b.sumRetry -= b.retries[i]
		b.retries[i] = 0
	}
	b.newest.Store(newest)
	b.end.Store((newest + 1) * int64(b.slot))
	return newest % slots
}
