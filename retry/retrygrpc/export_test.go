package retrygrpc

// NewStream makes a stream within a loop that a test sets up.
var NewStream = newStream

// Unary is the interceptor of calls, for a test that needs no connection.
var Unary = (*Client).unary
