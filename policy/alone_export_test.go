package policy

// Rounds returns how often documents are combined until those that are good together are found.
func Rounds(last *Plan, sources []Source, w Workload) int {
	return compile(last, sources, w).rounds + 1
}

// SetMostShares changes how many shares the chains of Consul may have together, until restore is called.
func SetMostShares(n int) (restore func()) {
	before := mostShares
	mostShares = n
	return func() { mostShares = before }
}

// SetMostAlone changes how many documents may stand alone, until restore is called.
func SetMostAlone(n int) (restore func()) {
	before := mostAlone
	mostAlone = n
	return func() { mostAlone = before }
}

// SetMostJoined changes how many routes the documents of a namespace may make with others, until restore is called.
func SetMostJoined(n int) (restore func()) {
	before := mostJoined
	mostJoined = n
	return func() { mostJoined = before }
}
