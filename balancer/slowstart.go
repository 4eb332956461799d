package balancer

import (
	"math"
	"time"
)

// warmUpLocked begins the slow start of hosts that have just arrived, unless most of the set would be in slow start: then
// the other endpoints cannot take over their load.
func (b *Balancer) warmUpLocked(arrived []*Host) {
	if b.cfg.SlowStart.Window == 0 {
		return
	}
	now, slow := b.now(), len(arrived)
	for _, h := range b.order {
		if h.state.Load()&warming != 0 && h.ramp() < 1 {
			slow++
		}
	}
	if 2*slow > len(b.order) {
		return
	}
	for _, h := range arrived {
		h.warmed.Store(now)
		h.state.Or(warming)
	}
}

// ramp returns the fraction of its weight that a host in slow start gets, 1 when slow start is over.
func (h *Host) ramp() float64 {
	slow := &h.balancer.cfg.SlowStart
	age := time.Duration(h.balancer.now() - h.warmed.Load())
	if age >= slow.Window {
		h.state.And(^uint64(warming))
		return 1
	}
	part := float64(max(age, time.Millisecond)) / float64(slow.Window)
	if slow.Aggression != 1 {
		part = math.Pow(part, 1/slow.Aggression)
	}
	return min(1, max(part, slow.MinFraction))
}
