package breaker

// For tests outside.
var ResultOf = resultOf

// Has reports whether the status is in the set.
func (c StatusSet) Has(code int) bool { return c.set.Has(code) }

// Config returns the configuration of the circuit, with defaults filled in.
func (c *Circuit) Config() Config { return c.cfg }

// Probes returns how many probes c keeps, whether or not they have ended.
func (c *Circuit) Probes() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.trips.Load()
	for _, p := range t.probes[:cap(t.probes)] {
		if p != nil {
			n++
		}
	}
	return n
}
