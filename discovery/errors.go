package discovery

import "errors"

// ErrUnknownService is yielded by a [Resolver] for a service it does not know. Test for it with errors.Is.
var ErrUnknownService = errors.New("discovery: unknown service")
