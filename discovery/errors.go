package discovery

import (
	"errors"
	"fmt"
	"strings"
)

// ErrUnknownService is yielded by a [Resolver] for a service it does not know. Test for it with errors.Is.
var ErrUnknownService = errors.New("discovery: unknown service")

func unknown(service Service) error {
	return fmt.Errorf("%w: %s", ErrUnknownService, service.Host)
}

// unregistered is the error for a service that a table has under none of its names. It lists them, since a table may have another form
// of the name, such as one with a port.
func unregistered(names []string) error {
	return fmt.Errorf("%w: nothing is registered as %s", ErrUnknownService, strings.Join(names, " or "))
}
