package failure

// The conditions of package retry that failures can meet. The bits are those of retry.Condition.
const (
	serverError = 1 << iota
	gatewayError
	reset
	resetBeforeRequest
	connectFailure
	refused

	anyFailure = serverError | gatewayError | reset
)

// Retriable reports whether a failure of this kind meets the conditions, which are a retry.Condition.
func (k Kind) Retriable(conditions uint32) bool {
	switch k {
	case TryTimeout, StreamReset, Reset:
		return conditions&anyFailure != 0
	case Connect:
		return conditions&(anyFailure|connectFailure|resetBeforeRequest) != 0
	case RefusedStream:
		return conditions&(anyFailure|refused) != 0
	case Unsent:
		return conditions&(anyFailure|resetBeforeRequest) != 0
	}
	// We would refuse the call again, the request would be as bad as before, the caller has given up, or the time is up.
	return false
}
