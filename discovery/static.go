package discovery

import (
	"context"
	"iter"
)

// Static is a [Resolver] with a fixed table: endpoints by service, which is any of [Service.Names] in lower case. It must
// not be changed while in use; use [Memory] for what changes.
type Static map[string][]Endpoint

// Watch implements [Resolver]. It yields once.
func (s Static) Watch(ctx context.Context, service Service) iter.Seq2[[]Endpoint, error] {
	return func(yield func([]Endpoint, error) bool) { iterate(ctx, s.follow(service), nil, yield) }
}

func (s Static) follow(service Service) source {
	for _, name := range service.Names() {
		if endpoints, ok := s[canonical(name)]; ok {
			return &fixed{endpoints: endpoints}
		}
	}
	return &fixed{err: unknown(service)}
}

// fixed is the source of a set, or of an error, that never changes.
type fixed struct {
	endpoints []Endpoint
	err       error
}

// step implements source.
func (f *fixed) step(_ context.Context, _ bool, yield func([]Endpoint, error) bool) turn {
	yield(f.endpoints, f.err)
	return turn{}
}

// stop implements source.
func (f *fixed) stop() {}
