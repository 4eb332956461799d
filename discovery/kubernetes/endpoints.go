package kubernetes

import (
	"cmp"
	"maps"
	"reflect"
	"slices"

	"github.com/nosidecar/mesh/discovery"
)

// place describes where this process runs.
type place struct{ zone, node string }

// set is everything that the endpoints of a service are made of.
type set struct {
	service *service
	slices  []*slice        // in the order of their names
	pods    map[string]*pod // by uid; nil means that pods are not read
	own     place
	region  string
}

// family is the endpoints of one type of address.
type family struct {
	entries []entry
	takes   int // how many take new calls
}

// entry is an endpoint that may be published.
type entry struct {
	*backend
	ports    []discovery.Port
	draining bool
}

// endpoints returns the endpoints of a service that has slices. If pods are read, endpoints whose pods are not known yet are left out:
// without labels and account, an endpoint could get calls of another subset, or get them in plain text.
func (s *set) endpoints() []discovery.Endpoint {
	var chosen family
	for i, addressType := range s.addressTypes() {
		f := s.family(addressType)
		if i == 0 || f.takes > 0 || len(chosen.entries) == 0 {
			chosen = f
		}
		if f.takes > 0 {
			break // a pod that has addresses of both types is one endpoint
		}
	}
	all := make([]discovery.Endpoint, 0, len(chosen.entries))
	for _, e := range chosen.entries {
		endpoint := discovery.Endpoint{Address: e.address, Ports: e.ports, OnlyPorts: len(e.ports) > 0 && !s.service.headless, Draining: e.draining,
			Locality: discovery.Locality{Region: s.region, Zone: e.zone}}
		if p := s.pods[e.pod]; p != nil {
			endpoint.Labels, endpoint.ServiceAccount = p.labels, p.account
			endpoint.Locality = p.locality(endpoint.Locality)
		}
		all = append(all, endpoint)
	}
	return all
}

// locality returns where the pod runs. known is what is known without it.
func (p *pod) locality(known discovery.Locality) discovery.Locality {
	if p.whole {
		return p.place
	}
	return discovery.Locality{Region: cmp.Or(p.place.Region, known.Region), Zone: cmp.Or(known.Zone, p.place.Zone), SubZone: p.place.SubZone}
}

// addressTypes returns the types of addresses in the order of preference.
func (s *set) addressTypes() []string {
	if s.service.family == "IPv6" {
		return []string{"IPv6", "IPv4", "FQDN"}
	}
	return []string{"IPv4", "IPv6", "FQDN"}
}

// family returns the endpoints of a type of address.
func (s *set) family(addressType string) family {
	var all []entry
	ready := 0
	for _, from := range s.slices {
		if from.addressType != addressType {
			continue
		}
		ports, ok := s.service.join(from)
		if !ok {
			continue
		}
		for i := range from.backends {
			b := &from.backends[i]
			if b.pod != "" && s.pods != nil && s.pods[b.pod] == nil || !b.ready && !b.terminating {
				continue
			}
			all = append(all, entry{b, ports, !b.ready})
			if b.ready {
				ready++
			}
		}
	}
	switch {
	case ready > 0:
		all = s.hinted(all)
	default:
		// While the only replica is replaced, no endpoint may be ready. One that is terminating and still serves is better than none.
		for i := range all {
			all[i].draining = !all[i].serving
		}
	}
	all = merge(all)
	f := family{entries: all}
	for _, e := range all {
		if !e.draining {
			f.takes++
		}
	}
	return f
}

// join returns the ports of a slice as ports of the service, and false if the service has none of them.
func (s *service) join(from *slice) ([]discovery.Port, bool) {
	if from.portless {
		return nil, len(s.ports) > 0 || s.portless // nothing is said about ports
	}
	var ports []discovery.Port
	if s.portless {
		for _, p := range from.ports {
			ports = append(ports, discovery.Port{Name: p.name, Number: p.number, Target: p.number})
		}
	}
	for _, p := range s.ports {
		if i := slices.IndexFunc(from.ports, func(own slicePort) bool { return own.name == p.name }); i >= 0 {
			ports = append(ports, discovery.Port{Name: p.name, Number: p.number, Target: from.ports[i].number})
		}
	}
	return ports, len(ports) > 0
}

// hinted leaves out endpoints that are meant for other places, if every ready endpoint has a hint and at least one hint names the place of
// this process. Hints for nodes take precedence over those for zones.
func (s *set) hinted(all []entry) []entry {
	for _, by := range []struct {
		own   string
		hints func(*backend) []string
	}{
		{s.own.node, func(b *backend) []string { return b.forNodes }},
		{s.own.zone, func(b *backend) []string { return b.forZones }},
	} {
		every, mine := true, false
		for _, e := range all {
			if !e.draining {
				hints := by.hints(e.backend)
				every = every && len(hints) > 0
				mine = mine || slices.Contains(hints, by.own)
			}
		}
		if every && mine && by.own != "" {
			return slices.DeleteFunc(all, func(e entry) bool { return !e.draining && !slices.Contains(by.hints(e.backend), by.own) })
		}
	}
	return all
}

// merge keeps one of several entries that have the same address and ports, if possible one that takes calls. An address that is in several
// slices with different ports, as in a service with hand-made Endpoints, becomes one entry with all of these ports.
func merge(all []entry) []entry {
	at := make(map[string]int, len(all)) // the last of each address
	kept := all[:0]
	next := make([]int, 0, len(all)) // the one of the same address before it, or -1
	for _, e := range all {
		i, again := at[e.address]
		if !again {
			i = -1
		}
		merged := false
		for j := i; j >= 0 && !merged; j = next[j] {
			merged = kept[j].merge(e)
		}
		if !merged {
			at[e.address] = len(kept)
			kept = append(kept, e)
			next = append(next, i)
		}
	}
	return kept
}

// merge adds another entry with the same address to e. It reports false if the two are different endpoints.
func (e *entry) merge(other entry) bool {
	if slices.Equal(e.ports, other.ports) {
		if e.draining && !other.draining {
			*e = other
		}
		return true
	}
	if e.draining != other.draining || e.pod != other.pod {
		return false
	}
	for _, p := range other.ports {
		if slices.ContainsFunc(e.ports, func(own discovery.Port) bool { return own.Number == p.Number && own.Target != p.Target }) {
			return false
		}
	}
	ports := slices.Clone(e.ports) // of the slice
	for _, p := range other.ports {
		if !slices.Contains(ports, p) {
			ports = append(ports, p)
		}
	}
	e.ports = ports
	return true
}

// equal reports whether two sets of endpoints are equal.
func equal(a, b []discovery.Endpoint) bool {
	return slices.EqualFunc(a, b, func(a, b discovery.Endpoint) bool {
		return a.Address == b.Address && a.OnlyPorts == b.OnlyPorts && a.Draining == b.Draining && a.Locality == b.Locality && a.ServiceAccount == b.ServiceAccount &&
			slices.Equal(a.Ports, b.Ports) && sameLabels(a.Labels, b.Labels)
	})
}

func sameLabels(a, b map[string]string) bool {
	return reflect.ValueOf(a).UnsafePointer() == reflect.ValueOf(b).UnsafePointer() || maps.Equal(a, b)
}
