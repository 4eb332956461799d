// Package grpcconns has what the gRPC balancers share about connections: which connection to an endpoint gets a call, and when a retired
// connection has no calls left.
package grpcconns

import "sync/atomic"

// Ready is the set of connections to an endpoint that take calls. It is safe for concurrent use, and look-ups take no lock. The zero value
// is empty.
type Ready[C interface{ Count() int64 }] struct{ all atomic.Pointer[[]C] }

// Set replaces the connections. The slice must not be changed afterwards.
func (r *Ready[C]) Set(all []C) {
	if len(all) == 0 {
		r.all.Store(nil)
		return
	}
	r.all.Store(&all)
}

// Any reports whether there is a connection.
func (r *Ready[C]) Any() bool { return r.all.Load() != nil }

// Fewest returns the connection with the fewest calls, or the zero value if there is none.
func (r *Ready[C]) Fewest() (best C) {
	all := r.all.Load()
	if all == nil {
		return best
	}
	best = (*all)[0]
	for _, c := range (*all)[1:] {
		if c.Count() < best.Count() {
			best = c
		}
	}
	return best
}

// Calls counts the calls on a connection, and says when a retired connection can be shut down. It is meant to be embedded in the type of
// connections, and is safe for concurrent use.
//
// A connection must not be shut down while it has calls: gRPC would leave a call that had just been given the connection waiting for as
// long as another call continues on it.
type Calls struct {
	state atomic.Int64 // the number of calls, with the bits below
}

const (
	retired = 1 << 61 // no more calls may enter
	ended   = 1 << 62 // the last call has left, and the end was reported
)

// Count returns the number of calls.
func (c *Calls) Count() int64 { return c.state.Load() &^ (retired | ended) }

// Enter adds a call and returns the number of calls. It returns 0 if the connection is retired.
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

// Leave removes a call. It reports true, once, if the connection must be shut down now.
func (c *Calls) Leave() (last bool) {
	return c.state.Add(-1) == retired && c.end()
}

// Retire prevents further calls. It reports true, once, if the connection must be shut down now.
func (c *Calls) Retire() (last bool) {
	return c.state.Or(retired)&^retired == 0 && c.end()
}

func (c *Calls) end() bool { return c.state.CompareAndSwap(retired, retired|ended) }
