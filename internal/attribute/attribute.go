// Package attribute lists the attributes of a call that expressions of Telemetry documents can use.
package attribute

// Kind is the type of an attribute.
type Kind uint8

// The kinds, with the Go types of their values.
const (
	Text     Kind = iota // string
	Number               // int64
	Bool                 // bool
	Duration             // time.Duration
	Header               // http.Header; names are looked up in any spelling
	Labels               // map[string]string
)

// Variables returns the attributes that expressions can use, by name: those of Envoy's attributes that calls of a process have.
func Variables() map[string]Kind {
	v := map[string]Kind{
		"request.path": Text, "request.url_path": Text, "request.host": Text, "request.method": Text, "request.useragent": Text,
		"request.headers": Header, "request.duration": Duration,
		"response.code": Number, "response.flags": Number, "response.grpc_status": Number, "response.duration": Duration,
		"connection.mtls": Bool,
		"source.address":  Text, "destination.port": Number, "xds.cluster_name": Text,
	}
	for _, peer := range []string{"upstream_peer", "downstream_peer"} {
		for _, field := range []string{"namespace", "workload", "app", "service", "revision"} {
			v["filter_state."+peer+"."+field] = Text
		}
	}
	// Only discovery knows these, and it knows nothing of a downstream.
	v["filter_state.upstream_peer.version"], v["filter_state.upstream_peer.labels"] = Text, Labels
	return v
}
