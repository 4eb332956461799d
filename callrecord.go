package mesh

import (
	"context"
	"maps"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/internal/asserted"
	"github.com/nosidecar/mesh/internal/engine"
)

// callRecord is what observers see of a call. It includes the first attempt, which usually is the only one.
type callRecord struct {
	recorded
	copied http.Header // of an answer whose header the caller gets with changes; reused

	// users counts, in its lower half, the users of the record: the call itself, its attempts, and messages that are being
	// reported. The last one to leave reports the end of the call, when nothing else about it can change. The upper half
	// counts the calls that have used the record.
	users atomic.Uint64

	// last is held while Last or a field of it is written, and read-locked while messages are reported: a retry may begin
	// meanwhile. Only calls that have given out a ticket need it.
	last sync.RWMutex
}

// recorded is the part of a record that is reset for each call.
type recorded struct {
	Call
	mesh     *Mesh
	ctx      context.Context
	first    attemptRecord
	begun    bool        // first is in use
	ticketed bool        // see last
	answered http.Header // of an answer that did not come from an endpoint
}

// lock is for writing what may be read while messages are reported. It returns false if nobody can be reading: then there is
// nothing to unlock.
func (r *callRecord) lock() bool {
	if r.ticketed {
		r.last.Lock()
	}
	return r.ticketed
}

func (r *callRecord) unlock(locked bool) {
	if locked {
		r.last.Unlock()
	}
}

// oneCall is what users grows by with a call: the call itself, and its first attempt, which nearly every call makes.
const oneCall = 1<<32 | 2

// records is a pool: records are large, and every observed call has one.
var records = sync.Pool{New: func() any { return new(callRecord) }}

// mostHeaders is the size up to which a copied header is kept for other calls.
const mostHeaders = 64

// release removes users. With the last one it reports the end of the call and puts the record back into the pool. Usually the
// call ends last, but two goroutines that have the body can end the call and its attempt at the same time.
func (r *callRecord) release(users int) {
	if uint32(r.users.Add(-uint64(users))) != 0 {
		return
	}
	for _, f := range r.mesh.calls.end {
		f(r.ctx, &r.Call)
	}
	if len(r.copied) > mostHeaders {
		r.copied = nil
	}
	if len(r.copied) > 0 {
		clear(r.copied)
	}
	r.reset()
	records.Put(r)
}

// reset zeroes the record for the next call. It sets the fields one by one: while the garbage collector marks, zeroing a struct costs much more.
func (r *recorded) reset() {
	c := &r.Call
	c.Request, c.Start, c.Telemetry, c.Mirror, c.Document, c.Route = nil, time.Time{}, nil, false, "", ""
	c.Target.Host, c.Target.Subset, c.Target.Port, c.Last, c.Outside = "", "", 0, nil, false
	c.Status, c.GRPCStatus, c.ResponseHeader, c.BytesSent, c.BytesReceived = 0, 0, nil, 0, 0
	c.Err, c.Flags, c.Attempts, c.Stopped, c.Duration = nil, 0, 0, 0, 0
	r.mesh, r.ctx, r.begun, r.ticketed, r.answered = nil, nil, false, false, nil
	a := &r.first
	a.call, a.ctx, a.Call, a.Number, a.Endpoint, a.Peer, a.PeerID = nil, nil, nil, 0, "", nil, ""
	a.Header, a.Sent, a.Start, a.Status, a.GRPCStatus = nil, nil, time.Time{}, 0, 0
	a.ProtoMajor, a.ProtoMinor, a.ResponseHeader, a.Err, a.Duration = 0, 0, nil, nil, 0
}

// hold adds a user to the record of the call with the given ticket. It returns false if that call has ended.
func (r *callRecord) hold(ticket uint64) bool {
	for {
		users := r.users.Load()
		if users>>32 != ticket || uint32(users) == 0 {
			return false
		}
		if r.users.CompareAndSwap(users, users+1) {
			return true
		}
	}
}

// callStart tells the observers that a call begins. It returns the context for the rest of the call.
func (m *Mesh) callStart(ctx context.Context, start engine.CallStart) (context.Context, engine.CallObserver) {
	r := records.Get().(*callRecord) // its fields are zero, and set one by one: a literal would be copied
	r.Request, _ = start.Described.(*http.Request)
	r.Start, r.Mirror, r.GRPCStatus, r.Telemetry = start.Start, start.Mirror, -1, m.engine.Plan().Telemetry()
	r.mesh = m
	r.users.Add(oneCall)
	for _, f := range m.calls.start {
		ctx = f(ctx, &r.Call)
	}
	r.ctx = ctx
	return ctx, r
}

// Answered implements engine.CallObserver.
func (r *callRecord) Answered(header map[string][]string) { r.answered = header }

// Ticket implements engine.CallObserver.
func (r *callRecord) Ticket() uint64 {
	r.ticketed = true
	return r.users.Load() >> 32
}

// Message implements engine.CallObserver.
func (r *callRecord) Message(ticket uint64, sent bool) {
	if !r.hold(ticket) {
		return
	}
	defer r.release(1)
	r.last.RLock()
	defer r.last.RUnlock()
	for _, f := range r.mesh.calls.message {
		f(r.ctx, &r.Call, sent)
	}
}

// End implements engine.CallObserver.
func (r *callRecord) End(c *engine.Call, end engine.CallEnd) {
	if r.Last == nil { // otherwise these are set, and observers may be reading them
		r.Document, r.Route = c.Origin()
		r.Target = c.Target()
	}
	r.Status, r.Err, r.Duration = end.Status, end.Err, end.Duration
	outcome := c.Outcome()
	r.Outside, r.GRPCStatus, r.Flags = outcome.Outside, outcome.GRPCStatus, Flags(outcome.Flags)
	r.Attempts, r.Stopped = outcome.Attempts, outcome.Stopped
	r.BytesSent, r.BytesReceived = c.Sizes()
	switch {
	case r.Status == 0:
	case r.answered != nil:
		r.ResponseHeader = r.answered
	case r.Last != nil:
		r.ResponseHeader = r.Last.ResponseHeader
	}
	if r.begun {
		r.release(1)
	} else {
		r.release(2)
	}
}

type attemptRecord struct {
	Attempt
	call *callRecord
	ctx  context.Context
}

// Attempt implements engine.CallObserver.
func (r *callRecord) Attempt(ctx context.Context, of *engine.Attempt, n int, header map[string][]string, sent engine.HeaderSetter) (
	context.Context, engine.AttemptObserver) {
	a := r.attempt(n)
	peer := of.Peer()
	a.Endpoint, a.Peer, a.PeerID, a.Header, a.Sent = peer.Address, peer.Endpoint, peer.ID, header, sent
	if a.Start = r.Start; of.Sent() != 0 {
		a.Start = r.Start.Add(of.Sent())
	}
	target := of.Call().Target()
	locked := r.lock()
	if r.Last == nil {
		r.Document, r.Route = of.Call().Origin()
	}
	if r.Target != target { // otherwise not written: others may be reading it
		r.Target = target
	}
	r.Last = &a.Attempt
	r.unlock(locked)
	return a.begin(ctx, sent), a
}

// attempt returns the record of the n-th attempt.
func (r *callRecord) attempt(n int) *attemptRecord {
	a := &r.first
	if n > 1 {
		a = new(attemptRecord)
	}
	a.call, a.Call, a.Number, a.GRPCStatus = r, &r.Call, n, -1
	return a
}

// begin tells the observers that an attempt begins. It returns the context for the rest of the attempt.
func (a *attemptRecord) begin(ctx context.Context, sent engine.HeaderSetter) context.Context {
	r := a.call
	for _, f := range r.mesh.calls.attemptStart {
		ctx = f(ctx, &a.Attempt)
		a.Header = sent.Header()
	}
	a.ctx = ctx
	if a == &r.first {
		r.begun = true
	} else {
		r.users.Add(1)
	}
	return ctx
}

// Moved implements engine.AttemptObserver.
func (a *attemptRecord) Moved(to engine.Peer, sent time.Duration) {
	defer a.call.unlock(a.call.lock())
	a.Endpoint, a.Peer, a.PeerID, a.Start = to.Address, to.Endpoint, to.ID, a.Call.Start.Add(sent)
}

// Answered implements engine.AttemptObserver.
func (a *attemptRecord) Answered(answer engine.Response) {
	header := answer.Header
	if answer.Shared {
		hidden := a.Sent != nil && (header[asserted.PeerMetadata] != nil || header[asserted.PeerMetadataID] != nil)
		if hidden || answer.Changes {
			header = a.call.copy(header)
		}
		if hidden {
			delete(answer.Header, asserted.PeerMetadata)
			delete(answer.Header, asserted.PeerMetadataID)
		}
	}
	locked := a.call.lock()
	a.ResponseHeader, a.ProtoMajor, a.ProtoMinor = header, answer.ProtoMajor, answer.ProtoMinor
	a.call.unlock(locked)
}

// copy returns a copy of the header of an answer, which lasts until the end of the call.
func (r *callRecord) copy(header map[string][]string) map[string][]string {
	if len(r.copied) > 0 { // it has the header of an earlier attempt
		r.copied = nil
	}
	if r.copied == nil {
		r.copied = make(http.Header, len(header))
	}
	maps.Copy(r.copied, header)
	return r.copied
}

// End implements engine.AttemptObserver.
func (a *attemptRecord) End(end engine.AttemptEnd) {
	defer a.call.release(1)
	locked := a.call.lock()
	a.PeerID, a.Status, a.GRPCStatus, a.Err, a.Duration = end.PeerID, end.Status, end.GRPCStatus, end.Err, end.Duration
	a.call.unlock(locked)
	for _, f := range a.call.mesh.calls.attemptEnd {
		f(a.ctx, &a.Attempt)
	}
}
