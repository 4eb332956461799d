package admin

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/policy/route"
)

// reportVersion is the version of the JSON. It changes when a field is removed or changes its meaning, not when one is added.
const reportVersion = 1

// report has everything that the page shows. Its JSON is documented in doc.go.
type report struct {
	Version  int       `json:"version"`
	Time     time.Time `json:"time"`
	Name     string    `json:"name"`
	Since    time.Time `json:"since"` // when the collection of figures began
	Seconds  float64   `json:"windowSeconds"`
	Ready    bool      `json:"ready"`
	NotReady []string  `json:"notReady,omitempty"`

	Identity  *identity  `json:"identity,omitempty"`
	Keys      []keySet   `json:"keys,omitempty"`
	Documents documents  `json:"documents"`
	Problems  []problem  `json:"problems"`
	Out       figures    `json:"out"`
	In        inFigures  `json:"in"`
	Callers   []callerOf `json:"callers"`

	Destinations        []destinationOf `json:"destinations"`
	DestinationsOmitted int             `json:"destinationsOmitted,omitempty"`
	Uncalled            int             `json:"hostsUncalled"`

	Routes        []routeOf `json:"routes"`
	RoutesOmitted int       `json:"routesOmitted,omitempty"`

	Loads  []load  `json:"loads"`
	Events []event `json:"events"`
	Calls  []call  `json:"calls"`

	unfound []event // failures of discovery, the latest first
}

type identity struct {
	ID      string       `json:"id,omitempty"`
	Expires time.Time    `json:"expires,omitzero"`
	Error   string       `json:"error,omitempty"`
	Trusted []trustedFor `json:"trusted,omitempty"`
}

type trustedFor struct {
	Domain      string    `json:"domain"`
	Authorities int       `json:"authorities"`
	Expires     time.Time `json:"expires,omitzero"`
}

// keySet is a set of keys that tokens are verified with and that is fetched.
type keySet struct {
	URI     string    `json:"uri"`
	Keys    int       `json:"keys"`
	Fetched time.Time `json:"fetched,omitzero"`
	Error   string    `json:"error,omitempty"`

	Skipped    int    `json:"skipped,omitempty"`
	SkipReason string `json:"skipReason,omitempty"`
}

type documents struct {
	Number  int       `json:"number"`
	Version string    `json:"version"`
	Loaded  time.Time `json:"loaded"`
	Count   int       `json:"count"`
	Refused *refused  `json:"refused,omitempty"` // the last refused load, if no later one was accepted

	Alone        []aloneOf `json:"alone"` // those that stand alone and are refused
	AloneOmitted int       `json:"aloneOmitted,omitempty"`
}

type aloneOf struct {
	Document string    `json:"document"`
	File     string    `json:"file"`
	Error    string    `json:"error"`
	InForce  string    `json:"inForce"`
	Since    time.Time `json:"since"`
}

type refused struct {
	Number int       `json:"number"`
	At     time.Time `json:"at"`
	Error  string    `json:"error"`
}

// figures are those of the last minute.
type figures struct {
	Calls           int     `json:"calls"`
	Errors          int     `json:"errors"`
	Retries         int     `json:"retries"`
	CallsPerSecond  float64 `json:"callsPerSecond"`
	ErrorsPerSecond float64 `json:"errorsPerSecond"`
	ErrorShare      float64 `json:"errorShare"` // 0 to 1
	P50Ms           float64 `json:"p50Ms"`
	P90Ms           float64 `json:"p90Ms"`
	P99Ms           float64 `json:"p99Ms"`
	SlowestMs       float64 `json:"slowestMs"`
}

// inFigures are the figures of inbound requests.
type inFigures struct {
	figures
	Denied      int          `json:"denied"`
	Connections *connFigures `json:"connections,omitempty"` // raw ones
}

type callerOf struct {
	ID     string `json:"id"`               // SPIFFE ID; "" for peers without an identity
	Others bool   `json:"others,omitempty"` // it stands for all callers for which there is no room
	figures
	Denied  int       `json:"denied"`
	History histogram `json:"history"`
}

// histogram has the counts of the last five minutes, in periods of five seconds, the oldest first.
type histogram struct {
	Calls  []uint32 `json:"calls"`
	Errors []uint32 `json:"errors"`
}

type destinationOf struct {
	target
	Others  bool `json:"others,omitempty"`  // it stands for all destinations for which there is no room
	Outside bool `json:"outside,omitempty"` // of the mesh
	figures
	InFlight    int            `json:"inFlight"`
	Causes      []causeFigures `json:"causes"`
	Circuit     *circuitOf     `json:"circuit,omitempty"`
	Pool        *poolOf        `json:"pool,omitempty"`
	Retry       *retriesOf     `json:"retryLimits,omitempty"`
	Connections *connFigures   `json:"connections,omitempty"` // raw ones
	History     histogram      `json:"history"`

	Endpoints        []endpointOf `json:"endpoints"`
	EndpointsOmitted int          `json:"endpointsOmitted,omitempty"`
	Healthy          int          `json:"healthyEndpoints"` // of those that are shown

	known bool   // the mesh keeps state for it
	state string // the severity of its problem; "" if it has none
}

type circuitOf struct {
	State    string    `json:"state"`
	Opened   time.Time `json:"opened,omitzero"`
	Calls    int       `json:"calls,omitempty"` // the calls that opened it
	Failures int       `json:"failures,omitempty"`
	Slow     int       `json:"slow,omitempty"`
}

type poolOf struct {
	Active         int    `json:"active"`
	Pending        int    `json:"pending"`
	Connections    int    `json:"connections"`
	Refused        uint64 `json:"refused"`
	MaxRequests    int    `json:"maxRequests,omitempty"`
	MaxPending     int    `json:"maxPending,omitempty"`
	MaxConnections int    `json:"maxConnections,omitempty"`
}

type retriesOf struct {
	Active int `json:"active"`
	Most   int `json:"most,omitempty"`
	Budget int `json:"budget"`
}

type endpointOf struct {
	Address  string    `json:"address"`
	Locality string    `json:"locality,omitempty"`
	Gone     bool      `json:"gone,omitempty"` // discovery no longer has it
	Healthy  bool      `json:"healthy"`
	Reason   string    `json:"reason,omitempty"`
	Until    time.Time `json:"until,omitzero"`
	InFlight int       `json:"inFlight"`
	Security string    `json:"security,omitempty"`
	Withheld *withheld `json:"withheld,omitempty"`
	figures
}

// withheld is why an endpoint that fails is not ejected.
type withheld struct {
	Since              time.Time `json:"since"`
	Reason             string    `json:"reason"`
	Failures           int       `json:"failures"`
	Calls              int       `json:"calls"`
	MaxEjectionPercent float64   `json:"maxEjectionPercent"`
	Needed             float64   `json:"needed"`
}

type routeOf struct {
	Host     string     `json:"host"`
	Document string     `json:"document,omitempty"`
	File     string     `json:"file,omitempty"`
	Line     int        `json:"line,omitempty"`
	Name     string     `json:"name,omitempty"`
	Matches  []string   `json:"matches"`
	Targets  []weighted `json:"targets"`
	Action   string     `json:"action,omitempty"`
	Timeout  float64    `json:"timeoutMs,omitempty"`
	PerTry   float64    `json:"perTryTimeoutMs,omitempty"`
	Retries  int        `json:"retries,omitempty"`
	Fault    string     `json:"fault,omitempty"`
}

type weighted struct {
	target
	Weight int `json:"weight,omitempty"`
}

// report returns a report of the current state.
func (c *collector) report(name string, s *mesh.Status, now time.Time) *report {
	r := &report{
		Version: reportVersion, Time: now.UTC(), Name: name, Since: c.began.UTC(), Ready: s.Ready,
		Loads: c.loads.latest(), Events: c.events.latest(), Calls: c.calls.latest(), unfound: c.unfound.latest(),
		Uncalled: s.Uncalled, RoutesOmitted: s.RoutesOmitted, DestinationsOmitted: s.ServicesOmitted,
	}
	unfound, _ := firstOf(r.unfound, mostUnfound)
	r.Events = append(r.Events, unfound...)
	slices.SortStableFunc(r.Events, func(a, b event) int { return b.At.Compare(a.At) })
	inSlot := now.Sub(now.Truncate(slotLength))
	window := time.Duration(windowSlots-1)*slotLength + inSlot
	r.Seconds = max(min(window, now.Sub(c.began)).Seconds(), 1)
	r.status(s)
	raw := c.tcp.read()
	r.destinations(c, s, raw, now)
	r.callers(c, now)
	if f, ok := raw[connKey{inbound: true}]; ok {
		r.In.Connections = &f
	}
	r.Problems = r.problems(c)
	slices.SortStableFunc(r.Destinations, func(a, b destinationOf) int {
		return cmp.Or(cmp.Compare(rank(b.state), rank(a.state)), cmp.Compare(a.Host, b.Host), cmp.Compare(a.Port, b.Port),
			cmp.Compare(a.Subset, b.Subset))
	})
	return r
}

// status adds the parts of a status that are about the process.
func (r *report) status(s *mesh.Status) {
	for _, why := range s.NotReady {
		r.NotReady = append(r.NotReady, field.Discreet(why))
	}
	d := s.Documents
	r.Documents = documents{Number: d.Number, Version: d.Version, Loaded: d.Loaded.UTC(), Count: d.Count}
	if d.Refused.Number > d.Number {
		r.Documents.Refused = &refused{d.Refused.Number, d.Refused.At.UTC(), field.Discreet(d.Refused.Error)}
	}
	r.Documents.Alone, r.Documents.AloneOmitted = make([]aloneOf, len(d.Alone)), d.AloneOmitted
	for i, of := range d.Alone {
		r.Documents.Alone[i] = aloneOf{of.Document, of.File, field.Discreet(of.Error), of.InForce, of.Since.UTC()}
	}
	if id := s.Identity; id.ID != "" || id.Error != "" {
		r.Identity = &identity{ID: id.ID, Expires: id.Expires.UTC(), Error: field.Discreet(id.Error)}
		for _, t := range id.Trusted {
			r.Identity.Trusted = append(r.Identity.Trusted, trustedFor{t.Domain, t.Authorities, t.Expires.UTC()})
		}
	}
	for _, k := range s.Keys {
		r.Keys = append(r.Keys, keySet{field.Discreet(k.URI), k.Keys, k.Fetched.UTC(), field.Discreet(k.Error), k.Skipped, k.SkipReason})
	}
	r.Routes = make([]routeOf, len(s.Routes))
	for i, from := range s.Routes {
		to := &r.Routes[i]
		*to = routeOf{
			Host: from.Host, Document: from.Document, File: from.File, Line: from.Line, Name: from.Name, Matches: from.Matches,
			Targets: make([]weighted, len(from.Targets)), Action: from.Action, Timeout: milliseconds(from.Timeout),
			PerTry: milliseconds(from.PerTryTimeout), Retries: from.Retries, Fault: from.Fault,
		}
		if to.Matches == nil {
			to.Matches = []string{}
		}
		for i, t := range from.Targets {
			to.Targets[i] = weighted{target{t.Host, t.Subset, t.Port}, t.Weight}
		}
	}
}

// destinations adds the destinations: the status that the mesh has of them, and the figures that were collected.
func (r *report) destinations(c *collector, s *mesh.Status, raw map[connKey]connFigures, now time.Time) {
	counted := *c.destinations.Load()
	seen := make(map[route.Target]bool, len(s.Services))
	var all totals
	r.Destinations = make([]destinationOf, 0, len(s.Services))
	add := func(d destinationOf, of *destination) {
		if f, ok := raw[connKey{others: d.Others, Target: route.Target(d.target)}]; ok {
			d.Connections = &f
		}
		r.add(d, of, &all, now)
	}

	for _, from := range s.Services {
		t := route.Target{Host: from.Host, Port: from.Port, Subset: from.Subset}
		seen[t] = true
		d := destinationOf{target: target(t), InFlight: from.InFlight, EndpointsOmitted: from.EndpointsOmitted, known: true}
		if from.Circuit != "" {
			d.Circuit = &circuitOf{State: from.Circuit}
		}
		pool, retries := poolOf(from.Pool), retriesOf(from.Retries)
		d.Pool, d.Retry = &pool, &retries
		d.Endpoints = make([]endpointOf, len(from.Endpoints))
		for i, e := range from.Endpoints {
			d.Endpoints[i] = endpointOf{
				Address: e.Address, Locality: e.Locality, Healthy: e.Healthy, Reason: e.Reason, Until: e.Until.UTC(),
				InFlight: e.InFlight, Security: e.Security,
			}
			if e.Until.IsZero() {
				d.Endpoints[i].Until = time.Time{}
			}
			if w := withheld(e.Withheld); w != (withheld{}) {
				w.Since = w.Since.UTC()
				d.Endpoints[i].Withheld = &w
			}
		}
		add(d, counted[t])
	}
	for t, of := range counted {
		if !seen[t] {
			add(destinationOf{target: target(t), Endpoints: []endpointOf{}}, of)
		}
	}
	for key := range raw {
		if t := key.Target; !key.inbound && !key.others && !seen[t] && counted[t] == nil {
			add(destinationOf{target: target(t), Endpoints: []endpointOf{}}, nil)
		}
	}
	_, rawOthers := raw[connKey{others: true}]
	if t := c.others.totals(now); t.calls > 0 || rawOthers {
		add(destinationOf{Others: true, Endpoints: []endpointOf{}}, c.others)
	}
	r.Out = figuresOf(&all, r.Seconds)
}

// add adds a destination with its figures, which may be nil, and adds these to all.
func (r *report) add(d destinationOf, of *destination, all *totals, now time.Time) {
	var endpoints map[string]*series
	if of != nil {
		t := of.totals(now)
		d.figures = figuresOf(&t, r.Seconds)
		all.add(&t)
		d.Causes = of.causes.read(now)
		d.History.Calls, d.History.Errors = of.history(now)
		d.Outside = of.outside.Load()
		endpoints = *of.endpoints.Load()
		of.mu.Lock()
		if opened := of.opened; d.Circuit != nil && d.Circuit.State != "closed" && !opened.At.IsZero() {
			*d.Circuit = circuitOf{d.Circuit.State, opened.At.UTC(), opened.Calls, opened.Failures, opened.Slow}
		}
		of.mu.Unlock()
	} else {
		d.Causes = []causeFigures{}
		d.History.Calls, d.History.Errors = make([]uint32, historySlots), make([]uint32, historySlots)
	}
	d.measure(endpoints, r.Seconds, now)
	r.Destinations = append(r.Destinations, d)
}

// measure adds the figures of the endpoints. An endpoint that is gone stays for a minute after its last call.
func (d *destinationOf) measure(counted map[string]*series, seconds float64, now time.Time) {
	seen := make(map[string]bool, len(d.Endpoints))
	for i := range d.Endpoints {
		e := &d.Endpoints[i]
		seen[e.Address] = true
		if e.Healthy {
			d.Healthy++
		}
		if s := counted[e.Address]; s != nil {
			t := s.totals(now)
			e.figures = figuresOf(&t, seconds)
		}
	}
	if d.EndpointsOmitted > 0 {
		return
	}
	for address, s := range counted {
		if t := s.totals(now); !seen[address] && t.calls > 0 {
			d.Endpoints = append(d.Endpoints, endpointOf{Address: address, Gone: d.known, figures: figuresOf(&t, seconds)})
		}
	}
	slices.SortFunc(d.Endpoints, func(a, b endpointOf) int { return cmp.Compare(a.Address, b.Address) })
}

// Listed returns how many of the endpoints come from discovery. Those of a host outside the mesh never do.
func (d *destinationOf) Listed() (n int) {
	for i := range d.Endpoints {
		if d.known && !d.Endpoints[i].Gone {
			n++
		}
	}
	return n
}

// callers adds the callers of this process.
func (r *report) callers(c *collector, now time.Time) {
	r.Callers = []callerOf{}
	var all totals
	add := func(p *caller, others bool) {
		t := p.totals(now)
		f := callerOf{ID: p.id, Others: others, figures: figuresOf(&t, r.Seconds), Denied: int(t.denied)}
		f.History.Calls, f.History.Errors = p.history(now)
		all.add(&t)
		if slices.Max(f.History.Calls) > 0 {
			r.Callers = append(r.Callers, f)
		}
	}
	for _, p := range *c.callers.Load() {
		add(p, false)
	}
	add(&c.otherCallers, true)
	slices.SortFunc(r.Callers, func(a, b callerOf) int { return cmp.Compare(a.ID, b.ID) })
	r.In.figures, r.In.Denied = figuresOf(&all, r.Seconds), int(all.denied)
}

func (t *totals) add(other *totals) {
	t.calls += other.calls
	t.errors += other.errors
	t.retries += other.retries
	t.denied += other.denied
	t.slowest = max(t.slowest, other.slowest)
	for i, n := range other.durations {
		t.durations[i] += n
	}
}

func figuresOf(t *totals, seconds float64) figures {
	f := figures{
		Calls: int(t.calls), Errors: int(t.errors), Retries: int(t.retries),
		CallsPerSecond: rounded(float64(t.calls) / seconds), ErrorsPerSecond: rounded(float64(t.errors) / seconds),
		P50Ms: rounded(t.quantile(0.5)), P90Ms: rounded(t.quantile(0.9)), P99Ms: rounded(t.quantile(0.99)), SlowestMs: float64(t.slowest) / 1000,
	}
	if t.calls > 0 {
		f.ErrorShare = float64(t.errors) / float64(t.calls)
	}
	return f
}

func rounded(v float64) float64 { return math.Round(v*1000) / 1000 }
