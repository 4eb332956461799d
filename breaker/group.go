package breaker

import (
	"strings"
	"time"
)

// Group holds circuits by name, for calls other than HTTP. Each is created on first use. As with [Transport], at most 1000 are
// kept, and those that have not been used for long are forgotten. The zero Group is ready to use. It is safe for concurrent use;
// its fields must not be changed once it is used, and it must not be copied.
type Group struct {
	// Config is the configuration of every circuit.
	Config Config

	// OnChange, if not nil, is called for every change of a circuit's state, as described at [New].
	OnChange func(name string, change Change)

	circuits registry
}

// Allow calls [Circuit.Allow] on the named circuit; the error also contains the name. It returns another error if the Config
// is invalid.
func (g *Group) Allow(name string) (Lease, error) {
	d := g.circuits.get(name)
	if d == nil {
		var err error
		name = strings.Clone(name)
		if d, err = g.circuits.add(name, name, g.Config, g.OnChange, time.Now()); err != nil {
			return Lease{}, err
		}
	}
	lease, err := d.circuit.Allow()
	if err != nil {
		return Lease{}, d.refused
	}
	return lease, nil
}

// States returns the state of every circuit by name.
func (g *Group) States() map[string]State {
	return statesOf(&g.circuits)
}
