package policy

import (
	"slices"
	"strings"
	"sync/atomic"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/linkerd"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// profile is a ServiceProfile, or stands for what the annotations of a Service say.
type profile struct {
	lazy[linkerd.ServiceProfile]
	*reading
	budget       retry.BudgetConfig
	destinations []route.Destination

	service *served // the Service; nil for a ServiceProfile

	// said is the translated document. It is dropped after the documents were compiled, because it takes more memory than the document.
	said atomic.Pointer[linkerd.Profile]
}

func readProfile(doc *yamldoc.Document, r *reading, is *linkerd.ServiceProfile) *profile {
	p := &profile{reading: r}
	p.keep(is)
	if !doc.Failed() {
		said := is.Profile()
		p.budget, p.destinations = said.Budget, said.Destinations
		p.said.Store(&said)
	}
	return p
}

// routes returns the routes of the profile.
func (p *profile) routes() []linkerd.ProfileRoute {
	if known := p.said.Load(); known != nil {
		return known.Routes
	}
	return p.peek().Profile().Routes
}

// pack drops what was needed only for compiling.
func (p *profile) pack(words *yamldoc.Words, d *yamldoc.Document) {
	p.said.Store(nil)
	p.lazy.pack(words, d)
}

// serviceProfiles assigns each service its profile: that in the caller's namespace, or otherwise that in the service's namespace.
func (c *compiler) serviceProfiles() {
	p := c.plan
	for _, own := range []bool{true, false} {
		for _, sp := range c.profileDocs {
			if sp.Failed() || (sp.namespace == p.workload.Namespace) != own {
				continue
			}
			host := strings.TrimSuffix(strings.ToLower(sp.name), ".")
			service := p.service(host)
			switch has := c.profiles[host]; {
			case service.Name == "" && strings.HasSuffix(p.canonical(host), ".svc."+p.workload.ClusterDomain):
				sp.Warnf("metadata.name", "has no effect: a profile has the full name of its service, such as %s.%s.svc.%s",
					"name", "namespace", p.workload.ClusterDomain)
				continue
			case !own && sp.namespace != service.Namespace:
				sp.Warnf("metadata.namespace", "has no effect: callers in %s look for the profile there and in the namespace "+
					"of the service", p.workload.Namespace)
				continue
			case has != nil:
				first := c.of(has)
				sp.Warnf("metadata.name", "has no effect: %s is for the same service and in the caller's namespace (%s:%d)",
					first.identity, first.file, first.Line)
				continue
			}
			p.name(host)
			c.profiles[host] = sp.is
			destinations := slices.Clone(sp.is.destinations)
			for i := range destinations {
				d := &destinations[i]
				d.Target.Host = p.canonical(d.Target.Host)
				p.name(d.Target.Host)
			}
			switch has := c.splits[host]; {
			case len(destinations) == 0:
			case has != nil:
				first := c.of(has.by)
				sp.Warnf("spec.dstOverrides", "has no effect: %s splits the service (%s:%d)", first.identity, first.file, first.Line)
			default:
				c.splits[host] = &split{sp.is, sp.identity, []splitPart{{backends: reduced(destinations)}}}
			}
		}
	}
}
