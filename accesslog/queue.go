package accesslog

import (
	"sync"
	"sync/atomic"
)

// queue is records that wait for the goroutine that writes them. It takes all of them at once, so that a call holds the lock for
// no more than an append.
type queue struct {
	wake    chan struct{} // one if take is to look again
	dropped atomic.Uint64

	mu      sync.Mutex
	waiting []*record // with room for as many as may wait
	asleep  bool      // take waits
	closed  bool
}

func (q *queue) init(size int) {
	q.wake = make(chan struct{}, 1)
	q.waiting = make([]*record, 0, size)
}

// put adds a record. It returns false if it was dropped instead.
func (q *queue) put(r *record) bool {
	q.mu.Lock()
	if q.closed || len(q.waiting) == cap(q.waiting) {
		q.mu.Unlock()
		q.dropped.Add(1)
		return false
	}
	q.waiting = append(q.waiting, r)
	asleep := q.asleep
	q.asleep = false
	q.mu.Unlock()
	if asleep {
		q.wake <- struct{}{} // there is room: take sleeps once for each
	}
	return true
}

// take returns the records that wait, after waiting for some, and false after the last ones. It takes back the slice that it
// returned before.
func (q *queue) take(before []*record) (batch []*record, open bool) {
	clear(before)
	for {
		q.mu.Lock()
		if len(q.waiting) > 0 || q.closed {
			batch, open = q.waiting, !q.closed
			if cap(before) == 0 {
				before = make([]*record, 0, cap(batch))
			}
			q.waiting = before[:0]
			q.mu.Unlock()
			return batch, open
		}
		q.asleep = true
		q.mu.Unlock()
		<-q.wake
	}
}

func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	asleep := q.asleep
	q.asleep = false
	q.mu.Unlock()
	if asleep {
		q.wake <- struct{}{}
	}
}
