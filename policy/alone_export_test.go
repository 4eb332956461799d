package policy

// SetMostAlone changes how many documents may stand alone, until restore is called.
func SetMostAlone(n int) (restore func()) {
	before := mostAlone
	mostAlone = n
	return func() { mostAlone = before }
}
