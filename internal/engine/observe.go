package engine

import (
	"context"
	"net/http"
	"time"

	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// Hooks are told what an [Engine] does. Those that are nil are skipped, and cost nothing. They are called without locks, on
// the goroutine of the call or, for what is no part of a call, on one of the engine's own.
type Hooks struct {
	// Call is told that a call begins. It returns the context to go on with, and who is told of the rest.
	Call func(ctx context.Context, start CallStart) (context.Context, CallObserver)

	// Attempts says that the observers of calls want to know of attempts.
	Attempts bool

	// Error makes the error that a caller gets of a failure. It must be set.
	Error func(Failure) error

	// EndpointsChanged is told that discovery delivered a set of n endpoints.
	EndpointsChanged func(target route.Target, n int)

	// Ejection is told that outlier detection took an endpoint out, or gave it another chance.
	Ejection func(target route.Target, event breaker.Event)

	// CircuitChanged is told of the state of a destination's circuit.
	CircuitChanged func(target route.Target, change breaker.Change)

	// DiscoveryFailed is told that discovery failed. The last known endpoints stay.
	DiscoveryFailed func(service discovery.Service, err error)

	// MirrorDropped is told that a copy was not sent.
	MirrorDropped func(target route.Target, err error)
}

// CallStart is how a call begins.
type CallStart struct {
	Request *http.Request
	Start   time.Time
	Mirror  bool
}

// CallObserver is told of one call.
type CallObserver interface {
	// Attempt is told that an endpoint has been chosen for an attempt.
	Attempt(ctx context.Context, start AttemptStart) (context.Context, AttemptObserver)

	// End is told once how the call ended.
	End(CallEnd)
}

// AttemptObserver is told of one attempt.
type AttemptObserver interface {
	// Moved is told that the attempt goes to another endpoint, before anything was sent.
	Moved(endpoint string)

	// End is told once how the attempt ended.
	End(AttemptEnd)
}

// AttemptEnd is how an attempt ended.
type AttemptEnd struct {
	Status     int
	GRPCStatus int // -1 without one
	Err        error
	Duration   time.Duration
}

// AttemptStart is how an attempt begins. Header is what will be sent. It is not changed itself: it may be the caller's.
type AttemptStart struct {
	Number   int
	Endpoint string
	Header   http.Header
	Sent     HeaderSetter
	Start    time.Time
}

// HeaderSetter changes the header of an attempt before it is sent.
type HeaderSetter interface {
	// SetHeader sets a header. An empty value removes it.
	SetHeader(name, value string)

	// Header returns what will be sent.
	Header() http.Header
}

// OwnHeader is the HeaderSetter of an adapter that makes a header for each attempt.
type OwnHeader http.Header

// SetHeader implements HeaderSetter.
func (h OwnHeader) SetHeader(name, value string) {
	if name = http.CanonicalHeaderKey(name); value == "" {
		delete(h, name)
	} else {
		h[name] = []string{value}
	}
}

// Header implements HeaderSetter.
func (h OwnHeader) Header() http.Header { return http.Header(h) }

// CallEnd is how a call ended.
type CallEnd struct {
	Document, Route string
	Target          route.Target
	Status          int
	GRPCStatus      int // -1 without one
	Err             error
	Flags           Flags
	Attempts        int
	Stopped         retry.Reason
	Duration        time.Duration
}

func (a *Attempt) observeEnd(err error) {
	a.observer.End(AttemptEnd{
		Status: int(a.status), GRPCStatus: int(a.grpc) - 1, Err: err, Duration: time.Since(a.sentAt()),
	})
}

func (c *Call) observeEnd(status int, err error) {
	end := CallEnd{
		Target: c.target, Status: status, GRPCStatus: int(c.grpc) - 1, Err: err, Flags: c.flags,
		Attempts: int(c.sent), Stopped: c.stopped, Duration: time.Since(c.start),
	}
	if c.host != nil {
		end.Document = c.host.Document
	}
	if c.rule != nil {
		end.Document, end.Route = c.host.Origin(c.rule, int(c.match)).Document, c.rule.Route.Name
	}
	c.observer.End(end)
}
