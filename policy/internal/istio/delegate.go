package istio

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/route"
)

// IsDelegate reports whether the document has no hosts, so that only other documents hand requests to it.
func (vs *VirtualService) IsDelegate() bool { return len(vs.Spec.Hosts) == 0 }

// Expansion is a VirtualService in which the routes of its delegates replace the routes that name them.
type Expansion struct {
	// VirtualService is the root with the resulting routes. If no route names a delegate, it is the original.
	*VirtualService

	// Origins has the origin of each of its routes.
	Origins []Origin

	// Missing has the indices of the root's routes whose delegate does not exist, or is not exported to the root's namespace.
	// Later routes get the requests that they match.
	Missing []int

	// Dropped has the routes of delegates that contradict the root's route: no request can match both.
	Dropped []Origin
}

// Origin says where a route of an [Expansion] comes from.
type Origin struct {
	// Route is the index of the root's route. Matches has, for each match, the index of the root's match that covers it, or -1 if
	// the root's route has no matches.
	Route   int
	Matches []int

	// Delegate is the document that the route comes from, and DelegateRoute is the index of the route in it. Delegate is nil for a
	// route of the root itself.
	Delegate      *VirtualService
	DelegateRoute int
}

// Expand replaces the routes that name delegates by the routes of these delegates. lookup finds a document by namespace and name; a
// document with hosts is not a delegate. No document is changed. All of them must have passed Check. Its Table shows
// whether a delegate alone can be compiled.
func (vs *VirtualService) Expand(lookup func(namespace, name string) (*VirtualService, bool)) Expansion {
	e := Expansion{VirtualService: vs}
	var routes []HTTPRoute
	for i := range vs.Spec.HTTP {
		r := &vs.Spec.HTTP[i]
		if r.Delegate == nil {
			routes = append(routes, *r)
			own := Origin{Route: i}
			for j := range r.Match {
				own.Matches = append(own.Matches, j)
			}
			e.Origins = append(e.Origins, own)
			continue
		}
		delegate, ok := lookup(cmp.Or(r.Delegate.Namespace, vs.Namespace()), r.Delegate.Name)
		if ok = ok && delegate.IsDelegate(); ok {
			ok, _ = VisibleFrom(vs.Namespace(), delegate.Namespace(), delegate.Spec.ExportTo)
		}
		if !ok {
			e.Missing = append(e.Missing, i)
			continue
		}
		for j := range delegate.Spec.HTTP {
			origin := Origin{Route: i, Delegate: delegate, DelegateRoute: j}
			leaf := &delegate.Spec.HTTP[j]
			matches, within, ok := mergeMatches(r.Match, leaf.Match, vs.Namespace(), delegate.Namespace())
			if !ok {
				e.Dropped = append(e.Dropped, origin)
				continue
			}
			origin.Matches = within
			merged := r.merge(leaf, delegate.Namespace())
			merged.Match = matches
			routes = append(routes, merged)
			e.Origins = append(e.Origins, origin)
		}
	}
	if slices.ContainsFunc(vs.Spec.HTTP, func(r HTTPRoute) bool { return r.Delegate != nil }) {
		root := *vs
		root.Spec.HTTP = routes
		e.VirtualService = &root
	}
	return e
}

// Table compiles the routes, in the order of Origins. doc is the document of the root. An error in a route of a delegate is reported
// where the root names the delegate.
func (e *Expansion) Table(doc *yamldoc.Document, client Client) *route.Table {
	return e.table(doc, client, func(i int) (route int, own bool) {
		return e.Origins[i].Route, e.Origins[i].Delegate == nil
	})
}

// merge returns a route of a delegate in the given namespace, with the fields that it does not set taken from the root's route. It does
// not merge the matches; see mergeMatches.
func (r *HTTPRoute) merge(leaf *HTTPRoute, namespace string) HTTPRoute {
	merged := *leaf
	merged.Name = joinNames(r.Name, leaf.Name)
	merged.Route = slices.Clone(leaf.Route)
	for i := range merged.Route {
		merged.Route[i].Destination = merged.Route[i].Destination.in(namespace)
	}
	merged.Mirror = leaf.Mirror.in(namespace)
	merged.Mirrors = slices.Clone(leaf.Mirrors)
	for i := range merged.Mirrors {
		merged.Mirrors[i].Destination = merged.Mirrors[i].Destination.in(namespace)
	}
	inherit(&merged.Rewrite, r.Rewrite)
	inherit(&merged.DirectResponse, r.DirectResponse)
	inherit(&merged.Retries, r.Retries)
	inherit(&merged.Fault, r.Fault)
	inherit(&merged.Mirror, r.Mirror)
	inherit(&merged.MirrorPercentage, r.MirrorPercentage)
	inherit(&merged.CorsPolicy, r.CorsPolicy)
	inherit(&merged.Headers, r.Headers)
	if !merged.Timeout.Set {
		merged.Timeout = r.Timeout
	}
	if merged.mirrorPercent() == nil {
		merged.MirrorPercent = r.mirrorPercent()
	}
	if merged.Mirrors == nil {
		merged.Mirrors = r.Mirrors
	}
	return merged
}

func inherit[T any](field **T, from *T) {
	if *field == nil {
		*field = from
	}
}

// joinNames returns the name of a route that a root and a delegate form together.
func joinNames(root, leaf string) string {
	if root == "" || leaf == "" {
		return root + leaf
	}
	return root + "-" + leaf
}

// in returns the destination with its host resolved in the given namespace.
func (d *Destination) in(namespace string) *Destination {
	if d == nil {
		return nil
	}
	here := *d
	here.namespace = namespace
	return &here
}

// mergeMatches merges the matches of a delegate's route into those of the root's route. It returns, for each result, the index of the
// root's match that covers it. It reports false unless each match of the delegate is covered by at least one of the root.
func mergeMatches(root, leaf []HTTPMatchRequest, namespace, leafNamespace string) (
	merged []HTTPMatchRequest, within []int, ok bool,
) {
	if len(root) == 0 || len(leaf) == 0 {
		for i := range root {
			within = append(within, i)
		}
		for range leaf {
			within = append(within, -1)
		}
		return append(slices.Clone(root), leaf...), within, true
	}
	for i := range leaf {
		found := false
		for j := range root {
			if !contradict(&root[j], &leaf[i], namespace, leafNamespace) {
				merged = append(merged, root[j].merge(&leaf[i]))
				within = append(within, j)
				found = true
			}
		}
		if !found {
			return nil, nil, false
		}
	}
	return merged, within, true
}

func (m *HTTPMatchRequest) merge(leaf *HTTPMatchRequest) HTTPMatchRequest {
	merged := *leaf
	merged.Name = joinNames(m.Name, leaf.Name)
	inherit(&merged.URI, m.URI)
	inherit(&merged.Scheme, m.Scheme)
	inherit(&merged.Method, m.Method)
	inherit(&merged.Authority, m.Authority)
	merged.Headers = mergeMaps(m.Headers, leaf.Headers)
	merged.WithoutHeaders = mergeMaps(m.WithoutHeaders, leaf.WithoutHeaders)
	merged.QueryParams = mergeMaps(m.QueryParams, leaf.QueryParams)
	merged.SourceLabels = mergeMaps(m.SourceLabels, leaf.SourceLabels)
	if merged.Port == nil || *merged.Port == 0 {
		merged.Port = m.Port
	}
	merged.SourceNamespace = cmp.Or(leaf.SourceNamespace, m.SourceNamespace)
	merged.StatPrefix = cmp.Or(leaf.StatPrefix, m.StatPrefix)
	if len(merged.Gateways) == 0 {
		merged.Gateways = m.Gateways
	}
	return merged
}

func mergeMaps[V any](root, leaf map[string]V) map[string]V {
	if len(root) == 0 {
		return leaf
	}
	merged := maps.Clone(root)
	maps.Copy(merged, leaf)
	return merged
}

// contradict reports whether a match of the root does not cover one of a delegate, as far as Istio checks that.
func contradict(root, leaf *HTTPMatchRequest, namespace, leafNamespace string) bool {
	if root.URI.excludes(leaf.URI) || root.Scheme.excludes(leaf.Scheme) || root.Method.excludes(leaf.Method) ||
		root.Authority.excludes(leaf.Authority) {
		return true
	}
	if exclude(root.Headers, leaf.Headers) || exclude(root.WithoutHeaders, leaf.WithoutHeaders) ||
		exclude(root.QueryParams, leaf.QueryParams) {
		return true
	}
	if root.IgnoreURICase != leaf.IgnoreURICase {
		return true
	}
	if root.Port != nil && leaf.Port != nil && *root.Port != 0 && *leaf.Port != 0 && *root.Port != *leaf.Port {
		return true
	}
	if root.SourceNamespace != "" && root.SourceNamespace != leaf.SourceNamespace {
		return true
	}
	for name, value := range leaf.SourceLabels {
		if has, ok := root.SourceLabels[name]; ok && has != value {
			return true
		}
	}
	if len(root.Gateways) == 0 || len(leaf.Gateways) == 0 {
		return false
	}
	gateways := make(map[string]bool)
	for _, name := range root.Gateways {
		gateways[gatewayName(name, namespace)] = true
	}
	return len(root.Gateways) < len(leaf.Gateways) || slices.ContainsFunc(leaf.Gateways, func(name string) bool {
		return !gateways[gatewayName(name, leafNamespace)]
	})
}

func exclude(root, leaf map[string]StringMatch) bool {
	for name, match := range leaf {
		if of, ok := root[name]; ok && of.excludes(&match) {
			return true
		}
	}
	return false
}

// excludes reports whether s may not match a string that other matches. Regular expressions are not compared: any two exclude each
// other.
func (s *StringMatch) excludes(other *StringMatch) bool {
	if s == nil || other == nil {
		return false
	}
	text := func(s *string) string {
		if s == nil {
			return ""
		}
		return *s
	}
	exact, prefix := text(other.Exact), text(other.Prefix)
	switch {
	case text(s.Exact) != "":
		return exact != text(s.Exact)
	case text(s.Prefix) != "":
		return !strings.HasPrefix(exact+prefix, text(s.Prefix))
	}
	return true
}

// gatewayName returns the full name, namespace/name, of a gateway in a document of the given namespace.
func gatewayName(name, namespace string) string {
	if name == "mesh" || strings.Contains(name, "/") {
		return name
	}
	short, rest, dotted := strings.Cut(name, ".")
	if dotted {
		namespace, _, _ = strings.Cut(rest, ".")
	}
	return namespace + "/" + short
}
