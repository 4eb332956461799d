package balancer

// random draws by weight.
type random struct{ *sampler }

func (r *random) next(pick, int) int { return r.draw() }
