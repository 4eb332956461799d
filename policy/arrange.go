package policy

import (
	"cmp"
	"hash/maphash"
	"slices"

	"github.com/nosidecar/mesh/policy/internal/consul"
	"github.com/nosidecar/mesh/policy/internal/istio"
	"github.com/nosidecar/mesh/policy/internal/smi"
)

// arrange sorts the documents in force by kind. Those that stand alone come last, in their own order.
func (c *compiler) arrange() {
	current := empty(&c.room.current, len(c.alone))
	restored := make(map[*piece]*document)
	for _, p := range c.alone {
		d := p.current()
		if d != nil {
			current = append(current, d)
		}
		switch p.verdict {
		case lastGood:
			restored[p] = d
		case closed:
			if c.shut = append(c.shut, p.refused.shut.hosts...); p.refused.shut.denies {
				c.closed = append(c.closed, reason(p.called()))
			}
			if of := p.refused.shut.outside; of > ofOthers {
				c.shutOutside = append(c.shutOutside, closedSidecar{of, p.called()})
			}
		}
	}
	c.documents = empty(&c.room.inForce, len(c.pieces))
	for _, p := range c.pieces {
		d := restored[p]
		if p.verdict == asWritten {
			d = p.current()
		}
		if d != nil {
			c.documents = append(c.documents, d)
		}
	}
	for _, d := range c.documents {
		if !d.from.alone {
			c.sort(d)
		}
	}
	for _, d := range current {
		c.sort(d)
	}
}

// sort adds a document to those of its kind.
func (c *compiler) sort(d *document) {
	if d.is == nil {
		return
	}
	if first := c.first.of(d); first != d && d.name != "" {
		d.twice(first)
	}
	switch is := d.is.(type) {
	case *virtual:
		c.virtual = append(c.virtual, decoded[virtual]{d, is})
	case *destination:
		c.rules = append(c.rules, decoded[destination]{d, is})
	case *entry:
		c.entries = append(c.entries, decoded[entry]{d, is})
	case *gatewayRoute:
		c.gatewayRoutes = append(c.gatewayRoutes, decoded[gatewayRoute]{d, is})
	case *profile:
		c.profileDocs = append(c.profileDocs, decoded[profile]{d, is})
	case *smi.TrafficSplit:
		c.splitDocs = append(c.splitDocs, decoded[smi.TrafficSplit]{d, is})
	case *smi.HTTPRouteGroup:
		c.routeGroups = append(c.routeGroups, decoded[smi.HTTPRouteGroup]{d, is})
	case *smi.TCPRoute:
		c.tcpRoutes = append(c.tcpRoutes, decoded[smi.TCPRoute]{d, is})
	case *target:
		c.targets = append(c.targets, decoded[target]{d, is})
	case *served:
		c.serviceDocs = append(c.serviceDocs, decoded[served]{d, is})
	case *istio.PeerAuthentication:
		c.peers = append(c.peers, decoded[istio.PeerAuthentication]{d, is})
	case *consul.Entry:
		d.Loosen()
		c.entriesOfConsul = append(c.entriesOfConsul, decoded[consul.Entry]{d, is})
	case *reporting:
		c.reports = append(c.reports, decoded[reporting]{d, is})
	case *sidecar:
		c.sidecars = append(c.sidecars, decoded[sidecar]{d, is})
	case *access:
		c.access = append(c.access, decoded[access]{d, is})
	case *tokens:
		c.tokens = append(c.tokens, decoded[tokens]{d, is})
	default:
		c.guards.add(d)
	}
}

// firsts finds the first document of each identity. Identities are large, so documents are found by their hashes.
type firsts struct {
	seed   maphash.Seed
	byHash map[uint64]*document
	others map[groupIdentity]*document // those with the hash of another one
}

// of returns the first document with the identity of d, which is d itself if there was none yet.
func (f *firsts) of(d *document) *document {
	key := d.key()
	hash := maphash.Comparable(f.seed, key)
	first := f.byHash[hash]
	if first == nil {
		f.byHash[hash] = d
		return d
	}
	if first.key() == key {
		return first
	}
	if first = f.others[key]; first != nil {
		return first
	}
	if f.others == nil {
		f.others = make(map[groupIdentity]*document)
	}
	f.others[key] = d
	return d
}

// find returns the first document of an identity, or nil if there is none.
func (f *firsts) find(key groupIdentity) *document {
	if first := f.byHash[maphash.Comparable(f.seed, key)]; first == nil || first.key() == key {
		return first
	}
	return f.others[key]
}

// oldestFirst sorts the documents of a kind by creation time, then by name, if all of them have a creation time. Documents in a folder usually
// have none, and stay in order.
func oldestFirst[T any](list []decoded[T]) {
	if n := slices.IndexFunc(list, func(d decoded[T]) bool { return d.from.alone }); n >= 0 {
		list = list[:n] // the others are in order, and come last
	}
	if slices.ContainsFunc(list, func(d decoded[T]) bool { return d.created.IsZero() }) {
		return
	}
	slices.SortStableFunc(list, func(a, b decoded[T]) int { return byAge(a.document, b.document) })
}

// byAge compares documents with a creation time.
func byAge(a, b *document) int {
	return cmp.Or(a.created.Compare(b.created), cmp.Compare(a.name+"."+a.namespace, b.name+"."+b.namespace))
}
