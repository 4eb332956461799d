package balancer

import (
	"math"
	"time"
)

// warmUpLocked begins the slow start of hosts that have just arrived, unless most of the set would be in slow start:
// then there is nobody to take the load off them.
func (b *Balancer) warmUpLocked(arrived []*Host) {
	if b.cfg.SlowStart.Window == 0 {
		return
	}
	now, warming := b.now(), len(arrived)
	for _, h := range b.hosts {
		if start := h.warm.Load(); start != 0 && now-start < int64(b.cfg.SlowStart.Window) {
			warming++
		}
	}
	if 2*warming > len(b.hosts) {
		return
	}
	for _, h := range arrived {
		h.warm.Store(now)
	}
}

// ramp returns the part of its weight that a host gets, 1 after its slow start.
func (h *Host) ramp() float64 {
	start := h.warm.Load()
	if start == 0 {
		return 1
	}
	slow := &h.balancer.cfg.SlowStart
	age := time.Duration(h.balancer.now() - start)
	if age >= slow.Window {
		h.warm.Store(0)
		return 1
	}
	part := float64(max(age, time.Millisecond)) / float64(slow.Window)
	if slow.Aggression != 1 {
		part = math.Pow(part, 1/slow.Aggression)
	}
	return min(1, max(part, slow.MinPercent/100))
}
