package policy

import (
	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/gateway"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// readSettings reads the annotations of Linkerd that say how a Service is called.
func (c *compiler) readSettings(doc *yamldoc.Document, r *reading, is *service, s *served) {
	said := gateway.Annotated(&is.Object, func(key, format string, args ...any) {
		doc.Errorf(yamldoc.Key("metadata.annotations", key), format, args...)
	})
	if said == (gateway.Settings{}) {
		return
	}
	s.said = &said
	if said.Timeout != nil || said.Both() != nil {
		s.like = &profile{reading: r, budget: retry.BudgetConfig{Off: true}, service: s}
	}
	for _, retries := range []*retry.Config{said.HTTP, said.GRPC, said.Both()} {
		one := route.Route{Destinations: make([]route.Destination, 1)}
		if retries != nil {
			one.Retry = *retries
		}
		if _, err := route.NewTable([]route.Route{one}); err != nil && !doc.Failed() { // only for its errors
			doc.Errorf("metadata.annotations", "cannot be enforced: %v", err)
		}
	}
}

// serviceSettings puts the annotations of Services into force, as if they were ServiceProfiles. As in Linkerd, they have no effect on services with a
// ServiceProfile or a TrafficSplit.
func (c *compiler) serviceSettings() {
	p := c.plan
	for _, s := range c.serviceDocs {
		if s.is.said == nil || s.Failed() || p.ports.plain(s.is.host) != s.is {
			continue
		}
		if by := c.divided(s.is.host); by != nil {
			s.Warnf("metadata.annotations", "those for retries, timeouts and failing endpoints have no effect: %s is about the Service (%s:%d), and with it "+
				"they do not apply", by.identity, by.file, by.Line)
			continue
		}
		if s.is.like != nil {
			c.profiles[s.is.host] = s.is.like
		}
		if a := s.is.said.Accrual; a != nil {
			p.accruals[s.is.host] = a
		}
	}
}

// annotate returns a step with what the annotations of the Service say. alone says that no other document routes the request.
func (p *profile) annotate(s step, alone bool) step {
	said := p.service.said
	if !s.timed && said.Timeout != nil {
		s.Timeout = *said.Timeout
	}
	if retries := said.Both(); !s.retried && retries != nil {
		s.Retry = *retries
	}
	if alone {
		s.document, s.by = p.identity.String(), p
	}
	return s
}
