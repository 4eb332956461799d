package enginehttp

import (
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/internal/body"
	"github.com/nosidecar/mesh/internal/caller"
	"github.com/nosidecar/mesh/internal/engine"
	"github.com/nosidecar/mesh/internal/engine/sockets"
	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/outgoing"
)

// try is an attempt of a call. It ends with its response body.
type try struct {
	engine.Attempt
	call *call
	grpc *http.Response // of a gRPC call, whose status arrives at its end
	last bool           // the call ends with it
}

// Attempt implements retry.Attempter.
func (c *call) Attempt(req *http.Request, n int) (*http.Response, error) {
	c.tries = int32(n)
	asked, t := req, &c.first
	if n > 1 {
		t = new(try)
	}
	t.call = c
	over, sent := false, false
	defer func() {
		if !over { // a panic or a Goexit
			t.Abandon()
		}
		if !sent {
			body.CloseRequest(req)
		}
	}()
	wait := caller.Wait(req.Context(), req)
	err := c.Acquire(wait, &t.Attempt, n)
	caller.Stop(wait, req)
	if err != nil {
		over = true
		return nil, err
	}
	left, limited := t.Left()
	if limited {
		req = t.withDeadline(req, n, left)
	}
	if c.Observed() {
		req = c.observe(t, req, n, n > 1 || limited)
	}
	if c.limited != nil {
		c.lend(t.Connections())
	}
	c.sent, sent = req, true
	resp, err := t.Connections().RoundTrip(req, req != c.req && req != c.out)
	over = true
	if err != nil {
		return nil, t.Attempt.End(err)
	}
	t.answered(req, resp)
	resp.Request = asked
	t.watch(resp, n)
	return resp, nil
}

// answered notes how the endpoint answers the request of an attempt.
func (t *try) answered(req *http.Request, resp *http.Response) {
	c := t.call
	if req.Method == http.MethodPost && field.IsGRPC(resp.Header) { // as all calls of gRPC are
		t.grpc = resp
	}
	if resp.ProtoMajor == 2 {
		t.Multiplexed()
	}
	t.Answered(resp.StatusCode)
	if t.Reports() {
		t.ReportedHeader(resp.Header)
	}
	if c.answered = true; c.Observed() {
		t.observeHeader(resp)
	}
	if resp.ProtoMajor != 1 && req.Body != nil && req.Body != http.NoBody {
		c.lent = false // a server may answer before it has taken the whole body, which then waits for the end of the context
		body.Until(req, resp)
	}
}

func (t *try) observeHeader(resp *http.Response) {
	t.Header(engine.Response{
		Header: resp.Header, Shared: true, Changes: t.call.setCookie != nil || t.call.ReadsHeader(),
		ProtoMajor: resp.ProtoMajor, ProtoMinor: resp.ProtoMinor,
	})
}

// watch has the n-th attempt end with the body of resp.
func (t *try) watch(resp *http.Response, n int) {
	c := t.call
	var reader *body.Reader
	if n == 1 {
		c.inner = c.reader()
		reader = c.inner
		c.users++ // nobody else has the call yet
	} else {
		reader = new(body.Reader)
		atomic.AddInt32(&c.users, 1)
	}
	reader.Attach(resp, t)
}

// withDeadline returns the request of the n-th attempt with a header of its own, which tells the server how much time is left.
func (t *try) withDeadline(req *http.Request, n int, left time.Duration) *http.Request {
	c := t.call
	if n > 1 { // the header of a retry is its own; an earlier attempt may still be using the room
		t.Deadlines().SetHeader(req.Header, left, nil)
		return req
	}
	room := c.Limits().HeaderRoom()
	switch {
	case req != c.req && req != c.out:
	case c.limited == nil:
		own := &told{sent: *req}
		if c.inner == nil {
			c.inner = &own.body
		}
		req, room = &own.sent, &own.value
	default: // the deadline of the caller comes first, so the first try has no use for this
		c.limited.first.Sent = *req
		req = &c.limited.first.Sent
	}
	if len(req.Header) == 0 && c.observed.first == nil { // a copy would be the same for all such calls
		req.Header = t.Deadlines().Alone(left)
		return req
	}
	fields := 1
	if c.observed.first != nil {
		fields += int(c.observed.sets.Load())
	}
	req.Header = outgoing.CopyHeader(req.Header, fields)
	t.Deadlines().SetHeader(req.Header, left, room)
	return req
}

// told is what the first attempt of a call needs to tell the server the deadline of the caller, and to learn when its response ends. It is
// not part of the call, which is reused.
type told struct {
	sent  http.Request
	value [1]string
	body  body.Reader
}

// observe tells the observers that the attempt begins. It returns the request to send. own says that the header is not shared.
func (c *call) observe(t *try, req *http.Request, n int, own bool) *http.Request {
	if c.observed.first == nil {
		t.Observe(req.Context(), n, req.Header, nil)
		return req
	}
	o := c.observed.first
	if n > 1 {
		o = new(outgoing.Request)
	}
	room := c.observed.sets.Load()
	o.Begin(req.Header, own, int(room))
	ctx := t.Observe(req.Context(), n, req.Header, o)
	if added := o.Added(req.Header); added > 0 && int32(added) != room {
		c.observed.sets.Store(int32(added))
	}
	return o.Of(req, ctx)
}

// lend lends the context of the only attempt so far what it needs, unless observers have it. Nobody but net/http waits for that context while the
// attempt is under way, and at the end of the response net/http has no use for it any more.
func (c *call) lend(conns *sockets.Connections) {
	if !c.limited.Began() || c.Observed() || c.tries != 1 {
		return
	}
	switch first := &c.limited.first.Context; {
	case first.Follows():
		c.lent = true
		first.Lend(conns.Signals())
	case !first.Limited() && !caller.ToWatch(c.req):
		c.lent = true
		c.Limits().Lend(conns.Signals())
	}
}

// End implements body.Ender: it reports the outcome of the attempt. If it is the last one, the call ends, too, even if an observer of the
// attempt panics.
func (t *try) End(err error) {
	if t.grpc != nil && err == nil {
		if code, ok := grpcCode(t.grpc); ok {
			t.GRPC(code)
		}
	}
	returned := false
	defer func() {
		if t.last {
			t.call.end(err)
		}
		if returned { // not after a panic: see do
			t.call.release()
		}
	}()
	_ = t.Attempt.End(err) // the reader of the body already has the error
	returned = true
}

// grpcCode returns the status of a gRPC response whose body has ended, if there is one and it has one.
func grpcCode(resp *http.Response) (code uint32, ok bool) {
	text := resp.Header.Get("Grpc-Status") // of a response without messages
	if text == "" {
		text = resp.Trailer.Get("Grpc-Status")
	}
	if text == "" {
		return 0, false // without the error that ParseUint would make
	}
	parsed, err := strconv.ParseUint(text, 10, 32)
	return uint32(parsed), err == nil
}
