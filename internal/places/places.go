// Package places bounds how many requests wait for the same thing, without letting one sender take all of the places.
package places

import (
	"net/netip"
	"sync"
)

// Places is a bound on requests that wait. A sender gets another place only while more are free than it has taken. It is safe for
// concurrent use.
type Places struct {
	// Most is how many places there are. A sender that is alone gets half of them.
	Most int

	mu  sync.Mutex
	all int
	by  map[netip.Addr]int
}

// Enter takes a place for a request from an address, and reports whether there was one.
func (p *Places) Enter(from netip.Addr) bool {
	from = Network(from)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.by[from] >= p.Most-p.all {
		return false
	}
	if p.by == nil {
		p.by = make(map[netip.Addr]int)
	}
	p.all++
	p.by[from]++
	return true
}

// Leave gives back the place of a request from an address.
func (p *Places) Leave(from netip.Addr) {
	from = Network(from)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all--
	if p.by[from]--; p.by[from] == 0 {
		delete(p.by, from)
	}
}

// Network returns the address that stands for a sender. Whoever has an IPv6 address usually has the whole /64, and can send from all of it, so
// that is one sender. So are all addresses that are not valid, such as those of unix sockets.
func Network(a netip.Addr) netip.Addr {
	if a = a.Unmap(); a.Is6() {
		return netip.PrefixFrom(a.WithZone(""), 64).Masked().Addr()
	}
	return a
}
