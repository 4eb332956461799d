// Package telemetry has the settings of Telemetry documents for the traces, metrics and access logs of a workload. Package policy
// reads the documents and compiles them into these settings.
package telemetry

import "net/http"

// Settings has the settings of a workload. It is immutable and safe for concurrent use. Nil and the zero value change nothing.
type Settings struct {
	client, server Side
}

// Side has the settings of outbound calls (CLIENT in documents) or of inbound requests (SERVER). It must not be changed once it is part
// of Settings.
type Side struct {
	Tracing Tracing
	Log     AccessLog

	// Metrics has the overrides of Istio's metrics, by their names in documents, such as REQUEST_COUNT. Metrics without overrides
	// are absent.
	Metrics map[string]Metric

	// SecretParams are parameters of queries that hold tokens, as RequestAuthentications say. Their values must not be recorded.
	SecretParams []string
}

// New returns the settings of both sides.
func New(client, server Side) *Settings {
	return &Settings{client, server}
}

var none Side

// Client returns the settings of outbound calls. It is never nil.
func (s *Settings) Client() *Side {
	if s == nil {
		return &none
	}
	return &s.client
}

// Server returns the settings of inbound requests. It is never nil.
func (s *Settings) Server() *Side {
	if s == nil {
		return &none
	}
	return &s.server
}

// Tracing has the settings of spans. Its zero value changes nothing.
type Tracing struct {
	// Disabled turns off spans. The trace context is still propagated.
	Disabled bool

	// LimitsSampling says that Sampling applies: the percentage, 0 to 100, of the traces beginning here that may be sampled.
	LimitsSampling bool
	Sampling       float64

	// Tags are added to spans: first Istio's tags about this workload, if documents enable them, then the tags of documents, sorted
	// by name. Of two tags with the same name, the last one counts.
	Tags []Tag

	// Peers adds the workload at the other end, with Istio's names: istio.destination_workload, istio.destination_namespace and
	// istio.destination_canonical_service to spans of calls, and the same with istio.source_ to spans of requests.
	Peers bool
}

// Tag is an attribute of a span or a label of a metric.
type Tag struct {
	Name string

	// Header is the request header whose value is used, as a key of http.Header. Empty means that Text is used.
	Header string

	// Text is the value if Header is empty or the request does not have that header.
	Text string
}

// Value returns the value of the tag for a request with the header h. It may be empty.
func (t *Tag) Value(h http.Header) string {
	if t.Header != "" {
		if values := h[t.Header]; len(values) > 0 {
			return values[0]
		}
	}
	return t.Text
}

// AccessLog has the settings of access logs. Its zero value changes nothing.
type AccessLog struct {
	// Disabled turns off the log.
	Disabled bool

	// Filters keep a call if any of them keeps it. Without filters, all calls are kept.
	Filters []Filter
}

// Keeps reports whether a call is logged.
func (l *AccessLog) Keeps(call Attributes) bool {
	if l.Disabled || len(l.Filters) == 0 {
		return !l.Disabled
	}
	for _, f := range l.Filters {
		if f.Keeps(call) {
			return true
		}
	}
	return false
}

// Metric has the overrides of a metric. Its zero value changes nothing.
type Metric struct {
	// Disabled turns the metric off.
	Disabled bool

	// Remove lists the labels to remove. Set lists the labels to add or replace. Both are sorted by name.
	Remove []string
	Set    []Tag
}

// Filter is a compiled expression of a document. It is safe for concurrent use.
type Filter interface {
	// Keeps reports whether the expression is true for a call. It reports false if the expression cannot be evaluated.
	Keeps(call Attributes) bool
}

// Expressions compiles the expressions of documents. Package policy/telemetry/cel has an implementation.
type Expressions interface {
	// Filter compiles a boolean expression about a call. The error says what is wrong with the expression.
	Filter(expression string) (Filter, error)
}

// Attributes has the attributes of a call that expressions can use, by the names that Envoy has for them:
//
//	request.path, .url_path, .host, .method, .useragent     string
//	request.headers                                         http.Header; names are looked up in any spelling
//	request.duration, response.duration                     time.Duration
//	response.code, response.flags, response.grpc_status     int64
//	connection.mtls                                         bool
//	source.address, xds.cluster_name                        string
//	destination.port                                        int64
//	filter_state.upstream_peer and .downstream_peer:
//	  .namespace, .workload, .app, .service, .revision      string
//	filter_state.upstream_peer.version                      string
//	filter_state.upstream_peer.labels                       map[string]string
type Attributes interface {
	// Attribute returns the value of an attribute, of the type above, and false if the call has none.
	Attribute(name string) (value any, ok bool)
}
