package failure

// The conditions of package retry that failures meet, by their bits there.
const (
	serverError = 1 << iota
	gatewayError
	reset
	resetBeforeRequest
	connectFailure
	refused

	anyFailure = serverError | gatewayError | reset
)

// Retriable reports whether a failure of this kind is to be retried under conditions, which are a retry.Condition.
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
	// Our own refusals would be repeated; the caller, or the time for the call, is gone.
	return false
}
