package breaker

// For tests outside.
var ResultOf = resultOf

// Has reports whether the status is in the set.
func (c Codes) Has(code int) bool { return c.has(code) }
