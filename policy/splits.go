package policy

import (
	"math"
	"reflect"
	"slices"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/istio"
	"github.com/nosidecar/mesh/policy/internal/smi"
	"github.com/nosidecar/mesh/policy/route"
)

// split says how the requests to a service are divided.
type split struct {
	by    any         // the content of its document; see compiler.of
	from  identity    // the identity of that document
	parts []splitPart // the first that matches a request counts; if none does, the request goes to the service itself
}

// equal reports whether two splits have the same document and parts. Either may be nil.
func (s *split) equal(other *split) bool {
	if s == nil || other == nil {
		return s == other
	}
	return s.by == other.by && reflect.DeepEqual(s.parts, other.parts)
}

// splitPart says how some requests are divided.
type splitPart struct {
	port     int           // the port that is dialled; 0 for any
	when     []route.Match // one of these must match; nil for all requests
	backends []route.Destination
}

// trafficSplits assigns each service its first split.
func (c *compiler) trafficSplits() {
	p := c.plan
	c.refer()
	for _, ts := range c.splitDocs {
		if ts.Failed() {
			continue
		}
		spec := &ts.is.Spec
		var when []route.Match
		for i, ref := range spec.Matches {
			group, ok := documentOf[smi.HTTPRouteGroup](c, smi.SpecsGroup, smi.HTTPRouteGroupKind, ts.namespace, ref.Name)
			if !ok {
				if !c.unread(ts.namespace, ref.Name) {
					ts.Errorf(yamldoc.Index("spec.matches", i)+".name", "%s", c.absent(ref.Kind, ts.namespace, ref.Name))
				}
				continue
			}
			group.used = true
			if !group.Failed() {
				when = append(when, group.is.Routes()...)
			}
		}
		host := c.service(spec.Service, ts.namespace)
		p.name(host)
		if has := c.splits[host]; has != nil {
			first := c.of(has.by)
			ts.Warnf("spec.service", "has no effect: %s splits %s already (%s:%d), and the first one counts",
				first.identity, host, first.file, first.Line)
			continue
		}
		weights, ok := ts.is.Weights()
		if !ok {
			continue
		}
		backends := make([]route.Destination, len(weights))
		for i := range weights {
			to := c.service(spec.Backends[i].Service, ts.namespace)
			p.name(to)
			backends[i] = route.Destination{Target: route.Target{Host: to}, Weight: weights[i]}
		}
		c.splits[host] = &split{ts.is, ts.identity, c.byPort(ts, host, when, backends)}
	}
	for _, g := range c.routeGroups {
		if !g.used && !g.Failed() {
			g.Warnf("", "no TrafficSplit and no TrafficTarget refers to it: it has no effect")
		}
	}
}

// service returns the full name of a service that a document names.
func (c *compiler) service(name, namespace string) string {
	return c.plan.canonical(istio.Resolve(name, namespace, c.plan.workload.ClusterDomain))
}

// byPort returns the parts of a split. Backends are left out for ports of the service that they lack, if documents have the ports of both.
func (c *compiler) byPort(ts decoded[smi.TrafficSplit], host string, when []route.Match, backends []route.Destination) []splitPart {
	var parts []splitPart
	lacking := make([]bool, len(backends))
	for _, port := range c.plan.servicePorts(host) {
		part := splitPart{port: port.number, when: when}
		sum := 0
		for i, b := range backends {
			known := c.plan.servicePorts(b.Target.Host)
			if known == nil || slices.ContainsFunc(known, func(p servicePort) bool { return p.number == port.number }) {
				part.backends = append(part.backends, b)
				sum += b.Weight
			} else {
				lacking[i] = true
			}
		}
		if sum > 0 {
			parts = append(parts, part)
		}
	}
	if !slices.Contains(lacking, true) {
		return []splitPart{{when: when, backends: backends}}
	}
	for i := range backends {
		if lacking[i] {
			ts.Warnf(yamldoc.Index("spec.backends", i)+".service", "lacks a port of %s: it gets none of the requests to that port", host)
		}
	}
	return parts
}

// divide returns destinations with the one at index i divided among backends. Backends without a port get that of the destination.
func divide(destinations []route.Destination, i int, backends []route.Destination) []route.Destination {
	whole := destinations[i]
	total := 0
	for _, b := range backends {
		total += b.Weight
	}
	out := slices.Clone(destinations[:i])
	out = append(out, backends...)
	out = append(out, destinations[i+1:]...)
	for j := range out {
		d := &out[j]
		if i <= j && j < i+len(backends) {
			d.Headers = whole.Headers
			if d.Target.Port == 0 {
				d.Target.Port = whole.Target.Port
			}
		}
		switch {
		case len(destinations) == 1:
		case i <= j && j < i+len(backends):
			d.Weight = times(d.Weight, whole.Weight)
		default:
			d.Weight = times(d.Weight, total)
		}
	}
	return reduced(out)
}

// times multiplies weights. A product that overflows would be too large for a route table anyway.
func times(a, b int) int {
	if a != 0 && b > math.MaxInt/a {
		return math.MaxInt
	}
	return a * b
}

// reduced returns destinations with smaller weights: in the same proportion if the result fits a route table, otherwise in parts of about a
// million.
func reduced(destinations []route.Destination) []route.Destination {
	sum := 0.0
	for _, d := range destinations {
		sum += float64(d.Weight)
	}
	if sum <= 100 {
		return destinations
	}
	divisor := 0
	for _, d := range destinations {
		divisor = gcd(divisor, d.Weight)
	}
	out := slices.Clone(destinations)
	for i := range out {
		if w := &out[i].Weight; sum/float64(divisor) <= math.MaxUint32 {
			*w /= divisor
		} else if *w > 0 {
			*w = max(1, int(float64(*w)/sum*1e6))
		}
	}
	return out
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// atPort returns matches with an additional condition on the port.
func atPort(matches []route.Match, port int) []route.Match {
	if matches == nil {
		return []route.Match{{Port: port}}
	}
	out := slices.Clone(matches)
	for i := range out {
		out[i].Port = port
	}
	return out
}
