package consul

import (
	"context"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	// An agent takes 200 connections from one address, which may be those of many processes.
	mostBlocked = 64 // queries that block
	mostShort   = 8  // other requests at a time

	shortWait = "10ms"      // of a query that is not to block
	regrowth  = time.Minute // until a bound that was lowered is raised by one
	shrinkage = time.Second // until a bound that was lowered is lowered again
)

// turns bounds the connections to an agent that carry one request each. So many queries block; others that want to are answered
// after a moment, and come again at the rate of their watches. Where an agent refuses a connection the bound is halved, so that
// many processes on one host share what it takes. The zero value is ready.
type turns struct {
	mu             sync.Mutex
	lowered        int // how far the bound is below mostBlocked
	changed        time.Time
	blocked, short int
	queue          []chan struct{} // requests that wait, each for one place among the short ones
}

// wait returns the request when its turn has come, with a shorter wait if it may not block. done must be called once when it is
// over, with whether its connection was refused.
func (t *turns) wait(req *http.Request) (*http.Request, func(refused bool), error) {
	short := unblocked(req)
	if short != req && t.block() {
		return req, t.unblock, nil
	}
	if err := t.enter(req.Context()); err != nil {
		return req, nil, err
	}
	return short, t.leave, nil
}

// unblocked returns the request with a wait of a moment if it is a query that blocks.
func unblocked(req *http.Request) *http.Request {
	query := req.URL.Query()
	if !query.Has("hash") && (!query.Has("index") || query.Get("index") == "0") {
		return req
	}
	query.Set("wait", shortWait)
	sent, url := *req, *req.URL
	url.RawQuery = query.Encode()
	sent.URL = &url
	return &sent
}

// block takes a place among the queries that block, if there is one.
func (t *turns) block() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lowered > 0 && time.Since(t.changed) >= regrowth {
		t.lowered--
		t.changed = time.Now()
	}
	if t.blocked >= mostBlocked-t.lowered {
		return false
	}
	t.blocked++
	return true
}

func (t *turns) unblock(refused bool) {
	t.mu.Lock()
	t.blocked--
	t.mu.Unlock()
	if refused {
		t.shrink()
	}
}

// enter takes a place among the short requests, in the order of arrival.
func (t *turns) enter(ctx context.Context) error {
	t.mu.Lock()
	if t.short < t.mostShortLocked() {
		t.short++
		t.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	t.queue = append(t.queue, turn)
	t.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := slices.Index(t.queue, turn); i >= 0 {
		t.queue = slices.Delete(t.queue, i, i+1)
	} else {
		t.leaveLocked() // it came meanwhile
	}
	return context.Cause(ctx)
}

func (t *turns) leave(refused bool) {
	t.mu.Lock()
	t.leaveLocked()
	t.mu.Unlock()
	if refused {
		t.shrink()
	}
}

func (t *turns) leaveLocked() {
	t.short--
	for len(t.queue) > 0 && t.short < t.mostShortLocked() {
		t.short++
		close(t.queue[0])
		t.queue = t.queue[1:]
	}
}

func (t *turns) mostShortLocked() int {
	return max(1, (mostBlocked-t.lowered)*mostShort/mostBlocked)
}

// shrink halves the bound, once for all refusals of a moment.
func (t *turns) shrink() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := time.Now(); t.lowered == 0 || now.Sub(t.changed) >= shrinkage {
		t.lowered = mostBlocked - max(1, (mostBlocked-t.lowered)/2)
		t.changed = now
	}
}

// body reports when an answer has been read.
type body struct {
	io.ReadCloser
	once sync.Once
	done func()
}

// Close implements io.Closer.
func (b *body) Close() error {
	err := b.ReadCloser.Close()
	b.once.Do(b.done)
	return err
}
