package policy

import (
	"github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/policy/internal/consul"
)

// intentions returns the intentions from Consul's service-intentions for requests to the workload. It returns nil only if there are no
// service-intentions at all: as in Consul, the default applies even if they are all about other services.
func (c *compiler) intentions() *authz.Intentions {
	w := &c.plan.workload
	var entries []*consul.Entry
	for _, d := range c.entriesOfConsul {
		if d.kind == consul.ServiceIntentionsKind && !d.Failed() {
			entries = append(entries, d.is)
		}
	}
	switch {
	case entries == nil:
		return nil
	case w.Service == "": // any of them may be about the workload
		return consul.Intentions(w.TrustDomain, "", false, nil)
	}
	return consul.Intentions(w.TrustDomain, w.Service, w.AllowByDefault, entries)
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
