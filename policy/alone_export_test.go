package policy

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
