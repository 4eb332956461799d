package consul

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	// An agent accepts 200 connections from one address, which may belong to many processes.
	mostBlocked = 64 // blocking queries
	mostShort   = 8  // other requests at a time

	longWait  = 10 * time.Second // of a blocking query; it keeps its connection until then
	shortWait = 10 * time.Millisecond
	regrowth  = time.Minute     // after which a lowered bound is raised by one
	shrinkage = time.Second     // after which a lowered bound may be lowered again
	penalty   = time.Second / 4 // for which a slot stays empty after a refusal
)

// turns bounds the connections to an agent that carry one request each. A bounded number of queries block. Further blocking queries are
// answered after a moment, and repeated at the rate of their watches. When an agent refuses a connection, the bound is halved, so that many
// processes on one host share what the agent accepts. The zero value is ready.
type turns struct {
	idle func() // closes idle connections, so that other processes can have them

	mu             sync.Mutex
	lowered        int // how far the bound is below mostBlocked
	changed        time.Time
	blocked, short int
	queue          []chan struct{} // requests that wait for a slot among the short ones
}

// wait returns the request when its turn has come. A blocking query gets a shorter wait. The caller calls the returned function once when the
// request is over, and says whether its connection was refused.
func (t *turns) wait(req *http.Request) (*http.Request, func(refused bool), error) {
	if blocks(req) && t.block() {
		// A process that kept its connections would never be refused one, and would leave none to processes that start later.
		sent := *waiting(req, longWait)
		sent.Close = true
		return &sent, t.unblock, nil
	}
	if err := t.enter(req.Context()); err != nil {
		return req, nil, err
	}
	return waiting(req, shortWait), t.leave, nil
}

// blocks reports whether a request is a blocking query.
func blocks(req *http.Request) bool {
	query := req.URL.Query()
	return query.Has("hash") || query.Has("index") && query.Get("index") != "0"
}

// waiting returns the request with a wait of at most d, if it is a blocking query.
func waiting(req *http.Request, d time.Duration) *http.Request {
	if !blocks(req) {
		return req
	}
	query := req.URL.Query()
	if wait, err := time.ParseDuration(query.Get("wait")); err == nil && wait <= d {
		return req
	}
	query.Set("wait", d.String())
	sent, url := *req, *req.URL
	url.RawQuery = query.Encode()
	sent.URL = &url
	return &sent
}

// block takes a slot among the blocking queries, if one is free.
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

// enter takes a slot among the short requests, in the order of arrival.
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
		t.leaveLocked() // it has its slot already
	}
	return context.Cause(ctx)
}

func (t *turns) leave(refused bool) {
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.leaveLocked()
	}
	if !refused {
		leave()
		return
	}
	t.shrink()
	time.AfterFunc(penalty/2+rand.N(penalty), leave)
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

// shrink halves the bound, once for all refusals within a second.
func (t *turns) shrink() {
	t.mu.Lock()
	now := time.Now()
	again := t.lowered > 0 && now.Sub(t.changed) < shrinkage
	if !again {
		t.lowered = mostBlocked - max(1, min(mostBlocked-t.lowered, t.blocked)/2)
		t.changed = now
	}
	t.mu.Unlock()
	if !again && t.idle != nil {
		t.idle()
	}
}

// patient returns a dialer whose connections hold back what they read until something was written, at most for a second. An agent answers an
// excess connection before it has a request. net/http would log that as an unsolicited response.
func patient(dial func(ctx context.Context, network, address string) (net.Conn, error)) func(ctx context.Context, network, address string) (net.Conn, error) {
	if dial == nil {
		dial = (&net.Dialer{Timeout: grace}).DialContext
	}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &patientConn{Conn: conn, written: make(chan struct{})}, nil
	}
}

type patientConn struct {
	net.Conn
	once    sync.Once
	written chan struct{}
}

func (c *patientConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.wait()
	}
	return n, err
}

func (c *patientConn) wait() {
	select {
	case <-c.written:
		return
	default:
	}
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	select {
	case <-c.written:
	case <-timer.C: // the request got another connection
	}
}

func (c *patientConn) Write(p []byte) (int, error) {
	defer c.once.Do(func() { close(c.written) })
	return c.Conn.Write(p)
}

// Close implements net.Conn.
func (c *patientConn) Close() error {
	defer c.once.Do(func() { close(c.written) })
	return c.Conn.Close()
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
