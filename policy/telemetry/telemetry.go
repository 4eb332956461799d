// Package telemetry holds what Telemetry documents say about the traces, metrics and access logs of a workload, compiled into
// settings, and decides by them. It reads no documents: package policy does.
package telemetry

import "net/http"

// Settings are those of a workload. They are immutable and safe for concurrent use. nil says nothing, as the zero value does.
type Settings struct {
	client, server Side
}

// Side is what is said about calls (CLIENT in documents), or about requests to the workload (SERVER). It must not be changed.
type Side struct {
	Tracing Tracing
	Log     AccessLog

	// Metrics are the overrides of each of Istio's metrics, by its name in documents, such as REQUEST_COUNT. There is none for a
	// metric that nothing is said about.
	Metrics map[string]Metric
}

// New returns the settings of both sides.
func New(client, server Side) *Settings {
	return &Settings{client, server}
}

var none Side

// Client returns what is said about calls. It is never nil.
func (s *Settings) Client() *Side {
	if s == nil {
		return &none
	}
	return &s.client
}

// Server returns what is said about requests to the workload. It is never nil.
func (s *Settings) Server() *Side {
	if s == nil {
		return &none
	}
	return &s.server
}

// Tracing is what is said about spans. Its zero value changes nothing.
type Tracing struct {
	// Disabled makes no spans. Traces are carried on.
	Disabled bool

	// LimitsSampling says that Sampling counts: the percentage, 0 to 100, of the traces beginning here that may be sampled.
	LimitsSampling bool
	Sampling       float64

	// Tags are added to spans: those of Istio that say which workload this process is, if documents ask for them, and then their
	// own in the order of their names. Of two with one name the last counts.
	Tags []Tag

	// Peers adds to spans which workload is at the other end, by the names of Istio: istio.destination_workload,
	// istio.destination_namespace and istio.destination_canonical_service to those of calls, and istio.source_ to those of requests.
	Peers bool
}

// Tag is an attribute of a span or a label of a metric.
type Tag struct {
	Name string

	// Header, a key of an http.Header, is the request header that the value is taken from. "" means Text.
	Header string

	// Text is the value, or that of a request without the header.
	Text string
}

// Value returns the value of the tag for a request with a header, "" if it has none.
func (t *Tag) Value(h http.Header) string {
	if t.Header != "" {
		if values := h[t.Header]; len(values) > 0 {
			return values[0]
		}
	}
	return t.Text
}

// AccessLog is what is said about lines of access logs. Its zero value changes nothing.
type AccessLog struct {
	// Disabled writes no lines.
	Disabled bool

	// Filters keep the calls that any of them keeps. Without one all are kept.
	Filters []Filter
}

// Keeps says whether there is a line for a call.
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

// Metric is what is said about a metric.
type Metric struct {
	// Disabled exports it not at all.
	Disabled bool

	// Remove are the labels that it does not have, and Set those that it has, with this value. Both are sorted by name.
	Remove []string
	Set    []Tag
}

// Filter decides by an expression of a document. It is safe for concurrent use.
type Filter interface {
	// Keeps reports whether the expression is true of a call. It is false if that cannot be said.
	Keeps(call Attributes) bool
}

// Expressions compiles the expressions of documents. Package policy/telemetry/cel has one.
type Expressions interface {
	// Filter compiles an expression that is true or false of a call. The error says what is wrong with it.
	Filter(expression string) (Filter, error)
}

// Attributes are what expressions ask about a call, by the names that Envoy has for them:
//
//	request.path, .url_path, .host, .method, .useragent     string
//	request.headers                                         http.Header; names are looked up in any spelling
//	request.duration, response.duration                     time.Duration
//	response.code, response.flags, response.grpc_status     int64
//	connection.mtls                                         bool
//	source.address, xds.cluster_name                        string
//	destination.port                                        int64
//	filter_state.upstream_peer and .downstream_peer:
//	  .namespace, .workload, .app, .version, .service,
//	  .revision, .cluster, .name                            string
//	  .labels                                               map[string]string
type Attributes interface {
	// Attribute returns the value of an attribute, of the type above, and false if the call has none.
	Attribute(name string) (value any, ok bool)
}
