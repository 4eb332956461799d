package balancer

// random draws by weight.
type random struct{ *sampler }

func (r *random) next(PickInfo, int) *Host {
	return r.entries[r.draw()].host
}
