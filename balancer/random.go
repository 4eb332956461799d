package balancer

// random draws by weight.
type random struct{ *sampler }

func (r *random) next(PickInfo, int) int { return r.draw() }
