package metrics

import (
	"hash/maphash"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/asserted"
	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/outgoing"
	"github.com/nosidecar/mesh/internal/workload"
	"github.com/nosidecar/mesh/tlsid"
)

// watcher observes one mesh. It finds the path of a call without building strings: by the endpoint, or by the peer of a request.
type watcher struct {
	*Metrics
	mesh atomic.Pointer[mesh.Mesh]

	describing sync.Mutex // the identity may change while the mesh starts
	settings   *settings  // with the workload of the mesh, once it has started; not written after that
	self       atomic.Pointer[self]

	// For outbound calls.
	endpoints       sync.Map // *discovery.Endpoint -> *endpoint
	known           atomic.Int64
	withoutEndpoint withoutEndpoint
	outside         [2]atomic.Pointer[path] // allowed, refused
	streams         streams

	// For inbound requests.
	seed    maphash.Seed
	callers [callerCount]atomic.Pointer[view] // peers of requests
	serving atomic.Bool

	conns conns
}

// callerCount is the number of places for callers. Callers that share a place displace each other.
const callerCount = 1 << 10

// self is the metadata of this workload for its peers. It is replaced when the SPIFFE ID changes.
type self struct {
	id           string   // SPIFFE ID
	value, named []string // the values of the two metadata headers
}

// addTo adds the metadata to an attempt.
func (s *self) addTo(a *mesh.Attempt) {
	if sent, ok := a.Sent.(*outgoing.Request); ok {
		sent.SetShared(asserted.PeerMetadata, s.value)
		sent.SetShared(asserted.PeerMetadataID, s.named)
		return
	}
	a.Sent.SetHeader(asserted.PeerMetadata, s.value[0])
	a.Sent.SetHeader(asserted.PeerMetadataID, s.named[0])
}

func newWatcher(m *Metrics) *watcher {
	w := &watcher{Metrics: m, settings: m.settings, seed: maphash.MakeSeed()}
	w.streams.init()
	w.conns.open = make(map[*mesh.Conn]*conn)
	w.setIdentity("")
	return w
}

// started takes what the Config does not say about this workload from the mesh. The mesh has no calls yet.
func (w *watcher) started(m *mesh.Mesh) {
	w.mesh.Store(m)
	if s, err := w.config.of(m.Status()).settings(os.Getenv, os.Hostname); err == nil { // otherwise the labels are too long to be sent
		w.describing.Lock()
		defer w.describing.Unlock()
		w.settings = s
		w.describeLocked(w.self.Load().id)
	}
}

func (w *watcher) setIdentity(id string) {
	w.describing.Lock()
	defer w.describing.Unlock()
	if s := w.self.Load(); s == nil || s.id != id {
		w.describeLocked(id)
	}
}

// describeLocked sets the metadata of this workload.
func (w *watcher) describeLocked(id string) {
	said := w.settings.metadata
	said.Identity = id
	w.self.Store(&self{id, []string{said.Encode()}, []string{said.ID(w.settings.address, w.settings.domain)}})
}

func (w *watcher) identity(id *tlsid.Identity, err error) {
	w.state.identity(id, err)
	if id != nil {
		w.setIdentity(id.ID().String())
	}
}

// view is a path with the values by which it is found.
type view struct {
	self    *self
	host    string
	peer    string // SPIFFE ID
	value   string // of the peer's metadata
	learned *workload.Workload
	*path
}

// endpoint has what is known about an endpoint of discovery.
type endpoint struct {
	views   atomic.Pointer[[]view]
	learned atomic.Pointer[workload.Workload] // from its metadata, for calls that got no response
	used    atomic.Int64                      // in Unix seconds
	tails   [2]atomic.Pointer[tail]           // of successful and of failed attempts
}

// mostViews bounds the views of one endpoint. Usually it has several only if several hosts share it.
const mostViews = 4

func (e *endpoint) find(self *self, host, peer, value string) *path {
	list := e.views.Load()
	if list == nil {
		return nil
	}
	for i := range *list {
		v := &(*list)[i]
		if v.self == self && v.host == host && v.peer == peer && v.value == value &&
			(value != "" || v.learned == e.learned.Load()) && !v.gone.Load() {
			return v.path
		}
	}
	return nil
}

// keep makes v the first view, and drops the last one if there are too many.
func (e *endpoint) keep(v view) {
	list := []view{v}
	if old := e.views.Load(); old != nil {
		for _, o := range *old {
			if len(list) < mostViews && !(o.host == v.host && o.peer == v.peer && o.value == v.value) {
				list = append(list, o)
			}
		}
	}
	e.views.Store(&list) // a view that is lost in a race is found again
}

// pathTo returns the path of a call to an endpoint, or nil if there is no room for it. value is the metadata in the response.
func (w *watcher) pathTo(to *discovery.Endpoint, host string, documented bool, peer, value string, now int64) *path {
	self := w.self.Load()
	if known, ok := w.endpoints.Load(to); ok {
		e := known.(*endpoint)
		if e.used.Load() != now {
			e.used.Store(now)
		}
		if p := e.find(self, host, peer, value); p != nil {
			return p
		}
	}
	return w.newPathTo(self, to, host, documented, peer, value, now)
}

// mostEndpoints bounds the endpoints that are remembered.
const mostEndpoints = 16 << 10

func (w *watcher) newPathTo(self *self, to *discovery.Endpoint, host string, documented bool, peer, value string, now int64) *path {
	if w.known.Load() >= mostEndpoints {
		w.forget(now)
	}
	found, loaded := w.endpoints.LoadOrStore(to, new(endpoint))
	if !loaded {
		w.known.Add(1)
	}
	e := found.(*endpoint)
	e.used.Store(now)
	at := w.service(host, documented, now)
	side, ok := w.trustedClaim(peer, value, now)
	learned := e.learned.Load()
	switch {
	case ok && (learned == nil || *learned != side):
		e.learned.Store(&side)
	case !ok && learned != nil:
		side = *learned
	case !ok:
		side = workload.ByDiscovery(to, peer, at.namespace, w.settings.own.Cluster)
	}
	id := w.outbound(self, peer, side, at)
	p := w.store.intern(id, now)
	if p != nil && len(host) <= workload.Longest { // callers may choose hosts of any length
		e.keep(view{self, host, peer, value, e.learned.Load(), p})
	}
	return p
}

// outbound returns the identity of outbound calls.
func (w *watcher) outbound(self *self, peer string, to workload.Workload, at service) identity {
	id := identity{from: w.settings.own, to: to, host: at.host, hostName: at.name, hostNamespace: at.namespace}
	if peer != "" {
		id.fromID, id.toID = workload.Bounded(self.id), workload.Bounded(peer)
	}
	return id
}

// service returns the labels of a host.
func (w *watcher) service(host string, documented bool, now int64) service {
	at := w.settings.named(host)
	if !w.hosts.admit(at.host, documented, now) {
		return service{unknown, unknown, unknown}
	}
	return at
}

// forget removes the endpoints that were not used within the last minute, and all of them if that is not enough.
func (w *watcher) forget(now int64) {
	for _, idle := range []int64{60, 0} {
		w.endpoints.Range(func(key, v any) bool {
			if v.(*endpoint).used.Load() <= now-idle {
				if _, loaded := w.endpoints.LoadAndDelete(key); loaded {
					w.known.Add(-1)
				}
			}
			return true
		})
		if w.known.Load() < mostEndpoints {
			return
		}
	}
}

// withoutEndpoint has the paths of calls for which no endpoint was found, by host.
type withoutEndpoint struct {
	mu    sync.RWMutex
	paths map[string]*path
}

// pathWithoutEndpoint returns the path of a call for which no endpoint was found.
func (w *watcher) pathWithoutEndpoint(host string, documented bool, now int64) *path {
	u := &w.withoutEndpoint
	u.mu.RLock()
	known := u.paths[host]
	u.mu.RUnlock()
	if known != nil && !known.gone.Load() {
		return known
	}
	at := w.service(host, documented, now)
	to := workload.Nobody(w.settings.own.Cluster)
	p := w.store.intern(w.outbound(nil, "", to, at), now)
	if p == nil || at.host == unknown || len(host) > workload.Longest {
		return p // not remembered: there may be any number of such hosts, of any length
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.paths == nil || len(u.paths) >= mostEndpoints {
		u.paths = make(map[string]*path)
	}
	u.paths[host] = p
	return p
}

// pathOutside returns the path of calls to hosts outside the mesh.
func (w *watcher) pathOutside(refused bool, now int64) *path {
	place, name := &w.outside[0], passedThrough
	if refused {
		place, name = &w.outside[1], blackHole
	}
	if p := place.Load(); p != nil && !p.gone.Load() {
		return p
	}
	to := workload.Nobody(w.settings.own.Cluster)
	p := w.store.intern(w.outbound(nil, "", to, service{unknown, name, unknown}), now)
	if p != nil {
		place.Store(p)
	}
	return p
}

// pathFrom returns the path of requests of a peer, by its SPIFFE ID and the metadata in the request.
func (w *watcher) pathFrom(peer string, header map[string][]string, now int64) *path {
	var value, named string
	if peer != "" {
		value, named = peerMetadata(header), field.First(header, asserted.PeerMetadataID)
	}
	self := w.self.Load()
	place := &w.callers[(maphash.String(w.seed, named)^maphash.String(w.seed, peer))%callerCount]
	if c := place.Load(); c != nil && c.peer == peer && c.value == value && c.self == self && !c.gone.Load() {
		return c.path
	}
	side, ok := w.trustedClaim(peer, value, now)
	if !ok {
		side = workload.ByIdentity(peer, w.settings.own.Cluster)
	}
	id := identity{inbound: true, from: side, to: w.settings.own,
		host: w.settings.served.host, hostName: w.settings.served.name, hostNamespace: w.settings.served.namespace}
	if peer != "" {
		id.fromID, id.toID = workload.Bounded(peer), workload.Bounded(self.id)
	}
	p := w.store.intern(id, now)
	if p != nil {
		place.Store(&view{self: self, peer: peer, value: value, path: p})
	}
	return p
}

// scrape records what is not recorded immediately: the bytes of open connections, and the messages of open streams.
func (w *watcher) scrape(now time.Time) {
	w.conns.update(now.Unix())
	w.streams.flush(w, now)
}
