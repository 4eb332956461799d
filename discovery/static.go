package discovery

import (
	"context"
	"iter"

	"github.com/nosidecar/mesh/discovery/internal/source"
)

// Static is a [Resolver] with a fixed table: endpoints by service, which is any of [Service.Names] in lower case. It must
// not be changed while in use; use [Memory] for what changes.
type Static map[string][]Endpoint

// Watch implements [Resolver]. It yields once.
func (s Static) Watch(ctx context.Context, service Service) iter.Seq2[[]Endpoint, error] {
	return source.Watch[Static](ctx, func(func()) source.Source[Endpoint] {
		for _, name := range service.Names() {
			if endpoints, ok := s[canonical(name)]; ok {
				return source.Fixed[Endpoint]{Endpoints: endpoints}
			}
		}
		return source.Fixed[Endpoint]{Err: unregistered(service.Names())}
	})
}
