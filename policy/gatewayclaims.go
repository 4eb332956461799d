package policy

import (
	"cmp"
	"slices"
	"time"
)

// claimRoutes assigns the hosts of groups to them. For one host, the routes of the caller's namespace come first, and GRPCRoutes before HTTPRoutes.
func (c *compiler) claimRoutes(groups []*grouping) {
	for _, consumer := range []bool{true, false} {
		for _, grpc := range []bool{true, false} {
			for _, g := range groups {
				if g.consumer == consumer && g.grpc == grpc {
					c.claimAttached(&g.claim)
				}
			}
		}
	}
}

// claimOwn claims for the routes of the workload's namespace, and returns the other groups, the oldest first, if there are VirtualServices to compare
// them with.
func (c *compiler) claimOwn(groups []*grouping) (rest []*grouping) {
	own := func(g *grouping) bool { return g.claim.attached.members[0].namespace == c.plan.workload.Namespace }
	n := 0
	for i, g := range groups { // nobody else's, mostly
		if own(g) {
			groups[n], groups[i] = g, groups[n]
			n++
		}
	}
	c.claimRoutes(groups[:n])
	if rest = groups[n:]; len(c.virtual) > 0 {
		for _, g := range rest {
			g.oldest = c.oldest(g.claim.attached)
		}
		slices.SortFunc(rest, func(a, b *grouping) int {
			return cmp.Or(bit(a.oldest.IsZero())-bit(b.oldest.IsZero()), a.oldest.Compare(b.oldest))
		})
	}
	return rest
}

// claimOlder claims for the groups that are older than a document, and returns the others.
func (c *compiler) claimOlder(groups []*grouping, created time.Time) (rest []*grouping) {
	n := 0
	for n < len(groups) && !groups[n].oldest.IsZero() && groups[n].oldest.Before(created) {
		n++
	}
	if n > 0 {
		c.claimRoutes(groups[:n])
	}
	return groups[n:]
}

// oldest returns the creation time of the oldest member, or zero if it is unknown. HTTPRoutes and GRPCRoutes that share a port are as old as the oldest
// of both, so that no document parts them.
func (c *compiler) oldest(a *attached) time.Time {
	oldest, other := a.members[0].created, a.attachment
	other.grpc = !a.grpc
	if b := c.plan.attached.plain(other); b != nil && a.shares(b) && b.members[0].created.Before(oldest) {
		oldest = b.members[0].created
	}
	return oldest
}

// shares reports whether some port is one of both.
func (a *attached) shares(b *attached) bool {
	return a.ports == nil || b.ports == nil || slices.ContainsFunc(a.ports, func(port int) bool { return slices.Contains(b.ports, port) })
}

// claimAttached assigns a host to its routes.
func (c *compiler) claimAttached(own *claim) {
	p, a := c.plan, own.attached
	c.arrives(own)
	if !p.seesRoutes(a) {
		return
	}
	p.name(a.host)
	for _, host := range a.leads {
		p.name(host)
	}
	before := c.claimHost(a.host, own)
	if before == nil || !a.consumer && before.attached != nil && before.attached.consumer { // which is what those of a caller are for
		return
	}
	first := c.claimer(before)
	for i, m := range a.members {
		if i > 0 && a.members[i-1].gatewayRoute == m.gatewayRoute {
			continue
		}
		c.of(m.gatewayRoute).Warnf("spec.parentRefs", "has no effect on %s: %s claims it already (%s:%d), and the first one counts",
			a.host, first.identity, first.file, first.Line)
	}
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}
