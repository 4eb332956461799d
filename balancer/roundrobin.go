package balancer

// roundRobin takes the hosts in turn. With unequal weights the turns step through the alias table by the golden ratio,
// which spreads the turns of each host evenly: no schedule to keep, no lock, and constant time for any weights.
type roundRobin struct {
	*sampler
	turn *turn
}

const goldenRatio = 0x9e3779b97f4a7c15 // of 1<<64

func (r *roundRobin) next(pick, int) int { return r.take(r.alias) }

// take returns the next host by a table.
func (r *roundRobin) take(table alias) int {
	n := len(r.hosts)
	i := 0
	for range redraws {
		turn := r.turn.Add(1)
		if table == nil {
			i = int(turn % uint64(n))
		} else {
			i = table.at(turn*goldenRatio, n)
		}
		if r.ripe(i) { // a turn that slow start skips is lost, so that it favours no other endpoint
			break
		}
	}
	return i
}
