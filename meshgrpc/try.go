package meshgrpc

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/asserted"
	"github.com/nosidecar/mesh/internal/attempt"
	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/engine"
	"github.com/nosidecar/mesh/internal/engine/sockets"
	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/internal/grpcreplay"
	"github.com/nosidecar/mesh/internal/grpcstatus"
	"github.com/nosidecar/mesh/internal/grpcwire"
	"github.com/nosidecar/mesh/internal/pause"
)

// try is one attempt of a call. It is the context of the attempt, so that the picker can find it.
type try struct {
	context.Context // with the metadata to send
	engine.Attempt
	call  *call
	limit *deadline.Context // nil if the try has no timeout of its own

	// State of the picker. gRPC may pick again by itself if it knows that nothing was sent.
	mu      sync.Mutex
	link    *sockets.Connections
	waits   *conn // the connection that the try waits for
	conn    *conn // the connection that was given
	failure error // why there is no connection
	lost    uint8 // how many connections were made, and lost while the try waited
	over    bool  // no more picks
	users   uint8 // how many connections were given that gRPC has not said to be done with
	picked  bool  // our picker was used at all
	given   bool  // a connection was given

	// What gRPC reported at the end: whether a stream was begun, whether anything was received, and the trailer. The trailer of a
	// trailers-only response includes its header.
	begun, received bool
	trailer         metadata.MD

	// What the caller or a document needs of the response.
	header metadata.MD
	peer   *peer.Peer // nil if the caller does not

	held      bool // the Attempt has not ended
	reads     bool // the mesh needs the header
	exchanges bool // our peer metadata was sent, so the endpoint may answer with its own

	// The result.
	code   codes.Code         // of err
	status int                // of the response, as an HTTP status; 0 if there was none
	err    error              // what the caller gets if this is the last try
	rest   error              // why there was no response, or how it broke off
	stream *grpcreplay.Stream // continues after the response began; nil if nothing does
}

type tryKey struct{}

// Value implements context.Context.
func (t *try) Value(key any) any {
	if _, ok := key.(tryKey); ok {
		return t
	}
	return t.Context.Value(key)
}

// lent is the context of a try that may be used again for another call, while gRPC may keep the context.
type lent struct {
	context.Context
	try atomic.Pointer[try] // nil once the call is over
}

// Value implements context.Context.
func (l *lent) Value(key any) any {
	if _, ok := key.(tryKey); ok {
		return l.try.Load()
	}
	return l.Context.Value(key)
}

// unused reports whether gRPC is done with t, and the attempt has ended.
func (t *try) unused() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.users == 0 && !t.held
}

// begin makes t the n-th attempt of c. It reports false if the attempt is refused; t.rest says why. A limit of 0 means none.
func (t *try) begin(ctx context.Context, c *call, limit time.Duration, n int) bool {
	t.call = c
	if n > 1 {
		ctx = attempt.Mark(ctx, n)
	}
	switch {
	case limit <= 0:
		t.limit = nil
	case t.limit == nil:
		t.limit = new(deadline.Context)
		fallthrough
	default:
		t.limit.StartTry(ctx, limit, false)
		ctx = t.limit
	}
	t.held = true
	if t.rest = c.Acquire(ctx, &t.Attempt, n); t.rest != nil {
		t.held = false
		return false
	}
	header, observed := c.sent.header, c.Engine().HeadersObserved()
	if n > 1 || observed {
		header = header.Clone()
	}
	if n > 1 {
		header[attempt.Header] = []string{strconv.Itoa(n)}
	}
	if observed {
		ctx = t.Observe(ctx, n, header, ownHeader(header))
		t.exchanges = header[asserted.PeerMetadata] != nil
	} else {
		t.Observe(ctx, n, header, nil)
	}
	t.Context = outgoing(ctx, header, c.asked.header, n)
	t.link = t.Connections()
	t.reads = c.setCookie != "" || c.ReadsHeader()
	return true
}

// options returns the options of the try, to which more may be appended.
func (t *try) options() []grpc.CallOption {
	c := t.call
	opts := c.tries
	if c.sent.authority != c.asked.authority {
		opts = append(opts, grpc.CallAuthority(c.sent.authority))
	}
	if c.results.WantPeer() {
		t.peer = new(peer.Peer)
		opts = append(opts, grpc.Peer(t.peer))
	}
	return opts
}

// pick returns a connection of b for gRPC.
func (t *try) pick(b *connections) (balancer.PickResult, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.picked = true
	if t.over {
		return balancer.PickResult{}, status.Error(codes.Canceled, errEnded.Error())
	}
	if t.given {
		// Nothing was sent over the previous connection, and gRPC starts again. The mesh chooses another endpoint.
		if err := t.Again(t.Context); err != nil {
			return t.failLocked(err)
		}
		t.link, t.given, t.waits = t.Connections(), false, nil
	}
	c, waits, err := b.choose(t.link, t.waits)
	if _, lost := errors.AsType[*lostError](err); lost && t.lost < mostMoves {
		t.lost++
		c, waits, err = b.choose(t.link, nil)
	}
	for moves := 0; err != nil; moves++ {
		// Skip an endpoint to which no connection could be made a moment ago, as long as there is another.
		_, unready := errors.AsType[*unreadyError](err)
		if !unready || moves == mostMoves {
			return t.failLocked(err)
		}
		if failed := t.Again(t.Context); failed != nil {
			return t.failLocked(failed)
		}
		link := t.Connections()
		if link == t.link {
			return t.failLocked(err)
		}
		t.link = link
		c, waits, err = b.choose(link, nil)
	}
	if t.waits = waits; c == nil {
		return balancer.PickResult{}, balancer.ErrNoSubConnAvailable // until the connection is made
	}
	t.given, t.conn = true, c
	t.users++
	return balancer.PickResult{SubConn: c.sub, Done: endOf(t)}, nil
}

// mostMoves is how many endpoints a try skips at most, and how many connections may be lost while it waits for them.
const mostMoves = 16

// failLocked fails the try. It returns a status error, since gRPC makes a wait-for-ready call wait after any other error.
func (t *try) failLocked(err error) (balancer.PickResult, error) {
	t.failure = err
	return balancer.PickResult{}, status.Error(codes.Unavailable, err.Error())
}

// ended is called by gRPC when a try is done with the connection from pick. It must not call the stream, which may be locked.
func (t *try) ended(info balancer.DoneInfo) {
	t.mu.Lock()
	c := t.conn
	t.begun, t.received, t.trailer = info.BytesSent, info.BytesReceived, info.Trailer
	t.users--
	t.mu.Unlock()
	c.release()
}

// end tells a try that gRPC is done with a connection. gRPC does so once for each connection that it was given, so an end is used again for
// another try: a method of the try as a function would be an allocation per call.
type end struct {
	try  *try // nil while the end is not in use
	done func(balancer.DoneInfo)
}

var ends sync.Pool

// endOf returns what gRPC calls when it is done with the connection that t was given.
func endOf(t *try) func(balancer.DoneInfo) {
	e, _ := ends.Get().(*end)
	if e == nil {
		e = new(end)
		e.done = e.ended
	}
	e.try = t
	return e.done
}

func (e *end) ended(info balancer.DoneInfo) {
	t := e.try
	e.try = nil
	t.ended(info)
	ends.Put(e)
}

// judge sets the result of a try that gRPC has ended with err.
func (t *try) judge(err error) {
	t.mu.Lock()
	t.over = true
	t.mu.Unlock() // no other goroutine writes from here on

	t.err, t.code = err, status.Code(err)
	httpStatus, isHTTP := grpcwire.HTTPStatus(err)
	switch {
	case err == nil:
		t.status = http.StatusOK
		return
	case t.failure != nil:
		t.rest = t.failure
		return
	case ended(t.Context, t.code):
		t.rest = context.Cause(t.Context)
		return
	case grpcstatus.TrailersOnly(t.trailer):
		t.status = http.StatusOK
		if key := grpcwire.LimitedBy(err); key != "" && t.trailer[key] == nil {
			t.trailer = t.trailer.Copy()
			t.trailer[key] = []string{"true"}
		}
		return
	case !t.picked && t.code == codes.Unavailable:
		t.rest = fmt.Errorf("%w, or an interceptor has ended the call: %w", errBalancer, err)
		return
	case !t.begun:
		t.rest = unsendable(err)
		return
	case t.call.closed(err):
		t.err, t.code, t.rest = errClosing, codes.Canceled, errClosing
	case isHTTP:
		t.status = httpStatus
		return
	default:
		t.rest = lost(err)
		if t.rest == nil && !t.received {
			if t.code != codes.Unavailable {
				t.rest = unsendable(err)
				return
			}
			t.rest = err
		}
	}
	if t.received { // a response began, and then broke off
		t.status = http.StatusOK
	}
}

// ended reports whether a call ended with code because its context ended. A server knows our deadline, and may end the call a
// moment before we do, with a status or by resetting the stream. In that case ended waits for the deadline.
func ended(ctx context.Context, code codes.Code) bool {
	if ctx.Err() != nil {
		return true
	}
	const (
		moment   = 20 * time.Millisecond
		patience = time.Second // for a context that does not end at its deadline
	)
	at, ok := ctx.Deadline()
	if !ok || code != codes.DeadlineExceeded && code != codes.Canceled || time.Until(at) > moment {
		return false
	}
	return pause.For(ctx, patience) != nil
}

// needsHeader reports whether anybody needs the header of the response when it arrives.
func (t *try) needsHeader() bool {
	c := t.call
	return t.reads || t.exchanges || c.results.WantHeader() || c.Engine().HeadersObserved() || c.Limits().WatchesMessages()
}

// timed reports whether it matters when the try is answered.
func (t *try) timed() bool { return t.limit != nil || t.Timed() }

// settle reports the result of the try of a to the mesh, and stops the timeout of the try. A stream that was answered continues. It returns
// what retries are decided by.
func (t *try) settle(a attempter) grpcreplay.Outcome {
	late := t.limit != nil && !t.limit.Stop()
	switch {
	case t.status != 0:
		t.Answered(t.status)
		t.show()
		if t.stream == nil {
			t.finish()
		}
	default:
		if t.held {
			t.held = false
			t.rest = t.End(t.rest)
		}
		late = t.limit != nil && t.limit.Exceeded() != nil
	}
	if late {
		t.giveUp()
		t.status, t.rest = 0, t.limit.Limit()
	}
	return t.outcome(!a.replayable())
}

// show passes the header of a response to the observers, and hides peer metadata from the caller.
func (t *try) show() {
	if !t.call.Engine().HeadersObserved() {
		return
	}
	t.mu.Lock() // a stream that goes on may end meanwhile
	trailer := t.trailer
	t.trailer = hide(trailer)
	t.mu.Unlock()
	md := t.header
	if md == nil { // a trailers-only response
		md = trailer
	}
	if t.exchanges || t.reads || t.call.results.WantHeader() {
		t.Header(engine.Response{Header: httpHeader(md)})
	}
	t.header = hide(t.header)
}

// finish ends an attempt that was answered.
func (t *try) finish() {
	if t.status == http.StatusOK && t.rest == nil {
		t.GRPC(uint32(t.code))
	}
	t.close()
}

func (t *try) close() {
	t.held = false
	if t.Reports() {
		_, trailer := t.metadata()
		t.ReportedTrailer(trailer)
	}
	_ = t.End(t.rest)
	t.cancelLimit()
}

// giveUp ends the try in whatever state it is.
func (t *try) giveUp() {
	switch {
	case t.stream != nil:
		t.stream.End()
		t.stream = nil
		t.close()
	case t.held:
		t.held = false
		t.Abandon()
	}
	t.cancelLimit()
}

func (t *try) cancelLimit() {
	if t.limit != nil {
		t.limit.Cancel()
	}
}

// failed returns why the try was not answered, nil if it was.
func (t *try) failed() error {
	if t.status != 0 {
		return nil
	}
	return t.rest
}

// metadata returns the header and trailer of the try.
func (t *try) metadata() (header, trailer metadata.MD) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.header, t.trailer
}

// outcome returns what retries are decided by.
func (t *try) outcome(committed bool) grpcreplay.Outcome {
	o := grpcreplay.Outcome{HTTP: t.status, Reply: t.header, Committed: committed}
	switch {
	case t.status == 0:
		o.Kind = t.call.Failure(t.rest)
		o.Unsent = o.Kind == failure.RefusedStream && grpcwire.Unsent(t.err)
	case t.header == nil && grpcstatus.TrailersOnly(t.trailer):
		o.Code, o.Reply = t.code, t.trailer
	}
	return o
}
