package balancer

// sampler draws hosts by weight. In slow start, a host is drawn in proportion to its reduced weight.
type sampler struct {
	balancer *Balancer
	entries  []entry
	alias    alias
}

type entry struct {
	host   *Host
	weight float64
}

// draw returns the index of a host.
func (s *sampler) draw() int {
	i := s.alias.at(s.balancer.rand(), len(s.entries))
	if s.entries[i].host.warm.Load() == 0 {
		return i
	}
	return s.drawRipe(i)
}

// drawRipe draws again until a host is met that its slow start lets pass. At most half of the hosts are in slow start,
// so that the bound is hardly ever met.
func (s *sampler) drawRipe(i int) int {
	for range redraws {
		if s.ripe(i) {
			break
		}
		i = s.alias.at(s.balancer.rand(), len(s.entries))
	}
	return i
}

func (s *sampler) ripe(i int) bool {
	h := s.entries[i].host
	return h.warm.Load() == 0 || s.balancer.float() < h.ramp()
}

// drawOther returns the index of a host that is not i. There must be two or more.
func (s *sampler) drawOther(i int) int {
	n := len(s.entries)
	if n == 2 {
		return 1 - i
	}
	if s.alias != nil {
		for range 4 {
			if j := s.draw(); j != i {
				return j
			}
		}
		// i has nearly all the weight; any other will do for the comparison.
	}
	j := alias(nil).at(s.balancer.rand(), n-1)
	if j >= i {
		j++
	}
	return j
}

// weight returns the weight of a host, reduced by its slow start.
func (e *entry) load() (inFlight, weight float64) {
	weight = e.weight
	if e.host.warm.Load() != 0 {
		weight *= e.host.ramp()
	}
	return float64(e.host.InFlight()), weight
}
