package balancer

import "math"

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
	part := float64(h.balancer.now()-h.warmed.Load()) / float64(slow.Window)
	if part >= 1 {
		h.state.And(^uint64(warming))
		return 1
	}
	if slow.Aggression != 1 {
		part = math.Pow(part, 1/slow.Aggression)
	}
	return max(part, slow.MinFraction)
}
