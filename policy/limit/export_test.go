package limit

// Config returns what the pool was made with.
func (p *Pool) Config() PoolConfig {
	if p == nil {
		return PoolConfig{}
	}
	return p.config
}

// Hosts returns for how many origins there are connections.
func (c *Conns) Hosts() int {
	c.http.mu.Lock()
	defer c.http.mu.Unlock()
	return len(c.http.origins)
}
