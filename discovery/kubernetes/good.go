package kubernetes

import (
	"cmp"
	"maps"
	"slices"

	"github.com/nosidecar/mesh/internal/kubernetes"
)

// object is what is kept of an object of the API server.
type object[T any] interface {
	comparable
	fault() error                    // why it could not be read
	equal(T) bool                    // whether it means the same, if both could be read
	about(key kubernetes.Key) string // the name of its service; "" if it has none or if the name cannot be read
}

func (s *service) fault() error { return s.err }
func (s *slice) fault() error   { return s.err }
func (p *pod) fault() error     { return p.err }

func (s *service) about(key kubernetes.Key) string { return key.Name }
func (s *slice) about(kubernetes.Key) string       { return s.service }
func (p *pod) about(kubernetes.Key) string         { return "" }

// good is the last state of each object that could be read.
type good[T object[T]] struct {
	objects map[kubernetes.Key]T
	of      map[string]map[kubernetes.Key]T // the same, by service
	faulty  map[kubernetes.Key]T            // the latest states that could not be read; the last good ones stay in use
}

func newGood[T object[T]]() good[T] {
	return good[T]{make(map[kubernetes.Key]T), make(map[string]map[kubernetes.Key]T), make(map[kubernetes.Key]T)}
}

// take applies the changes of a state and calls touched with the name of each service that is concerned.
func (g good[T]) take(state kubernetes.State[T], touched func(about string)) {
	for _, key := range state.Changed {
		old, had := g.objects[key]
		broken, wasBroken := g.faulty[key]
		now, ok := state.Objects[key]
		isBroken := ok && now.fault() != nil
		if wasBroken {
			touched(broken.about(key))
		}
		if had && (wasBroken || isBroken) { // a fault also concerns the service of the last good state
			touched(old.about(key))
		}
		delete(g.faulty, key)
		switch {
		case isBroken:
			g.faulty[key] = now
			touched(now.about(key))
			continue
		case ok && had && old.equal(now):
			continue
		}
		if had {
			g.drop(key, old)
			touched(old.about(key))
		}
		if ok {
			g.put(key, now)
			touched(now.about(key))
		}
	}
}

func (g good[T]) put(key kubernetes.Key, now T) {
	g.objects[key] = now
	name := now.about(key)
	if g.of[name] == nil {
		g.of[name] = make(map[kubernetes.Key]T)
	}
	g.of[name][key] = now
}

func (g good[T]) drop(key kubernetes.Key, old T) {
	delete(g.objects, key)
	name := old.about(key)
	if delete(g.of[name], key); len(g.of[name]) == 0 {
		delete(g.of, name)
	}
}

// faults returns the objects of a service that cannot be read. An object that was never read, and whose service is unknown, may belong to
// any service.
func (g good[T]) faults(name string) (faulty map[kubernetes.Key]T) {
	for key, broken := range g.faulty {
		last, had := g.objects[key]
		about := broken.about(key)
		if about == name || had && last.about(key) == name || !had && about == "" {
			if faulty == nil {
				faulty = make(map[kubernetes.Key]T)
			}
			faulty[key] = broken
		}
	}
	return faulty
}

// first returns the first fault in the order of the names.
func first[T object[T]](faulty map[kubernetes.Key]T) error {
	if len(faulty) == 0 {
		return nil
	}
	return faulty[slices.MinFunc(slices.Collect(maps.Keys(faulty)), func(a, b kubernetes.Key) int { return cmp.Compare(a.Name, b.Name) })].fault()
}
