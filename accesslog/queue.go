package accesslog

import (
	"sync"
	"sync/atomic"
)

// queue has the records that wait for the goroutine that writes them. That goroutine takes all of them at once, so a call holds the
// lock only for an append.
type queue struct {
	wake    chan struct{} // has an element if take must look again
	dropped atomic.Uint64

	mu      sync.Mutex
	waiting []*record // its capacity is the size of the queue
	asleep  bool      // take is waiting
	closed  bool
}

func (q *queue) init(size int) {
	q.wake = make(chan struct{}, 1)
	q.waiting = make([]*record, 0, size)
}

// put adds a record. It reports false if the record was dropped.
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
		q.wake <- struct{}{} // does not block: take has emptied it before it slept again
	}
	return true
}

// take waits for records and returns all of them. It reports false once the queue is closed, with the last records. The argument is the
// slice that the previous call returned, which is reused.
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
