package engine

import (
	"cmp"
	"slices"
	"time"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/internal/engine/sockets"
	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/policy/route"
)

// Status is the state that the engine keeps for destinations, for mesh.Status.
type Status struct {
	Services []ServiceStatus // that were called, sorted
	Omitted  int             // further ones that were called
	Uncalled int             // that documents name and that were never called

	Routes        []RouteStatus // of the hosts that were called, and of others that documents route; sorted
	RoutesOmitted int           // further hosts that have routes
}

// ServiceStatus is a destination.
type ServiceStatus struct {
	Target    route.Target
	Circuit   string // "" without one
	InFlight  int
	Pool      PoolStatus
	Retries   RetryStatus
	Endpoints []EndpointStatus
	Omitted   int // further endpoints
}

// PoolStatus says how full the pool of a destination is.
type PoolStatus struct {
	limit.Stats
	limit.PoolConfig
}

// RetryStatus says what bounds the retries to a destination.
type RetryStatus struct {
	Active, Most int // in flight; Most is 0 without a bound
	Budget       int // left; -1 without one
}

// EndpointStatus is an endpoint of a destination.
type EndpointStatus struct {
	Address  string
	Locality string
	Healthy  bool
	Reason   string // for not being healthy
	Until    time.Time
	InFlight int
	Security string        // "mtls", "tls", or "" for plaintext
	Withheld breaker.Event // the ejection that did not happen, if it is healthy and fails
}

// At most so many destinations and endpoints are shown; the rest are only counted.
const (
	servicesShown  = 250
	endpointsShown = 100
)

// Status returns the current state.
func (e *Engine) Status() Status {
	v := e.view.Load()
	var s Status
	clusters := v.clusters.list()
	called := make(map[string]bool, len(clusters))
	for _, c := range clusters {
		called[c.target.Host] = true
	}
	if v.plan != nil {
		for host := range v.plan.Hosts() {
			if !called[host] {
				s.Uncalled++
			}
		}
	}
	if over := len(clusters) - servicesShown; over > 0 {
		s.Omitted = over
		clusters = lastUsed(clusters)[:servicesShown]
	}
	slices.SortFunc(clusters, func(a, b *cluster) int {
		return cmp.Or(cmp.Compare(a.target.Host, b.target.Host), cmp.Compare(a.target.Port, b.target.Port), cmp.Compare(a.target.Subset, b.target.Subset))
	})
	for _, c := range clusters {
		s.Services = append(s.Services, c.status())
	}
	s.Routes, s.RoutesOmitted = e.routes(v)
	return s
}

// lastUsed returns clusters sorted by when they were called, the latest first.
func lastUsed(clusters []*cluster) []*cluster {
	used := make(map[*cluster]int64, len(clusters)) // read once, as it changes meanwhile
	for _, c := range clusters {
		used[c] = c.used.Load()
	}
	slices.SortFunc(clusters, func(a, b *cluster) int { return cmp.Compare(used[b], used[a]) })
	return clusters
}

func (c *cluster) status() ServiceStatus {
	s := ServiceStatus{
		Target: c.target, InFlight: int(c.calls.Load() &^ (clusterClosed | clusterGone)),
		Pool:    PoolStatus{c.sockets.Pool.Stats(), c.sockets.Limits},
		Retries: RetryStatus{Budget: c.budget.Left()},
	}
	s.Retries.Active, s.Retries.Most = c.limiter.Retries()
	if c.circuit != nil {
		s.Circuit = c.circuit.State().String()
	}
	var ejections map[string]breaker.EndpointStatus
	hosts := c.balancer.Hosts()
	if c.outlier != nil || c.accruals != nil {
		ejections = make(map[string]breaker.EndpointStatus, len(hosts))
	}
	if c.outlier != nil {
		for _, e := range c.outlier.Endpoints() {
			ejections[e.ID] = e
		}
	}
	if c.accruals != nil {
		c.accruals.endpoints(ejections)
	}
	s.Endpoints = make([]EndpointStatus, 0, len(hosts))
	for _, h := range hosts {
		s.Endpoints = append(s.Endpoints, endpointStatus(h, ejections[h.ID()]))
	}
	slices.SortFunc(s.Endpoints, func(a, b EndpointStatus) int { return cmp.Compare(a.Address, b.Address) })
	if over := len(hosts) - endpointsShown; over > 0 {
		s.Omitted = over
		slices.SortStableFunc(s.Endpoints, func(a, b EndpointStatus) int {
			return cmp.Or(cmp.Compare(a.rank(), b.rank()), cmp.Compare(b.InFlight, a.InFlight))
		})
		s.Endpoints = slices.Clone(s.Endpoints[:endpointsShown])
	}
	return s
}

func endpointStatus(h *balancer.Host, ejection breaker.EndpointStatus) EndpointStatus {
	described := h.Endpoint()
	s := EndpointStatus{Address: h.ID(), Locality: described.Locality.String(), InFlight: h.InFlight()}
	secured := h.Value().(*endpoint).secured.Load()
	s.Security = [...]string{sockets.Plaintext: "", sockets.Mutual: "mtls", sockets.Originated: "tls"}[secured.Kind]
	switch {
	case h.Ejected():
		s.Reason, s.Until = string(ejection.Reason), ejection.Until
	case described.Draining:
		s.Reason = "draining"
	case !h.TakesCalls():
		s.Reason = "no share of the calls"
	case secured.err != nil:
		s.Reason = secured.err.Error()
	default:
		s.Healthy, s.Withheld = true, ejection.Withheld
	}
	return s
}

// rank puts endpoints that get no calls first, and then those that fail.
func (s *EndpointStatus) rank() int {
	switch {
	case !s.Healthy:
		return 0
	case s.Withheld.Limit > 0:
		return 1
	}
	return 2
}
