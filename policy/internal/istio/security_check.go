package istio

import (
	"iter"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/nosidecar/mesh/internal/asserted"
	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/jwt"
)

// Check reports the mistakes in the document other than those in its shape. It must have been decoded without errors.
func (pa *PeerAuthentication) Check(doc *yamldoc.Document) {
	c := check{Document: doc}
	c.metadata(&pa.Metadata)
	c.created()
	spec := &pa.Spec
	c.selector(spec.Selector, "spec.selector")
	if spec.PortLevelMTLS == nil {
		return
	}
	switch selects := spec.Selector != nil && len(spec.Selector.MatchLabels) > 0; {
	case len(spec.PortLevelMTLS) == 0:
		c.Errorf("spec.portLevelMtls", "is empty: name a port or remove it")
	case !selects:
		c.Errorf("spec.portLevelMtls", "ports belong to workloads: add a selector with labels")
	}
	for _, port := range slices.Sorted(maps.Keys(spec.PortLevelMTLS)) {
		n, err := strconv.ParseUint(port, 10, 32)
		if err != nil || n < 1 || n > 65535 || port[0] == '0' {
			c.Errorf(yamldoc.Key("spec.portLevelMtls", port), "%q is not a port: it must be from 1 to 65535", port)
		}
	}
}

// Check reports the mistakes in the document other than those in its shape. It must have been decoded without errors.
func (ap *AuthorizationPolicy) Check(doc *yamldoc.Document) {
	c := check{Document: doc}
	c.identity(&ap.Metadata)
	spec := &ap.Spec
	if value, set := ap.Metadata.Annotations[dryRun]; set {
		at := yamldoc.Key("metadata.annotations", dryRun)
		if spec.Action == "AUDIT" || spec.Action == "CUSTOM" {
			c.Errorf(at, "goes with action ALLOW and DENY only")
		} else if _, err := strconv.ParseBool(value); err != nil {
			c.Errorf(at, "%q is neither true nor false", value)
		}
	}
	c.attachment(spec.Selector, spec.TargetRef, spec.TargetRefs)
	c.enforcedHere(spec.TargetRef, spec.TargetRefs)
	switch {
	case len(spec.Rules) == 0 && (spec.Action == "DENY" || spec.Action == "CUSTOM"):
		c.Errorf("spec.rules", "missing: a %s policy without rules has no effect; a rule {} matches every request", spec.Action)
	case spec.Action == "CUSTOM" && (spec.Provider == nil || spec.Provider.Name == ""):
		c.Errorf("spec.provider.name", "missing: a CUSTOM policy needs a provider")
	case spec.Action != "CUSTOM" && spec.Provider != nil:
		c.Errorf("spec.provider", "goes with action CUSTOM only")
	case spec.Action == "CUSTOM" && spec.Selector.OfGateway():
		c.Warnf("spec.selector", "has no meaning in-process: it selects a gateway, and that checks requests before they get here")
	case spec.Action == "CUSTOM" && !attached(spec.TargetRef, spec.TargetRefs):
		c.Errorf("spec.action", NotCustom)
	}
	c.atMost(len(spec.Rules), 512, "spec.rules")
	for i := range spec.Rules {
		c.rule(&spec.Rules[i], spec.Action == "CUSTOM", yamldoc.Index("spec.rules", i))
	}
}

// NotCustom is said of a policy that would have to ask an external authorizer.
const NotCustom = "CUSTOM is not enforced, as no external authorizer is asked: remove the document, and ask the authorizer in a handler behind Mesh.Handler"

// enforcedHere reports what a document is attached to, as far as that is elsewhere.
func (c check) enforcedHere(ref *PolicyTargetReference, refs []PolicyTargetReference) {
	for at, ref := range targets(ref, refs) {
		if ref.Gateway() {
			c.Warnf(at, "has no meaning in-process: the gateway checks requests before they get here (if it is a waypoint, use selector)")
		} else {
			c.Errorf(at, "is not enforced: it attaches the policy to a waypoint, and there is none in-process: use selector")
		}
	}
}

// attached reports whether a document is attached to a gateway or waypoint.
func attached(ref *PolicyTargetReference, refs []PolicyTargetReference) bool {
	return ref != nil || len(refs) > 0
}

// targets yields the objects that a document is attached to, with their field paths.
func targets(ref *PolicyTargetReference, refs []PolicyTargetReference) iter.Seq2[string, *PolicyTargetReference] {
	return func(yield func(string, *PolicyTargetReference) bool) {
		if ref != nil && !yield("spec.targetRef", ref) {
			return
		}
		for i := range refs {
			if !yield(yamldoc.Index("spec.targetRefs", i), &refs[i]) {
				return
			}
		}
	}
}

// Gateway reports whether the document is attached to a gateway rather than a waypoint. A waypoint is a Gateway, too, and known by the name that
// istioctl gives it, or one like it.
func (ref *PolicyTargetReference) Gateway() bool {
	switch ref.Kind {
	case "Gateway":
		return !strings.Contains(ref.Name, "waypoint")
	case "GatewayClass":
		return ref.Name != waypointClass
	}
	return false
}

// waypointClass is the GatewayClass of waypoints.
const waypointClass = "istio-waypoint"

func (c check) rule(r *AuthorizationRule, custom bool, at string) {
	if r.From != nil && len(r.From) == 0 {
		c.Errorf(at+".from", "is empty: name a source or remove it")
	}
	if r.To != nil && len(r.To) == 0 {
		c.Errorf(at+".to", "is empty: name an operation or remove it")
	}
	c.atMost(len(r.From), 512, at+".from")
	for i, from := range r.From {
		at := yamldoc.Index(at+".from", i)
		if from.Source == nil {
			c.Errorf(at+".source", "missing: it is required")
			continue
		}
		c.source(from.Source, custom, at+".source")
	}
	for i, to := range r.To {
		at := yamldoc.Index(at+".to", i)
		if to.Operation == nil {
			c.Errorf(at+".operation", "missing: it is required")
			continue
		}
		c.operation(to.Operation, at+".operation")
	}
	for i := range r.When {
		c.condition(&r.When[i], custom, yamldoc.Index(at+".when", i))
	}
}

// values has the values of a field of a rule. wrong returns what is wrong with one of them, or "".
type values struct {
	field string
	list  []string
	wrong func(string) string
}

// each checks the values of several fields, and reports whether there are none.
func (c check) each(fields []values, at string) (empty bool) {
	empty = true
	for _, f := range fields {
		empty = empty && len(f.list) == 0
		c.values(f, at)
	}
	return empty
}

func (c check) values(f values, at string) {
	for i, value := range f.list {
		at := yamldoc.Index(at+f.field, i)
		if value == "" {
			c.Errorf(at, "must not be empty")
		} else if f.wrong != nil {
			c.that(f.wrong(value), at, "")
		}
	}
}

func (c check) source(s *Source, custom bool, at string) {
	identities := []values{
		{".principals", s.Principals, wrongPrincipal},
		{".notPrincipals", s.NotPrincipals, wrongPrincipal},
		{".requestPrincipals", s.RequestPrincipals, nil},
		{".notRequestPrincipals", s.NotRequestPrincipals, nil},
		{".namespaces", s.Namespaces, wrongIdentity},
		{".notNamespaces", s.NotNamespaces, wrongIdentity},
		{".serviceAccounts", s.ServiceAccounts, wrongServiceAccount},
		{".notServiceAccounts", s.NotServiceAccounts, wrongServiceAccount},
	}
	others := []values{
		{".trustDomains", s.TrustDomains, nil},
		{".notTrustDomains", s.NotTrustDomains, nil},
		{".ipBlocks", s.IPBlocks, wrongIPBlock},
		{".notIpBlocks", s.NotIPBlocks, wrongIPBlock},
		{".remoteIpBlocks", s.RemoteIPBlocks, wrongIPBlock},
		{".notRemoteIpBlocks", s.NotRemoteIPBlocks, wrongIPBlock},
	}
	if c.each(append(identities, others...), at) {
		c.Errorf(at, "is empty: set a field")
	}
	if custom {
		for _, f := range identities {
			if len(f.list) > 0 {
				c.Errorf(at+f.field, "does not go with action CUSTOM")
			}
		}
	}
	if s.ServiceAccounts != nil || s.NotServiceAccounts != nil {
		if s.Principals != nil || s.NotPrincipals != nil || s.Namespaces != nil || s.NotNamespaces != nil {
			c.Errorf(at+".serviceAccounts", "service accounts exclude principals and namespaces: set only one of them")
		}
		c.atMost(len(s.ServiceAccounts), 16, at+".serviceAccounts")
		c.atMost(len(s.NotServiceAccounts), 16, at+".notServiceAccounts")
	}
}

// wrongPrincipal rejects a principal with a scheme. Istio accepts it, but turns it into spiffe://spiffe://..., which matches no peer.
func wrongPrincipal(value string) string {
	if rest, ok := strings.CutPrefix(value, "spiffe://"); ok {
		return "principals are written without spiffe://, else they match nobody: write " + strconv.Quote(rest)
	}
	if value[0] == '*' {
		return wrongIdentity(value)
	}
	return ""
}

// wrongIdentity rejects the special characters of regular expressions: Istio builds regular expressions from these values without
// escaping them.
func wrongIdentity(value string) string {
	if i := strings.IndexAny(value, `\^$|?+()[]{}`); i >= 0 {
		return strconv.Quote(value) + " is not enforced: Istio takes " + strconv.Quote(value[i:i+1]) +
			" for part of a regular expression, and no identity has it"
	}
	return ""
}

func wrongServiceAccount(value string) string {
	namespace, name, both := strings.Cut(value, "/")
	switch {
	case strings.Contains(value, "*"):
		return strconv.Quote(value) + " has a wildcard, which service accounts cannot have"
	case both && (namespace == "" || name == ""), strings.Contains(name, "/"):
		return strconv.Quote(value) + " is not a service account: write name or namespace/name"
	case len(value) > 320:
		return "a service account has at most 320 characters"
	}
	return wrongIdentity(value)
}

func (c check) operation(o *Operation, at string) {
	if c.each([]values{
		{".hosts", o.Hosts, nil},
		{".notHosts", o.NotHosts, nil},
		{".ports", o.Ports, wrongPortText},
		{".notPorts", o.NotPorts, wrongPortText},
		{".methods", o.Methods, nil},
		{".notMethods", o.NotMethods, nil},
		{".paths", o.Paths, wrongPathTemplate},
		{".notPaths", o.NotPaths, wrongPathTemplate},
	}, at) {
		c.Errorf(at, "is empty: set a field")
	}
	for i, method := range o.Methods {
		c.warn(idleMethod(method), at, yamldoc.Index(".methods", i))
	}
	for i, method := range o.NotMethods {
		c.warn(idleMethod(method), at, yamldoc.Index(".notMethods", i))
	}
}

func wrongPortText(value string) string {
	if _, err := strconv.ParseUint(value, 10, 16); err != nil {
		return strconv.Quote(value) + " is not a port: it must be a number up to 65535"
	}
	return ""
}

// wrongPathTemplate checks a path that may contain {*} for one segment and {**} for any number of segments.
func wrongPathTemplate(path string) string {
	template := strings.Contains(path, "{*}") || strings.Contains(path, "{**}")
	rest := false
	for segment := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		switch {
		case rest && (segment == "{*}" || segment == "{**}"):
			return strconv.Quote(path) + " has an operator after {**}: {**} must be the last"
		case segment == "{**}":
			rest = true
		case segment == "{*}":
		case strings.ContainsAny(segment, "{}"):
			return strconv.Quote(path) + " has braces other than the segments {*} and {**}"
		case template && (segment == "" || strings.ContainsFunc(segment, notInPath)):
			return strconv.Quote(path) + " has operators, so that its other segments must be plain: " +
				strconv.Quote(segment) + " is not"
		}
	}
	return ""
}

// notInPath reports whether a path segment cannot contain r (RFC 3986, section 3.3), or r is an asterisk.
func notInPath(r rune) bool {
	return r > '~' || !alphanumeric(byte(r)) && !strings.ContainsRune("-._~%!$&'()+,;:@=", r)
}

func (c check) condition(w *Condition, custom bool, at string) {
	var wrong func(string) string
	key := w.Key
	subscript := func(name string) bool {
		rest, ok := strings.CutPrefix(key, name)
		return ok && len(rest) > 2 && rest[0] == '[' && strings.HasSuffix(rest, "]")
	}
	switch {
	case key == "source.ip", key == "remote.ip", key == "destination.ip":
		wrong = wrongIPBlock
	case key == "destination.port":
		wrong = wrongPortText
	case key == "source.principal":
		wrong = wrongPrincipal
	case key == "source.serviceAccount":
		wrong = wrongServiceAccount
	case subscript("request.headers") && asserted.Identity(key[len("request.headers["):len(key)-1]):
		c.Errorf(at+".key", "%s is not enforced: anybody can write that header; use source.principal", key)
	case key == "source.namespace":
		wrong = wrongIdentity
	case key == "source.trustDomain", key == "connection.sni",
		subscript("request.headers"), subscript("request.auth.claims"),
		key == "request.auth.principal", key == "request.auth.audiences", key == "request.auth.presenter":
	case subscript("request.experimental.inline.headers"):
		c.Errorf(at+".key", "%s is not enforced: use request.headers", key)
	case strings.HasPrefix(key, "request.headers"), strings.HasPrefix(key, "request.auth.claims"):
		c.Errorf(at+".key", "%q is not complete: write it as request.headers[name] or request.auth.claims[name]", key)
	case strings.HasPrefix(key, "experimental.envoy.filters."):
		c.Errorf(at+".key", "%s is not enforced: it is set by filters of Envoy, which do not exist in-process: use another key", key)
	case key == "destination.namespace", strings.HasPrefix(key, "destination.labels"):
		c.Errorf(at+".key", "%s is not a key: use metadata.namespace and selector", key)
	default:
		c.Errorf(at+".key", "unknown key %q%s", key, yamldoc.Hint(key, conditionKeys))
	}
	if custom && (key == "source.namespace" || key == "source.serviceAccount" || key == "source.principal" ||
		strings.HasPrefix(key, "request.auth.")) {
		c.Errorf(at+".key", "%s does not go with action CUSTOM", key)
	}
	if c.each([]values{{".values", w.Values, wrong}, {".notValues", w.NotValues, wrong}}, at) {
		c.Errorf(at, "has no values: set values or notValues")
	}
}

// conditionKeys has the keys of conditions, for suggestions.
var conditionKeys = []string{
	"request.headers", "source.ip", "remote.ip", "source.namespace", "source.serviceAccount", "source.trustDomain",
	"source.principal", "request.auth.principal", "request.auth.audiences", "request.auth.presenter",
	"request.auth.claims", "destination.ip", "destination.port", "connection.sni",
}

// attachment checks the selector and the targets of a document.
func (c check) attachment(selector *WorkloadSelector, ref *PolicyTargetReference, refs []PolicyTargetReference) {
	c.selector(selector, "spec.selector")
	set := 0
	for _, is := range []bool{selector != nil, ref != nil, refs != nil} {
		if is {
			set++
		}
	}
	if set > 1 {
		c.Errorf("spec", "selector, targetRef and targetRefs exclude each other: set only one of them")
	}
	if ref != nil {
		c.targetRef(ref, "spec.targetRef")
	}
	c.atMost(len(refs), 16, "spec.targetRefs")
	for i := range refs {
		c.targetRef(&refs[i], yamldoc.Index("spec.targetRefs", i))
	}
}

func (c check) targetRef(ref *PolicyTargetReference, at string) {
	if ref.Name == "" || len(ref.Name) > 253 {
		c.Errorf(at+".name", "%q is not a name", ref.Name)
	}
	if ref.Namespace != "" {
		c.Errorf(at+".namespace", "a policy belongs to something in its own namespace: remove it")
	}
	switch ref.Group + "/" + ref.Kind {
	case "/Service", "core/Service", Group + "/ServiceEntry",
		"gateway.networking.k8s.io/Gateway", "gateway.networking.k8s.io/GatewayClass":
	default:
		c.Errorf(at+".kind", "a policy cannot belong to a %s of %q", ref.Kind, ref.Group)
	}
}

// Check reports the mistakes in the document other than those in its shape. It must have been decoded without errors.
func (ra *RequestAuthentication) Check(doc *yamldoc.Document) {
	c := check{Document: doc}
	c.metadata(&ra.Metadata)
	spec := &ra.Spec
	c.attachment(spec.Selector, spec.TargetRef, spec.TargetRefs)
	c.enforcedHere(spec.TargetRef, spec.TargetRefs)
	c.atMost(len(spec.JWTRules), 4096, "spec.jwtRules")
	for i := range spec.JWTRules {
		c.jwtRule(&spec.JWTRules[i], yamldoc.Index("spec.jwtRules", i))
	}
}

func (c check) jwtRule(r *JWTRule, at string) {
	if r.Issuer == "" && r.JWKSURI == "" && r.JWKSURIOld == "" {
		c.Errorf(at+".issuer", "missing: set issuer or jwksUri")
	}
	for _, field := range []struct{ name, value string }{{".issuer", r.Issuer}, {".jwksUri", r.JWKSURI}} {
		if field.value == "" && c.Has(at+field.name) {
			c.Errorf(at+field.name, "must not be empty: remove it if that is meant")
		}
	}
	c.that(wrongKeySetURI(r.JWKSURI), at, ".jwksUri")
	c.that(wrongKeySetURI(r.JWKSURIOld), at, ".jwks_uri")
	if r.JWKS != "" {
		_, skipped, err := jwt.ParseKeys(r.JWKS)
		if err != nil {
			c.Errorf(at+".jwks", "is not a JSON Web Key Set that can verify a token: %s", strings.ReplaceAll(err.Error(), "\n", "; "))
			skipped = nil // the error includes them
		}
		for _, why := range skipped {
			c.Warnf(at+".jwks", "%v", why)
		}
	}
	c.each([]values{
		{".audiences", r.Audiences, nil},
		{".fromParams", r.FromParams, nil},
		{".fromCookies", r.FromCookies, nil},
		{".spaceDelimitedClaims", r.SpaceDelimitedClaims, nil},
	}, at)
	c.atMost(len(r.SpaceDelimitedClaims), 64, at+".spaceDelimitedClaims")
	for i, h := range r.FromHeaders {
		if h.Name == "" {
			c.Errorf(yamldoc.Index(at+".fromHeaders", i)+".name", "must not be empty")
		}
	}
	for i, o := range r.OutputClaimToHeaders {
		at := yamldoc.Index(at+".outputClaimToHeaders", i)
		if o.Claim == "" {
			c.Errorf(at+".claim", "must not be empty")
		}
		plain := func(r rune) bool { return r <= '~' && alphanumeric(byte(r)) || r == '-' }
		if strings.TrimFunc(o.Header, plain) != "" || o.Header == "" {
			c.Errorf(at+".header", "%q is not the name of a header: use letters, digits and hyphens", o.Header)
		}
	}
	c.duration(r.Timeout, at, ".timeout")
	if !c.Failed() {
		rule := r.rule()
		if err := rule.Validate(); err != nil {
			c.Errorf(at, "cannot be enforced: %v", err)
		}
	}
}

func wrongKeySetURI(uri string) string {
	if u, err := url.Parse(uri); uri != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || len(uri) > 2048) {
		return strconv.Quote(uri) + " is not an http or https URL"
	}
	return ""
}
