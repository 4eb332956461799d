package balancer

// leastRequest is the power of two choices. The two are different endpoints: drawn with replacement, one stuck endpoint of
// two would still get a quarter of the calls.
type leastRequest struct{ *sampler }

func (l *leastRequest) next(pick, int) int {
	best, other := l.drawTwo()
	for k := 1; ; k++ {
		if l.lighter(other, best) {
			best = other
		}
		if k == l.balancer.choices()-1 {
			return best
		}
		other = l.drawOther(best)
	}
}

func (l *leastRequest) lighter(b, a int) bool {
	stateB, stateA := l.states[b].Load(), l.states[a].Load()
	if l.weights == nil && (stateB|stateA)&warming == 0 {
		return stateB&calls < stateA&calls // what the code below reduces to
	}
	callsB, weightB := l.load(b)
	callsA, weightA := l.load(a)
	return lighter(callsB, weightB, 1, callsA, weightA, 1)
}

// pickOfTwo is what a pick usually comes to: of two hosts with the same weight, the one with fewer calls in flight. It returns nil
// if one of them needs a closer look.
func (s *sampler) pickOfTwo() *Host {
	first, second := twoOf(s.balancer.rand(), len(s.states))
	a, b := s.states[first], s.states[second]
	stateA, stateB := a.Load(), b.Load()
	if (stateA|stateB)&^calls != 0 {
		return nil
	}
	if stateB < stateA {
		first, a = second, b
	}
	h := s.hosts[first]
	if a.Add(1)&gone != 0 {
		h.exit() // removed meanwhile
		return nil
	}
	return h
}

// lighter reports whether a call drawn for host a is better sent to host b, given the calls in flight, the weight and the
// cost per call of each.
//
// With equal weights this is cost*(calls+1), compared. With unequal weights (calls+1)/weight alone would never send an idle
// light host a call while a heavy one is idle too, and calls/weight would send it too many; so within one call of balance
// the weighted draw stands. At rest the shares are then exactly the weights, and under load the calls in flight are in
// proportion to them.
func lighter(callsB, weightB, costB, callsA, weightA, costA float64) bool {
	return costB*(callsB+1)*weightA < costA*(callsA*weightB+min(weightA, weightB))
}
