package metrics

import (
	"context"
	"hash/maphash"
	"net/http"
	"sync"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy/telemetry"
)

// streams counts the messages of outbound gRPC calls. Only the response says for certain which workload received them, so they wait
// for the end of the call, but no longer than messagesWait.
type streams struct {
	seed   maphash.Seed
	shards [16]streamShard
}

type streamShard struct {
	mu   sync.Mutex
	open map[*mesh.Call]*stream
	free []*stream
}

// messagesWait is how long messages wait to be counted, as in Istio.
const messagesWait = 5 * time.Second

// stream is a gRPC call in flight: where its last attempt went, and the messages that are not yet counted.
type stream struct {
	endpoint   *discovery.Endpoint
	host       string
	documented bool
	peer       string
	side       *telemetry.Side
	header     http.Header
	messages   [2]uint64
	since      time.Time // when the first of them was sent or received
}

func (s *streams) init() {
	s.seed = maphash.MakeSeed()
	for i := range s.shards {
		s.shards[i].open = make(map[*mesh.Call]*stream)
	}
}

func (s *streams) of(c *mesh.Call) *streamShard {
	return &s.shards[maphash.Comparable(s.seed, c)%uint64(len(s.shards))]
}

// streamLocked returns the stream of a call, which it creates if necessary.
func (sh *streamShard) streamLocked(c *mesh.Call) *stream {
	st := sh.open[c]
	if st != nil {
		return st
	}
	if n := len(sh.free); n > 0 {
		st, sh.free = sh.free[n-1], sh.free[:n-1]
	} else {
		st = new(stream)
	}
	sh.open[c] = st
	return st
}

// attempt records where the messages of a call go.
func (s *streams) attempt(a *mesh.Attempt) {
	sh := s.of(a.Call)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	st := sh.streamLocked(a.Call)
	st.endpoint, st.host, st.documented, st.peer = a.Peer, a.Call.Target.Host, a.Call.Document != "", a.PeerID
	st.side, st.header = overridden(a.Call.Telemetry.Client()), a.Call.Request.Header
}

func (w *watcher) callMessage(_ context.Context, c *mesh.Call, sent bool) {
	if w.over.Load() {
		return
	}
	sh := w.streams.of(c)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	st := sh.streamLocked(c)
	if st.messages == [2]uint64{} {
		st.since = time.Now()
	}
	st.messages[messageOf(sent)]++
}

// messageOf returns the index of the counter for a message that the caller has sent or received.
func messageOf(sent bool) int {
	if sent {
		return requestMessages
	}
	return responseMessages
}

// take removes a call that has ended, and returns its messages that are not yet counted.
func (s *streams) take(c *mesh.Call) (messages [2]uint64) {
	sh := s.of(c)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	st := sh.open[c]
	if st == nil {
		return messages
	}
	messages = st.messages
	delete(sh.open, c)
	if *st = (stream{}); len(sh.free) < 64 {
		sh.free = append(sh.free, st)
	}
	return messages
}

// flush counts the messages of calls that have waited long enough.
func (s *streams) flush(w *watcher, now time.Time) {
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		for _, st := range sh.open {
			if st.endpoint == nil || st.messages == [2]uint64{} || now.Sub(st.since) < messagesWait {
				continue
			}
			p := w.pathTo(st.endpoint, st.host, st.documented, st.peer, "", now.Unix())
			w.store.messages(p, st.side, st.header, st.messages, now.Unix())
			st.messages = [2]uint64{}
		}
		sh.mu.Unlock()
	}
}

// messages counts messages of a path.
func (st *store) messages(p *path, side *telemetry.Side, header http.Header, n [2]uint64, now int64) {
	if p == nil || n == [2]uint64{} {
		return
	}
	if s := st.of(p, kindMessages, now); s != nil {
		st.bump(s, side, header, [4]uint64{n[0], n[1]}, now)
	}
}

// inboundMessage counts a message of an inbound call. Its peer is known from the start, so the message need not wait.
func (w *watcher) inboundMessage(_ context.Context, in *mesh.Inbound, sent bool) {
	if w.over.Load() {
		return
	}
	var n [2]uint64
	n[messageOf(!sent)] = 1
	now := time.Now().Unix()
	w.store.messages(w.pathFrom(in.Peer, in.Request.Header, now), overridden(in.Telemetry.Server()), in.Request.Header, n, now)
}
