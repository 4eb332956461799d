package breaker

// For tests outside.
var ResultOf = resultOf

// Has reports whether the status is in the set.
func (c Codes) Has(code int) bool { return c.has(code) }

// Config returns the configuration of the circuit, with defaults filled in.
func (c *Circuit) Config() Config { return c.cfg }
