package policy

import (
	"github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/policy/internal/consul"
)

// intentions returns what service-intentions of Consul say about the requests to the workload, nil if there are none at all. Those
// of other services alone are enough for the default to hold, as in Consul.
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
	case w.Service == "": // any of them may be about it
		return consul.Intentions(w.TrustDomain, "", false, nil)
	}
	return consul.Intentions(w.TrustDomain, w.Service, w.AllowByDefault, entries)
}

// unnamed warns about intentions if it is not known which service the workload is: all requests to it are denied then.
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
