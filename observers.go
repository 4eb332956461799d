package mesh

import (
	"context"
	"net"
	"slices"

	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/engine"
	"github.com/nosidecar/mesh/policy/jwt"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/tlsid"
)

// inOrder returns one observer that tells all of the given ones, in their order. It has all functions but those of callFuncs.
func inOrder(all []Observer) Observer {
	return Observer{
		Started: tell(all, func(o *Observer) func(*Mesh) { return o.Started }),

		InboundStart: func(ctx context.Context, in *Inbound) context.Context {
			for i := range all {
				if f := all[i].InboundStart; f != nil {
					ctx = f(ctx, in)
				}
			}
			return ctx
		},
		InboundEnd: tell2(all, func(o *Observer) func(context.Context, *Inbound) { return o.InboundEnd }),
		InboundMessage: func(ctx context.Context, in *Inbound, sent bool) {
			for i := range all {
				if f := all[i].InboundMessage; f != nil {
					f(ctx, in, sent)
				}
			}
		},

		ConnStart: tell(all, func(o *Observer) func(*Conn) { return o.ConnStart }),
		ConnEnd:   tell(all, func(o *Observer) func(*Conn) { return o.ConnEnd }),

		Ejection:          tell2(all, func(o *Observer) func(route.Target, breaker.Event) { return o.Ejection }),
		EjectionWithheld:  tell2(all, func(o *Observer) func(route.Target, breaker.Event) { return o.EjectionWithheld }),
		Circuit:           tell2(all, func(o *Observer) func(route.Target, breaker.Change) { return o.Circuit }),
		Endpoints:         tell2(all, func(o *Observer) func(route.Target, int) { return o.Endpoints }),
		DiscoveryFailed:   tell2(all, func(o *Observer) func(discovery.Service, error) { return o.DiscoveryFailed }),
		MirrorDropped:     tell2(all, func(o *Observer) func(route.Target, error) { return o.MirrorDropped }),
		Identity:          tell2(all, func(o *Observer) func(*tlsid.Identity, error) { return o.Identity }),
		Keys:              tell(all, func(o *Observer) func(jwt.State) { return o.Keys }),
		ConnectionRefused: tell2(all, func(o *Observer) func(net.Addr, tlsid.Refusal) { return o.ConnectionRefused }),
		PolicyLoad:        tell(all, func(o *Observer) func(PolicyLoad) { return o.PolicyLoad }),
	}
}

// tell returns a function that calls that of each observer which has one.
func tell[A any](all []Observer, of func(*Observer) func(A)) func(A) {
	return func(a A) {
		for i := range all {
			if f := of(&all[i]); f != nil {
				f(a)
			}
		}
	}
}

func tell2[A, B any](all []Observer, of func(*Observer) func(A, B)) func(A, B) {
	return func(a A, b B) {
		for i := range all {
			if f := of(&all[i]); f != nil {
				f(a, b)
			}
		}
	}
}

// callFuncs are the functions of all observers that are told of calls.
type callFuncs struct {
	start        []func(context.Context, *Call) context.Context
	end          []func(context.Context, *Call)
	message      []func(context.Context, *Call, bool)
	attemptStart []func(context.Context, *Attempt) context.Context
	attemptEnd   []func(context.Context, *Attempt)
}

func callFuncsOf(all []Observer) callFuncs {
	var c callFuncs
	for i := range all {
		if f := all[i].CallStart; f != nil {
			c.start = append(c.start, f)
		}
		if f := all[i].CallEnd; f != nil {
			c.end = append(c.end, f)
		}
		if f := all[i].CallMessage; f != nil {
			c.message = append(c.message, f)
		}
		if f := all[i].AttemptStart; f != nil {
			c.attemptStart = append(c.attemptStart, f)
		}
		if f := all[i].AttemptEnd; f != nil {
			c.attemptEnd = append(c.attemptEnd, f)
		}
	}
	return c
}

// hooks returns the hooks that the engine calls.
func (m *Mesh) hooks() engine.Hooks {
	o := &m.observers
	h := engine.Hooks{
		Error: newError, Ejection: o.Ejection, EjectionWithheld: o.EjectionWithheld, CircuitChanged: o.Circuit,
		EndpointsChanged: o.Endpoints, DiscoveryFailed: o.DiscoveryFailed, MirrorDropped: o.MirrorDropped,
	}
	h.Headers = m.calls.attemptStart != nil || m.calls.attemptEnd != nil
	h.Messages = m.calls.message != nil
	if h.Headers || h.Messages || m.calls.start != nil || m.calls.end != nil {
		h.Call = m.callStart
	}
	return h
}

// watchInbound reports whether any observer follows inbound requests.
func watchInbound(all []Observer) bool {
	return slices.ContainsFunc(all, func(o Observer) bool {
		return o.InboundStart != nil || o.InboundEnd != nil || o.InboundMessage != nil
	})
}

// watchConns reports whether any observer follows raw connections.
func watchConns(all []Observer) bool {
	return slices.ContainsFunc(all, func(o Observer) bool { return o.ConnStart != nil || o.ConnEnd != nil })
}
