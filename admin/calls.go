package admin

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/grpccode"
	"github.com/nosidecar/mesh/retry"
)

const (
	mostCalls     = 200 // calls that are kept
	mostAttempts  = 16  // attempts that are kept of a call
	mostPerSecond = 5   // calls that are kept of one destination or one caller per second
	mostRefused   = 1   // calls that are kept of one destination if nothing was sent, since they are all alike
	refusedEvery  = 5   // the period of mostRefused, in seconds
	longestPath   = 160
	longestText   = 600
)

// call is a call or a request that was slow or failed.
type call struct {
	At         time.Time `json:"at"`                      // when it began
	Direction  string    `json:"direction"`               // "out" or "in"
	Failed     bool      `json:"failed"`                  // otherwise it was slow
	Method     string    `json:"method"`                  // "POST" for gRPC
	Path       string    `json:"path"`                    // without the query
	Target     *target   `json:"target,omitempty"`        // for "out"
	Caller     string    `json:"caller,omitempty"`        // for "in": the SPIFFE ID, "" for a peer without an identity
	Document   string    `json:"document,omitempty"`      // the document that routed it
	Route      string    `json:"route,omitempty"`         //
	Status     int       `json:"status,omitempty"`        // 0 if there was no response
	GRPCStatus *int      `json:"grpcStatus,omitempty"`    // of gRPC calls with a response
	Flags      string    `json:"flags,omitempty"`         // response flags
	Error      string    `json:"error,omitempty"`         //
	Stopped    string    `json:"stopped,omitempty"`       // why there were no more attempts
	Decision   string    `json:"decision,omitempty"`      // for "in", if it was denied: the policy and the reason
	DurationMs float64   `json:"durationMs"`              //
	Count      int       `json:"attemptCount"`            // requests that were sent
	Attempts   []attempt `json:"attempts,omitempty"`      // at most 16
	Held       int       `json:"notKeptBefore,omitempty"` // similar calls since the previous one that were not kept
}

// attempt is one try of a call.
type attempt struct {
	Number     int     `json:"number"`
	Endpoint   string  `json:"endpoint"`
	StartMs    float64 `json:"startMs"` // from the start of the call
	DurationMs float64 `json:"durationMs"`
	Status     int     `json:"status,omitempty"`
	GRPCStatus *int    `json:"grpcStatus,omitempty"`
	Error      string  `json:"error,omitempty"`
}

// target is a route.Target in JSON.
type target struct {
	Host   string `json:"host"`
	Subset string `json:"subset,omitempty"`
	Port   int    `json:"port,omitempty"`
}

// attempts keeps the attempts of calls in flight that may not be the last ones. They are removed when the call ends. A call with a
// single successful attempt has none here.
type attempts struct {
	shards [16]struct {
		mu sync.Mutex
		of map[*mesh.Call]*tried
	}
}

type tried struct {
	start time.Time // of the call, to recognise a mesh.Call whose memory is reused
	list  []attempt
	took  []ended
}

// ended is an attempt as the figures of its endpoint need it.
type ended struct {
	endpoint string
	sample
}

const mostTried = 256 // calls per shard

func shardOf(start time.Time) int { return int(uint64(start.UnixNano()) * 0x9e3779b97f4a7c15 >> 60) }

func (a *attempts) add(of *mesh.Call, one attempt, e ended) {
	s := &a.shards[shardOf(of.Start)]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == nil {
		s.of = make(map[*mesh.Call]*tried)
	}
	t := s.of[of]
	if t == nil || !t.start.Equal(of.Start) {
		if t == nil && len(s.of) >= mostTried {
			return
		}
		t = &tried{start: of.Start}
		s.of[of] = t
	}
	if len(t.list) < mostAttempts {
		t.list, t.took = append(t.list, one), append(t.took, e)
	}
}

func (a *attempts) take(of *mesh.Call) *tried {
	s := &a.shards[shardOf(of.Start)]
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.of[of]
	if t == nil {
		return nil
	}
	delete(s.of, of)
	if !t.start.Equal(of.Start) {
		return nil
	}
	return t
}

// noted reports whether an attempt is kept until its call ends, because there was or may be another one.
func noted(a *mesh.Attempt) bool {
	return a.Number > 1 || a.Err != nil || a.Status >= 400 || a.GRPCStatus > 0
}

func (c *collector) attemptEnd(_ context.Context, a *mesh.Attempt) {
	if noted(a) && !a.Call.Mirror {
		c.attempts.add(a.Call, attemptOf(a), endedOf(a))
	}
}

func attemptOf(a *mesh.Attempt) attempt {
	one := attempt{
		Number: a.Number, Endpoint: a.Endpoint, Status: a.Status, GRPCStatus: grpcStatus(a.GRPCStatus),
		StartMs: milliseconds(a.Start.Sub(a.Call.Start)), DurationMs: milliseconds(a.Duration),
	}
	if a.Err != nil {
		one.Error = errorText(a.Err)
	}
	return one
}

func endedOf(a *mesh.Attempt) ended {
	return ended{a.Endpoint, sample{
		at: a.Start.Add(a.Duration), took: a.Duration,
		failed: a.Err != nil && a.Call.Request.Context().Err() == nil || a.Status >= 500 || grpccode.ServerFault(uint32(a.GRPCStatus)),
	}}
}

// callEnd counts a call, and keeps it if it was slow or failed. Otherwise it takes two map look-ups and two short locks.
func (c *collector) callEnd(_ context.Context, ended *mesh.Call) {
	if ended.Mirror {
		return // no caller waits for the result of a copy
	}
	m := sample{at: ended.Start.Add(ended.Duration), took: ended.Duration, retries: max(ended.Attempts-1, 0), failed: failed(ended)}
	d := c.destination(ended.Target, m.at)
	if ended.Outside {
		d.outside.Store(true)
	}
	d.add(&m)
	var list []attempt
	if last := ended.Last; last != nil {
		if !noted(last) {
			e := endedOf(last)
			if s := c.endpoint(d, e.endpoint, m.at); s != nil {
				s.add(&e.sample)
			}
		} else if t := c.attempts.take(ended); t != nil {
			for i := range t.took {
				if s := c.endpoint(d, t.took[i].endpoint, m.at); s != nil {
					s.add(&t.took[i].sample)
				}
			}
			list = t.list
		}
	}
	if m.failed {
		what, err := causeOf(ended)
		d.causes.add(m.at, what, err)
	}
	if slow := m.took >= c.slow && !streams(ended.Status, ended.ResponseHeader); m.failed || slow {
		c.keepCall(d, ended, list, m)
	}
}

// streams reports whether a response is expected to take long.
func streams(status int, header http.Header) bool {
	kind := header["Content-Type"]
	return status == http.StatusSwitchingProtocols || len(kind) > 0 && strings.HasPrefix(kind[0], "text/event-stream")
}

// failed reports whether a call failed from the view of an operator: it got no response or a status of 500 or higher, or this process
// refused it. A call that its caller gave up did not fail.
func failed(c *mesh.Call) bool {
	switch {
	case c.Flags&mesh.FlagCallerGone != 0:
		return false
	case c.Err != nil:
		return c.Request.Context().Err() == nil || c.Flags != 0
	}
	return c.Status >= 500 || grpccode.ServerFault(uint32(c.GRPCStatus)) || c.Flags&^(mesh.FlagDelayInjected|mesh.FlagRetriesExhausted) != 0
}

func (c *collector) keepCall(d *destination, from *mesh.Call, list []attempt, m sample) {
	limit := &d.kept
	if from.Attempts == 0 {
		limit = &d.refused
	}
	held, ok := limit.allow(m.at)
	if !ok {
		return
	}
	if list == nil && from.Last != nil {
		list = []attempt{attemptOf(from.Last)}
	}
	slices.SortStableFunc(list, func(a, b attempt) int { return a.Number - b.Number })
	k := call{
		At: from.Start, Direction: "out", Failed: m.failed, Method: cut(from.Request.Method, 16), Path: pathOf(from.Request),
		Target:   targetOf(from.Target),
		Document: from.Document, Route: from.Route, Status: from.Status, GRPCStatus: grpcStatus(from.GRPCStatus),
		DurationMs: milliseconds(m.took), Count: from.Attempts, Attempts: list, Held: held,
	}
	if from.Flags != 0 {
		k.Flags = from.Flags.String()
	}
	if from.Err != nil {
		k.Error = errorText(from.Err)
	}
	if from.Stopped != retry.Succeeded {
		k.Stopped = from.Stopped.String()
	}
	c.calls.add(k)
}

// broken are the flags of a request whose handler has panicked.
const broken = mesh.FlagConnectionTerminated | mesh.FlagRemoteReset

func (c *collector) inboundEnd(_ context.Context, in *mesh.Inbound) {
	m := sample{
		at: in.Start.Add(in.Duration), took: in.Duration,
		failed: in.Status >= 500 || grpccode.ServerFault(uint32(in.GRPCStatus)) || in.Flags&broken != 0 ||
			in.Status == 0 && in.Request.Context().Err() == nil,
		denied: !in.Decision.Allowed,
	}
	if m.denied {
		m.failed = false // a denied request is not an error of this process
	}
	p := c.caller(in.Peer, m.at)
	p.add(&m)
	if slow := m.took >= c.slow && !streams(in.Status, in.ResponseHeader); !slow && !m.failed && !m.denied {
		return
	}
	held, ok := p.kept.allow(m.at)
	if !ok {
		return
	}
	k := call{
		At: in.Start, Direction: "in", Failed: m.failed || m.denied, Method: cut(in.Request.Method, 16), Path: pathOf(in.Request),
		Caller: in.Peer, Status: in.Status, GRPCStatus: grpcStatus(in.GRPCStatus), DurationMs: milliseconds(m.took), Held: held,
	}
	if in.Flags != 0 {
		k.Flags = in.Flags.String()
	}
	if m.denied {
		k.Decision = cut(in.Decision.Reason, longestText)
		if in.Decision.Policy != "" {
			k.Decision = cut(in.Decision.Policy+": "+in.Decision.Reason, longestText)
		}
	}
	if in.PeerErr != nil {
		k.Error = errorText(in.PeerErr)
	}
	c.calls.add(k)
}

// pathOf returns the path of a request without its query, which may contain secrets.
func pathOf(r *http.Request) string {
	if r.URL == nil {
		return ""
	}
	return cut(r.URL.EscapedPath(), longestPath)
}

// errorText returns the text of an error in one line, cut to a maximum length, without the credentials and queries of URLs in it.
func errorText(err error) string {
	text := err.Error()
	if len(text) > 4*longestText {
		text = text[:4*longestText]
	}
	return cut(field.Discreet(printable(text)), longestText)
}

// cut returns at most so many bytes of a text. The result is a copy: the text may share the memory of something large, as the method of
// a request shares that of the request line with the whole URL.
func cut(text string, most int) string {
	if len(text) <= most {
		return strings.Clone(text)
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}

func grpcStatus(code int) *int {
	if code < 0 {
		return nil
	}
	return &code
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// throttle lets a few pass in each period. Its zero value lets five pass per second.
type throttle struct {
	most   int   // 0 means mostPerSecond
	period int64 // in seconds; 0 means 1

	mu    sync.Mutex
	began int64
	taken int
	held  int
}

// allow reports whether one more may pass, and how many were held back since the previous one that passed.
func (t *throttle) allow(at time.Time) (held int, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := at.Unix() / max(t.period, 1); now != t.began {
		t.began, t.taken = now, 0
	}
	if t.taken >= cmp.Or(t.most, mostPerSecond) {
		t.held++
		return 0, false
	}
	t.taken++
	held, t.held = t.held, 0
	return held, true
}

// ring keeps the latest elements that were added, up to size.
type ring[T any] struct {
	size int

	mu   sync.Mutex
	list []T
	next int
}

func (r *ring[T]) add(one T) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) < r.size {
		r.list = append(r.list, one)
		return
	}
	r.list[r.next] = one
	r.next = (r.next + 1) % r.size
}

// latest returns the elements, the latest first. The list is never nil: in JSON that would be null.
func (r *ring[T]) latest() []T {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := append(make([]T, 0, len(r.list)), r.list[r.next:]...)
	list = append(list, r.list[:r.next]...)
	slices.Reverse(list)
	return list
}
