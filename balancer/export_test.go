package balancer

import (
	"context"
	"math"
)

// SetRand makes the picks of b draw from rand. It must be called before b is used.
func SetRand(b *Balancer, rand func() uint64) { b.rand = rand }

// Warming reports whether h is in slow start.
func Warming(h *Host) bool { return h.state.Load()&warming != 0 && h.ramp() < 1 }

// TransportHosts returns the hosts of a service of t.
func TransportHosts(t *Transport, name string) []*Host {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if s := t.services[name]; s != nil {
		return s.balancer.Hosts()
	}
	return nil
}

// Tried returns the IDs of the endpoints that requests with ctx were sent to, if ctx is of [WithTried].
func Tried(ctx context.Context) []string { return triedOf(ctx).all() }

// Reported returns the requests a second for each unit of utilization that h has reported last.
func Reported(h *Host) float64 {
	if r := h.reports.Load(); r != nil {
		return math.Float64frombits(r.requests.Load()) / math.Float64frombits(r.utilization.Load())
	}
	return 0
}

// SetReported makes the reports of the hosts of b count at once: at(i) requests a second for each unit of utilization.
func SetReported(b *Balancer, at func(i int) float64) {
	now := b.now()
	for i, h := range b.Hosts() {
		r := new(reports)
		r.utilization.Store(math.Float64bits(1))
		r.requests.Store(math.Float64bits(at(i)))
		r.last.Store(now)
		r.since.Store(now - int64(blackout) - 1)
		h.reports.Store(r)
	}
	b.reweigh(now)
}

// Eject ejects a host, and leaves the picks as they are: SetEjected(true) is under way.
func Eject(h *Host) { h.state.Or(unwanted) }

// PublishWhile brings the picks of b up to date, and calls eject after it has been worked out which places get how much of the traffic.
func PublishWhile(b *Balancer, eject func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	shares, panics := b.trafficLocked()
	eject()
	b.picks.Store(b.snapshotOf(shares, panics))
}
