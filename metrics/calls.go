package metrics

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/admission"
	"github.com/nosidecar/mesh/internal/asserted"
	"github.com/nosidecar/mesh/internal/engine"
	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/outgoing"
	"github.com/nosidecar/mesh/policy/telemetry"
)

func (w *watcher) observer() mesh.Observer {
	o := mesh.Observer{
		Started:   w.started,
		CallStart: w.callStart, CallEnd: w.callEnd, CallMessage: w.callMessage, AttemptStart: w.attemptStart,
		InboundStart: w.inboundStart, InboundEnd: w.inboundEnd, InboundMessage: w.inboundMessage,
		ConnStart: w.connStart, ConnEnd: w.connEnd,
		Ejection: w.state.ejection, EjectionWithheld: w.state.ejectionWithheld, Circuit: w.state.circuit,
		Endpoints: w.state.endpoints, DiscoveryFailed: w.state.discoveryFailed, MirrorDropped: w.state.mirrorDropped,
		Identity: w.identity, ConnectionRefused: w.state.connectionRefused, PolicyLoad: w.state.policyLoad,
	}
	if w.tails.most > 0 {
		o.AttemptEnd = w.attemptEnd
	}
	return o
}

// request is one call that has ended.
type request struct {
	key            outcome
	took           time.Duration
	sent, answered int64 // bytes of the request and of the response
	end            int64 // in Unix seconds
	inbound        bool
	unsampled      bool // its context has no span that could be an exemplar

	side   *telemetry.Side // what documents change about the metrics; nil for nothing
	header http.Header     // of the request, if side is set
}

// recordTries is how often a request is recorded: again if its path is removed between finding it and counting the request.
const recordTries = 4

// record counts a request. It reports false if the path has been removed in the meantime.
func (st *store) record(ctx context.Context, p *path, r *request) bool {
	if p == nil {
		st.drop(r.inbound)
		return true
	}
	s := st.of(p, r.key, r.end)
	if s == nil {
		if p.gone.Load() {
			return false
		}
		st.drop(r.inbound)
		return true
	}
	if r.side != nil {
		st.recordAltered(ctx, s, r)
		return true
	}
	took := r.took.Microseconds()
	s.counts[requests].Add(1)
	s.hists.observe(duration, took)
	s.hists.observe(requestBytes, r.sent)
	s.hists.observe(responseBytes, r.answered)
	if !r.unsampled {
		s.hists.exemplify(ctx, took, r.end)
	}
	return true
}

// recordAltered counts a request in metrics that documents have changed.
func (st *store) recordAltered(ctx context.Context, s *series, r *request) {
	took := r.took.Microseconds()
	observed := [histogramCount]int64{duration: took, requestBytes: r.sent, responseBytes: r.answered}
	list := families[kindRequest]
	for i, to := range st.targets(s, r.side, r.header, r.end) {
		switch f := &list[i]; {
		case to == nil:
		case f.count >= 0:
			to.counts[f.count].Add(1)
		default:
			to.hists.observe(f.hist, observed[f.hist])
			if f.hist == duration && !r.unsampled {
				to.hists.exemplify(ctx, took, r.end)
			}
		}
	}
}

// bump adds to the counters of messages or of connections.
func (st *store) bump(s *series, side *telemetry.Side, header http.Header, by [4]uint64, now int64) {
	list, to := families[s.key&kinds], []*series(nil)
	if side != nil {
		to = st.targets(s, side, header, now)
	}
	for i := range list {
		at := s
		if to != nil {
			at = to[i]
		}
		if at == nil {
			continue
		}
		if !at.shown[i].Load() {
			at.shown[i].Store(true)
		}
		if by[i] > 0 {
			at.counts[i].Add(by[i])
		}
	}
}

// drop counts a call or a raw connection for which there is no room.
func (st *store) drop(inbound bool) { st.overflow[index(inbound)].Add(1) }

func (w *watcher) callStart(ctx context.Context, c *mesh.Call) context.Context {
	if w.serving.Load() && !c.Mirror && ctx.Value(http.ServerContextKey) == nil && ctx.Value(admission.RequestKey{}) == nil {
		w.state.detached.Inc()
	}
	return ctx
}

// attemptStart sends the metadata of this workload to peers of the mesh: endpoints that must prove a SPIFFE ID, and services of the
// cluster. Other hosts in documents or DNS may be anywhere, so they do not get it.
func (w *watcher) attemptStart(ctx context.Context, a *mesh.Attempt) context.Context {
	if a.PeerID != "" || strings.HasSuffix(a.Call.Target.Host, w.settings.suffix) {
		w.self.Load().addTo(a)
	}
	if field.CallsGRPC(a.Call.Request) && !w.over.Load() {
		w.streams.attempt(a)
	}
	return ctx
}

func (w *watcher) callEnd(ctx context.Context, c *mesh.Call) {
	rpc := field.CallsGRPC(c.Request)
	if w.over.Load() {
		if rpc {
			w.streams.take(c)
		}
		return
	}
	r := request{
		key: newOutcome(engine.Flags(c.Flags).Code(c.Status), c.GRPCStatus, c.Flags), took: c.Duration, end: endOf(c.Start, c.Duration),
		sent: c.BytesSent + requestHeader(c.Request), answered: c.BytesReceived + responseHeader(c.ResponseHeader),
	}
	if r.side = overridden(c.Telemetry.Client()); r.side != nil {
		r.header = c.Request.Header
	}
	if rpc {
		r.key |= isGRPC
	}
	if a := c.Last; a != nil {
		if a.PeerID != "" {
			r.key |= isMTLS
		}
		if sent, ok := a.Sent.(*outgoing.Request); ok {
			r.unsampled = sent.Unsampled()
		}
	}
	var p *path
	for range recordTries {
		if p = w.pathOf(c, r.end); w.store.record(ctx, p, &r) {
			break
		}
	}
	if rpc {
		w.store.messages(p, r.side, r.header, w.streams.take(c), r.end)
	}
	if c.Attempts > 1 || c.Stopped != 0 {
		w.state.retried(c)
	}
}

// endOf returns when something ended, in Unix seconds.
func endOf(start time.Time, took time.Duration) int64 {
	return (start.UnixNano() + int64(took)) / int64(time.Second)
}

// pathOf returns the path of a call that has ended.
func (w *watcher) pathOf(c *mesh.Call, now int64) *path {
	a := c.Last
	switch {
	case c.Outside:
		return w.pathOutside(c.Err != nil && errors.Is(c.Err, mesh.ErrNotInMesh), now)
	case a == nil || a.Peer == nil:
		return w.pathWithoutEndpoint(c.Target.Host, c.Document != "", now)
	}
	value := ""
	if a.PeerID != "" {
		value = peerMetadata(c.ResponseHeader)
	}
	return w.pathTo(a.Peer, c.Target.Host, c.Document != "", a.PeerID, value, now)
}

// The sizes of headers are estimated: HTTP/2 compresses them, and adding up their lengths would cost more than everything else.
const (
	perField  = 40
	firstLine = 16
)

func requestHeader(r *http.Request) int64 {
	n := firstLine + len(r.Method) + len(r.Host) + perField*len(r.Header)
	if r.URL != nil {
		n += len(r.URL.Path) + len(r.URL.RawQuery)
	}
	return int64(n)
}

func responseHeader(h http.Header) int64 {
	if h == nil {
		return 0
	}
	return int64(firstLine + perField*len(h))
}

// inboundStart sends the metadata of this workload to an authenticated peer that sent its own. Other peers would not trust it.
func (w *watcher) inboundStart(ctx context.Context, in *mesh.Inbound) context.Context {
	if !w.serving.Load() {
		w.serving.Store(true)
	}
	if in.Peer == "" || in.ResponseHeader == nil {
		return ctx
	}
	self := w.self.Load()
	if in.Request.Header[asserted.PeerMetadata] != nil {
		in.ResponseHeader[asserted.PeerMetadata] = self.value
	}
	if in.Request.Header[asserted.PeerMetadataID] != nil {
		in.ResponseHeader[asserted.PeerMetadataID] = self.named
	}
	return ctx
}

func (w *watcher) inboundEnd(ctx context.Context, in *mesh.Inbound) {
	if w.over.Load() {
		return
	}
	r := request{
		key: newOutcome(in.Status, in.GRPCStatus, in.Flags), took: in.Duration, end: endOf(in.Start, in.Duration),
		sent: in.BytesReceived + requestHeader(in.Request), answered: in.BytesSent + responseHeader(in.ResponseHeader),
	}
	r.inbound = true
	if r.side = overridden(in.Telemetry.Server()); r.side != nil {
		r.header = in.Request.Header
	}
	if field.CallsGRPC(in.Request) {
		r.key |= isGRPC
	}
	if in.Peer != "" {
		r.key |= isMTLS
	}
	for range recordTries {
		if w.store.record(ctx, w.pathFrom(in.Peer, in.Request.Header, r.end), &r) {
			return
		}
	}
}
