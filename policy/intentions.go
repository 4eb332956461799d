package policy

import (
	"slices"

	"github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/policy/internal/consul"
)

// intentions returns the intentions from Consul's service-intentions for requests to the workload. It returns nil only if there are no
// service-intentions at all: as in Consul, the default applies even if they are all about other services, or refused.
func (c *compiler) intentions() *authz.Intentions {
	w := &c.plan.workload
	var entries []*consul.Entry
	for _, d := range c.entriesOfConsul {
		if d.kind == consul.ServiceIntentionsKind && !d.Failed() {
			entries = append(entries, d.is)
		}
	}
	switch {
	case entries == nil && !slices.ContainsFunc(c.alone, c.intends):
		return nil
	case w.Service == "": // any of them may be about the workload
		return consul.Intentions(w.TrustDomain, "", false, nil)
	}
	return consul.Intentions(w.TrustDomain, w.Service, w.AllowByDefault, entries)
}

// intends reports whether a document is, or may be meant to be, service-intentions that are refused.
func (c *compiler) intends(p *piece) bool {
	return p.verdict != asWritten && p.ofConsul() && (p.protects() || c.misplaced(p))
}

// unnamed warns about intentions if the service of the workload is unknown, because then all requests to it are denied.
func (c *compiler) unnamed() {
	if c.plan.workload.Service != "" {
		return
	}
	for _, d := range c.entriesOfConsul {
		if d.kind == consul.ServiceIntentionsKind {
			d.Warnf(d.is.NameField(), "it is not known of which service this process is an instance, so intentions deny all requests to it: "+
				"set Service in mesh.WithWorkload, or give the process an identity of Consul Connect")
			return
		}
	}
}
