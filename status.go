package mesh

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nosidecar/mesh/internal/fraction"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/jwt"
)

// Status is a snapshot of what is in force in a mesh: plain values that encoding/json can marshal. See [Mesh.Status].
type Status struct {
	// Ready says that calls and requests are served under the documents and with the identity they need. NotReady says what
	// is missing: it is set before the identity of [WithLateIdentity] has arrived, after an identity has expired, while there are
	// no keys to verify tokens with, and after [Mesh.Close]. Refused documents are not a reason, since the last good ones are in force,
	// and neither are denials in place of documents that stand alone.
	Ready    bool     `json:"ready"`
	NotReady []string `json:"notReady,omitempty"`

	// Workload is the process as documents see it, from [WithWorkload] and the environment. An empty field has its default.
	Workload struct {
		Namespace     string            `json:"namespace,omitempty"`
		Labels        map[string]string `json:"labels,omitempty"`
		Locality      string            `json:"locality,omitempty"` // region/zone/subzone
		Address       string            `json:"address,omitempty"`
		TrustDomain   string            `json:"trustDomain,omitempty"`
		ClusterDomain string            `json:"clusterDomain,omitempty"`
	} `json:"workload"`

	// Documents describes the documents in force. Number and Version are those of their [PolicyLoad], Loaded is when they
	// came into force, and Count is the number of documents that apply to this process.
	Documents struct {
		Number  int       `json:"number"`
		Version string    `json:"version"`
		Loaded  time.Time `json:"loaded"`
		Count   int       `json:"count"`

		// Refused is the last load that was refused, even if a later one was good. It is zero if none was.
		Refused struct {
			Number  int       `json:"number"`
			Version string    `json:"version,omitempty"`
			At      time.Time `json:"at"`
			Error   string    `json:"error"`
		} `json:"refused,omitzero"`

		// Alone are the documents that stand alone ([policy.Source]) and are refused, with what is in force in place of each
		// ([policy.Finding]): why, and since when. There are at most 100, and those with a denial come first; AloneOmitted counts
		// the rest.
		Alone []struct {
			Document string    `json:"document"` // such as "VirtualService default/orders"; empty if it could not be read
			File     string    `json:"file"`
			Error    string    `json:"error"`
			InForce  string    `json:"inForce"`
			Since    time.Time `json:"since"`
		} `json:"alone,omitempty"`
		AloneOmitted int `json:"aloneOmitted,omitempty"`
	} `json:"documents"`

	// Identity is the identity of the process, if it was given one. Error is the last error of its source, if the source has
	// yielded no identity since.
	Identity struct {
		ID      string    `json:"id,omitempty"` // SPIFFE ID
		Expires time.Time `json:"expires,omitzero"`
		Error   string    `json:"error,omitempty"`

		// Trusted are the trust domains whose peers are accepted, with the number of their authorities and when the last of these
		// expires.
		Trusted []struct {
			Domain      string    `json:"domain"`
			Authorities int       `json:"authorities"`
			Expires     time.Time `json:"expires"`
		} `json:"trusted,omitempty"`
	} `json:"identity,omitzero"`

	// Keys are the sets of keys that tokens are verified with and that are fetched, sorted by URI: when they were, how many there
	// are, and what went wrong the last time. Without keys the mesh is not ready. Skipped counts the keys that were fetched with them
	// and are left out, because they cannot verify tokens or are too weak; SkipReason is about the first.
	Keys []struct {
		URI     string    `json:"uri"`
		Keys    int       `json:"keys"`
		Fetched time.Time `json:"fetched,omitzero"`
		Error   string    `json:"error,omitempty"`

		Skipped    int    `json:"skipped,omitempty"`
		SkipReason string `json:"skipReason,omitempty"`
	} `json:"keys,omitempty"`

	// Services are the destinations that were called and that state is kept for, sorted by host, port and subset. There are
	// at most 250, the ones called last. Each has at most 100 endpoints: unhealthy ones, those that fail and stay, and those with most
	// requests come first. ServicesOmitted and EndpointsOmitted count the rest. Uncalled is how many hosts that documents name were not
	// called.
	Services []struct {
		Host   string `json:"host"`
		Port   int    `json:"port,omitempty"`
		Subset string `json:"subset,omitempty"`

		// Circuit is the state of the circuit ([breaker.State]), and "" if there is none; see [Protection].
		Circuit string `json:"circuit,omitempty"`

		// InFlight counts calls, each with all its attempts; the InFlight of an endpoint counts attempts and raw
		// connections.
		InFlight int `json:"inFlight"`

		// Pool is how full the connection pool is. Refused counts the calls that found it full. A bound is 0 if there is
		// none.
		Pool struct {
			Active         int    `json:"active"`
			Pending        int    `json:"pending"`
			Connections    int    `json:"connections"`
			Refused        uint64 `json:"refused"`
			MaxRequests    int    `json:"maxRequests,omitempty"`
			MaxPending     int    `json:"maxPending,omitempty"`
			MaxConnections int    `json:"maxConnections,omitempty"`
		} `json:"pool"`

		// Retries are the retries in flight. Most is their limit, 0 without one, and Budget is how many more the retry
		// budget permits now, -1 without one.
		Retries struct {
			Active int `json:"active"`
			Most   int `json:"most,omitempty"`
			Budget int `json:"budget"`
		} `json:"retries"`

		// Endpoints are sorted by address. Reason says why an unhealthy one gets no calls: the [breaker.Reason] of its
		// ejection, which ends at Until at the earliest, or another obstacle.
		Endpoints []struct {
			Address  string    `json:"address"`
			Locality string    `json:"locality,omitempty"`
			Healthy  bool      `json:"healthy"`
			Reason   string    `json:"reason,omitempty"`
			Until    time.Time `json:"until,omitzero"`
			InFlight int       `json:"inFlight"`

			// Security is "mtls", "tls" with the settings of a DestinationRule, or "" for plaintext and whatever the
			// caller's URL asks for.
			Security string `json:"security,omitempty"`

			// Withheld is set while a healthy endpoint fails often enough to be ejected and gets calls all the same, because
			// MaxEjectionPercent allows no more ejections. Needed is the least value that would: it is 100 if no other endpoint
			// is left. Reason, a [breaker.Reason], Failures and Calls say how it fails. It ends when the endpoint answers well.
			Withheld struct {
				Since              time.Time `json:"since"`
				Reason             string    `json:"reason"`
				Failures           int       `json:"failures"`
				Calls              int       `json:"calls"`
				MaxEjectionPercent float64   `json:"maxEjectionPercent"`
				Needed             float64   `json:"needed"`
			} `json:"withheld,omitzero"`
		} `json:"endpoints"`
		EndpointsOmitted int `json:"endpointsOmitted,omitempty"`
	} `json:"services"`
	ServicesOmitted int `json:"servicesOmitted,omitempty"`
	Uncalled        int `json:"uncalled"`

	// Routes are the routes of the hosts that were called and then of others, sorted by host and in their order: of at most
	// 100 hosts, and at most 50 of each. RoutesOmitted is how many hosts that documents name were left out.
	Routes []struct {
		Host string `json:"host"`

		// Document is the document of the route, such as "VirtualService default/orders"; File and Line are the place of the
		// route in it, see [policy.Origin]. They are empty if the route is the default of the mesh.
		Document string `json:"document,omitempty"`
		File     string `json:"file,omitempty"`
		Line     int    `json:"line,omitempty"`
		Name     string `json:"name,omitempty"`

		// Matches are alternatives, as text. Without any, the route takes every request that earlier routes leave.
		Matches []string `json:"matches,omitempty"`

		// Targets share the requests by weight. Action is what is done instead of sending requests, such as "redirect".
		Targets []struct {
			Host   string `json:"host"`
			Port   int    `json:"port,omitempty"`
			Subset string `json:"subset,omitempty"`
			Weight int    `json:"weight,omitempty"`
		} `json:"targets,omitempty"`
		Action string `json:"action,omitempty"`

		Timeout       time.Duration `json:"timeout,omitempty"` // 0: none
		PerTryTimeout time.Duration `json:"perTryTimeout,omitempty"`
		Retries       int           `json:"retries,omitempty"`
		Fault         string        `json:"fault,omitempty"` // that is injected, as text
	} `json:"routes,omitempty"`
	RoutesOmitted int `json:"routesOmitted,omitempty"`
}

// Status returns what is in force now. It is safe for concurrent use, costs calls nothing, and is small enough for a page:
// see [Status]. Its parts are read one after the other, so a call in flight may show in one and not yet in another.
func (m *Mesh) Status() Status {
	var s Status
	s.Ready = true
	not := func(reason string) { s.Ready, s.NotReady = false, append(s.NotReady, reason) }
	w, to := &m.workload, &s.Workload
	to.Namespace, to.Labels, to.Locality, to.Address = w.Namespace, maps.Clone(w.Labels), w.Locality.String(), w.Address
	to.TrustDomain, to.ClusterDomain = w.TrustDomain, w.ClusterDomain
	m.documents.loads.documents(&s)
	if m.identity != nil {
		latest, failed := m.identity.Latest()
		if latest != nil {
			s.Identity.ID, s.Identity.Expires = latest.ID().String(), latest.NotAfter()
			bundles := latest.Bundles()
			s.Identity.Trusted = sized(s.Identity.Trusted, len(bundles))
			for i, b := range bundles {
				to := &s.Identity.Trusted[i]
				authorities := b.X509Authorities()
				to.Domain, to.Authorities = b.TrustDomain().Name(), len(authorities)
				for _, a := range authorities {
					if a.NotAfter.After(to.Expires) {
						to.Expires = a.NotAfter
					}
				}
			}
		}
		if failed != nil {
			s.Identity.Error = bounded(failed.Error())
		}
		if _, err := m.identity.Identity(); err != nil {
			not(bounded(err.Error()))
		}
	}
	m.keySets(&s, not)
	m.services(&s)
	if m.closing.Err() != nil {
		not(ErrClosed.Error())
	}
	return s
}

// keySets fills in what is known about the keys of tokens.
func (m *Mesh) keySets(s *Status, not func(reason string)) {
	states := m.keys.States()
	if len(states) == 0 {
		return
	}
	slices.SortFunc(states, func(a, b jwt.State) int { return strings.Compare(a.Source.URI, b.Source.URI) })
	s.Keys = sized(s.Keys, len(states))
	for i, state := range states {
		to := &s.Keys[i]
		to.URI, to.Keys, to.Fetched = state.Source.URI, state.Keys, state.Fetched
		if state.Err != nil {
			to.Error = bounded(state.Err.Error())
		}
		if to.Skipped = len(state.Skipped); to.Skipped > 0 {
			to.SkipReason = bounded(state.Skipped[0].Error())
		}
		if state.Keys == 0 {
			not("the keys at " + to.URI + " have not been fetched yet")
		}
	}
}

// services fills in what the engine knows.
func (m *Mesh) services(s *Status) {
	from := m.engine.Status()
	s.ServicesOmitted, s.Uncalled = from.Omitted, from.Uncalled
	s.Services = sized(s.Services, len(from.Services))
	for i, service := range from.Services {
		to := &s.Services[i]
		to.Host, to.Port, to.Subset = service.Target.Host, service.Target.Port, service.Target.Subset
		to.Circuit, to.InFlight, to.EndpointsOmitted = service.Circuit, service.InFlight, service.Omitted
		to.Pool.Active, to.Pool.Pending, to.Pool.Connections = service.Pool.Active, service.Pool.Pending, service.Pool.Connections
		to.Pool.Refused, to.Pool.MaxRequests = service.Pool.Overflows, service.Pool.MaxRequests
		to.Pool.MaxPending, to.Pool.MaxConnections = service.Pool.MaxPendingRequests, service.Pool.MaxConnections
		to.Retries.Active, to.Retries.Most, to.Retries.Budget = service.Retries.Active, service.Retries.Most, service.Retries.Budget
		to.Endpoints = sized(to.Endpoints, len(service.Endpoints))
		for i, e := range service.Endpoints {
			to := &to.Endpoints[i]
			to.Address, to.Locality, to.InFlight = e.Address, e.Locality, e.InFlight
			to.Healthy, to.Reason, to.Until, to.Security = e.Healthy, e.Reason, e.Until, e.Security
			if w := e.Withheld; w.Limit > 0 {
				to.Withheld.Since, to.Withheld.Reason, to.Withheld.Failures, to.Withheld.Calls = w.At, string(w.Reason), w.Failures, w.Calls
				to.Withheld.MaxEjectionPercent, to.Withheld.Needed = fraction.Percent(w.Limit), math.Ceil(fraction.Percent(w.Needed))
			}
		}
	}
	s.RoutesOmitted = from.RoutesOmitted
	s.Routes = sized(s.Routes, len(from.Routes))
	for i, r := range from.Routes {
		to := &s.Routes[i]
		to.Host, to.Document, to.File, to.Line = r.Host, r.Origin.Document, r.Origin.File, r.Origin.Line
		to.Name, to.Matches, to.Action, to.Fault = r.Name, slices.Clone(r.Matches), r.Action, r.Fault // the engine keeps its own
		to.Timeout, to.PerTryTimeout, to.Retries = r.Timeout, r.PerTryTimeout, r.Retries
		to.Targets = sized(to.Targets, len(r.Targets))
		for i, t := range r.Targets {
			to := &to.Targets[i]
			to.Host, to.Port, to.Subset, to.Weight = t.Target.Host, t.Target.Port, t.Target.Subset, t.Weight
		}
	}
}

// sized returns a slice of the type of like, which is unnamed.
func sized[S ~[]E, E any](like S, n int) S { return make(S, n) }

// longest bounds the length of error texts in a status: errors of documents list every finding.
const longest = 4 << 10

func bounded(text string) string {
	if len(text) <= longest {
		return text
	}
	return strings.ToValidUTF8(text[:longest], "") + "..."
}

// mostAlone bounds the documents that stand alone and are listed as refused.
const mostAlone = 100

// alone returns the findings about the documents that stand alone and are refused, the first error of each document.
func alone(findings policy.Findings) policy.Findings {
	type which struct{ kind, namespace, name, file string }
	var list policy.Findings
	seen := make(map[which]bool)
	for _, f := range findings {
		at := which{f.Kind, f.Namespace, f.Name, f.File}
		if f.InForce == "" || f.Severity != policy.Error || seen[at] {
			continue
		}
		seen[at] = true
		list = append(list, f)
	}
	slices.SortStableFunc(list, func(a, b policy.Finding) int {
		return cmp.Compare(rank(a), rank(b))
	})
	return list
}

// rank sorts denials first.
func rank(f policy.Finding) int {
	if f.InForce == "denial" {
		return 0
	}
	return 1
}

// documentOf names the document of a finding.
func documentOf(f policy.Finding) string {
	if f.Name == "" {
		return f.Kind
	}
	return f.Kind + " " + f.Namespace + "/" + f.Name
}

// loads is what is known about the loads of documents.
type loads struct {
	mu     sync.Mutex
	last   int    // number
	status Status // its Documents
}

// next returns the number for a load that begins.
func (l *loads) next() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	return l.last
}

// ended records the result of a load. plan is the plan that it put into force.
func (l *loads) ended(load PolicyLoad, plan *policy.Plan) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	d := &l.status.Documents
	if load.Err != nil {
		d.Refused.Number, d.Refused.Version, d.Refused.At, d.Refused.Error = load.Number, load.Version, now, bounded(load.Err.Error())
		return
	}
	d.Number, d.Version, d.Loaded, d.Count = load.Number, load.Version, now, 0
	for _, n := range plan.InForce() {
		d.Count += n
	}
	refused := alone(load.Findings)
	listed := min(len(refused), mostAlone)
	d.Alone, d.AloneOmitted = sized(d.Alone, listed), len(refused)-listed
	for i, f := range refused[:listed] {
		to := &d.Alone[i]
		to.Document, to.File, to.InForce, to.Since = documentOf(f), f.File, f.InForce, f.Since
		f.InForce = "" // it has a field of its own
		to.Error = bounded(f.String())
	}
}

// documents fills in what a status says about documents.
func (l *loads) documents(s *Status) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.Documents = l.status.Documents
	s.Documents.Alone = slices.Clone(s.Documents.Alone)
}
