// Package grpcconns has what the balancers for gRPC share about connections: which of those to an endpoint takes a call, and when
// one that is to be closed has no calls any more.
package grpcconns

import "sync/atomic"

// Ready is the connections to an endpoint that take calls. It is safe for concurrent use, and a look-up takes no lock. The zero
// value is none.
type Ready[T any, C interface {
	*T
	Count() int64
}] struct {
	only atomic.Pointer[T] // the one in all, if it is one
	all  atomic.Pointer[[]C]
}

// Set says which connections there are from now on. The slice must not be changed any more.
func (r *Ready[T, C]) Set(all []C) {
	r.only.Store(nil)
	switch len(all) {
	case 0:
		r.all.Store(nil)
		return
	case 1:
		r.only.Store(all[0])
	}
	r.all.Store(&all)
}

// Any reports whether there are any.
func (r *Ready[T, C]) Any() bool { return r.all.Load() != nil }

// Fewest returns the connection with the fewest calls, nil if there is none.
func (r *Ready[T, C]) Fewest() C {
	if only := r.only.Load(); only != nil {
		return only
	}
	all := r.all.Load()
	if all == nil {
		return nil
	}
	best := (*all)[0]
	for _, c := range (*all)[1:] {
		if c.Count() < best.Count() {
			best = c
		}
	}
	return best
}

// Calls counts the calls that a connection has until it is retired. It is meant to be embedded in what is kept for one, and safe
// for concurrent use.
//
// A connection must not be shut down earlier: to gRPC, a call that was given one in the meantime waits for nothing as long as
// another call goes on there.
type Calls struct {
	state atomic.Int64 // the number of calls, with the bits below
}

const (
	retired = 1 << 61 // no call may enter
	ended   = 1 << 62 // nor leave
)

// Count returns the number of calls.
func (c *Calls) Count() int64 { return c.state.Load() &^ (retired | ended) }

// Enter counts a call in, and returns how many there are. It returns 0 if the connection takes no more.
func (c *Calls) Enter() int64 {
	for {
		n := c.state.Load()
		if n&retired != 0 {
			return 0
		}
		if c.state.CompareAndSwap(n, n+1) {
			return n + 1
		}
	}
}

// Leave counts a call out. It reports true, once, if the connection is to be shut down now.
func (c *Calls) Leave() (last bool) {
	return c.state.Add(-1) == retired && c.end()
}

// Retire lets no more calls enter. It reports true, once, if the connection is to be shut down now.
func (c *Calls) Retire() (last bool) {
	return c.state.Or(retired)&^retired == 0 && c.end()
}

func (c *Calls) end() bool { return c.state.CompareAndSwap(retired, retired|ended) }
