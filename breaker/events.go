package breaker

import (
	"sync"
	"sync/atomic"
)

// mailbox keeps events that happen under a lock until they can be delivered without it. Events are delivered in the order
// they were posted, one at a time; the handler may cause further events.
type mailbox[T any] struct {
	handler func(T) // nil: not reported
	waiting atomic.Bool

	mu    sync.Mutex // may be taken with other locks held; never held while handler runs
	busy  bool       // a goroutine is delivering; it also delivers what is posted meanwhile
	queue []T
}

func (m *mailbox[T]) post(event T) {
	if m.handler != nil {
		m.add(event)
	}
}

// add posts an event that has another handler, which is given to drain.
func (m *mailbox[T]) add(event T) {
	m.mu.Lock()
	m.queue = append(m.queue, event)
	m.waiting.Store(true)
	m.mu.Unlock()
}

// deliver must be called, with no lock held, after anything that may have posted.
func (m *mailbox[T]) deliver() {
	if m.waiting.Load() {
		m.drain(m.handler)
	}
}

func (m *mailbox[T]) drain(handler func(T)) {
	m.mu.Lock()
	if m.busy {
		m.mu.Unlock()
		return
	}
	m.busy = true
	m.mu.Unlock()

	// Deferred, so that a handler that panics or exits the goroutine does not silence the mailbox.
	defer func() {
		m.mu.Lock()
		m.busy = false
		m.mu.Unlock()
	}()
	for {
		event, ok := m.next()
		if !ok {
			return
		}
		handler(event)
	}
}

func (m *mailbox[T]) next() (event T, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.queue) == 0 {
		m.waiting.Store(false)
		return event, false
	}
	event = m.queue[0]
	m.queue = m.queue[1:]
	return event, true
}
