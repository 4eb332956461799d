package istio

import (
	"iter"
	"maps"
	"net/http"
	"os"
	"slices"

	"github.com/nosidecar/mesh/internal/workload"
	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/telemetry"
)

// TelemetryGroup is the API group of the documents about traces, metrics and access logs.
const TelemetryGroup = "telemetry.istio.io"

// Telemetry says what workloads report.
type Telemetry struct {
	yamldoc.Object
	Spec   TelemetrySpec `yaml:"spec"`
	Status yamldoc.Any   `yaml:"status" mesh:"unused: written by the control plane"`
}

// TelemetrySpec is the spec of a [Telemetry].
type TelemetrySpec struct {
	Selector      *WorkloadSelector       `yaml:"selector"`
	TargetRef     *PolicyTargetReference  `yaml:"targetRef"`
	TargetRefs    []PolicyTargetReference `yaml:"targetRefs"`
	Tracing       []Tracing               `yaml:"tracing"`
	Metrics       []Metrics               `yaml:"metrics"`
	AccessLogging []AccessLogging         `yaml:"accessLogging"`
}

// ProviderRef names a provider, which telemetry is reported to.
type ProviderRef struct {
	Name string `yaml:"name,required"`
}

// WorkloadModeSelector selects one side, or both.
type WorkloadModeSelector struct {
	Mode string `yaml:"mode" enum:"CLIENT_AND_SERVER,CLIENT,SERVER"`
}

// Tracing says which spans are created, and with which tags.
type Tracing struct {
	Match                        *WorkloadModeSelector `yaml:"match"`
	Providers                    []ProviderRef         `yaml:"providers"`
	RandomSamplingPercentage     *float64              `yaml:"randomSamplingPercentage"`
	DisableSpanReporting         *bool                 `yaml:"disableSpanReporting"`
	CustomTags                   map[string]CustomTag  `yaml:"customTags"`
	UseRequestIDForTraceSampling *bool                 `yaml:"useRequestIdForTraceSampling" mesh:"meaningless: whether a trace is sampled is not read from x-request-id, but from the trace headers"`
	EnableIstioTags              *bool                 `yaml:"enableIstioTags"`
	DisableContextPropagation    *bool                 `yaml:"disableContextPropagation"`
}

// CustomTag says where the value of an attribute of spans comes from.
type CustomTag struct {
	Literal     *TagLiteral     `yaml:"literal" oneof:"type"`
	Environment *TagEnvironment `yaml:"environment" oneof:"type"`
	Header      *TagHeader      `yaml:"header" oneof:"type"`
	Formatter   *TagFormatter   `yaml:"formatter" oneof:"type" mesh:"refused: formatter is not enforced: use literal, environment or header"`
}

// TagLiteral is a value.
type TagLiteral struct {
	Value string `yaml:"value,required"`
}

// TagEnvironment is a variable of the environment.
type TagEnvironment struct {
	Name         string `yaml:"name,required"`
	DefaultValue string `yaml:"defaultValue"`
}

// TagHeader is a header of the request.
type TagHeader struct {
	Name         string `yaml:"name,required"`
	DefaultValue string `yaml:"defaultValue"`
}

// TagFormatter is a format string of access logs.
type TagFormatter struct {
	Value string `yaml:"value,required"`
}

// Metrics says which metrics are reported, and with which labels.
type Metrics struct {
	Providers         []ProviderRef      `yaml:"providers"`
	Overrides         []MetricsOverrides `yaml:"overrides"`
	ReportingInterval yamldoc.Duration   `yaml:"reportingInterval" mesh:"meaningless: what is counted shows at the next scrape, whatever the interval"`
}

// MetricsOverrides changes metrics.
type MetricsOverrides struct {
	Match        *MetricSelector        `yaml:"match"`
	Disabled     *bool                  `yaml:"disabled"`
	TagOverrides map[string]TagOverride `yaml:"tagOverrides"`
}

// MetricSelector selects metrics of one side, or both.
type MetricSelector struct {
	Metric       string `yaml:"metric" oneof:"metricMatch" enum:"ALL_METRICS,REQUEST_COUNT,REQUEST_DURATION,REQUEST_SIZE,RESPONSE_SIZE,TCP_OPENED_CONNECTIONS,TCP_CLOSED_CONNECTIONS,TCP_SENT_BYTES,TCP_RECEIVED_BYTES,GRPC_REQUEST_MESSAGES,GRPC_RESPONSE_MESSAGES"`
	CustomMetric string `yaml:"customMetric" oneof:"metricMatch" mesh:"refused: customMetric names a metric that does not exist in-process: only those of metric do"`
	Mode         string `yaml:"mode" enum:"CLIENT_AND_SERVER,CLIENT,SERVER"`
}

// TagOverride changes a label.
type TagOverride struct {
	Operation string `yaml:"operation" enum:"UPSERT,REMOVE"`
	Value     string `yaml:"value"`
}

// AccessLogging says which calls are logged.
type AccessLogging struct {
	Match     *WorkloadModeSelector `yaml:"match"`
	Providers []ProviderRef         `yaml:"providers"`
	Disabled  *bool                 `yaml:"disabled"`
	Filter    *AccessLogFilter      `yaml:"filter"`
}

// AccessLogFilter is a condition on the calls that are logged.
type AccessLogFilter struct {
	Expression string `yaml:"expression"`
}

// Attached reports whether the document is attached to gateways or waypoints.
func (t *Telemetry) Attached() bool { return t.Spec.TargetRef != nil || len(t.Spec.TargetRefs) > 0 }

// Applied is a document that applies to the workload. Filters has the filter of each entry of its access logging, or nil.
type Applied struct {
	*TelemetrySpec
	Filters []telemetry.Filter
}

// The names of the sides in documents.
const (
	clientMode = "CLIENT"
	serverMode = "SERVER"
)

// JoinTelemetry joins documents, the most general first, for a process.
func JoinTelemetry(documents []Applied, process workload.Options) *telemetry.Settings {
	side := func(mode string) telemetry.Side {
		return telemetry.Side{Tracing: tracingOf(documents, mode, process), Log: accessLogOf(documents, mode), Metrics: metricsOf(documents, mode)}
	}
	return telemetry.New(side(clientMode), side(serverMode))
}

func (m *WorkloadModeSelector) of(mode string) bool {
	return m == nil || matches(m.Mode, mode)
}

func matches(want, mode string) bool {
	return want == "" || want == "CLIENT_AND_SERVER" || want == mode
}

// tracingOf takes each setting from the last document that has it. Tags are one setting.
func tracingOf(documents []Applied, mode string, process workload.Options) (out telemetry.Tracing) {
	for _, d := range documents {
		for i := range d.Tracing {
			t := &d.Tracing[i]
			if !t.Match.of(mode) {
				continue
			}
			if t.DisableSpanReporting != nil {
				out.Disabled = *t.DisableSpanReporting
			}
			if t.RandomSamplingPercentage != nil {
				out.LimitsSampling, out.Sampling = true, *t.RandomSamplingPercentage
			}
			if t.EnableIstioTags != nil {
				out.Peers = *t.EnableIstioTags
			}
			if t.CustomTags != nil {
				out.Tags = nil
				for _, name := range slices.Sorted(maps.Keys(t.CustomTags)) {
					out.Tags = append(out.Tags, t.CustomTags[name].tag(name))
				}
			}
		}
	}
	if out.Peers {
		out.Tags = slices.Concat(istioTags(mode, process), out.Tags)
	}
	return out
}

// istioTags returns the tags about this process that Istio adds to the spans of one side.
func istioTags(mode string, process workload.Options) []telemetry.Tag {
	side := "istio.source_"
	if mode == serverMode {
		side = "istio.destination_"
	}
	own := workload.Find(process, os.Getenv)
	w := own.Workload()
	return []telemetry.Tag{
		{Name: "istio.canonical_revision", Text: w.Revision},
		{Name: "istio.canonical_service", Text: w.Service},
		{Name: "istio.cluster_id", Text: w.Cluster},
		{Name: side + "canonical_service", Text: w.Service},
		{Name: side + "namespace", Text: w.Namespace},
		{Name: side + "workload", Text: w.Name},
		{Name: "istio.mesh_id", Text: workload.Bounded(own.Mesh)},
		{Name: "istio.namespace", Text: w.Namespace},
	}
}

func (t CustomTag) tag(name string) telemetry.Tag {
	switch {
	case t.Literal != nil:
		return telemetry.Tag{Name: name, Text: t.Literal.Value}
	case t.Environment != nil:
		value, set := os.LookupEnv(t.Environment.Name)
		if !set {
			value = t.Environment.DefaultValue
		}
		return telemetry.Tag{Name: name, Text: value}
	case t.Header != nil:
		return fromHeader(name, t.Header.Name, t.Header.DefaultValue)
	}
	return telemetry.Tag{Name: name}
}

// fromHeader returns a tag whose value is a header, or missing if the request lacks the header.
func fromHeader(name, header, missing string) telemetry.Tag {
	return telemetry.Tag{Name: name, Header: http.CanonicalHeaderKey(header), Text: missing}
}

// unnamed is the provider of documents that name none.
const unnamed = ""

func names(refs []ProviderRef) (out []string) {
	for _, ref := range refs {
		out = append(out, ref.Name)
	}
	return out
}

// accessLogOf determines, like Istio, which providers log with which filter. Here, the log of the program takes the place of all of them.
func accessLogOf(documents []Applied, mode string) telemetry.AccessLog {
	inScope, filters, any := []string{unnamed}, make(map[string]telemetry.Filter), false
	for _, d := range documents {
		var named []string
		for i := range d.AccessLogging {
			entry := &d.AccessLogging[i]
			any = true
			if !entry.Match.of(mode) {
				continue
			}
			for _, provider := range names(entry.Providers) {
				named = append(named, provider)
				filters[provider] = d.Filters[i]
			}
		}
		if len(named) > 0 {
			slices.Sort(named)
			inScope = slices.Compact(named)
		}
	}
	if !any {
		return telemetry.AccessLog{}
	}
	on := map[string]bool{unnamed: true} // because the program has an access log
	parents := []string{unnamed}
	for _, d := range documents {
		for i := range d.AccessLogging {
			entry := &d.AccessLogging[i]
			if !entry.Match.of(mode) {
				continue
			}
			providers := names(entry.Providers)
			if len(providers) == 0 {
				providers = parents
			}
			parents = providers
			for _, provider := range providers {
				on[provider] = entry.Disabled == nil || !*entry.Disabled
			}
		}
	}
	out := telemetry.AccessLog{Disabled: true}
	all := false
	for _, provider := range inScope {
		if on[provider] {
			out.Disabled = false
			if f := filters[provider]; f == nil {
				all = true
			} else {
				out.Filters = append(out.Filters, f)
			}
		}
	}
	if all {
		out.Filters = nil
	}
	return out
}

// standardMetrics has the metrics that ALL_METRICS means.
var standardMetrics = []string{
	"REQUEST_COUNT", "REQUEST_DURATION", "REQUEST_SIZE", "RESPONSE_SIZE", "TCP_OPENED_CONNECTIONS", "TCP_CLOSED_CONNECTIONS",
	"TCP_SENT_BYTES", "TCP_RECEIVED_BYTES", "GRPC_REQUEST_MESSAGES", "GRPC_RESPONSE_MESSAGES",
}

// overridden is the result of all overrides of a metric.
type overridden struct {
	disabled bool
	tags     map[string]TagOverride
}

// metricsOf applies the overrides in order, as Istio does. For each label, the last override counts. If the last override disables all
// metrics, they are disabled. Any later override, even of a single metric, enables all of them again, with their earlier overrides.
func metricsOf(documents []Applied, mode string) map[string]telemetry.Metric {
	metrics, dropped := make(map[string]*overridden), false
	for o := range overridesInScope(documents) {
		metric, of := "", ""
		if o.Match != nil {
			metric, of = o.Match.Metric, o.Match.Mode
		}
		if !matches(of, mode) {
			continue
		}
		named := []string{metric}
		if metric == "" || metric == "ALL_METRICS" {
			if dropped = o.Disabled != nil && *o.Disabled; dropped {
				continue
			}
			named = standardMetrics
		}
		dropped = false
		for _, name := range named {
			if metrics[name] == nil {
				metrics[name] = &overridden{tags: make(map[string]TagOverride)}
			}
			if o.Disabled != nil {
				metrics[name].disabled = *o.Disabled
			}
			maps.Copy(metrics[name].tags, o.TagOverrides)
		}
	}
	out := make(map[string]telemetry.Metric)
	for name, o := range metrics {
		out[name] = o.compile()
	}
	if dropped {
		for _, name := range standardMetrics {
			out[name] = telemetry.Metric{Disabled: true}
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// overridesInScope yields the overrides for the providers in use: those that were named last, or the unnamed one.
func overridesInScope(documents []Applied) iter.Seq[*MetricsOverrides] {
	inScope := []string{unnamed}
	for _, d := range documents {
		for i := range d.Metrics {
			if named := names(d.Metrics[i].Providers); len(named) > 0 {
				inScope = named
			}
		}
	}
	return func(yield func(*MetricsOverrides) bool) {
		parents := []string{unnamed}
		for _, d := range documents {
			for i := range d.Metrics {
				m := &d.Metrics[i]
				if named := names(m.Providers); len(named) > 0 {
					parents = named
				}
				if !slices.ContainsFunc(parents, func(provider string) bool { return slices.Contains(inScope, provider) }) {
					continue // a later document names other providers
				}
				for j := range m.Overrides {
					if !yield(&m.Overrides[j]) {
						return
					}
				}
			}
		}
	}
}

// compile translates the overrides of a metric.
func (o *overridden) compile() telemetry.Metric {
	m := telemetry.Metric{Disabled: o.disabled}
	for _, label := range slices.Sorted(maps.Keys(o.tags)) {
		if tag := o.tags[label]; tag.Operation == "REMOVE" {
			m.Remove = append(m.Remove, label)
		} else if value, ok := labelValue(label, tag.Value); ok {
			m.Set = append(m.Set, value)
		}
	}
	return m
}
