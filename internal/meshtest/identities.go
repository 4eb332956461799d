package meshtest

import (
	"context"
	"iter"

	"github.com/nosidecar/mesh/tlsid"
)

// Identities is a source of the identities that are sent to it.
type Identities chan *tlsid.Identity

// Watch implements tlsid.Source.
func (s Identities) Watch(ctx context.Context) iter.Seq2[*tlsid.Identity, error] {
	return func(yield func(*tlsid.Identity, error) bool) {
		for {
			select {
			case id := <-s:
				if !yield(id, nil) {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}
}
