// Package tracingmesh traces the calls and requests of a mesh, over HTTP and gRPC.
//
//	exporter, err := otlptracegrpc.New(ctx) // of OpenTelemetry's SDK, which the program chooses; OTEL_EXPORTER_OTLP_ENDPOINT says where to
//	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter))
//	observer, err := tracingmesh.Observer(tracing.Config{Provider: provider})
//	...
//	m, err := mesh.New(ctx, mesh.WithObserver(observer), ...)
//	...
//	m.Close()
//	err = provider.Shutdown(ctx) // sends the spans that wait
//
// Calls have the spans that package tracing describes. An HTTP call has a CLIENT span for each attempt, with the endpoint as
// network.peer.address. A gRPC call has one CLIENT span, with an event for each attempt. The span of the last attempt and that of the
// call say why the call ended, in mesh.response_flags, mesh.route and mesh.retry_stopped. A call for which nothing was sent has a CLIENT
// span too. A mirrored copy of a call has spans of its own.
//
// Requests to [mesh.Mesh.Handler] have SERVER spans, even if they are refused. x-request-id is trusted only from peers with an identity.
// If [mesh.ServerConfig.RestartTraces] is set, that is also true of trace headers. Do not put a handler that reads trace headers around
// the handler of the mesh: it would read them before untrusted ones are removed.
//
// Telemetry documents can limit the fraction of new traces that are sampled, add attributes to spans, and disable spans. With
// enableIstioTags, spans also have Istio's attributes. About this process, these are istio.canonical_service, istio.canonical_revision,
// istio.namespace, istio.cluster_id and istio.mesh_id, from [mesh.WithWorkload] and the environment variables that Istio's agent sets.
// About both ends, they are istio.source_workload, istio.source_namespace, istio.source_canonical_service, and the same with
// istio.destination_. A destination is described by its labels in discovery and by its SPIFFE ID, and a source only by its SPIFFE ID,
// whose service account serves as its workload. An unknown value is "unknown". The Name and the Cluster of metrics.Config do not apply
// to the attributes of spans. To make both agree, set ISTIO_META_WORKLOAD_NAME and ISTIO_META_CLUSTER_ID, or the label
// service.istio.io/workload-name.
package tracingmesh

import (
	"context"
	"reflect"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/caller"
	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/outgoing"
	"github.com/nosidecar/mesh/retry"
	"github.com/nosidecar/mesh/tracing"
	"github.com/nosidecar/mesh/tracing/internal/spans"
)

// Observer returns an observer for [mesh.WithObserver] that traces a mesh. The error says what is wrong with the Config.
func Observer(c tracing.Config) (mesh.Observer, error) {
	tracer, err := spans.New(spans.Config(c))
	if err != nil {
		return mesh.Observer{}, err
	}
	t := &observer{tracer, c.EchoRequestID}
	return mesh.Observer{
		CallStart: t.callStart, CallEnd: t.callEnd,
		AttemptStart: t.attemptStart, AttemptEnd: t.attemptEnd,
		InboundStart: t.inboundStart, InboundEnd: t.inboundEnd,
	}, nil
}

type observer struct {
	tracer *spans.Tracer
	echo   bool // Config.EchoRequestID
}

// describe returns a call in the tracer's terms.
func describe(c *mesh.Call) spans.Call {
	return spans.Call{
		Method: c.Request.Method, URL: c.Request.URL, RPC: field.CallsGRPC(c.Request), Start: c.Start,
		Owner: c, Seed: seedOf(c), Header: c.Request.Header, Caller: c.Request.Context(),
		Documents: &c.Telemetry.Client().Tracing, Secret: c.Telemetry.Client().SecretParams,
	}
}

func seedOf(c *mesh.Call) uint64 {
	return spans.Seed(c.Start, uint64(reflect.ValueOf(c).Pointer()))
}

// recorded reports whether a call is recorded. If so, its context differs from that of its caller.
func (o *observer) recorded(ctx context.Context, c *mesh.Call) bool {
	return !caller.SameContext(ctx, c.Request.Context()) && o.tracer.Recorded(ctx, c)
}

// unsampled reports whether nothing of the call of an attempt is recorded.
func unsampled(a *mesh.Attempt) bool {
	sent, ok := a.Sent.(*outgoing.Request)
	return ok && sent.Unsampled()
}

func (o *observer) callStart(ctx context.Context, c *mesh.Call) context.Context {
	if !o.tracer.MayRecord(ctx) {
		return ctx
	}
	d := describe(c)
	return o.tracer.StartCall(ctx, &d)
}

func (o *observer) callEnd(ctx context.Context, c *mesh.Call) {
	if c.Last != nil && unsampled(c.Last) || !o.recorded(ctx, c) {
		return
	}
	d := describe(c)
	e := spans.CallEnd{Status: c.Status, GRPCStatus: c.GRPCStatus, Err: c.Err, Route: c.Route}
	if c.Flags != 0 {
		e.Flags = c.Flags.String()
	}
	if c.Stopped != retry.Succeeded {
		e.Stopped = c.Stopped.String()
	}
	if d.Documents.Peers {
		e.Peer = (*callee)(c)
	}
	o.tracer.EndCall(ctx, &d, &e)
}

func (o *observer) attemptStart(ctx context.Context, a *mesh.Attempt) context.Context {
	c := a.Call
	out := spans.Outgoing{RPC: field.CallsGRPC(c.Request), Seed: seedOf(c), Number: a.Number, Header: a.Header, Set: a.Sent}
	if from := c.Request.Context(); !caller.SameContext(ctx, from) {
		if o.tracer.Recorded(ctx, c) {
			d := describe(c)
			return o.tracer.StartAttempt(ctx, &d, &spans.Attempt{
				Number: a.Number, Start: a.Start, Endpoint: a.Endpoint, Header: a.Header, Set: a.Sent,
			})
		}
		out.Caller = from
	}
	o.tracer.Carry(ctx, &out)
	return ctx
}

func (o *observer) attemptEnd(ctx context.Context, a *mesh.Attempt) {
	if unsampled(a) || !o.recorded(ctx, a.Call) {
		return
	}
	e := spans.AttemptEnd{Status: a.Status, Err: a.Err, At: a.Start.Add(a.Duration)}
	if a.ProtoMajor > 0 {
		e.Version = spans.Version(a.ProtoMajor, a.ProtoMinor)
	}
	if a.Call.Telemetry.Client().Tracing.Peers {
		e.Peer = (*tried)(a)
	}
	o.tracer.EndAttempt(ctx, a.Call, &e)
}

func (o *observer) inboundStart(ctx context.Context, in *mesh.Inbound) context.Context {
	r := spans.Request{
		Request: in.Request, RPC: field.CallsGRPC(in.Request),
		Restart: in.RestartTraces, NewID: in.Peer == "", // for these peers, the mesh removes the header
		Documents: &in.Telemetry.Server().Tracing,
	}
	if r.Documents.Peers {
		r.Peer = (*sender)(in)
	}
	ctx = o.tracer.StartInbound(ctx, &r)
	if o.echo {
		spans.EchoRequestID(ctx, in.ResponseHeader)
	}
	return ctx
}

func (o *observer) inboundEnd(ctx context.Context, in *mesh.Inbound) {
	const broken = mesh.FlagConnectionTerminated | mesh.FlagRemoteReset
	e := spans.Response{Status: in.Status, Broken: in.Flags&broken != 0, Gone: in.Flags&mesh.FlagCallerGone != 0, Route: in.Pattern}
	if in.Flags != 0 {
		e.Flags = in.Flags.String()
	}
	if field.CallsGRPC(in.Request) {
		e.Answer(in.GRPCStatus, !in.Decision.Allowed || in.Flags&(mesh.FlagRateLimited|mesh.FlagOverflow) != 0)
	}
	spans.EndInbound(ctx, &e)
}
