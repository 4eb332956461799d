package balancer

import (
	"errors"
	"fmt"
	"strings"

	"github.com/nosidecar/mesh/discovery"
)

// Locality prefers near endpoints, as Istio's localityLbSetting does. The zero value is off.
//
// Without Distribute, places are priorities: calls go to the nearest endpoints, and spill over to the next nearest to the
// extent that less than 1/1.4 (71%) of the nearer are healthy. At most one of Distribute, Failover and FailoverPriority may
// be set.
type Locality struct {
	// Enabled turns the preference on.
	Enabled bool

	// Own is where the caller runs. Nearest are endpoints of the same subzone, then of the same zone, of the same
	// region, and the others.
	Own discovery.Locality

	// Distribute divides the calls by the caller's place, regardless of distance. The first rule for the caller's place
	// applies. A caller whose place has no rule has no preference.
	Distribute []Distribution

	// Failover names, for the caller's region, the one to prefer among the other regions.
	Failover []Failover

	// FailoverPriority ranks endpoints by labels, given with the caller's own values and the most important first. The
	// nearest endpoints match all of them, the next all but the last, and so on. If an endpoint lacks one of the labels
	// topology.kubernetes.io/region, topology.kubernetes.io/zone and topology.istio.io/subzone, its Locality counts.
	FailoverPriority []Label
}

// Distribution divides the calls of one place. Places are written region/zone/subzone; "*" matches any name, and so does an
// omitted part.
type Distribution struct {
	// From is the caller's place.
	From string

	// To are the shares of the endpoints; each belongs to the first place it is in. Endpoints in other places get no calls.
	To []Portion
}

// Portion is the share of the calls that a place gets.
type Portion struct {
	Place  string
	Weight uint32 // relative to the others of the Distribution
}

// Failover names the region, To, that takes the calls of another, From.
type Failover struct {
	From, To string
}

// Label is a label and its value.
type Label struct {
	Name, Value string
}

// topology is a compiled Locality.
type topology struct {
	mode      topologyMode
	own       discovery.Locality
	to        []Portion
	failover  string // region
	preferred []Label
}

type topologyMode uint8

const (
	anywhere topologyMode = iota
	byDistance
	byLabels
	byRule
)

// nowhere is the place of endpoints that get no calls.
const nowhere = -1

func (l Locality) compile() (topology, error) {
	t := topology{own: l.Own}
	set := 0
	for _, n := range []int{len(l.Distribute), len(l.Failover), len(l.FailoverPriority)} {
		if n > 0 {
			set++
		}
	}
	switch {
	case !l.Enabled && set > 0:
		return t, errors.New("rules are set, but it is not enabled")
	case !l.Enabled:
		return t, nil
	case set > 1:
		return t, errors.New("more than one of Distribute, Failover and FailoverPriority")
	case len(l.Distribute) > 0:
		return t, t.divide(l.Distribute)
	case len(l.FailoverPriority) > 0:
		t.mode, t.preferred = byLabels, l.FailoverPriority
		for _, label := range l.FailoverPriority {
			if label.Name == "" || label.Value == "" {
				return t, fmt.Errorf("label %q without name or value", label.Name)
			}
		}
		return t, nil
	}
	t.mode = byDistance
	for _, f := range l.Failover {
		if f.From == "" || f.To == "" {
			return t, fmt.Errorf("failover from %q to %q, want two regions", f.From, f.To)
		}
		if f.From == f.To {
			return t, fmt.Errorf("failover of %q to itself", f.From)
		}
		if f.From == l.Own.Region {
			t.failover = f.To
		}
	}
	return t, nil
}

func (t *topology) divide(rules []Distribution) error {
	found := false
	for _, rule := range rules {
		if rule.From == "" {
			return errors.New("a Distribution has no From")
		}
		sum := uint64(0)
		for _, p := range rule.To {
			if p.Place == "" {
				return fmt.Errorf("a Portion of %q has no Place", rule.From)
			}
			sum += uint64(p.Weight)
		}
		if sum == 0 {
			return fmt.Errorf("the weights of %q are all 0", rule.From)
		}
		if !found && isWithin(t.own, rule.From) {
			found = true
			t.mode, t.to = byRule, rule.To
		}
	}
	return nil
}

// isWithin reports whether l is in the place that a rule names.
func isWithin(l discovery.Locality, place string) bool {
	parts := strings.SplitN(place, "/", 3)
	for i, has := range []string{l.Region, l.Zone, l.SubZone} {
		if i < len(parts) && parts[i] != "*" && parts[i] != "" && parts[i] != has {
			return false
		}
	}
	return true
}

func (t *topology) distributes() bool { return t.mode == byRule }

// share returns the weight of a place; it is unused when places are priorities.
func (t *topology) share(place int32) float64 {
	if t.mode == byRule {
		return float64(t.to[place].Weight)
	}
	return 1
}

// place returns the pool of an endpoint: 0 is the nearest or, with a rule, the index in that rule.
func (t *topology) place(e *discovery.Endpoint) int32 {
	switch t.mode {
	case byDistance:
		switch {
		case e.Locality.Region != t.own.Region && t.failover != "" && e.Locality.Region != t.failover:
			return 4
		case e.Locality.Region != t.own.Region:
			return 3
		case e.Locality.Zone != t.own.Zone:
			return 2
		case e.Locality.SubZone != t.own.SubZone:
			return 1
		}
	case byLabels:
		for i, p := range t.preferred {
			if labelOf(e, p.Name) != p.Value {
				return int32(len(t.preferred) - i)
			}
		}
	case byRule:
		for i, p := range t.to {
			if isWithin(e.Locality, p.Place) {
				return int32(i)
			}
		}
		return nowhere
	}
	return 0
}

func labelOf(e *discovery.Endpoint, name string) string {
	if v, ok := e.Labels[name]; ok {
		return v
	}
	switch name {
	case "topology.kubernetes.io/region":
		return e.Locality.Region
	case "topology.kubernetes.io/zone":
		return e.Locality.Zone
	case "topology.istio.io/subzone":
		return e.Locality.SubZone
	}
	return ""
}
