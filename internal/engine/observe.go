package engine

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// Hooks are told what an [Engine] does. Hooks that are nil are skipped, and cost nothing. They are called without locks, on
// the goroutine of the call or, for events outside calls, on one of the engine's own.
type Hooks struct {
	// Call is told that a call begins. It returns the context and the observer for the rest of the call.
	Call func(ctx context.Context, start CallStart) (context.Context, CallObserver)

	// Headers says that observers set headers of attempts. Messages says that they follow messages.
	Headers, Messages bool

	// Error makes the error that a caller gets for a failure. It must be set.
	Error func(Failure) error

	// EndpointsChanged is told that discovery delivered a set of n endpoints.
	EndpointsChanged func(target route.Target, n int)

	// Ejection is told that outlier detection ejected an endpoint, or readmitted it.
	Ejection func(target route.Target, event breaker.Event)

	// EjectionWithheld is told that an endpoint stays although it fails, because of the limit of ejections.
	EjectionWithheld func(target route.Target, event breaker.Event)

	// CircuitChanged is told of a change of the state of a destination's circuit.
	CircuitChanged func(target route.Target, change breaker.Change)

	// DiscoveryFailed is told that discovery failed. The last known endpoints stay.
	DiscoveryFailed func(service discovery.Service, err error)

	// MirrorDropped is told that a copy was not sent.
	MirrorDropped func(target route.Target, err error)
}

// CallStart is how a call begins.
type CallStart struct {
	Described any // the call, in a form that the observers know
	Start     time.Time
	Mirror    bool
}

// CallObserver is told of one call.
type CallObserver interface {
	// Attempt is told that an endpoint has been chosen for the n-th attempt. header is what will be sent. It must not be
	// changed, since it may be the caller's. sent is nil unless observers set headers.
	Attempt(ctx context.Context, a *Attempt, n int, header map[string][]string, sent HeaderSetter) (context.Context, AttemptObserver)

	// Answered is told the header of an answer that did not come from an endpoint of the mesh.
	Answered(header map[string][]string)

	// Ticket returns a number that identifies the call until it ends.
	Ticket() uint64

	// Message is told that a message was sent or received. It may be called at any time, on any goroutine: it does nothing
	// once the call has ended.
	Message(ticket uint64, sent bool)

	// End is told once how the call ended.
	End(*Call, CallEnd)
}

// Messages tells the observers of a call of its messages. The zero Messages has no observers.
type Messages struct {
	observer CallObserver
	ticket   uint64
}

// Messages returns the Messages of a call, which work as long as the call goes on.
func (c *Call) Messages() Messages {
	if !c.engine.hooks.Messages {
		return Messages{}
	}
	return Messages{c.observer, c.observer.Ticket()}
}

// Sent says that a message was sent.
func (m Messages) Sent() {
	if m.observer != nil {
		m.observer.Message(m.ticket, true)
	}
}

// Received says that a message was received.
func (m Messages) Received() {
	if m.observer != nil {
		m.observer.Message(m.ticket, false)
	}
}

// AttemptObserver is told of one attempt.
type AttemptObserver interface {
	// Moved is told that the attempt goes to another endpoint, before anything was sent, and when, from the start of the call.
	Moved(to Peer, sent time.Duration)

	// Answered is told how the endpoint answers. It removes from a shared header what the caller must not see.
	Answered(Response)

	// End is told once how the attempt ended.
	End(AttemptEnd)
}

// Response is how an endpoint answers an attempt, in terms of HTTP.
type Response struct {
	Header map[string][]string

	// Shared says that the caller gets the same header; Changes, that it may be changed before.
	Shared, Changes bool

	ProtoMajor, ProtoMinor int // 0 if they are not known
}

// Peer is what is known about the endpoint of an attempt.
type Peer struct {
	Address  string
	Endpoint *discovery.Endpoint
	ID       string // the SPIFFE ID that it has to prove; "" if there is none, or more than one
}

// AttemptEnd is how an attempt ended.
type AttemptEnd struct {
	PeerID     string // that the endpoint has proved
	Status     int
	GRPCStatus int // -1 without one
	Err        error
	Duration   time.Duration
}

// HeaderSetter changes the header of an attempt before it is sent.
type HeaderSetter interface {
	// SetHeader sets a header. An empty value removes it.
	SetHeader(name, value string)

	// Header returns what will be sent.
	Header() map[string][]string
}

// CallEnd is how a call ended. The Call has the rest.
type CallEnd struct {
	Status   int
	Err      error
	Duration time.Duration
}

// Outcome is what an engine knows about how a call ended.
type Outcome struct {
	Outside    bool
	GRPCStatus int // -1 without one
	Flags      Flags
	Attempts   int
	Stopped    retry.Reason
}

// Outcome returns how a call ended. It is for the end of the call.
func (c *Call) Outcome() Outcome {
	return Outcome{c.outside, int(c.grpc) - 1, c.flags, int(c.sent), c.stopped}
}

// Sizes returns how many bytes of the bodies were sent and received. It is for the end of the call.
func (c *Call) Sizes() (sent, received int64) {
	if c.adapter == nil {
		return 0, 0
	}
	return c.adapter.Bytes()
}

// Observed reports whether the call has observers.
func (c *Call) Observed() bool { return c.observer != nil }

// Peer returns what is known about the endpoint.
func (a *Attempt) Peer() Peer {
	return Peer{Address: a.endpoint.host.ID(), Endpoint: a.endpoint.host.Endpoint(), ID: a.conns.ExpectedID()}
}

// Observe tells the observers, if there are any, that the n-th attempt begins. If they set headers, they change the header
// that will be sent through sent. It returns the context for the rest of the attempt.
func (a *Attempt) Observe(ctx context.Context, n int, header map[string][]string, sent HeaderSetter) context.Context {
	c := a.call
	if c.observer == nil {
		return ctx
	}
	ctx, a.observer = c.observer.Attempt(ctx, a, n, header, sent)
	return ctx
}

// Header tells the observers, if there are any, how the endpoint answers.
func (a *Attempt) Header(answer Response) {
	if a.observer != nil {
		a.observer.Answered(answer)
	}
}

func (a *Attempt) observeEnd(peerID string, err error) {
	ended := a.call.start.elapsed()
	took := ended - a.Sent()
	atomic.StoreInt64(&a.sent, ^int64(ended)) // another goroutine may be ending the call
	a.observer.End(AttemptEnd{PeerID: peerID, Status: int(a.status), GRPCStatus: int(a.grpc) - 1, Err: err, Duration: took})
}

// observeEnd tells the observers that the call has ended, with the attempt last, unless that is nil.
func (c *Call) observeEnd(status int, err error, last *Attempt) {
	took := time.Duration(-1)
	if last != nil {
		took = time.Duration(^atomic.LoadInt64(&last.sent)) // negative if it has not ended yet
	}
	if took < 0 {
		took = c.start.elapsed()
	}
	c.observer.End(c, CallEnd{status, err, took})
}

// Origin returns the document and the route that the call follows, if there are any.
func (c *Call) Origin() (document, route string) {
	switch {
	case c.rule != nil:
		return c.host.documentOf(c.rule), c.rule.Route.Name
	case c.host != nil:
		return c.host.Document, ""
	}
	return "", ""
}

// AnswerHeader tells the observers the header of an answer that did not come from an endpoint of the mesh.
func (c *Call) AnswerHeader(header map[string][]string) {
	if c.observer != nil {
		c.observer.Answered(header)
	}
}
