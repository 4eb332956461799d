package balancer

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/nosidecar/mesh/discovery"
)

// Locality prefers near endpoints, as Istio's localityLbSetting does. The zero value is off.
//
// Without Distribute, places are priorities: the calls go to the nearest endpoints, and to the next nearest as far as
// less than 1/1.4 (71%) of the nearer are healthy. At most one of Distribute, Failover and FailoverPriority may be set.
type Locality struct {
	// Enabled turns the preference on.
	Enabled bool

	// Own is where the caller runs. Nearest are endpoints of the same subzone, then of the same zone, of the same
	// region, and the others.
	Own discovery.Locality

	// Distribute divides the calls by the caller's place, whatever is near. Rules are separated by ";", and the first
	// whose left side is the caller's place applies:
	//
	//	eu/a/* => eu/a/*=80, eu/b/*=20; eu/b/* => eu/*=1
	//
	// A place is region/zone/subzone; "*" is any name, and so is what is left out. The weights are relative. Endpoints
	// in places that the rule does not name get no calls. A caller whose place has no rule has no preference.
	Distribute string

	// Failover names, for the caller's region, the one to prefer among the other regions: "us-east=eu-west, ap=us-east".
	Failover string

	// FailoverPriority ranks endpoints by labels, given with the caller's own values and the most important first:
	// "topology.kubernetes.io/region=eu, version=v1". The nearest endpoints have all of them, the next all but the last,
	// and so on. Where an endpoint lacks one of the labels topology.kubernetes.io/region, topology.kubernetes.io/zone
	// and topology.istio.io/subzone, its Locality counts.
	FailoverPriority string
}

// topology is a Locality, read.
type topology struct {
	mode      topologyMode
	own       discovery.Locality
	to        []portion
	failover  string // region
	preferred []label
}

type topologyMode uint8

const (
	anywhere topologyMode = iota
	byDistance
	byLabels
	byRule
)

type portion struct {
	place  string
	weight float64
}

type label struct{ name, value string }

// nowhere is the place of endpoints that get no calls.
const nowhere = -1

func (l Locality) compile() (topology, error) {
	t := topology{own: l.Own}
	set := 0
	for _, text := range []string{l.Distribute, l.Failover, l.FailoverPriority} {
		if text != "" {
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
	case l.Distribute != "":
		return t, t.readDistribute(l.Distribute)
	case l.FailoverPriority != "":
		t.mode = byLabels
		preferred, err := readPairs(l.FailoverPriority)
		t.preferred = preferred
		return t, err
	}
	t.mode = byDistance
	pairs, err := readPairs(l.Failover)
	for _, p := range pairs {
		if p.name == p.value {
			return t, fmt.Errorf("failover of %q to itself", p.name)
		}
		if p.name == l.Own.Region {
			t.failover = p.value
		}
	}
	return t, err
}

func (t *topology) readDistribute(text string) error {
	found := false
	for rule := range strings.SplitSeq(text, ";") {
		from, to, ok := strings.Cut(rule, "=>")
		if from = strings.TrimSpace(from); !ok || from == "" {
			return fmt.Errorf("%q is not a rule, from => to=weight", strings.TrimSpace(rule))
		}
		pairs, err := readPairs(to)
		if err != nil {
			return err
		}
		var portions []portion
		sum := uint64(0)
		for _, p := range pairs {
			weight, err := strconv.ParseUint(p.value, 10, 32)
			if err != nil {
				return fmt.Errorf("weight %q of %q is not a number", p.value, p.name)
			}
			portions = append(portions, portion{p.name, float64(weight)})
			sum += weight
		}
		if sum == 0 {
			return fmt.Errorf("the weights of %q are all 0", from)
		}
		if !found && isWithin(t.own, from) {
			found = true
			t.mode, t.to = byRule, portions
		}
	}
	return nil
}

// readPairs reads "name=value, name=value".
func readPairs(text string) ([]label, error) {
	var pairs []label
	if text == "" {
		return nil, nil
	}
	for pair := range strings.SplitSeq(text, ",") {
		name, value, ok := strings.Cut(strings.TrimSpace(pair), "=")
		if !ok || name == "" || value == "" {
			return nil, fmt.Errorf("%q is not name=value", strings.TrimSpace(pair))
		}
		pairs = append(pairs, label{name, value})
	}
	return pairs, nil
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

// share returns the weight of a place; places are priorities where it does not matter.
func (t *topology) share(place int) float64 {
	if t.mode == byRule {
		return t.to[place].weight
	}
	return 1
}

// place returns the pool of an endpoint: 0 is the nearest, or with a rule its index there.
func (t *topology) place(e *discovery.Endpoint) int {
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
			if labelOf(e, p.name) != p.value {
				return len(t.preferred) - i
			}
		}
	case byRule:
		for i, p := range t.to {
			if isWithin(e.Locality, p.place) {
				return i
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
