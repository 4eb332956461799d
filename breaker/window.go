package breaker

import "time"

// window counts the calls that ended within a period, which moves on by one bucket at a time. The zero window has no
// buckets and must not be added to.
type window struct {
	bucket  time.Duration // the period of one bucket
	buckets []tally
	sum     tally     // of all buckets
	start   time.Time // of tick 0
	tick    int64     // of the latest bucket, which is buckets[tick % len(buckets)]
}

type tally struct {
	calls, failed, slow int
}

func newWindow(period time.Duration, buckets int) *window {
	return &window{bucket: period / time.Duration(buckets), buckets: make([]tally, buckets), start: time.Now()}
}

// add counts a call that ended at a time since start.
func (w *window) add(at time.Duration, failed, slow bool) {
	w.advance(at)
	t := tally{calls: 1}
	if failed {
		t.failed = 1
	}
	if slow {
		t.slow = 1
	}
	w.at(w.tick).add(t, 1)
	w.sum.add(t, 1)
}

func (w *window) advance(at time.Duration) {
	tick := int64(at / w.bucket)
	// A longer jump empties every bucket, each only once.
	w.tick = max(w.tick, tick-int64(len(w.buckets)))
	for w.tick < tick {
		w.tick++
		oldest := w.at(w.tick)
		w.sum.add(*oldest, -1)
		*oldest = tally{}
	}
}

func (w *window) at(tick int64) *tally {
	return &w.buckets[tick%int64(len(w.buckets))]
}

func (w *window) reset() {
	clear(w.buckets)
	w.sum = tally{}
}

func (t *tally) add(other tally, sign int) {
	t.calls += sign * other.calls
	t.failed += sign * other.failed
	t.slow += sign * other.slow
}
