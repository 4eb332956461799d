package deadline

import (
	"context"
	"io"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/nosidecar/mesh/internal/body"
)

// Limits are the limits of a call. 0 means none.
type Limits struct {
	// Request bounds the whole call, its response body included.
	Request time.Duration
	// BodyIdle bounds each wait for more of the response body. Time in which nobody reads does not count.
	BodyIdle time.Duration
}

// Call holds a call to its Limits. What counts of the limit on the whole call is the time in which the request is not being
// sent: whoever makes the call has its body watched with the Clock of the context (see package caller). It is a value to embed in what is allocated per call, and is used in this order:
// Begin, then Failed or Watch. The zero value is ready for Begin; a Call serves once.
type Call struct {
	ctx     Context
	began   bool
	body    body.Reader
	idle    time.Duration
	timer   *time.Timer // idle timer, running only inside Read
	stalled Error
}

// Begin returns the context to make the call with: parent itself if the limits ask for nothing more than parent's
// deadline does.
func (c *Call) Begin(parent context.Context, limits Limits) context.Context {
	request := Within(parent, limits.Request)
	if request <= 0 && limits.BodyIdle <= 0 {
		return parent
	}
	c.began = true
	c.idle = limits.BodyIdle
	c.ctx.Start(parent, Request, request, true)
	return &c.ctx
}

// Failed ends a call that got no response, or that panicked. It returns the error for the caller: the *Error if a limit
// caused err, and err itself otherwise.
func (c *Call) Failed(err error) error {
	if !c.began {
		return err
	}
	defer c.ctx.Cancel()
	if exceeded := c.ctx.Exceeded(); exceeded != nil && err != nil {
		return exceeded
	}
	return err
}

// Watch holds the body of resp to the limits and ends the call with it. An upgraded connection (101) has no end to wait
// for and is idle when it pleases: it is bound no longer.
func (c *Call) Watch(resp *http.Response) {
	if !c.began {
		return
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		c.ctx.Stop()
		c.body.Attach(resp, c)
		return
	}
	c.WatchMessages()
	c.body.Attach(resp, c)
	if resp.Body == io.ReadCloser(&c.body) {
		resp.Body = (*watched)(c)
	}
}

// WatchMessages holds a response that is no body to the limits: Await and Received stand around each wait for more of it, and
// End ends the call.
func (c *Call) WatchMessages() {
	if c.began && c.idle > 0 {
		c.stalled = Error{Kind: BodyIdle, Limit: c.idle}
		c.timer = time.AfterFunc(c.idle, c.stall)
		c.timer.Stop()
	}
}

// Await begins a wait for more of the response.
func (c *Call) Await() {
	if c.timer != nil {
		c.timer.Reset(c.idle)
	}
}

// Received ends a wait. It returns err, or the *Error if a limit caused it.
func (c *Call) Received(err error) error {
	if c.timer != nil {
		c.timer.Stop()
	}
	if err == nil || err == io.EOF || !c.began {
		c.ctx.progress()
		return err
	}
	// Transports report a context that ended in different words.
	if cause := context.Cause(c.ctx.Context); cause == error(&c.stalled) {
		return cause
	}
	if exceeded := c.ctx.Exceeded(); exceeded != nil {
		return exceeded
	}
	return err
}

func (c *Call) stall() {
	c.ctx.cancel(&c.stalled)
}

// End implements body.Ender.
func (c *Call) End(error) {
	if !c.began {
		return
	}
	c.ctx.Cancel()
	if c.timer != nil {
		c.timer.Stop()
	}
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

// Header tells a server how long the caller will wait, in milliseconds.
const Header = "X-Envoy-Expected-Rq-Timeout-Ms"

// SetHeader sets Header in h to the time left until at: whole milliseconds, at least 1.
func SetHeader(h http.Header, at time.Time) {
	h[Header] = []string{strconv.FormatInt(max(1, time.Until(at).Milliseconds()), 10)}
}

// Told returns a context with the deadline that the caller tells in h, with an *Error of kind Request as its cause. cancel is
// nil, and the context ctx itself, if the caller tells none. The clock of the caller stands still while it sends the request:
// whoever serves it has its body watched with the Clock of the context.
func Told(ctx context.Context, h http.Header) (_ context.Context, cancel context.CancelFunc) {
	left, ok := fromHeader(h)
	if !ok {
		return ctx, nil
	}
	if at, ok := ctx.Deadline(); ok && time.Until(at) <= left {
		return context.WithCancel(ctx)
	}
	c := new(Context)
	c.Start(ctx, Request, left, true)
	return c, c.Cancel
}

// fromHeader returns the time that Header leaves a server, and false without a valid one: whole milliseconds, more than 0.
func fromHeader(h http.Header) (time.Duration, bool) {
	values := h[Header]
	if len(values) != 1 {
		return 0, false // none, or several of which one may be true
	}
	ms, err := strconv.ParseInt(values[0], 10, 64)
	if err != nil || ms <= 0 || ms > math.MaxInt64/int64(time.Millisecond) {
		return 0, false
	}
	return time.Duration(ms) * time.Millisecond, true
}
