package balancer

import (
	"math/bits"
	"sync/atomic"
)

// sampler draws hosts by weight. A host in slow start is drawn in proportion to its reduced weight.
type sampler struct {
	balancer *Balancer
	hosts    []*Host
	states   []*atomic.Uint64 // of hosts: a pick does not touch hosts that it does not choose
	weights  []float64        // nil if all are equal
	alias    alias            // nil if all are equal
	total    float64          // weight
	near     []int32          // the indices of hosts in the order of the aperture; nil without one
}

// draw returns the index of a host.
func (s *sampler) draw() int {
	i := s.alias.at(s.balancer.rand(), len(s.hosts))
	if s.states[i].Load()&warming == 0 {
		return i
	}
	return s.drawRipe(i)
}

// drawRipe draws again until it finds a host that slow start lets pass. At most half of the hosts are in slow start, so the
// bound is hardly ever reached.
func (s *sampler) drawRipe(i int) int {
	for range redraws {
		if s.ripe(i) {
			break
		}
		i = s.alias.at(s.balancer.rand(), len(s.hosts))
	}
	return i
}

func (s *sampler) ripe(i int) bool {
	return s.states[i].Load()&warming == 0 || s.balancer.float() < s.hosts[i].ramp()
}

// drawTwo returns the indices of two different hosts, or twice the only one.
func (s *sampler) drawTwo() (int, int) {
	n := len(s.hosts)
	if n == 1 {
		return 0, 0
	}
	// One random number is enough for both: what is left of it after the first draw is still uniform, and with weights each
	// draw uses one half of its bits.
	r := s.balancer.rand()
	var i, j int
	if s.alias == nil {
		i, j = twoOf(r, n)
	} else {
		i, j = s.alias.at(r, n), s.alias.at(bits.RotateLeft64(r, 32), n)
		if j == i {
			j = s.drawOther(i)
		}
	}
	if (s.states[i].Load()|s.states[j].Load())&warming != 0 {
		i = s.drawRipe(i)
		j = s.drawOther(i)
	}
	return i, j
}

// twoOf returns two different numbers below n, which is at least 2, for a random number.
func twoOf(r uint64, n int) (int, int) {
	first, rest := bits.Mul64(r, uint64(n))
	second, _ := bits.Mul64(rest, uint64(n-1))
	_, less := bits.Sub64(second, first, 0)
	return int(first), int(second + 1 - less)
}

// drawOther returns the index of a host that is not i, unless there is only one.
func (s *sampler) drawOther(i int) int {
	n := len(s.hosts)
	switch {
	case n == 1:
		return i
	case n == 2:
		return 1 - i
	}
	for range 4 {
		if j := s.draw(); j != i {
			return j
		}
	}
	// i has nearly all the weight; any other will do for the comparison.
	j := alias(nil).at(s.balancer.rand(), n-1)
	if j >= i {
		j++
	}
	return j
}

// weight returns the weight of host i.
func (s *sampler) weight(i int) float64 {
	if s.weights == nil {
		return s.total / float64(len(s.hosts))
	}
	return s.weights[i]
}

// load returns the calls in flight on host i and its weight, reduced by slow start.
func (s *sampler) load(i int) (inFlight, weight float64) {
	state := s.states[i].Load()
	weight = s.weight(i)
	if state&warming != 0 {
		weight *= s.hosts[i].ramp()
	}
	return float64(state & calls), weight
}
