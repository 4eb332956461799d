package retrygrpc

import "sync"

// lock is a mutex that may be held for long. Unlike those who wait for a sync.Mutex, who waits for it is idle to
// testing/synctest, so that time passes there meanwhile.
type lock struct {
	mu   sync.Mutex
	held bool
	free sync.Cond
}

func (l *lock) Lock() {
	l.mu.Lock()
	l.free.L = &l.mu
	for l.held {
		l.free.Wait()
	}
	l.held = true
	l.mu.Unlock()
}

func (l *lock) Unlock() {
	l.mu.Lock()
	l.held = false
	l.free.Signal()
	l.mu.Unlock()
}
