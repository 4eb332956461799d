package consul

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/consul"
)

const (
	queryInterval = 10 * time.Second // between prepared queries, which do not block
	mostWeight    = 128              // as in Envoy, and so in Consul's sidecars

	// tlsMode is Istio's label for endpoints that accept mTLS.
	tlsMode = "security.istio.io/tlsMode"
)

type entries = []*api.ServiceEntry

// read returns the watch of a target in a place.
func (r *Resolver) read(t target, place Place) consul.Watch[entries] {
	w := consul.Watch[entries]{
		What: fmt.Sprintf("service %q", t.name),
		Options: api.QueryOptions{
			Datacenter: place.Datacenter, Namespace: place.Namespace, Partition: place.Partition, Peer: place.Peer,
			Connect: t.query && r.config.Connect,
		},
		Size:  func(all entries) int { return len(all) },
		Equal: func(a, b entries) bool { return slices.EqualFunc(a, b, same) },
	}
	service := t.name // the service that this client must be allowed to read
	w.Allowed = func(options *api.QueryOptions) error { return r.allowed(service, options) }
	if t.query {
		w.What = fmt.Sprintf("prepared query %q", t.name)
		w.Poll = queryInterval
		w.Read = func(options *api.QueryOptions) (entries, *api.QueryMeta, error) {
			answer, meta, err := r.client.PreparedQuery().Execute(t.name, options)
			switch {
			case consul.Status(err) == http.StatusNotFound:
				return nil, &api.QueryMeta{LastIndex: 1}, nil // there is no such query
			case err != nil:
				return nil, nil, err
			case answer == nil:
				return nil, nil, errors.New("the answer is null")
			}
			service = answer.Service
			meta.LastIndex = max(1, meta.LastIndex) // it has no meaning here
			all := make(entries, len(answer.Nodes))
			for i := range answer.Nodes {
				all[i] = &answer.Nodes[i]
			}
			return r.tidy(all, meta)
		}
		return w
	}
	health := r.client.Health().Service
	if r.config.Connect {
		health = r.client.Health().Connect
	}
	w.Read = func(options *api.QueryOptions) (entries, *api.QueryMeta, error) {
		all, meta, err := health(t.name, "", false, options)
		if err != nil {
			return nil, nil, err
		}
		return r.tidy(all, meta)
	}
	return w
}

// allowed returns an error if this client may not read the instances of a service. It must be allowed to read the service and
// the nodes of the instances. Without a token, Consul answers as if there were no instances.
func (r *Resolver) allowed(service string, options *api.QueryOptions) error {
	if _, _, err := r.client.Health().Connect(service, "", false, options); err != nil {
		return err // 403, if service:read is missing
	}
	if options.Peer != "" {
		return nil // the nodes belong to the peer
	}
	nodes, _, err := r.client.Catalog().Nodes(options)
	if err == nil && len(nodes) == 0 {
		err = fmt.Errorf("%w: the token has no node:read", consul.ErrDenied)
	}
	return err
}

// tidy sorts entries, since Consul does not, and removes fields that change without a change of meaning.
func (r *Resolver) tidy(all entries, meta *api.QueryMeta) (entries, *api.QueryMeta, error) {
	if slices.ContainsFunc(all, func(e *api.ServiceEntry) bool { return e == nil || e.Node == nil || e.Service == nil }) {
		return nil, nil, errors.New("the answer makes no sense: an instance lacks its node or its service")
	}
	if r.config.Connect {
		all = slices.DeleteFunc(all, func(e *api.ServiceEntry) bool { return account(e.Service) == "" })
	}
	for _, e := range all {
		e.Node.CreateIndex, e.Node.ModifyIndex = 0, 0
		e.Service.CreateIndex, e.Service.ModifyIndex = 0, 0
		e.Checks = slices.DeleteFunc(e.Checks, func(c *api.HealthCheck) bool { return c == nil })
		for _, c := range e.Checks {
			c.CreateIndex, c.ModifyIndex, c.Output = 0, 0, ""
		}
		slices.SortFunc(e.Checks, func(a, b *api.HealthCheck) int { return cmp.Compare(a.CheckID, b.CheckID) })
	}
	slices.SortFunc(all, func(a, b *api.ServiceEntry) int {
		return cmp.Or(cmp.Compare(a.Node.Node, b.Node.Node), cmp.Compare(a.Service.ID, b.Service.ID))
	})
	return all, meta, nil
}

// same reports whether two tidy entries are equal.
func same(a, b *api.ServiceEntry) bool { return reflect.DeepEqual(a, b) }

// keep returns the entries, with the pointers of old entries that are equal.
func keep(now, old entries) entries {
	type id struct{ node, service string }
	known := make(map[id]*api.ServiceEntry, len(old))
	for _, e := range old {
		known[id{e.Node.Node, e.Service.ID}] = e
	}
	for i, e := range now {
		if before := known[id{e.Node.Node, e.Service.ID}]; before != nil && same(before, e) {
			now[i] = before
		}
	}
	return now
}

// endpointsOf returns the endpoints that entries describe. If several have one address, those that take calls come first.
func endpointsOf(all entries) []discovery.Endpoint {
	endpoints := make([]discovery.Endpoint, 0, len(all))
	for _, e := range all {
		if endpoint, ok := endpointOf(e); ok {
			endpoints = append(endpoints, endpoint)
		}
	}
	slices.SortStableFunc(endpoints, func(a, b discovery.Endpoint) int {
		switch {
		case a.Draining == b.Draining:
			return 0
		case b.Draining:
			return -1
		}
		return 1
	})
	return endpoints
}

// endpointOf returns the endpoint of an entry, and false if it is not healthy or cannot be reached over the network.
func endpointOf(entry *api.ServiceEntry) (discovery.Endpoint, bool) {
	s := entry.Service
	weight, healthy, maintained := health(entry)
	e := discovery.Endpoint{
		Address:  cmp.Or(s.Address, entry.Node.Address),
		Port:     s.DefaultPort(),
		Labels:   labels(s),
		Locality: locality(entry),
		Weight:   uint32(min(max(weight, 0), mostWeight)),
		Draining: maintained || weight <= 0,
		Record:   entry,
	}
	for _, p := range s.Ports {
		e.Ports = append(e.Ports, discovery.Port{Name: p.Name, Number: p.Port})
	}
	// Calls that name no port go to the first.
	if i := slices.IndexFunc(s.Ports, func(p api.ServicePort) bool { return p.Default }); i > 0 {
		e.Ports[0], e.Ports[i] = e.Ports[i], e.Ports[0]
	}
	if e.ServiceAccount = account(s); e.ServiceAccount != "" {
		if e.Labels == nil {
			e.Labels = make(map[string]string)
		}
		e.Labels[tlsMode] = "istio" // overrides the metadata, since it accepts only mTLS
	}
	return e, healthy && reachable(&e, s)
}

// account returns the name of the service whose certificate an instance has, or "" if it has none.
func account(s *api.AgentService) string {
	switch {
	case s.Kind == api.ServiceKindConnectProxy && s.Proxy != nil:
		return s.Proxy.DestinationServiceName
	case s.Connect != nil && s.Connect.Native:
		return s.Service
	}
	return ""
}

// reachable reports whether an endpoint can be dialled. Without an address, the call would go to this host. Without a port, it would go to
// the port that the caller named. A service on a unix socket has neither.
func reachable(e *discovery.Endpoint, s *api.AgentService) bool {
	known := func(port int) bool { return port >= 0 && port <= 65535 }
	return e.Address != "" && (s.SocketPath == "" || e.Port != 0) && known(e.Port) &&
		!slices.ContainsFunc(e.Ports, func(p discovery.Port) bool { return p.Number == 0 || !known(p.Number) })
}

// health returns the weight of an instance, whether it is healthy, and whether it is in maintenance and so drains.
func health(entry *api.ServiceEntry) (weight int, healthy, maintained bool) {
	weights := entry.Service.Weights
	if weights == (api.AgentWeights{}) {
		weights = api.AgentWeights{Passing: 1, Warning: 1} // not known: a Passing of 0 is refused
	}
	weight, healthy = weights.Passing, true
	for _, c := range entry.Checks {
		switch {
		case c.Status == api.HealthPassing:
		case c.Status == api.HealthWarning:
			weight = weights.Warning
		case c.CheckID == api.NodeMaint, strings.HasPrefix(c.CheckID, api.ServiceMaintPrefix):
			maintained = true
		default:
			healthy = false
		}
	}
	return weight, healthy, maintained
}

// labels returns the metadata of a service and its tags: "version=v1" is the label version, and "canary" is the label canary with an
// empty value. The metadata takes precedence.
func labels(s *api.AgentService) map[string]string {
	if len(s.Tags)+len(s.Meta) == 0 {
		return nil
	}
	all := make(map[string]string, len(s.Tags)+len(s.Meta))
	for _, tag := range s.Tags {
		name, value, _ := strings.Cut(tag, "=")
		all[name] = value
	}
	maps.Copy(all, s.Meta)
	return all
}

// locality returns where an instance runs. It comes from the registration or the configuration of the agent, or else from the metadata
// of the node.
func locality(entry *api.ServiceEntry) discovery.Locality {
	place := cmp.Or(entry.Service.Locality, entry.Node.Locality)
	if place != nil {
		return discovery.Locality{Region: place.Region, Zone: place.Zone}
	}
	meta := entry.Node.Meta
	return discovery.Locality{Region: meta["region"], Zone: meta["zone"], SubZone: meta["subzone"]}
}
