package limit

// Config returns what the pool was made with.
func (p *Pool) Config() PoolConfig {
	if p == nil {
		return PoolConfig{}
	}
	return p.config
}
