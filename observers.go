package mesh

import (
	"context"
	"net"
	"slices"
	"time"

	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/engine"
	"github.com/nosidecar/mesh/policy/jwt"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/tlsid"
)

// observers are called in the order in which the program gave them.
type observers []Observer

// callFuncs are the functions of all observers that are told of calls.
type callFuncs struct {
	start        []func(context.Context, *Call) context.Context
	end          []func(context.Context, *Call)
	message      []func(context.Context, *Call, bool)
	attemptStart []func(context.Context, *Attempt) context.Context
	attemptEnd   []func(context.Context, *Attempt)
}

func (o observers) callFuncs() callFuncs {
	var c callFuncs
	for i := range o {
		if f := o[i].CallStart; f != nil {
			c.start = append(c.start, f)
		}
		if f := o[i].CallEnd; f != nil {
			c.end = append(c.end, f)
		}
		if f := o[i].CallMessage; f != nil {
			c.message = append(c.message, f)
		}
		if f := o[i].AttemptStart; f != nil {
			c.attemptStart = append(c.attemptStart, f)
		}
		if f := o[i].AttemptEnd; f != nil {
			c.attemptEnd = append(c.attemptEnd, f)
		}
	}
	return c
}

// hooks returns the hooks that the engine calls.
func (m *Mesh) hooks() engine.Hooks {
	o := m.observers
	m.calls = o.callFuncs()
	h := engine.Hooks{
		Error: newError, Ejection: o.ejection, EjectionWithheld: o.ejectionWithheld, CircuitChanged: o.circuitChanged,
		EndpointsChanged: o.endpointsChanged, DiscoveryFailed: o.discoveryFailed, MirrorDropped: o.mirrorDropped,
	}
	h.Headers = m.calls.attemptStart != nil || m.calls.attemptEnd != nil
	h.Messages = m.calls.message != nil
	if h.Headers || h.Messages || m.calls.start != nil || m.calls.end != nil {
		h.Call = m.callStart
	}
	return h
}

func (o observers) ejection(target route.Target, event breaker.Event) {
	for i := range o {
		if f := o[i].Ejection; f != nil {
			f(target, event)
		}
	}
}

func (o observers) ejectionWithheld(target route.Target, event breaker.Event) {
	for i := range o {
		if f := o[i].EjectionWithheld; f != nil {
			f(target, event)
		}
	}
}

func (o observers) circuitChanged(target route.Target, change breaker.Change) {
	for i := range o {
		if f := o[i].Circuit; f != nil {
			f(target, change)
		}
	}
}

func (o observers) endpointsChanged(target route.Target, n int) {
	for i := range o {
		if f := o[i].Endpoints; f != nil {
			f(target, n)
		}
	}
}

func (o observers) discoveryFailed(service discovery.Service, err error) {
	for i := range o {
		if f := o[i].DiscoveryFailed; f != nil {
			f(service, err)
		}
	}
}

func (o observers) mirrorDropped(target route.Target, err error) {
	for i := range o {
		if f := o[i].MirrorDropped; f != nil {
			f(target, err)
		}
	}
}

func (o observers) keysFetched(state jwt.State) {
	for i := range o {
		if f := o[i].Keys; f != nil {
			f(state)
		}
	}
}

// watchInbound reports whether any observer follows inbound requests.
func (o observers) watchInbound() bool {
	return slices.ContainsFunc(o, func(o Observer) bool {
		return o.InboundStart != nil || o.InboundEnd != nil || o.InboundMessage != nil
	})
}

// watchConns reports whether any observer follows raw connections.
func (o observers) watchConns() bool {
	return slices.ContainsFunc(o, func(o Observer) bool { return o.ConnStart != nil || o.ConnEnd != nil })
}

// inboundStart tells the observers that a request arrived. It returns the context for the rest of the request.
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

func (o observers) inboundMessage(ctx context.Context, in *Inbound, sent bool) {
	for i := range o {
		if f := o[i].InboundMessage; f != nil {
			f(ctx, in, sent)
		}
	}
}

func (o observers) started(m *Mesh) {
	for i := range o {
		if f := o[i].Started; f != nil {
			f(m)
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
