package istio

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/telemetry"
)

// Check reports the mistakes in the document other than those in its shape. It does not check the expressions of filters. The document
// must have been decoded without errors.
func (t *Telemetry) Check(doc *yamldoc.Document) {
	c := check{Document: doc}
	c.metadata(&t.Metadata)
	c.created()
	spec := &t.Spec
	c.attachment(spec.Selector, spec.TargetRef, spec.TargetRefs)
	for at, ref := range targets(spec.TargetRef, spec.TargetRefs) {
		if ref.Gateway() {
			c.Warnf(at, "has no meaning in-process: the document is about a gateway")
		} else {
			c.Errorf(at, "is not enforced: it attaches the document to a waypoint, and there is none in-process: use selector")
		}
	}
	if len(spec.Tracing) > 1 {
		c.Warnf("spec.tracing", "has %d entries: what the last one sets for a side counts, and Istio does not support it", len(spec.Tracing))
	}
	for i := range spec.Tracing {
		c.tracing(&spec.Tracing[i], yamldoc.Index("spec.tracing", i))
	}
	for i := range spec.Metrics {
		c.metrics(&spec.Metrics[i], yamldoc.Index("spec.metrics", i))
	}
	for i := range spec.AccessLogging {
		c.accessLogging(&spec.AccessLogging[i], yamldoc.Index("spec.accessLogging", i))
	}
}

func (c check) providers(refs []ProviderRef, at string) {
	for i, ref := range refs {
		if ref.Name == "" {
			c.Errorf(yamldoc.Index(at+".providers", i)+".name", "must not be empty")
		}
	}
}

func (c check) tracing(t *Tracing, at string) {
	c.providers(t.Providers, at)
	if len(t.Providers) > 0 {
		c.Warnf(at+".providers", "has no meaning in-process: spans go to the TracerProvider of the program")
	}
	if p := t.RandomSamplingPercentage; p != nil {
		c.that(wrongPercentage(*p), at, ".randomSamplingPercentage")
	}
	if t.DisableContextPropagation != nil && *t.DisableContextPropagation {
		c.Errorf(at+".disableContextPropagation", "is not enforced yet: remove it, and calls carry the trace on")
	}
	for _, name := range slices.Sorted(maps.Keys(t.CustomTags)) {
		tag, at := t.CustomTags[name], yamldoc.Key(at+".customTags", name)
		switch {
		case name == "":
			c.Errorf(at, "the name of a tag must not be empty")
		case tag == CustomTag{}:
			c.Errorf(at, "has no value: set literal, environment or header")
		case tag.Literal != nil && tag.Literal.Value == "":
			c.Errorf(at+".literal.value", "must not be empty")
		case tag.Environment != nil && tag.Environment.Name == "":
			c.Errorf(at+".environment.name", "must not be empty")
		case tag.Header != nil && tag.Header.Name == "":
			c.Errorf(at+".header.name", "must not be empty")
		case tag.Header != nil && !field.IsToken(tag.Header.Name):
			c.Errorf(at+".header.name", "%q is not the name of a header", tag.Header.Name)
		case tag.Header != nil && namesHost(tag.Header.Name):
			c.Errorf(at+".header.name", "is not enforced: the host of a request is not among its headers; spans have it as server.address")
		}
	}
}

func (c check) metrics(m *Metrics, at string) {
	c.providers(m.Providers, at)
	if m.ReportingInterval.Set {
		c.that(shortDuration(m.ReportingInterval), at, ".reportingInterval")
	}
	for i := range m.Overrides {
		o, at := &m.Overrides[i], yamldoc.Index(at+".overrides", i)
		for _, name := range slices.Sorted(maps.Keys(o.TagOverrides)) {
			c.tagOverride(name, o.TagOverrides[name], yamldoc.Key(at+".tagOverrides", name))
		}
	}
}

// namesHost reports whether a header is that of the host, which net/http keeps apart from the others.
func namesHost(header string) bool { return strings.EqualFold(header, "host") }

var labelName = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)

func (c check) tagOverride(name string, t TagOverride, at string) {
	switch {
	case name == "":
		c.Errorf(at, "the name of a tag must not be empty")
	case !labelName.MatchString(name) || strings.HasPrefix(name, "__"):
		c.Errorf(at, "%q is not the name of a label of Prometheus: use letters, digits and _", name)
	case name == "le":
		c.Errorf(at, "le is the label that histograms have for their buckets: Prometheus refuses a scrape with a second one")
	case t.Operation == "REMOVE" && t.Value != "":
		c.Errorf(at+".value", "does not go with operation REMOVE")
	case t.Operation == "REMOVE":
		if !slices.Contains(standardTags, name) {
			c.Warnf(at, "no metric has the label %q, which is to be removed", name)
		}
	case t.Value == "":
		c.Errorf(at+".value", "missing: operation UPSERT needs a value")
	default:
		if _, ok := labelValue(name, t.Value); !ok {
			hint := ""
			if identifier.MatchString(t.Value) {
				hint = ", and for a literal " + strconv.Quote("'"+t.Value+"'") + ", in quotes of its own"
			}
			c.Errorf(at+".value", "%s is not enforced: write 'a literal' or request.headers['name']%s", t.Value, hint)
		}
	}
}

var (
	identifier = regexp.MustCompile(`^[a-zA-Z0-9_-]+$`)
	literal    = regexp.MustCompile(`^(?:'([^'"\\\n]*)'|"([^'"\\\n]*)")$`)
	headerOf   = regexp.MustCompile(`^request\.headers\[(?:'([^'"\\]+)'|"([^'"\\]+)")\]$`)
)

// labelValue parses the value of a tagOverride. It reports false unless the expression is a literal or a header of the request; others
// are not enforced.
func labelValue(label, expression string) (telemetry.Tag, bool) {
	expression = strings.TrimSpace(expression)
	if m := literal.FindStringSubmatch(expression); m != nil {
		return telemetry.Tag{Name: label, Text: m[1] + m[2]}, true
	}
	if m := headerOf.FindStringSubmatch(expression); m != nil && field.IsToken(m[1]+m[2]) && !namesHost(m[1]+m[2]) {
		return fromHeader(label, m[1]+m[2], "unknown"), true
	}
	return telemetry.Tag{}, false
}

// standardTags are the labels of Istio's metrics.
var standardTags = []string{
	"reporter", "source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
	"source_principal", "source_app", "source_version", "source_cluster", "destination_workload", "destination_workload_namespace",
	"destination_principal", "destination_app", "destination_version", "destination_service", "destination_service_name",
	"destination_service_namespace", "destination_canonical_service", "destination_canonical_revision", "destination_cluster",
	"request_protocol", "response_code", "grpc_response_status", "response_flags", "connection_security_policy",
}

func (c check) accessLogging(l *AccessLogging, at string) {
	c.providers(l.Providers, at)
	switch {
	case l.Filter == nil:
	case l.Filter.Expression == "":
		c.Errorf(at+".filter.expression", "missing: write a condition, or remove the filter")
	case len(l.Providers) == 0:
		c.Warnf(at+".filter", "has no effect, as in Istio, without providers: name one")
	}
}
