package mesh

import (
	"context"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/engine"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/tlsid"
)

// observers are told in the order in which the program gave them.
type observers []Observer

// hooks returns what the engine calls.
func (m *Mesh) hooks() engine.Hooks {
	h, o := engine.Hooks{Error: newError}, m.observers
	h.Attempts = slices.ContainsFunc(o, func(o Observer) bool { return o.AttemptStart != nil || o.AttemptEnd != nil })
	if h.Attempts || slices.ContainsFunc(o, func(o Observer) bool { return o.CallStart != nil || o.CallEnd != nil }) {
		h.Call = m.callStart
	}
	h.Ejection = func(target route.Target, event breaker.Event) {
		for i := range o {
			if f := o[i].Ejection; f != nil {
				f(target, event)
			}
		}
	}
	h.CircuitChanged = func(target route.Target, change breaker.Change) {
		for i := range o {
			if f := o[i].Circuit; f != nil {
				f(target, change)
			}
		}
	}
	h.EndpointsChanged = func(target route.Target, n int) {
		for i := range o {
			if f := o[i].Endpoints; f != nil {
				f(target, n)
			}
		}
	}
	h.DiscoveryFailed = func(service discovery.Service, err error) {
		for i := range o {
			if f := o[i].DiscoveryFailed; f != nil {
				f(service, err)
			}
		}
	}
	h.MirrorDropped = func(target route.Target, err error) {
		for i := range o {
			if f := o[i].MirrorDropped; f != nil {
				f(target, err)
			}
		}
	}
	return h
}

// watchInbound reports whether somebody wants to know of inbound requests.
func (o observers) watchInbound() bool {
	return slices.ContainsFunc(o, func(o Observer) bool { return o.InboundStart != nil || o.InboundEnd != nil })
}

// callRecord is what observers are told of a call, with its first attempt, which usually is the only one.
type callRecord struct {
	Call
	mesh  *Mesh
	ctx   context.Context
	first attemptRecord
	users atomic.Int32 // the call itself, and its attempts
}

// records are used again: they are large, and every observed call has one.
var records = sync.Pool{New: func() any { return new(callRecord) }}

// release gives the record back when the call and all its attempts have ended. Usually the call ends last, but two goroutines
// that have the body can end them at the same time.
func (r *callRecord) release() {
	if r.users.Add(-1) == 0 {
		r.Call, r.mesh, r.ctx, r.first = Call{}, nil, nil, attemptRecord{}
		records.Put(r)
	}
}

// callStart tells the observers that a call begins. It returns the context to go on with.
func (m *Mesh) callStart(ctx context.Context, start engine.CallStart) (context.Context, engine.CallObserver) {
	r := records.Get().(*callRecord)
	r.Call = Call{Request: start.Request, Start: start.Start, Mirror: start.Mirror, GRPCStatus: -1}
	r.mesh, r.ctx = m, ctx
	r.users.Store(1)
	for i := range m.observers {
		if f := m.observers[i].CallStart; f != nil {
			r.ctx = f(r.ctx, &r.Call)
		}
	}
	return r.ctx, r
}

// End implements engine.CallObserver.
func (r *callRecord) End(end engine.CallEnd) {
	r.Document, r.Route, r.Target = end.Document, end.Route, end.Target
	r.Status, r.GRPCStatus, r.Err, r.Flags = end.Status, end.GRPCStatus, end.Err, Flags(end.Flags)
	r.Attempts, r.Stopped, r.Duration = end.Attempts, end.Stopped, end.Duration
	o := r.mesh.observers
	for i := range o {
		if f := o[i].CallEnd; f != nil {
			f(r.ctx, &r.Call)
		}
	}
	r.release()
}

type attemptRecord struct {
	Attempt
	call *callRecord
	ctx  context.Context
}

// Attempt implements engine.CallObserver.
func (r *callRecord) Attempt(ctx context.Context, start engine.AttemptStart) (context.Context, engine.AttemptObserver) {
	a := &r.first
	if start.Number > 1 {
		a = new(attemptRecord)
	}
	*a = attemptRecord{call: r, ctx: ctx, Attempt: Attempt{
		Call: &r.Call, Number: start.Number, Endpoint: start.Endpoint, Header: start.Header, Start: start.Start, Sent: start.Sent,
		GRPCStatus: -1,
	}}
	r.users.Add(1)
	o := r.mesh.observers
	for i := range o {
		if f := o[i].AttemptStart; f != nil {
			a.ctx = f(a.ctx, &a.Attempt)
			a.Header = start.Sent.Header()
		}
	}
	return a.ctx, a
}

// Moved implements engine.AttemptObserver.
func (a *attemptRecord) Moved(endpoint string) {
	a.Endpoint = endpoint
}

// End implements engine.AttemptObserver.
func (a *attemptRecord) End(end engine.AttemptEnd) {
	a.Status, a.GRPCStatus, a.Err, a.Duration = end.Status, end.GRPCStatus, end.Err, end.Duration
	o := a.call.mesh.observers
	for i := range o {
		if f := o[i].AttemptEnd; f != nil {
			f(a.ctx, &a.Attempt)
		}
	}
	a.call.release()
}

// inboundStart tells the observers that a request arrived. It returns the context to go on with.
func (o observers) inboundStart(ctx context.Context, in *Inbound) context.Context {
	for i := range o {
		if f := o[i].InboundStart; f != nil {
			ctx = f(ctx, in)
		}
	}
	return ctx
}

func (o observers) inboundEnd(ctx context.Context, in *Inbound) {
	in.Duration = time.Since(in.Start)
	for i := range o {
		if f := o[i].InboundEnd; f != nil {
			f(ctx, in)
		}
	}
}

func (o observers) policyLoaded(load PolicyLoad) {
	for i := range o {
		if f := o[i].PolicyLoad; f != nil {
			f(load)
		}
	}
}

func (o observers) identity(id *tlsid.Identity, err error) {
	for i := range o {
		if f := o[i].Identity; f != nil {
			f(id, err)
		}
	}
}

func (o observers) connectionRefused(local net.Addr, refusal tlsid.Refusal) {
	for i := range o {
		if f := o[i].ConnectionRefused; f != nil {
			f(local, refusal)
		}
	}
}
