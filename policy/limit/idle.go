package limit

import (
	"time"
)

// put gives an HTTP/1 connection to a call that waits, or makes it idle.
func (s *clientConn) put() {
	h := s.of
	h.mu.Lock()
	f := h.ofLocked(s.origin)
	kept := h.putLocked(f, s, false)
	h.tidyLocked(f)
	h.mu.Unlock()
	if !kept {
		s.Close()
	}
}

// putLocked is put. It reports false if the connection is not kept. A fresh one is given to a call even if the peer has closed it, since the error
// of the call says why.
func (h *clientConns) putLocked(f *originConns, s *clientConn, fresh bool) bool {
	dead := !fresh && (s.isClosed() || h.calls > 0 && s.calls >= h.calls)
	if len(f.waiting) > 0 && !dead {
		s.since = time.Time{}
		h.endLocked(f, f.waiting[0], h.countLocked(f, s), nil)
		return true
	}
	if h.closed || h.closing || dead || s.isClosed() || len(f.idle) >= h.conns.transport.MaxIdleConnsPerHost {
		return false
	}
	s.since = time.Now()
	f.idle = append(f.idle, s)
	h.watchLocked()
	return true
}

// gone forgets a connection that was closed, by its peer perhaps.
func (h *clientConns) gone(s *clientConn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := h.ofLocked(s.origin)
	f.idle, f.shared = without(f.idle, s), without(f.shared, s)
	h.dialLocked(f) // for calls that would have had it
	h.tidyLocked(f)
}

// watchLocked starts the timer for idle connections, unless it is running.
func (h *clientConns) watchLocked() {
	switch {
	case h.idle <= 0 || h.running:
		return
	case h.timer == nil:
		h.timer = time.AfterFunc(h.idle, h.expire)
	default:
		h.timer.Reset(h.idle)
	}
	h.running = true
}

// expire closes the connections that have been idle for long enough.
func (h *clientConns) expire() {
	now, next := time.Now(), h.idle
	h.mu.Lock()
	old, rest := h.closableLocked(func(s *clientConn) bool {
		rest := h.idle - now.Sub(s.since)
		if rest > 0 {
			next = min(next, rest)
		}
		return rest <= 0
	})
	if h.running = rest > 0 && !h.closed; h.running {
		h.timer.Reset(next)
	}
	h.mu.Unlock()
	closeAll(old)
}

// closableLocked removes, and returns, those of the idle connections that it is told to. It also returns how many connections are left that are idle
// or speak HTTP/2.
func (h *clientConns) closableLocked(old func(*clientConn) bool) (all []*clientConn, rest int) {
	for _, f := range h.origins {
		keep := func(conns []*clientConn) []*clientConn {
			kept := conns[:0]
			for _, s := range conns {
				busy := s.protocol == overHTTP2 && s.InFlight() > 0
				if busy {
					s.since = time.Now()
				}
				if busy || !old(s) {
					kept = append(kept, s)
				} else {
					all = append(all, s)
				}
			}
			clear(conns[len(kept):])
			rest += len(kept)
			return kept
		}
		f.idle, f.shared = keep(f.idle), keep(f.shared)
		h.tidyLocked(f)
	}
	return all, rest
}

// closeIdle closes the idle connections.
func (h *clientConns) closeIdle() {
	h.mu.Lock()
	h.closing = true
	idle, _ := h.closableLocked(func(*clientConn) bool { return true })
	h.mu.Unlock()
	closeAll(idle)
}

// closeOthers closes the idle connections that are not for an origin.
func (h *clientConns) closeOthers(o origin) {
	h.mu.Lock()
	idle, _ := h.closableLocked(func(s *clientConn) bool { return s.origin != o })
	h.mu.Unlock()
	closeAll(idle)
}

// close closes the idle connections, and the others when their calls have ended.
func (h *clientConns) close() {
	h.mu.Lock()
	h.closed = true
	if h.timer != nil {
		h.timer.Stop()
	}
	h.mu.Unlock()
	h.closeIdle()
}

func closeAll(conns []*clientConn) {
	for _, s := range conns {
		s.Close()
	}
}
