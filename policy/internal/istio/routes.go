package istio

import (
	"cmp"
	"errors"
	"iter"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/nosidecar/mesh/internal/grpccode"
	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/fault"
	"github.com/nosidecar/mesh/policy/internal/conjunction"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// Client describes the workload that makes the calls.
type Client struct {
	Namespace     string
	Labels        map[string]string
	ClusterDomain string
}

// DefaultRetry returns the retry policy of calls for which no document has one.
func DefaultRetry() retry.Config {
	return retries(&HTTPRetry{Attempts: 2})
}

const defaultRetryOn = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"

// retries translates a retry policy. Settings that no document can express are off: Envoy ignores Retry-After, retries all methods, and
// does not detect nested retries.
func retries(r *HTTPRetry) retry.Config {
	if r == nil {
		return DefaultRetry()
	}
	if r.Attempts == 0 {
		return retry.Config{}
	}
	list := r.RetryOn
	if list == "" {
		list = defaultRetryOn
	}
	on, err := retry.ParseOn(list)
	if err != nil {
		panic(err) // Check has reported errors
	}
	return retry.Config{
		Retries:       int(r.Attempts),
		On:            on,
		PerTryTimeout: r.PerTryTimeout.Duration,
		Backoff:       r.Backoff.Duration,
		MaxRetryAfter: -1,
		AnyMethod:     true,
		NestedRetries: true,
	}
}

// Routes translates the document, which must have passed Check, for the calls of a workload.
func (vs *VirtualService) Routes(client Client) []route.Route {
	routes := make([]route.Route, len(vs.Spec.HTTP))
	for i := range vs.Spec.HTTP {
		routes[i] = vs.route(&vs.Spec.HTTP[i], client)
	}
	return routes
}

func (vs *VirtualService) route(r *HTTPRoute, client Client) route.Route {
	out := route.Route{
		Name:    r.Name,
		Headers: r.Headers.translate(),
	}
	for i := range r.Match {
		out.Matches = append(out.Matches, r.Match[i].translate(client))
	}
	if r.AtGateways() { // it matches no request here
		return route.Route{Name: r.Name, Matches: out.Matches, Direct: &route.DirectResponse{Status: http.StatusNotFound}}
	}
	if d := r.Redirect; d != nil {
		out.Redirect = d.translate()
		return out
	}
	if d := r.DirectResponse; d != nil {
		out.Direct = &route.DirectResponse{Status: int(d.Status), Body: d.Body.bytes()}
		return out
	}
	for _, d := range r.Route {
		out.Destinations = append(out.Destinations, route.Destination{
			Target:  vs.target(d.Destination, client),
			Weight:  int(d.Weight),
			Headers: d.Headers.translate(),
		})
	}
	if r.Delegate != nil {
		out.Destinations = make([]route.Destination, 1) // a placeholder for those of the delegate
	}
	if w := r.Rewrite; w != nil {
		out.Rewrite = route.Rewrite{URI: w.URI, Authority: w.Authority}
		if x := w.URIRegexRewrite; x != nil {
			out.Rewrite.Pattern, out.Rewrite.Substitution = x.Match, x.Rewrite
		}
	}
	out.Timeout = r.Timeout.Duration
	out.Retry = retries(r.Retries)
	if r.Retries != nil && r.Retries.RetryIgnorePreviousHost != nil {
		out.RetryTried = !*r.Retries.RetryIgnorePreviousHost
	}
	out.Fault = r.Fault.translate()
	for _, m := range r.mirrors() {
		percentage := 100.0
		if m.Percentage != nil {
			percentage = m.Percentage.Value
		}
		if part := sample(percentage); part != 0 {
			out.Mirrors = append(out.Mirrors, route.Mirror{Target: vs.target(m.Destination, client), Fraction: part})
		}
	}
	return out
}

// target translates a destination.
func (vs *VirtualService) target(d *Destination, client Client) route.Target {
	t := route.Target{Host: Resolve(d.Host, cmp.Or(d.namespace, vs.Namespace()), client.ClusterDomain)}
	if d.Subset != nil {
		t.Subset = *d.Subset
	}
	if d.Port != nil {
		t.Port = int(d.Port.Number)
	}
	return t
}

// mirrors returns the mirrors: that of the old field, followed by those of the list.
func (r *HTTPRoute) mirrors() []HTTPMirrorPolicy {
	if r.Mirror == nil {
		return r.Mirrors
	}
	first := HTTPMirrorPolicy{Destination: r.Mirror, Percentage: r.MirrorPercentage}
	if percent := r.mirrorPercent(); percent != nil && first.Percentage == nil {
		first.Percentage = &Percent{Value: float64(*percent)}
	}
	return append([]HTTPMirrorPolicy{first}, r.Mirrors...)
}

// Destinations yields the destinations in the document, including those of mirrors, with their field paths.
func (vs *VirtualService) Destinations() iter.Seq2[*Destination, string] {
	return func(yield func(*Destination, string) bool) {
		for i := range vs.Spec.HTTP {
			r := &vs.Spec.HTTP[i]
			if r.AtGateways() {
				continue
			}
			for d, at := range r.Destinations(yamldoc.Index("spec.http", i)) {
				if !yield(d, at) {
					return
				}
			}
		}
	}
}

// Destinations yields the destinations of the route at a path, including those of mirrors, with their field paths.
func (r *HTTPRoute) Destinations(at string) iter.Seq2[*Destination, string] {
	return func(yield func(*Destination, string) bool) {
		for j := range r.Route {
			if d := r.Route[j].Destination; d != nil && !yield(d, yamldoc.Index(at+".route", j)+".destination") {
				return
			}
		}
		if r.Mirror != nil && !yield(r.Mirror, at+".mirror") {
			return
		}
		for j := range r.Mirrors {
			if d := r.Mirrors[j].Destination; d != nil && !yield(d, yamldoc.Index(at+".mirrors", j)+".destination") {
				return
			}
		}
	}
}

// Ports returns the ports that the matches of the route name. It returns nil if one of them takes requests to any port.
func (r *HTTPRoute) Ports() (ports []int) {
	for i := range r.Match {
		port := r.Match[i].Port
		if port == nil || *port == 0 {
			return nil
		}
		ports = append(ports, int(*port))
	}
	return ports
}

// Applies reports whether any route is about the requests of a workload to a port; port 0 means any port. If none is, Istio ignores the
// document: requests go where they would go without it, rather than getting a 404 response.
func (vs *VirtualService) Applies(client Client, port int) bool {
	return slices.ContainsFunc(vs.Spec.HTTP, func(r HTTPRoute) bool {
		return len(r.Match) == 0 || slices.ContainsFunc(r.Match, func(m HTTPMatchRequest) bool {
			return m.concerns(client) && (m.Port == nil || *m.Port == 0 || port == 0 || int(*m.Port) == port)
		})
	})
}

// concerns reports whether the match is about the requests of a workload.
func (m *HTTPMatchRequest) concerns(client Client) bool {
	if len(m.Gateways) > 0 {
		return slices.Contains(m.Gateways, "mesh")
	}
	return (m.SourceNamespace == "" || m.SourceNamespace == client.Namespace) && Within(m.SourceLabels, client.Labels)
}

// translate returns the match. Conditions on the client, rather than on the request, are evaluated here.
func (m *HTTPMatchRequest) translate(client Client) route.Match {
	if !m.concerns(client) {
		return conjunction.Never // keeps the indices of the matches, which findings refer to
	}
	out := route.Match{
		Name:           m.Name,
		URI:            m.URI.translate(m.IgnoreURICase),
		Scheme:         m.Scheme.translate(false),
		Method:         m.Method.translate(false),
		Authority:      m.Authority.translate(false),
		Headers:        named(m.Headers),
		WithoutHeaders: named(m.WithoutHeaders),
		Query:          named(m.QueryParams),
	}
	if m.Port != nil {
		out.Port = int(*m.Port)
	}
	return out
}

// Within reports whether labels include all labels of a selector.
func Within(selector, labels map[string]string) bool {
	for name, value := range selector {
		if has, ok := labels[name]; !ok || has != value {
			return false
		}
	}
	return true
}

func (s *StringMatch) translate(ignoreCase bool) route.StringMatch {
	switch {
	case s == nil:
		return route.StringMatch{}
	case s.Exact != nil:
		return route.StringMatch{Kind: route.Exact, Value: *s.Exact, IgnoreCase: ignoreCase}
	case s.Prefix != nil:
		return route.StringMatch{Kind: route.Prefix, Value: *s.Prefix, IgnoreCase: ignoreCase}
	case s.Regex != nil:
		return route.StringMatch{Kind: route.Regex, Value: *s.Regex}
	}
	return route.StringMatch{}
}

func named(matches map[string]StringMatch) []route.KeyMatch {
	var out []route.KeyMatch
	for _, name := range slices.Sorted(maps.Keys(matches)) {
		s := matches[name]
		value := s.translate(false)
		if value.Kind == route.Any || value.Kind == route.Regex && value.Value == "*" {
			value = route.StringMatch{Kind: route.Present}
		}
		out = append(out, route.KeyMatch{Key: name, Value: value})
	}
	return out
}

func (h *Headers) translate() route.Headers {
	if h == nil {
		return route.Headers{}
	}
	return route.Headers{Request: h.Request.translate(), Response: h.Response.translate()}
}

func (o *HeaderOperations) translate() route.HeaderOps {
	return route.HeaderOps{Set: headers(o.Set), Add: headers(o.Add), Remove: o.Remove}
}

func headers(values map[string]string) []route.Header {
	var out []route.Header
	for _, name := range slices.Sorted(maps.Keys(values)) {
		out = append(out, route.Header{Name: name, Value: values[name]})
	}
	return out
}

func (r *HTTPRedirect) translate() *route.Redirect {
	out := &route.Redirect{
		URI:           r.URI,
		PrefixRewrite: r.PrefixRewrite,
		Authority:     r.Authority,
		Scheme:        r.Scheme,
		Status:        int(r.RedirectCode),
	}
	if r.RedirectCode == 0 {
		out.Status = http.StatusMovedPermanently
	}
	switch {
	case r.Port != nil:
		out.Port = int(*r.Port)
	case r.DerivePort != nil && *r.DerivePort == "FROM_REQUEST_PORT":
		out.DerivePort = route.FromRequest
	case r.DerivePort != nil:
		out.DerivePort = route.FromProtocol
	}
	return out
}

func (b *HTTPBody) bytes() []byte {
	switch {
	case b == nil:
		return nil
	case b.String != nil:
		return []byte(*b.String)
	case b.Bytes != nil:
		return *b.Bytes
	}
	return nil
}

// sample converts a percentage of requests to a fraction. It truncates to millionths with the float64 arithmetic of Istio, in which 0.57
// becomes 5699 millionths. An invalid percentage becomes an invalid fraction.
func sample(percentage float64) float64 {
	if !(percentage >= 0 && percentage <= 100) { // also NaN
		return percentage / 100
	}
	return math.Trunc(percentage*10_000) / 1e6
}

func (f *HTTPFaultInjection) translate() fault.Config {
	var out fault.Config
	if f == nil {
		return out
	}
	if d := f.Delay; d != nil && d.FixedDelay.Set {
		percentage := float64(min(d.Percent, 100))
		if d.Percentage != nil {
			percentage = d.Percentage.Value
		}
		out.Delay = fault.Delay{Fraction: sample(percentage), Fixed: d.FixedDelay.Duration}
	}
	if a := f.Abort; a != nil && (a.HTTPStatus != nil || a.GRPCStatus != nil) {
		if a.Percentage != nil {
			out.Abort.Fraction = sample(a.Percentage.Value)
		}
		if a.HTTPStatus != nil {
			out.Abort.HTTPStatus = int(*a.HTTPStatus)
		} else {
			out.Abort.GRPCStatus, out.Abort.IsGRPC = uint32(grpccode.Of(*a.GRPCStatus)), true
		}
	}
	return out
}

// Table compiles the result of Routes, and reports errors in the document.
func (vs *VirtualService) Table(doc *yamldoc.Document, client Client) *route.Table {
	return vs.table(doc, client, func(i int) (int, bool) { return i, true })
}

// table is Table for routes that may come from elsewhere. origin returns the index in the document for the index of a route, and whether
// the route itself is in the document.
func (vs *VirtualService) table(doc *yamldoc.Document, client Client, origin func(int) (route int, own bool)) *route.Table {
	table, err := route.NewTable(vs.Routes(client))
	if err != nil {
		vs.report(doc, err, origin)
		return nil
	}
	return table
}

// report reports errors of a route table, at the fields of the document that they come from.
func (vs *VirtualService) report(doc *yamldoc.Document, err error, origin func(int) (route int, own bool)) {
	errs := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		errs = joined.Unwrap()
	}
	for _, err := range errs {
		if f, ok := errors.AsType[*route.FieldError](err); ok {
			doc.Errorf(vs.path(f, origin), "%v", f.Err)
		} else {
			doc.Errorf("spec.http", "%v", err)
		}
	}
}

// path returns the path in the document that a field of a route comes from.
func (vs *VirtualService) path(f *route.FieldError, origin func(int) (route int, own bool)) string {
	number, own := origin(f.Route)
	at := yamldoc.Index("spec.http", number)
	if !own {
		return at + ".delegate"
	}
	r := &vs.Spec.HTTP[f.Route]
	first, inner, _ := strings.Cut(f.Field, ".")
	switch name, i := indexed(first); {
	case name == "Matches":
		return yamldoc.Index(at+".match", i) + r.Match[i].field(inner)
	case name == "Destinations" && i >= 0:
		return yamldoc.Index(at+".route", i) + r.Route[i].Headers.field(inner)
	case name == "Headers":
		return at + r.Headers.field(f.Field)
	case name == "Mirrors" && r.Mirror != nil:
		return at + ".mirror"
	case name == "Mirrors":
		return at + ".mirrors"
	}
	if other := otherFields[f.Field]; other != "" {
		return at + other
	}
	return at + "." + strings.ToLower(f.Field)
}

// otherFields has the fields of a route whose name in documents is not simply their name in lower case.
var otherFields = map[string]string{
	"Destinations":           ".route",
	"Direct":                 ".directResponse",
	"Direct.Status":          ".directResponse.status",
	"Direct.Body":            ".directResponse.body",
	"Retry":                  ".retries",
	"Rewrite.Pattern":        ".rewrite.uriRegexRewrite.match",
	"Rewrite.Substitution":   ".rewrite.uriRegexRewrite.rewrite",
	"Redirect.Status":        ".redirect.redirectCode",
	"Redirect.PrefixRewrite": ".redirect.prefixRewrite",
	"Redirect.DerivePort":    ".redirect.derivePort",
}

// indexed splits "Name[1]" into name and index. The index is -1 if there is none.
func indexed(part string) (name string, index int) {
	name, number, found := strings.Cut(strings.TrimSuffix(part, "]"), "[")
	if !found {
		return name, -1
	}
	index, _ = strconv.Atoi(number)
	return name, index
}

// field returns the field of the document that a field of the translated match comes from.
func (m *HTTPMatchRequest) field(of string) string {
	switch name, i := indexed(of); name {
	case "Headers":
		return keyOf(".headers", m.Headers, i)
	case "WithoutHeaders":
		return keyOf(".withoutHeaders", m.WithoutHeaders, i)
	case "Query":
		return keyOf(".queryParams", m.QueryParams, i)
	default:
		return "." + strings.ToLower(name)
	}
}

// field returns the field of the document that a field of a translated route or destination comes from, if it is one of the headers, such as
// "Headers.Request.Set[0]". Other fields have the same name.
func (h *Headers) field(of string) string {
	parts := strings.Split(of, ".")
	if len(parts) != 3 || h == nil {
		return "." + strings.ToLower(of)
	}
	operations, at := &h.Request, ".headers."+strings.ToLower(parts[1])
	if parts[1] == "Response" {
		operations = &h.Response
	}
	switch name, i := indexed(parts[2]); name {
	case "Set":
		return keyOf(at+".set", operations.Set, i)
	case "Add":
		return keyOf(at+".add", operations.Add, i)
	default:
		return yamldoc.Index(at+".remove", i)
	}
}

// keyOf returns the path of the key at index i of a mapping. Keys are translated in sorted order.
func keyOf[V any](at string, mapping map[string]V, i int) string {
	return yamldoc.Key(at, slices.Sorted(maps.Keys(mapping))[i])
}
