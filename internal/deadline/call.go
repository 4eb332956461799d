package deadline

import (
	"context"
	"io"
	"math"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

// Limits has the time limits of a call. 0 means no limit.
type Limits struct {
	// Request bounds the whole call, including the response body.
	Request time.Duration
	// BodyIdle bounds each wait for more of the response body. Time during which nobody reads does not count.
	BodyIdle time.Duration
}

// Call enforces the Limits of a call. The time during which the request is being sent does not count for the limit on the whole call: the
// caller watches the request body with the Clock of the context (see package caller). A Call is meant to be embedded in a value that is
// allocated per call, and is used once, in this order: Begin, then Failed or Watch. The zero value is ready for Begin.
type Call struct {
	ctx    Context
	body   io.ReadCloser // what Watch reads from
	idle   *idle         // nil if there is no such limit
	header [1]string     // see HeaderRoom
}

// idle is the limit on each wait for more of the response.
type idle struct {
	exceeded Error
	timer    *time.Timer // runs only during a wait; nil until there is a response
}

// Begin returns the context for the call. It is parent itself if the deadline of parent is at least as strict as the limits.
func (c *Call) Begin(parent context.Context, limits Limits) context.Context {
	return c.begin(parent, limits, time.Now().Add(limits.Request))
}

// BeginAt is Begin for a caller that knows the time as a period since an earlier one, and has waited before at the expense of the limit on the
// whole call.
func (c *Call) BeginAt(parent context.Context, limits Limits, earlier time.Time, since, waited time.Duration) context.Context {
	c.ctx.left = limits.Request - waited
	return c.begin(parent, limits, earlier.Add(since+min(c.ctx.left, math.MaxInt64/2))) // without an overflow
}

func (c *Call) begin(parent context.Context, limits Limits, end time.Time) context.Context {
	request := limits.Request
	if at, ok := parent.Deadline(); ok && !at.After(end) {
		request = 0 // then the timeout is the caller's, not ours
	}
	if request <= 0 && limits.BodyIdle <= 0 {
		return parent
	}
	if limits.BodyIdle > 0 {
		c.idle = &idle{exceeded: Error{Kind: BodyIdle, Limit: limits.BodyIdle}}
	}
	c.ctx.start(parent, Request, request, true, end)
	c.ctx.ofCall = true
	return &c.ctx
}

// AtFirst returns what the limit on the whole call is when it begins with [Call.BeginAt], or 0 if there is none, also because the deadline of the
// parent comes first. It must not be called once the limit may have been paused.
func (c *Call) AtFirst() time.Duration {
	if !c.ctx.limited {
		return 0
	}
	return c.ctx.left
}

// Began reports whether there are limits to enforce.
func (c *Call) Began() bool { return c.ctx.parent != nil }

// Failed ends a call that got no response or panicked. It returns the error for the caller: an *Error if a limit caused err, otherwise
// err itself.
func (c *Call) Failed(err error) error {
	if !c.Began() {
		return err
	}
	if err != nil {
		if exceeded := c.ctx.Exceeded(); exceeded != nil {
			err = exceeded
		}
	}
	c.ctx.Cancel()
	return err
}

// Watch enforces the limits on the body of resp, whose reader is told by the owner of the call to End it. An upgraded connection (101) may be
// open and idle for any time, so it is no longer limited.
func (c *Call) Watch(resp *http.Response) {
	switch {
	case !c.Began():
		return
	case resp.StatusCode == http.StatusSwitchingProtocols:
		c.ctx.Stop()
		return
	}
	c.WatchMessages()
	if resp.Body == nil || resp.Body == http.NoBody {
		return
	}
	c.body, resp.Body = resp.Body, (*watched)(c)
}

// WatchMessages enforces the limits on a response that consists of messages. Await must be called before each wait for a message, Received
// after it, and End at the end of the call.
func (c *Call) WatchMessages() {
	if c.idle != nil {
		c.idle.timer = time.AfterFunc(c.idle.exceeded.Limit, c.stall)
		c.idle.timer.Stop()
	}
}

// WatchesMessages reports whether WatchMessages has anything to enforce. c may be nil.
func (c *Call) WatchesMessages() bool { return c != nil && c.idle != nil }

// Await begins a wait for the next part of the response.
func (c *Call) Await() {
	if c.idle != nil && c.idle.timer != nil {
		c.idle.timer.Reset(c.idle.exceeded.Limit)
	}
}

// Received ends a wait. It returns an *Error if a limit caused err, otherwise err itself.
func (c *Call) Received(err error) error {
	c.idle.stop()
	if err == nil || err == io.EOF || !c.Began() {
		c.ctx.progress()
		return err
	}
	// Transports report the end of a context by different errors.
	if cause := context.Cause(&c.ctx); c.idle != nil && cause == error(&c.idle.exceeded) {
		return cause
	}
	if exceeded := c.ctx.Exceeded(); exceeded != nil {
		return exceeded
	}
	return err
}

// Lend lets the context of the call use a signal: see [Context.Lend].
func (c *Call) Lend(from *Signals) { c.ctx.Lend(from) }

// Finish ends a call as [Context.Finish] does.
func (c *Call) Finish() {
	if c.Began() {
		c.idle.stop()
		c.ctx.Finish()
	}
}

func (c *Call) stall() {
	c.ctx.End(&c.idle.exceeded)
}

func (i *idle) stop() {
	if i != nil && i.timer != nil {
		i.timer.Stop()
	}
}

// End implements body.Ender.
func (c *Call) End(error) {
	if !c.Began() {
		return
	}
	c.ctx.Cancel()
	c.idle.stop()
}

// watched is the response body of a Call.
type watched Call

func (w *watched) Read(p []byte) (int, error) {
	c := (*Call)(w)
	c.Await()
	n, err := c.body.Read(p)
	return n, c.Received(err)
}

func (w *watched) Close() error {
	return w.body.Close()
}

// Header has the time for which the caller will wait, in milliseconds.
const Header = "X-Envoy-Expected-Rq-Timeout-Ms"

// SetHeader sets Header in h to the time until at, in whole milliseconds, at least 1.
func SetHeader(h http.Header, at time.Time) {
	h[Header] = []string{strconv.FormatInt(max(1, time.Until(at).Milliseconds()), 10)}
}

// Texts caches recent values of Header: calls with the same limit mostly have the same value. The zero value is ready for use.
type Texts struct {
	recent [16]atomic.Pointer[text]
}

type text struct {
	ms    int64
	text  string
	alone http.Header // see Alone; nil until it is needed
}

// slot returns the place of a value. Most limits are whole seconds, so the lowest bits alone would put them into few places.
func (t *Texts) slot(ms int64) *atomic.Pointer[text] {
	return &t.recent[uint64(ms)*0x9e3779b97f4a7c15>>60]
}

// of returns the text for left, in whole milliseconds, at least 1.
func (t *Texts) of(left time.Duration) *text {
	ms := max(1, left.Milliseconds())
	slot := t.slot(ms)
	known := slot.Load()
	if known == nil || known.ms != ms {
		known = &text{ms: ms, text: strconv.FormatInt(ms, 10)}
		slot.Store(known)
	}
	return known
}

// SetHeader sets Header in h to left, in whole milliseconds, at least 1. The slice of the value is room, unless that is nil.
func (t *Texts) SetHeader(h http.Header, left time.Duration, room *[1]string) {
	if room == nil {
		room = new([1]string)
	}
	room[0] = t.of(left).text
	h[Header] = room[:]
}

// Alone returns a header that has nothing but Header, with the value of SetHeader. Other calls may have the same one, so nobody may change it.
func (t *Texts) Alone(left time.Duration) http.Header {
	known := t.of(left)
	if known.alone == nil {
		known = &text{known.ms, known.text, http.Header{Header: {known.text}}}
		t.slot(known.ms).Store(known)
	}
	return known.alone
}

// HeaderRoom returns room for the value of one header. It is nil for a nil Call.
func (c *Call) HeaderRoom() *[1]string {
	if c == nil {
		return nil
	}
	return &c.header
}

// Told returns a child of ctx with the deadline that the caller has sent in h. Its cause is an *Error of kind Request. Told returns nil if the
// caller has sent none. The time of the caller does not run while it sends the request, so the server must watch the request body with the
// Clock of the context.
func Told(ctx context.Context, h http.Header) *Context {
	left := FromHeader(h)
	if left == 0 {
		return nil
	}
	c := new(Context)
	c.Start(ctx, Request, Within(ctx, left), true)
	return c
}

// FromHeader returns the time in Header. It is 0 unless there is exactly one valid value: whole milliseconds, more than 0.
func FromHeader(h http.Header) time.Duration {
	values := h[Header]
	if len(values) != 1 {
		return 0 // none, or several, any of which could be right
	}
	ms, err := strconv.ParseInt(values[0], 10, 64)
	if err != nil || ms <= 0 || ms > math.MaxInt64/int64(time.Millisecond) {
		return 0
	}
	return time.Duration(ms) * time.Millisecond
}
