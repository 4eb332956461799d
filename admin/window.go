package admin

import (
	"math/bits"
	"sync"
	"time"
)

// Figures cover the last minute, in slots. The counts of calls and errors are also kept for the last five minutes.
const (
	slotLength   = 5 * time.Second
	windowSlots  = 12
	historySlots = 60
)

// durationBuckets is the number of buckets for durations: two per power of two, from 64 microseconds to a minute.
const (
	durationBuckets = 42
	firstBucket     = 12
)

// series counts the calls, attempts or requests that ended within the last minute. Its zero value is empty. It is safe for concurrent
// use.
type series struct {
	mu   sync.Mutex
	last int64 // the slot of the latest one
	ring [windowSlots]cell
	long *history // nil for endpoints
}

// cell is one slot of a series.
type cell struct {
	slot      int64
	calls     uint32
	errors    uint32
	retries   uint32
	denied    uint32
	slowest   uint32 // in microseconds
	durations [durationBuckets]uint32
}

// sample is the result of a call, an attempt or a request.
type sample struct {
	at      time.Time
	took    time.Duration
	retries int
	failed  bool
	denied  bool
}

func slotOf(t time.Time) int64 { return t.UnixNano() / int64(slotLength) }

func (s *series) add(m *sample) {
	slot := slotOf(m.at)
	took := microseconds(m.took)
	s.mu.Lock()
	c := &s.ring[slot%windowSlots]
	if c.slot != slot { // a later one is from before the clock was set back
		*c = cell{slot: slot}
	}
	s.last = slot
	c.calls++
	c.retries += uint32(m.retries)
	if m.failed {
		c.errors++
	}
	if m.denied {
		c.denied++
	}
	c.slowest = max(c.slowest, took)
	c.durations[bucketOf(took)]++
	if s.long != nil {
		s.long.add(slot, m.failed)
	}
	s.mu.Unlock()
}

// idle reports whether nothing has ended for more than so many slots. What ended later than now did so before the clock was set back.
func (s *series) idle(now, slots int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last < now-slots || s.last > now+1
}

// totals is the sum of the last minute.
type totals struct {
	calls, errors, retries, denied uint64
	slowest                        uint32
	durations                      [durationBuckets]uint64
}

func (s *series) totals(now time.Time) (t totals) {
	slot := slotOf(now)
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.ring {
		c := &s.ring[i]
		if c.slot <= slot-windowSlots || c.slot > slot {
			continue
		}
		t.calls += uint64(c.calls)
		t.errors += uint64(c.errors)
		t.retries += uint64(c.retries)
		t.denied += uint64(c.denied)
		t.slowest = max(t.slowest, c.slowest)
		for i, n := range c.durations {
			t.durations[i] += uint64(n)
		}
	}
	return t
}

// quantile returns an estimate of the q-quantile of the durations, in milliseconds.
func (t *totals) quantile(q float64) float64 {
	if t.calls == 0 {
		return 0
	}
	rank, below := q*float64(t.calls), 0.0
	for i, n := range t.durations {
		if n == 0 || below+float64(n) < rank {
			below += float64(n)
			continue
		}
		low, high := boundOf(i), boundOf(i+1)
		if i == 0 {
			low = 0
		}
		if most := float64(t.slowest); i == durationBuckets-1 || high > most {
			high = max(most, low)
		}
		return (low + (high-low)*(rank-below)/float64(n)) / 1000
	}
	return float64(t.slowest) / 1000
}

func microseconds(d time.Duration) uint32 {
	return uint32(min(max(d.Microseconds(), 0), 1<<32-1))
}

func bucketOf(microseconds uint32) int {
	if microseconds < 64 {
		return 0
	}
	power := bits.Len32(microseconds) - 1
	half := int(microseconds>>(power-1)) & 1
	return min(2*power+half-firstBucket, durationBuckets-1)
}

// boundOf returns the lower bound of a bucket, in microseconds.
func boundOf(bucket int) float64 {
	power, half := (bucket+firstBucket)/2, (bucket+firstBucket)%2
	return float64(uint64(1)<<power) * (1 + float64(half)/2)
}

// history has the calls and errors of each slot of the last five minutes. The mutex of the series guards it.
type history [historySlots]struct {
	slot          int64
	calls, errors uint32
}

func (h *history) add(slot int64, failed bool) {
	c := &h[slot%historySlots]
	if c.slot != slot {
		c.slot, c.calls, c.errors = slot, 0, 0
	}
	c.calls++
	if failed {
		c.errors++
	}
}

// history returns the counts of each slot, the oldest first.
func (s *series) history(now time.Time) (calls, errors []uint32) {
	calls, errors = make([]uint32, historySlots), make([]uint32, historySlots)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.long == nil {
		return calls, errors
	}
	first := slotOf(now) - historySlots + 1
	for i := range calls {
		slot := first + int64(i)
		if c := &s.long[slot%historySlots]; c.slot == slot {
			calls[i], errors[i] = c.calls, c.errors
		}
	}
	return calls, errors
}
