package kubernetes

import "github.com/nosidecar/mesh/internal/kubernetes"

// object is what is kept of an object of the API server.
type object[T any] interface {
	comparable
	fault() error // why it could not be read
	equal(T) bool // whether it says the same
}

func (s *service) fault() error { return s.err }
func (s *slice) fault() error   { return s.err }
func (p *pod) fault() error     { return p.err }

// good is the last state of each object that could be read.
type good[T object[T]] map[kubernetes.Key]T

// take takes the changes of a state, and calls changed for those that make a difference; what was not there before, or is not there any
// more, is the zero value. It returns why an object could not be read: what was there holds.
func (g good[T]) take(state kubernetes.State[T], changed func(key kubernetes.Key, old, now T)) error {
	var err error
	var none T
	for _, key := range state.Changed {
		old := g[key]
		now, ok := state.Objects[key]
		switch {
		case !ok:
			delete(g, key)
			if old != none {
				changed(key, old, none)
			}
		case now.fault() != nil:
			err = now.fault()
		case old == none || !old.equal(now):
			g[key] = now
			changed(key, old, now)
		}
	}
	return err
}
