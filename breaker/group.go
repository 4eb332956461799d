package breaker

import (
	"strings"
	"time"
)

// Group is circuits by name, each made when it is first used: what [Transport] does with the destinations of HTTP, for
// calls of another kind. Like there, 1000 are kept and those not used for long forgotten. The zero Group is ready to
// use. It is safe for concurrent use; its fields must not be changed once it is used, and it must not be copied.
type Group struct {
	// Config is the configuration of every circuit.
	Config Config

	// OnChange, if not nil, is told of every change of a circuit's state, as described at [New].
	OnChange func(name string, change Change)

	circuits registry
}

// Allow is [Circuit.Allow] of the named circuit; the error also says the name. It returns another error if the Config is
// invalid.
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
