package meshgrpc

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/engine"
	"github.com/nosidecar/mesh/internal/engine/enginehttp"
	"github.com/nosidecar/mesh/internal/grpcstatus"
	"github.com/nosidecar/mesh/internal/grpcwire"
	"github.com/nosidecar/mesh/internal/refusal"
)

// try is one try of a call. It is the context that gRPC makes it with, by which the picker finds it.
type try struct {
	context.Context // of the request, with the metadata to send
	call            *call
	mesh            *enginehttp.Try
	req             *http.Request
	done            func(balancer.DoneInfo) // ended, made once

	// The picker's part. gRPC may pick again on its own, where it knows that nothing was sent.
	mu      sync.Mutex
	over    bool // no further pick
	picked  bool // our picker was asked at all
	given   bool // a connection was given
	link    *engine.Connections
	waits   *conn // that is being made
	conn    *conn // that the try is counted on
	failure error // why there is none

	// What gRPC told at the end: whether there was a stream, whether anything came back, and the trailer. A reply that is
	// all trailers has its header in there too.
	begun, received bool
	doneErr         error
	trailer         metadata.MD

	// What the caller or a document wants to see.
	header metadata.MD
	peer   peer.Peer
	reads  bool // the mesh looks at the header

	resp http.Response // what the mesh is told
	err  error         // what the caller is told, if this is the last try
	code codes.Code    // of err
	rest error         // how the body of resp ends, if not with the status
}

type tryKey struct{}

// Value implements context.Context.
func (t *try) Value(key any) any {
	if _, ok := key.(tryKey); ok {
		return t
	}
	return t.Context.Value(key)
}

// begin makes t a try of c.
func (t *try) begin(c *call, req *http.Request, mt *enginehttp.Try) {
	t.Context = outgoing(req.Context(), req.Header, c.header, mt.Number())
	t.call, t.mesh, t.req, t.link = c, mt, req, mt.Connections()
	t.done = t.ended
	t.reads = mt.ReadsHeader()
}

// pick gives gRPC a connection of b.
func (t *try) pick(b *connections) (balancer.PickResult, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.picked = true
	if t.over {
		return balancer.PickResult{}, status.Error(codes.Canceled, errEnded.Error())
	}
	if t.given {
		// Nothing was sent over the connection given before, and gRPC begins anew. The mesh chooses another endpoint.
		link, err := t.mesh.Again(t.req, false)
		if err != nil {
			return t.failLocked(err)
		}
		t.link, t.given, t.waits = link, false, nil
	}
	c, waits, err := b.choose(t.link, t.call.client, t.waits)
	for moves := 0; err != nil; moves++ {
		// An endpoint that could not be connected to a moment ago is passed over, as long as there is another.
		_, unready := errors.AsType[*unreadyError](err)
		if !unready || moves == mostMoves {
			return t.failLocked(err)
		}
		link, failed := t.mesh.Again(t.req, false)
		if failed != nil {
			return t.failLocked(failed)
		}
		if link == t.link {
			return t.failLocked(err)
		}
		t.link = link
		c, waits, err = b.choose(link, t.call.client, nil)
	}
	if t.waits = waits; c == nil {
		return balancer.PickResult{}, balancer.ErrNoSubConnAvailable // that one connection is being made
	}
	t.given, t.conn = true, c
	return balancer.PickResult{SubConn: c.sub, Done: t.done}, nil
}

// mostMoves is how many endpoints a try passes over.
const mostMoves = 16

// failLocked ends the try: with a status, since for everything else gRPC has a wait-for-ready call wait.
func (t *try) failLocked(err error) (balancer.PickResult, error) {
	t.failure = err
	return balancer.PickResult{}, status.Error(codes.Unavailable, err.Error())
}

// ended is told by gRPC how it went with a connection that pick gave. It must not call the stream, which may be locked.
func (t *try) ended(info balancer.DoneInfo) {
	t.mu.Lock()
	c := t.conn
	t.conn = nil
	t.begun, t.received, t.trailer, t.doneErr = info.BytesSent, info.BytesReceived, info.Trailer, info.Err
	t.mu.Unlock()
	if c != nil {
		c.release()
	}
}

// outcome turns the way gRPC ended the try into what the mesh understands. If committed, no other try can follow, and what
// the mesh is told is that a response began, and then failed.
func (t *try) outcome(err error, committed bool) (*http.Response, error) {
	t.mu.Lock()
	t.over = true
	t.mu.Unlock() // from here on nobody else writes

	t.err, t.code = err, status.Code(err)
	if err == nil {
		return t.respond(http.StatusOK, t.header), nil
	}
	ctx := t.req.Context()
	httpStatus, isHTTP := grpcwire.HTTPStatus(err)
	switch {
	case t.failure != nil:
		return nil, t.failure
	case ended(ctx, t.code):
		t.rest = context.Cause(ctx)
	case grpcstatus.TrailersOnly(t.trailer):
		if !committed {
			return t.refused(), nil
		}
	case !t.picked && t.code == codes.Unavailable:
		return nil, errBalancer
	case !t.begun:
		return nil, refusal.Because(err) // what is wrong is on our side: a message, credentials, metadata
	case grpcwire.Closed(err):
		t.err, t.code, t.rest = errClosing, codes.Canceled, errClosing
		committed = committed || t.received
	case isHTTP && !committed:
		return t.respond(httpStatus, nil), nil
	default:
		t.rest = lost(err)
		if t.rest == nil && !t.received {
			if t.code != codes.Unavailable {
				return nil, refusal.Because(err) // of a message, again
			}
			t.rest = err
		}
		committed = committed || t.received
	}
	if !committed {
		return nil, t.rest
	}
	resp := t.respond(http.StatusOK, t.header)
	t.conclude()
	if t.rest != nil {
		resp.Body = broken{t.rest}
	}
	return resp, nil
}

// ended reports whether a call that came out with code did so because its context has ended. A server knows our deadline, and
// may end the call a moment before we do: with a status, or by a reset of the stream. Then the end is waited for.
func ended(ctx context.Context, code codes.Code) bool {
	if ctx.Err() != nil {
		return true
	}
	const moment = 20 * time.Millisecond
	at, ok := ctx.Deadline()
	if !ok || code != codes.DeadlineExceeded && code != codes.Canceled || time.Until(at) > moment {
		return false
	}
	<-ctx.Done()
	return true
}

// refused returns the response of a reply that consists of trailers only.
func (t *try) refused() *http.Response {
	if key := grpcwire.LimitedBy(t.err); key != "" && t.trailer[key] == nil {
		t.trailer = t.trailer.Copy()
		t.trailer[key] = []string{"true"}
	}
	resp := t.respond(http.StatusOK, t.trailer)
	resp.Header["Grpc-Message"] = []string{status.Convert(t.err).Message()}
	resp.Header["Grpc-Status"] = []string{strconv.Itoa(int(t.code))}
	return resp
}

func (t *try) respond(status int, md metadata.MD) *http.Response {
	t.resp = http.Response{
		StatusCode: status, Proto: "HTTP/2.0", ProtoMajor: 2, Body: http.NoBody, Request: t.req,
	}
	if md != nil || t.reads {
		t.resp.Header = httpHeader(md)
	}
	return &t.resp
}

// conclude has outlier detection and circuit know of a status that came at the end of the response's body.
func (t *try) conclude() {
	if t.code == codes.OK || t.rest != nil {
		return
	}
	if t.resp.Header == nil {
		t.resp.Header = http.Header{"Content-Type": {contentType}}
	}
	t.resp.Trailer = http.Header{"Grpc-Status": {strconv.Itoa(int(t.code))}}
}

// broken is the body of a response that broke off.
type broken struct{ err error }

func (b broken) Read([]byte) (int, error) { return 0, b.err }
func (b broken) Close() error             { return nil }
