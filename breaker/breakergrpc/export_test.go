package breakergrpc

// The interceptors of calls, for tests that need no connection.
var (
	Unary       = (*Client).unary
	ServerUnary = (*Server).unary
)
