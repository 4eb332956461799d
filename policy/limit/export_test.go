package limit

// Config returns what the pool was made with.
func (p *Pool) Config() PoolConfig {
	if p == nil {
		return PoolConfig{}
	}
	return p.config
}

// Hosts returns for how many hosts of URLs there are HTTP/1 connections.
func (c *Conns) Hosts() int {
	c.http1.mu.Lock()
	defer c.http1.mu.Unlock()
	return len(c.http1.hosts)
}
