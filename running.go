package mesh

import (
	"crypto/tls"
	"maps"
	"math"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/internal/judge"
	"github.com/nosidecar/mesh/internal/netconn"
	"github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/tlsid"
)

// running is the register of what was admitted and is still in flight: requests in their handlers, and connections that
// handlers took over. They are authorized again when documents or bundles change, and when the certificate of a peer
// expires.
type running struct {
	mesh    *Mesh
	changes atomic.Uint64 // how often the documents or bundles changed that decisions are based on
	next    atomic.Uint32
	shards  [runningShards]shard

	alarm    atomic.Int64 // when the next certificate expires; math.MaxInt64 if none is known
	mu       sync.Mutex   // held while the alarm is set
	timer    *time.Timer
	closed   bool
	sounding sync.WaitGroup // alarms that are set or being handled
}

const runningShards = 32

type shard struct {
	mu    sync.Mutex
	first *entry
	_     [48]byte // each on a cache line of its own
}

// entry is a place in the register.
type entry struct {
	facts
	shard *shard // never changes; since pools are per processor, mostly one processor uses a shard
	ends  interface {
		// end ends what was admitted and is now denied. It returns quickly.
		end(now authz.Decision, peerErr error)
	}

	// Guarded by shard.mu.
	prev, next *entry
	listed     bool
	times      uint64        // how often it was listed
	ending     chan struct{} // closed when it has been ended; nil while it is not being ended
}

// facts are what a decision is based on. They are not shared with handlers, which may change what they get.
type facts struct {
	view   authz.Request        // its Header is that of another protocol than HTTP, which may be used again once the entry has left
	header []headerField        // used if view.Header is nil
	state  *tls.ConnectionState // nil for plaintext
	id     string               // the peer's ID when it was admitted; "" for a peer without an identity
	until  time.Time            // when the certificate that proved it expires
}

type headerField struct{ name, value string }

// mostFields is the length up to which the memory of a header is kept for reuse.
const mostFields = 64

// keepHeader copies a header, which handlers may change, into the facts. It reports whether all its names are plain.
func (f *facts) keepHeader(h http.Header) (plain bool) {
	f.view.Header, f.header, plain = nil, f.header[:0], true
	for name, values := range h {
		plain = plain && isPlain(name, f.id != "")
		for _, value := range values {
			f.header = append(f.header, headerField{name, value})
		}
	}
	return plain
}

// forget clears the facts for the next request.
func (f *facts) forget() {
	header := f.header
	clear(header)
	if cap(header) > mostFields {
		header = nil
	}
	*f = facts{header: header[:0]}
}

func (r *running) init(m *Mesh) {
	r.mesh = m
	r.alarm.Store(math.MaxInt64)
}

// place assigns an entry to a shard.
func (r *running) place(e *entry) {
	e.shard = &r.shards[r.next.Add(1)%runningShards]
}

// enter adds an entry, which is then checked again on every change of documents and bundles. before is the value of changes
// before the entry was admitted. If there was a change since then, enter decides again, and the result is not Allowed if the
// entry is now denied. The entry stays in the register until it leaves.
func (r *running) enter(e *entry, before uint64) (now authz.Decision, peerErr error) {
	s := e.shard
	s.mu.Lock()
	if e.next = s.first; e.next != nil {
		e.next.prev = e
	}
	s.first, e.listed = e, true
	s.mu.Unlock()
	if !e.until.IsZero() && e.until.UnixNano() < r.alarm.Load() {
		r.wake(e.until)
	}
	if r.changes.Load() == before {
		return authz.Decision{Allowed: true}, nil
	}
	return r.mesh.reconsider(&e.facts)
}

// leave removes the entry. If the entry is being ended, leave waits until that is done.
func (e *entry) leave() {
	s := e.shard
	s.mu.Lock()
	if !e.listed {
		s.mu.Unlock()
		return
	}
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		s.first = e.next
	}
	if e.next != nil {
		e.next.prev = e.prev
	}
	ending := e.ending
	e.prev, e.next, e.ending, e.listed = nil, nil, nil, false
	e.times++
	s.mu.Unlock()
	if ending != nil {
		<-ending
	}
}

// snapshot is an entry as it was when the register was scanned.
type snapshot struct {
	facts
	entry *entry
	times uint64
}

// snapshots returns the entries of the shard, except those that are being ended.
func (s *shard) snapshots(into []snapshot) []snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	for e := s.first; e != nil; e = e.next {
		if e.ending == nil {
			into = append(into, snapshot{facts: e.facts, entry: e, times: e.times})
			copied := &into[len(into)-1]
			copied.header, copied.view.Header = slices.Clone(copied.header), maps.Clone(copied.view.Header)
		}
	}
	return into
}

// end ends the entry, if it has not changed since the snapshot.
func (s *snapshot) end(now authz.Decision, peerErr error) {
	e := s.entry
	e.shard.mu.Lock()
	if !e.listed || e.times != s.times || e.ending != nil {
		e.shard.mu.Unlock()
		return
	}
	ended := make(chan struct{})
	e.ending = ended
	e.shard.mu.Unlock()
	defer close(ended)
	e.ends.end(now, peerErr)
}

// recheck ends the entries that are denied now. It is called after every change of documents and bundles. A request that is
// being admitted at that moment is either found here or sees the change itself.
func (r *running) recheck() {
	r.changes.Add(1)
	r.look()
}

// look scans the register, and returns when the next certificate expires, or the zero time if none is known.
func (r *running) look() (next time.Time) {
	var ending sync.WaitGroup
	var found []snapshot
	for i := range r.shards {
		found = r.shards[i].snapshots(found[:0])
		for _, s := range found {
			now, peerErr := r.mesh.reconsider(&s.facts)
			if !now.Allowed {
				ending.Go(func() { s.end(now, peerErr) }) // concurrently: none waits for another's connection
			} else if !s.until.IsZero() && (next.IsZero() || s.until.Before(next)) {
				next = s.until
			}
		}
		clear(found)
	}
	ending.Wait()
	return next
}

// wake sets the alarm, so that the register is scanned when a certificate has expired.
func (r *running) wake(at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || at.UnixNano() >= r.alarm.Load() {
		return
	}
	r.alarm.Store(at.UnixNano())
	if r.timer != nil && r.timer.Stop() {
		r.sounding.Done()
	}
	r.sounding.Add(1)
	r.timer = time.AfterFunc(time.Until(at)+1, r.expire)
}

// expire is called by the timer.
func (r *running) expire() {
	defer r.sounding.Done()
	r.alarm.Store(math.MaxInt64)
	if next := r.look(); !next.IsZero() {
		r.wake(next)
	}
}

// close stops the alarm.
func (r *running) close() {
	r.mu.Lock()
	r.closed = true
	if r.timer != nil && r.timer.Stop() {
		r.sounding.Done()
	}
	r.mu.Unlock()
	r.sounding.Wait()
}

// reasonNoPeer is the reason to deny a peer that had an identity when it was admitted.
const reasonNoPeer = "the certificate of the peer is not valid, or no longer"

// reconsider decides about what was admitted as if it arrived now. A peer that has no identity any more is denied.
func (m *Mesh) reconsider(f *facts) (now authz.Decision, peerErr error) {
	rules, view := m.engine.Plan().Inbound(), f.view
	if view.Header == nil {
		view.Header = make(http.Header, len(f.header))
		for _, field := range f.header {
			view.Header[field.name] = append(view.Header[field.name], field.value)
		}
	}
	view.Principal = ""
	if m.identity != nil && f.state != nil && rules.Mode(int(view.Destination.Port())) != tlsid.Disable {
		peer, err := m.identity.Peer(f.state, time.Now())
		if err == nil {
			view.Principal = principal(peer)
		} else if f.id != "" {
			peerErr = err
		}
	}
	now = judge.Again(rules, &view)
	if now.Allowed && f.id != "" && view.Principal == "" {
		now = judge.Denied(reasonNoPeer)
	}
	return now, peerErr
}

// takeover is a connection that a handler took over, as for a websocket. It is admitted like its request.
type takeover struct {
	netconn.Conn
	entry
}

// takeOver returns the connection for the handler of a request that was admitted earlier. A change since then may have been
// handled before the connection was in the register, so it is authorized again.
func (r *running) takeOver(f *facts, before uint64, conn net.Conn) net.Conn {
	t := &takeover{}
	t.Conn.Conn = conn
	t.facts, t.ends = *f, t
	t.header = slices.Clone(f.header)
	r.place(&t.entry)
	if now, _ := r.enter(&t.entry, before); !now.Allowed {
		_ = netconn.Reset(conn)
	}
	return t
}

func (t *takeover) end(authz.Decision, error) { _ = netconn.Reset(t.NetConn()) }

// Close implements net.Conn.
func (t *takeover) Close() error {
	t.leave()
	return t.Conn.Close()
}
