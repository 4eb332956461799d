package retrygrpc

// NewStream makes a stream within a loop that a test sets up.
var NewStream = newStream
