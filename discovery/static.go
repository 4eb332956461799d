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
	return func(yield func([]Endpoint, error) bool) {
		if ctx.Err() != nil {
			return
		}
		for _, name := range service.Names() {
			if endpoints, ok := s[canonical(name)]; ok {
				yieldOnce(ctx, yield, endpoints, nil)
				return
			}
		}
		yieldOnce(ctx, yield, nil, unknown(service))
	}
}

// yieldOnce is a watch of a set that never changes.
func yieldOnce(ctx context.Context, yield func([]Endpoint, error) bool, endpoints []Endpoint, err error) {
	if yield(endpoints, err) {
		<-ctx.Done()
	}
}
