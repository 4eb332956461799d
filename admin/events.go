package admin

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/findings"
	"github.com/nosidecar/mesh/internal/fraction"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/tlsid"
)

const (
	mostLoads    = 20
	mostEvents   = 100
	mostUnfound  = 20 // failures of discovery among the events of a report
	mostFindings = 20 // of a load
)

// event is something that happened other than a call.
type event struct {
	At       time.Time `json:"at"`
	Kind     string    `json:"kind"` // doc.go has the list
	Target   *target   `json:"target,omitempty"`
	Endpoint string    `json:"endpoint,omitempty"`
	Text     string    `json:"text"`
	Bad      bool      `json:"bad"` // it is a problem, not the end of one
}

// load is an attempt to load documents.
type load struct {
	At       time.Time        `json:"at"`
	Number   int              `json:"number"`
	Version  string           `json:"version,omitempty"`
	InForce  bool             `json:"inForce"` // it was accepted; a later load may have replaced it
	Error    string           `json:"error,omitempty"`
	Findings []policy.Finding `json:"findings"` // at most 20
	Omitted  int              `json:"findingsOmitted,omitempty"`
}

func (c *collector) happened(e event) { c.happenedIn(&c.events, e) }

func (c *collector) happenedIn(list *ring[event], e event) {
	e.At = time.Now()
	e.Text = cut(e.Text, longestText)
	list.add(e)
	c.changed()
}

func targetOf(t route.Target) *target {
	to := target(cloned(t))
	return &to
}

func (c *collector) ejection(to route.Target, e breaker.Event) {
	if !e.Ejected {
		c.happened(event{Kind: "readmission", Target: targetOf(to), Endpoint: e.Endpoint, Text: "gets calls again"})
		return
	}
	c.happened(event{Kind: "ejection", Target: targetOf(to), Endpoint: e.Endpoint, Bad: true,
		Text: fmt.Sprintf("ejected: %s, %d of %d calls failed", e.Reason, e.Failures, e.Calls)})
}

func (c *collector) ejectionWithheld(to route.Target, e breaker.Event) {
	w := withheld{e.At, string(e.Reason), e.Failures, e.Calls, fraction.Percent(e.Limit), math.Ceil(fraction.Percent(e.Needed))}
	c.happened(event{Kind: "ejection withheld", Target: targetOf(to), Endpoint: e.Endpoint, Bad: true, Text: w.Text()})
}

// Text returns what happens, and why.
func (w *withheld) Text() string {
	return fmt.Sprintf("stays although it fails: %s, %d of %d calls failed; %s", w.Reason, w.Failures, w.Calls, w.Why())
}

// Why returns why the endpoint stays.
func (w *withheld) Why() string {
	if w.Needed == 100 {
		return fmt.Sprintf("maxEjectionPercent is %v, and no other endpoint takes calls", w.MaxEjectionPercent)
	}
	return fmt.Sprintf("maxEjectionPercent is %v, an ejection needs %v", w.MaxEjectionPercent, w.Needed)
}

func (c *collector) circuit(to route.Target, change breaker.Change) {
	d := c.destination(to, time.Now())
	d.mu.Lock()
	switch {
	case change.To == breaker.Closed:
		d.opened = breaker.Change{}
	case change.To == breaker.Open && d.opened.At.IsZero():
		d.opened = change
	}
	d.mu.Unlock()
	text := fmt.Sprintf("circuit %s, was %s", change.To, change.From)
	if change.To == breaker.Open {
		text += fmt.Sprintf(": %d of %d calls failed", change.Failures, change.Calls)
		if change.Slow > 0 {
			text += fmt.Sprintf(", %d were slow", change.Slow)
		}
	}
	c.happened(event{Kind: "circuit", Target: targetOf(to), Text: text, Bad: change.To == breaker.Open})
}

func (c *collector) discoveryFailed(service discovery.Service, err error) {
	c.happenedIn(&c.unfound, event{Kind: "discovery", Target: targetOf(route.Target{Host: service.Host}), Text: errorText(err), Bad: true})
}

func (c *collector) mirrorDropped(to route.Target, err error) {
	d := c.destination(to, time.Now())
	if _, ok := d.kept.allow(time.Now()); ok { // there may be many
		c.happened(event{Kind: "mirror", Target: targetOf(to), Text: "a copy was not sent: " + errorText(err), Bad: true})
	}
}

func (c *collector) identity(id *tlsid.Identity, err error) {
	if err != nil {
		c.happened(event{Kind: "identity", Text: errorText(err), Bad: true})
		return
	}
	if id != nil {
		c.lifetime.Store(int64(time.Until(id.NotAfter())))
		c.happened(event{Kind: "identity", Text: fmt.Sprintf("%s until %s", id.ID(), id.NotAfter().UTC().Format(time.RFC3339))})
	}
}

func (c *collector) connectionRefused(local net.Addr, r tlsid.Refusal) {
	if errors.Is(r.Err, io.EOF) {
		return // the health probe of a load balancer
	}
	if _, ok := c.tcp.refused.allow(time.Now()); !ok {
		return
	}
	from := "the listener"
	if r.RemoteAddr != nil {
		from = "a connection from " + r.RemoteAddr.String()
	}
	c.happened(event{Kind: "connection", Text: fmt.Sprintf("%s at %v was refused: %s", from, local, errorText(r.Err)), Bad: true})
}

func (c *collector) policyLoad(l mesh.PolicyLoad) {
	k := load{At: time.Now(), Number: l.Number, Version: l.Version, InForce: l.Err == nil, Findings: []policy.Finding{}}
	if l.Err != nil {
		k.Error = errorText(l.Err)
	}
	all := findings.ByWeight(l.Findings)
	for _, f := range all {
		if len(k.Findings) == mostFindings {
			k.Omitted = len(all) - mostFindings
			break
		}
		f.Message, f.Field = cut(field.Discreet(f.Message), longestText), cut(f.Field, longestPath)
		k.Findings = append(k.Findings, f)
	}
	c.loads.add(k)
	c.changed()
}

// connections counts raw connections by target.
type connections struct {
	refused throttle

	mu   sync.Mutex
	open map[*mesh.Conn]connKey // the key under which each is counted
	of   map[connKey]*connFigures
}

type connKey struct {
	inbound bool
	others  bool // all targets for which there is no room
	route.Target
}

// connFigures has the figures of the raw connections to one target, or of all inbound ones.
type connFigures struct {
	Open     int   `json:"open"`
	Opened   int   `json:"opened"` // since the start
	Failed   int   `json:"failed"` // could not be made, or broke
	Sent     int64 `json:"bytesSent"`
	Received int64 `json:"bytesReceived"`
}

const mostConnTargets = 100

// keyOf returns the key under which a new connection is counted.
func (c *connections) keyOf(conn *mesh.Conn) connKey {
	if conn.Inbound {
		return connKey{inbound: true}
	}
	key := connKey{Target: conn.Target}
	if c.of[key] == nil && (len(c.of) >= mostConnTargets || len(key.Host) > longestHost) {
		return connKey{others: true}
	}
	return key
}

func (c *connections) start(conn *mesh.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil {
		c.of, c.open = make(map[connKey]*connFigures), make(map[*mesh.Conn]connKey)
	}
	key := c.keyOf(conn)
	f := c.of[key]
	if f == nil {
		f = new(connFigures)
		key.Target = cloned(key.Target)
		c.of[key] = f
	}
	f.Opened++
	f.Open++
	c.open[conn] = key
}

func (c *connections) end(conn *mesh.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key, ok := c.open[conn]
	if !ok {
		return
	}
	delete(c.open, conn)
	f := c.of[key]
	f.Open--
	if conn.Err != nil {
		f.Failed++
	}
	sent, received := conn.Bytes()
	f.Sent += sent
	f.Received += received
}

// read returns the current figures, including the bytes of open connections.
func (c *connections) read() map[connKey]connFigures {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make(map[connKey]connFigures, len(c.of))
	for key, f := range c.of {
		all[key] = *f
	}
	for conn, key := range c.open {
		f := all[key]
		sent, received := conn.Bytes()
		f.Sent += sent
		f.Received += received
		all[key] = f
	}
	return all
}
