package istio_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/istio"
)

// rule is one rule of Istio's webhook or of its Kubernetes schema, under the name of what it is about. want is the
// finding, "field: message" or "field: warning: message", of which the message may be cut short; empty means that the
// document is accepted without a word.
type rule struct {
	name, spec, want string
}

// findings decodes, checks and, if it is a VirtualService, compiles a document.
func findings(t *testing.T, text string) []string {
	t.Helper()
	docs := yamldoc.Parse([]byte(text))[0]
	if len(docs) != 1 {
		t.Fatalf("%d documents", len(docs))
	}
	doc := docs[0]
	into := istio.New(doc.Text("kind"))
	var dec yamldoc.Decoder
	if dec.Decode(doc, into) {
		into.Check(doc)
		if vs, ok := into.(*istio.VirtualService); ok && !doc.Failed() && vs.InMesh() {
			root := vs.Expand(func(string, string) (*istio.VirtualService, bool) { return nil, false })
			root.Table(doc, istio.Client{Namespace: "default", ClusterDomain: "cluster.local"})
		}
	}
	var found []string
	for _, p := range doc.Problems {
		severity := ""
		if p.Warning {
			severity = "warning: "
		}
		found = append(found, fmt.Sprintf("%s: %s%s", p.Path, severity, p.Message))
	}
	return found
}

// check runs rules for documents of one kind; wrap makes the spec of a document of a rule's.
func check(t *testing.T, kind string, rules []rule, wrap func(spec string) string) {
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			text := fmt.Sprintf("apiVersion: x/v1\nkind: %s\nmetadata: {name: x, namespace: ns}\nspec: %s\n", kind, wrap(r.spec))
			got := findings(t, text)
			if r.want == "" && len(got) > 0 || r.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], r.want)) {
				t.Errorf("%s\nfound %q\nwant  %q", text, got, r.want)
			}
		})
	}
}

func whole(spec string) string { return spec }

// long returns a string of n letters.
func long(n int) string { return strings.Repeat("a", n) }

func repeated(n int, element func(i int) string) string {
	list := make([]string, n)
	for i := range list {
		list[i] = element(i)
	}
	return strings.Join(list, ", ")
}

func TestRules_VirtualService(t *testing.T) {
	const to = "http: [{route: [{destination: {host: a}}]}]"
	check(t, "VirtualService", []rule{
		{"host name", "{hosts: [a_b], " + to + "}", `spec.hosts[0]: "a_b" is not a host name`},
		{"host empty", "{hosts: [''], " + to + "}", "spec.hosts[0]: a host name must not be empty"},
		{"host length", "{hosts: [" + strings.Repeat("a.", 128) + "b], " + to + "}", "spec.hosts[0]: a host name has at most 255"},
		{"host label length", "{hosts: [" + long(64) + "], " + to + "}", "spec.hosts[0]: "},
		{"host label of 63", "{hosts: [a." + long(63) + ".com], " + to + "}", ""},
		{"host second label length", "{hosts: [a." + long(64) + ".com], " + to + "}", "spec.hosts[0]: "},
		{"host wildcard label length", "{hosts: ['*" + long(63) + "'], " + to + "}", "spec.hosts[0]: "},
		{"host numeric last label", "{hosts: [a.1], " + to + "}", `spec.hosts[0]: "a.1" is not a host name`},
		{"host numeric without dot", "{hosts: ['123'], " + to + "}", ""},
		{"host trailing dot", "{hosts: [a.example.com.], " + to + "}", ""},
		{"host wildcard", "{hosts: ['*.example.com'], " + to + "}", ""},
		{"host wildcard within label", "{hosts: ['*-a.example.com'], " + to + "}", ""},
		{"host wildcard not first", "{hosts: ['a.*.com'], " + to + "}", "spec.hosts[0]: "},
		{"host IPv4", "{hosts: [10.0.0.1], " + to + "}", ""},
		{"host IPv6", "{hosts: ['2001:db8::1'], " + to + "}", ""},
		{"host star in mesh", "{hosts: ['*'], " + to + "}", `spec.hosts[0]: "*" is for gateways only`},
		{"host star in mesh and gateway", "{hosts: ['*'], gateways: [g, mesh], " + to + "}", `spec.hosts[0]: "*" is for gateways only`},
		{"host star at gateway", "{hosts: ['*'], gateways: [g], " + to + "}", ""},
		{"hosts duplicate", "{hosts: [a.com, a.com], " + to + "}", "spec.hosts[1]: a.com and a.com overlap"},
		{"hosts duplicate IP", "{hosts: [10.0.0.1, 10.0.0.1], " + to + "}", "spec.hosts[1]: 10.0.0.1 and 10.0.0.1 overlap"},
		{"hosts overlap", "{hosts: ['*.a.com', x.a.com], " + to + "}", "spec.hosts[1]: *.a.com and x.a.com overlap"},
		{"hosts overlap of wildcards", "{hosts: ['*.a.com', '*.com'], " + to + "}", "spec.hosts[1]: *.a.com and *.com overlap"},
		{"gateway", "{hosts: [a], gateways: [ns/g, mesh], " + to + "}", ""},
		{"gateway with domain", "{hosts: [a], gateways: [g.ns.svc.cluster.local], " + to + "}", ""},
		{"gateway wildcard", "{hosts: [a], gateways: ['*.ns'], " + to + "}", "spec.gateways[0]: "},
		{"gateway namespace", "{hosts: [a], gateways: [./g], " + to + "}", "spec.gateways[0]: "},
		{"gateway name", "{hosts: [a], gateways: [ns/], " + to + "}", "spec.gateways[0]: "},
		{"no routes", "{hosts: [a]}", "spec.http: missing"},
		{"exportTo", "{hosts: [a], exportTo: [., other], " + to + "}", ""},
		{"exportTo all", "{hosts: [a], exportTo: ['*'], " + to + "}", ""},
		{"exportTo all and more", "{hosts: [a], exportTo: ['*', other], " + to + "}", `spec.exportTo[0]: "*" goes with no other`},
		{"exportTo duplicate", "{hosts: [a], exportTo: [other, other], " + to + "}", `spec.exportTo[1]: "other" is listed twice`},
		{"exportTo own namespace twice", "{hosts: [a], exportTo: [., ns], " + to + "}", `spec.exportTo[1]: "ns" is listed twice`},
		{"exportTo none", "{hosts: [a], exportTo: ['~'], " + to + "}", `spec.exportTo[0]: "~" is for ServiceEntries`},
		{"exportTo not a namespace", "{hosts: [a], exportTo: [a.b], " + to + "}", `spec.exportTo[0]: "a.b" is neither`},
		{"second catch-all", "{hosts: [a], http: [{route: [{destination: {host: a}}]}, {route: [{destination: {host: b}}]}]}",
			"spec.http[1]: warning: never reached"},
		{"delegate", "{" + to + "}", ""},
		{"delegate with gateways", "{gateways: [mesh], " + to + "}", "spec.gateways: a VirtualService without hosts"},
		{"delegate of a delegate", "{http: [{delegate: {name: b}}]}", "spec.http[0].delegate: a delegate cannot delegate"},
		{"JWT claim in mesh", "{hosts: [a], http: [{match: [{headers: {'@request.auth.claims.sub': {exact: x}}}], route: [{destination: {host: a}}]}]}",
			`spec.http[0].match[0].headers["@request.auth.claims.sub"]: matching JWT claims works at gateways only`},
		{"JWT claim at gateway", "{hosts: [a], gateways: [g], http: [{match: [{withoutHeaders: {'@Request.auth.claims[a][b]': {exact: x}}}], route: [{destination: {host: a}}]}]}", ""},
		{"JWT something else", "{hosts: [a], gateways: [g], http: [{match: [{headers: {'@request.auth.sub': {exact: x}}}], route: [{destination: {host: a}}]}]}",
			`spec.http[0].match[0].headers["@request.auth.sub"]: "@request.auth.sub" is not a header name`},
	}, whole)

	check(t, "VirtualService", []rule{
		{"no action", "{}", "spec.http[0]: no route, redirect or directResponse"},
		{"route and redirect", "{redirect: {uri: /x}, route: [{destination: {host: a}}]}", "spec.http[0].route: redirect and route exclude"},
		{"redirect and fault", "{redirect: {uri: /x}, fault: {abort: {httpStatus: 500, percentage: {value: 50}}}}",
			"spec.http[0].fault: redirect and fault exclude"},
		{"redirect and rewrite", "{redirect: {uri: /x}, rewrite: {uri: /y}}", "spec.http[0].rewrite: redirect and rewrite exclude"},
		{"redirect and directResponse", "{redirect: {uri: /x}, directResponse: {status: 200}}",
			"spec.http[0].directResponse: redirect and directResponse exclude"},
		{"directResponse and route", "{directResponse: {status: 200}, route: [{destination: {host: a}}]}",
			"spec.http[0].route: directResponse and route exclude"},
		{"directResponse and fault", "{directResponse: {status: 200}, fault: {abort: {httpStatus: 500, percentage: {value: 50}}}}",
			"spec.http[0].fault: directResponse and fault exclude"},
		{"directResponse and rewrite", "{directResponse: {status: 200}, rewrite: {uri: /y}}",
			"spec.http[0].rewrite: directResponse and rewrite exclude"},
		{"root route", "{delegate: {name: b, namespace: other}, timeout: 1s}", ""},
		{"root route with directResponse", "{delegate: {name: b}, directResponse: {status: 200}}", ""},
		{"root route with route", "{delegate: {name: b}, route: [{destination: {host: a}}]}", "spec.http[0].route: delegate and route exclude"},
		{"root route with redirect", "{delegate: {name: b}, redirect: {uri: /x}}", "spec.http[0].redirect: delegate and redirect exclude"},
		{"redirect empty", "{redirect: {}}", "spec.http[0].redirect: must set uri"},
		{"redirect with prefix alone", "{redirect: {prefixRewrite: /x}}", ""},
		{"redirect port", "{redirect: {port: 70000}}", "spec.http[0].redirect.port: 70000 is not a port"},
		{"redirect port 0", "{redirect: {port: 0}}", ""},
		{"redirect derivePort", "{redirect: {derivePort: FROM_REQUEST_PORT}}", ""},
		{"redirect port and derivePort", "{redirect: {port: 80, derivePort: FROM_REQUEST_PORT}}",
			"spec.http[0].redirect: port and derivePort exclude"},
		{"redirect scheme", "{redirect: {scheme: ftp}}", `spec.http[0].redirect.scheme: "ftp" is neither`},
		{"redirect code", "{redirect: {uri: /x, redirectCode: 200}}", "spec.http[0].redirect.redirectCode: 200 cannot"},
		{"redirect code not enforced", "{redirect: {uri: /x, redirectCode: 304}}", "spec.http[0].redirect.redirectCode: 304 cannot be enforced"},
		{"redirect codes", "{redirect: {uri: /x, redirectCode: 308}}", ""},
		{"directResponse status", "{directResponse: {status: 199}}", "spec.http[0].directResponse.status: 199 is not"},
		{"directResponse status required", "{directResponse: {}}", "spec.http[0].directResponse.status: missing"},
		{"directResponse body", "{directResponse: {status: 503, body: {string: x}}}", ""},
		{"directResponse bytes", "{directResponse: {status: 503, body: {bytes: aGk=}}}", ""},
		{"redirect with timeout", "{redirect: {uri: /x}, timeout: 1s}", "spec.http[0].timeout: warning: has no effect"},
		{"redirect with request headers", "{redirect: {uri: /x}, headers: {request: {set: {a: b}}}}", "spec.http[0].headers.request: warning: "},
		{"redirect with response headers", "{redirect: {uri: /x}, headers: {response: {set: {a: b}}}}", ""},
		{"directResponse two bodies", "{directResponse: {status: 503, body: {string: x, bytes: aGk=}}}",
			"spec.http[0].directResponse.body: string and bytes exclude"},
	}, func(route string) string { return "{hosts: [a], http: [" + route + "]}" })

	check(t, "VirtualService", []rule{
		{"uri exact", "uri: {exact: /x}", ""},
		{"uri two kinds", "uri: {exact: /x, prefix: /y}", "spec.http[0].match[0].uri: exact and prefix exclude"},
		{"uri empty prefix", "uri: {prefix: ''}", ""},
		{"uri empty regex", "uri: {regex: ''}", "spec.http[0].match[0].uri.regex: a regular expression must not be empty"},
		{"uri regex syntax", "uri: {regex: '('}", "spec.http[0].match[0].uri.regex: error parsing regexp"},
		{"uri regex length", "uri: {regex: " + long(1025) + "}", "spec.http[0].match[0].uri.regex: a regular expression has at most 1024"},
		{"uri regex at most", "uri: {regex: " + long(1024) + "}", ""},
		{"ignoreUriCase", "ignoreUriCase: true, uri: {prefix: /X}", ""},
		{"ignoreUriCase of regex", "ignoreUriCase: true, uri: {regex: /X}", "spec.http[0].match[0].ignoreUriCase: warning: has no effect"},
		{"scheme empty prefix", "scheme: {prefix: ''}", "spec.http[0].match[0].scheme.prefix: must not be empty"},
		{"method empty prefix", "method: {prefix: ''}", "spec.http[0].match[0].method.prefix: must not be empty"},
		{"method regex", "method: {regex: GET|PUT}", ""},
		{"method in small letters", "method: {exact: get}", `spec.http[0].match[0].method.exact: warning: "get" is the method of no request: write "GET"`},
		{"method of our own", "method: {exact: purge}", ""},
		{"uri of no path", "uri: {exact: x}", "spec.http[0].match[0].uri: warning: matches no request: a path begins with a slash"},
		{"uri prefix of no path", "uri: {prefix: x/}", "spec.http[0].match[0].uri: warning: matches no request: a path begins with a slash"},
		{"uri star", "uri: {exact: '*'}", ""},
		{"authority empty prefix", "authority: {prefix: ''}", "spec.http[0].match[0].authority.prefix: must not be empty"},
		{"authority regex", "authority: {regex: '*'}", "spec.http[0].match[0].authority.regex: error parsing"},
		{"header presence", "headers: {x-a: {}}", ""},
		{"header exact empty", "headers: {x-a: {exact: ''}}", ""},
		{"header prefix empty", "headers: {x-a: {prefix: ''}}", "spec.http[0].match[0].headers.x-a.prefix: must not be empty"},
		{"header regex star", "headers: {x-a: {regex: '*'}}", "spec.http[0].match[0].headers.x-a.regex: error parsing regexp"},
		{"header regex empty", "headers: {x-a: {regex: ''}}", "spec.http[0].match[0].headers.x-a.regex: a regular"},
		{"header name", "headers: {'x a': {}}", `spec.http[0].match[0].headers["x a"]: "x a" is not a header name`},
		{"header name with dot", "headers: {x.a: {}}", ""},
		{"header pseudo", "headers: {':authority': {exact: a}}", ""},
		{"header unknown pseudo", "headers: {':host': {exact: a}}", `spec.http[0].match[0].headers[":host"]: ":host" is not a header name`},
		{"withoutHeaders regex star", "withoutHeaders: {x-a: {regex: '*'}}", ""},
		{"withoutHeaders presence", "withoutHeaders: {x-a: {}}", ""},
		{"withoutHeaders regex", "withoutHeaders: {x-a: {regex: '('}}", "spec.http[0].match[0].withoutHeaders.x-a.regex: error parsing"},
		{"withoutHeaders prefix empty", "withoutHeaders: {x-a: {prefix: ''}}", "spec.http[0].match[0].withoutHeaders.x-a.prefix: must not"},
		{"withoutHeaders name", "withoutHeaders: {'x a': {}}", `spec.http[0].match[0].withoutHeaders["x a"]: "x a" is not`},
		{"query presence", "queryParams: {q: {}}", ""},
		{"query prefix empty", "queryParams: {q: {prefix: ''}}", "spec.http[0].match[0].queryParams.q.prefix: must not be empty"},
		{"query regex star", "queryParams: {q: {regex: '*'}}", "spec.http[0].match[0].queryParams.q.regex: error parsing"},
		{"query name", "queryParams: {'a b': {exact: x}}", ""},
		{"port", "port: 8080", ""},
		{"port 0", "port: 0, uri: {exact: /x}", ""},
		{"port range", "port: 65536", "spec.http[0].match[0].port: 65536 is not a port"},
		{"sourceLabels name", "sourceLabels: {'a b': x}", `spec.http[0].match[0].sourceLabels["a b"]: "a b" is not the name of a label`},
		{"sourceLabels value", "sourceLabels: {a: -x}", `spec.http[0].match[0].sourceLabels.a: "-x" is not the value of a label`},
		{"sourceLabels", "sourceLabels: {Example.com/a_b: '', version: v1.2}", ""},
		{"sourceLabels long value", "sourceLabels: {a: " + long(64) + "}", ""},
		{"sourceLabels long name", "sourceLabels: {" + long(64) + ": x}", "spec.http[0].match[0].sourceLabels." + long(64) + ": "},
		{"sourceNamespace", "sourceNamespace: a.b", `spec.http[0].match[0].sourceNamespace: "a.b" is not a namespace`},
		{"gateways", "gateways: [a/b/c]", "spec.http[0].match[0].gateways[0]: "},
		{"statPrefix", "statPrefix: x, uri: {exact: /x}", "spec.http[0].match[0].statPrefix: warning: "},
	}, func(match string) string {
		return "{hosts: [a], http: [{match: [{" + match + "}], route: [{destination: {host: a}}]}]}"
	})

	check(t, "VirtualService", []rule{
		{"destination required", "[{weight: 1}]", "spec.http[0].route[0].destination: missing"},
		{"destination host required", "[{destination: {}}]", "spec.http[0].route[0].destination.host: missing"},
		{"destination host", "[{destination: {host: a b}}]", `spec.http[0].route[0].destination.host: "a b" is not a host name`},
		{"destination star", "[{destination: {host: '*'}}]", "spec.http[0].route[0].destination.host: a destination is one service"},
		{"destination wildcard", "[{destination: {host: '*.a.com'}}]",
			`spec.http[0].route[0].destination.host: a destination is one service: "*.a.com" has a wildcard, which cannot be enforced`},
		{"destination IP", "[{destination: {host: 10.0.0.1}}]", "spec.http[0].route[0].destination.host: "},
		{"destination subset", "[{destination: {host: a, subset: v_1}}]", `spec.http[0].route[0].destination.subset: "v_1" is not`},
		{"destination subset empty", "[{destination: {host: a, subset: ''}}]", ""},
		{"destination port", "[{destination: {host: a, port: {number: 80}}}]", ""},
		{"destination port range", "[{destination: {host: a, port: {number: 70000}}}]", "spec.http[0].route[0].destination.port.number: 70000"},
		{"destination port empty", "[{destination: {host: a, port: {}}}]", "spec.http[0].route[0].destination.port.number: 0 is not"},
		{"weight of one", "[{destination: {host: a}, weight: 0}]", ""},
		{"weight negative", "[{destination: {host: a}, weight: -1}]", "spec.http[0].route[0].weight: -1 is negative"},
		{"weights", "[{destination: {host: a}, weight: 1}, {destination: {host: b}, weight: 7}]", ""},
		{"weight omitted", "[{destination: {host: a}, weight: 1}, {destination: {host: b}}]",
			"spec.http[0].route[1].weight: warning: a destination without weight gets no requests"},
		{"header set", "[{destination: {host: a}, headers: {request: {set: {x-a: '%%b'}, add: {host: b.com}, remove: [x-c]}}}]", ""},
		{"header pseudo set", "[{destination: {host: a}, headers: {request: {set: {':path': /}}}}]",
			`spec.http[0].route[0].headers.request.set[":path"]: `},
		{"header host removed", "[{destination: {host: a}, headers: {request: {remove: [Host]}}}]",
			"spec.http[0].route[0].headers.request.remove[0]: "},
		{"header host of response", "[{destination: {host: a}, headers: {response: {set: {host: x}}}}]",
			"spec.http[0].route[0].headers.response.set.host: "},
		{"header pseudo of response", "[{destination: {host: a}, headers: {response: {add: {':status': '1'}}}}]",
			`spec.http[0].route[0].headers.response.add[":status"]: `},
		{"header name empty", "[{destination: {host: a}, headers: {response: {remove: ['']}}}]",
			"spec.http[0].route[0].headers.response.remove[0]: "},
		{"header value percent", "[{destination: {host: a}, headers: {request: {set: {x-a: 'abc%123'}}}}]",
			"spec.http[0].route[0].headers.request.set.x-a: "},
		{"header value unterminated", "[{destination: {host: a}, headers: {request: {set: {x-a: '%START_TIME%%'}}}}]",
			"spec.http[0].route[0].headers.request.set.x-a: "},
		{"header value control character", `[{destination: {host: a}, headers: {request: {set: {x-a: "a\u0001"}}}}]`,
			"spec.http[0].route[0].headers.request.set.x-a: "},
		{"header value not enforced", "[{destination: {host: a}, headers: {request: {set: {x-a: '%HOSTNAME%'}}}}]",
			"spec.http[0].route[0].headers.request.set.x-a: %HOSTNAME% is not supported"},
	}, func(route string) string { return "{hosts: [a], http: [{route: " + route + "}]}" })

	check(t, "VirtualService", []rule{
		{"timeout", "timeout: 1ms", ""},
		{"timeout 0", "timeout: 0s", "spec.http[0].timeout: 0s is less than 1ms"},
		{"timeout precision", "timeout: 1500us", "spec.http[0].timeout: 1.5ms is not a whole number"},
		{"timeout negative", "timeout: -1s", "spec.http[0].timeout: -1s is less than"},
		{"retries off", "retries: {attempts: 0}", ""},
		{"retries empty", "retries: {}", ""},
		{"retries negative", "retries: {attempts: -1}", "spec.http[0].retries.attempts: -1 is negative"},
		{"retries without attempts", "retries: {perTryTimeout: 1s}", "spec.http[0].retries.attempts: missing or 0"},
		{"retries without attempts, retryOn", "retries: {retryOn: 5xx}", "spec.http[0].retries.attempts: missing or 0"},
		{"retries without attempts, localities", "retries: {retryRemoteLocalities: false}", "spec.http[0].retries.attempts: missing or 0"},
		{"retries without attempts, backoff", "retries: {backoff: 1s}", ""},
		{"retries without attempts, hosts", "retries: {retryIgnorePreviousHosts: true}", ""},
		{"retries perTryTimeout", "retries: {attempts: 1, perTryTimeout: 0s}", "spec.http[0].retries.perTryTimeout: 0s is less"},
		{"retries perTryTimeout as long as the timeout", "timeout: 1s, retries: {attempts: 1, perTryTimeout: 1s}",
			"spec.http[0].retries.perTryTimeout: warning: has no effect: the timeout of the route, 1s, is not longer"},
		{"retries backoff", "retries: {attempts: 1, backoff: 100us}", "spec.http[0].retries.backoff: 100µs is less"},
		{"retryOn", "retries: {attempts: 1, retryOn: 'gateway-error,reset,503,unavailable'}", ""},
		{"retryOn with space", "retries: {attempts: 1, retryOn: '5xx, reset'}", `spec.http[0].retries.retryOn: "5xx, reset" has spaces`},
		{"retryOn empty item", "retries: {attempts: 1, retryOn: '5xx,'}", `spec.http[0].retries.retryOn: "5xx," has an empty item`},
		{"retryOn unknown", "retries: {attempts: 1, retryOn: 6xx}", "spec.http[0].retries.retryOn: unknown"},
		{"retryOn unknown status", "retries: {attempts: 1, retryOn: '599'}", "spec.http[0].retries.retryOn: unknown status code"},
		{"retryOn not enforced", "retries: {attempts: 1, retryOn: http3-post-connect-failure}",
			`spec.http[0].retries.retryOn: condition "http3-post-connect-failure" cannot be honoured`},
		{"retryRemoteLocalities not enforced", "retries: {attempts: 1, retryRemoteLocalities: true}",
			"spec.http[0].retries.retryRemoteLocalities: preferring other localities for retries is not enforced yet"},
		{"retryIgnorePreviousHosts", "retries: {attempts: 1, retryIgnorePreviousHosts: false}", ""},
		{"fault empty", "fault: {}", "spec.http[0].fault: neither delay nor abort"},
		{"fault percentage", "fault: {abort: {httpStatus: 503, percentage: {value: 100.1}}}", "spec.http[0].fault.abort.percentage.value: 100.1"},
		{"fault percentage negative", "fault: {abort: {httpStatus: 503, percentage: {value: -1}}}", "spec.http[0].fault.abort.percentage.value: -1"},
		{"fault percentage too small", "fault: {delay: {fixedDelay: 1s, percentage: {value: 0.00001}}}",
			"spec.http[0].fault.delay.percentage.value: 1e-05 is too small"},
		{"fault percentage 0", "fault: {delay: {fixedDelay: 1s, percentage: {value: 0}}}", ""},
		{"fault percentage below 1", "fault: {delay: {fixedDelay: 1s, percentage: {value: 0.1}}}",
			"spec.http[0].fault.delay.percentage.value: warning: percentages go from 0 to 100"},
		{"fault without percentage", "fault: {delay: {fixedDelay: 1s}}", "spec.http[0].fault.delay.percentage: warning: missing, which means 0"},
		{"fault delay percent", "fault: {delay: {fixedDelay: 1s, percent: 50}}", "spec.http[0].fault.delay.percent: warning: deprecated"},
		{"fault delay", "fault: {delay: {fixedDelay: 1us, percentage: {value: 5}}}", "spec.http[0].fault.delay.fixedDelay: 1µs is less"},
		{"fault exponentialDelay", "fault: {delay: {exponentialDelay: 1s, percentage: {value: 5}}}",
			"spec.http[0].fault.delay.exponentialDelay: Istio does not implement"},
		{"fault abort status", "fault: {abort: {httpStatus: 150, percentage: {value: 5}}}", "spec.http[0].fault.abort.httpStatus: 150 is not"},
		{"fault abort gRPC status", "fault: {abort: {grpcStatus: UNAVAILABLE, percentage: {value: 5}}}", ""},
		{"fault abort unknown gRPC status", "fault: {abort: {grpcStatus: '14', percentage: {value: 5}}}", `spec.http[0].fault.abort.grpcStatus: "14"`},
		{"fault http2Error", "fault: {abort: {http2Error: x, percentage: {value: 5}}}", "spec.http[0].fault.abort.http2Error: Istio does not"},
		{"fault abort without type", "fault: {abort: {percentage: {value: 5}}}", "spec.http[0].fault.abort: warning: has no effect"},
		{"mirror", "mirror: {host: b}, mirrorPercentage: {value: 50}", ""},
		{"mirror percentage", "mirror: {host: b}, mirrorPercentage: {value: 101}", "spec.http[0].mirrorPercentage.value: 101"},
		{"mirror percentage negative", "mirror: {host: b}, mirrorPercentage: {value: -1}", "spec.http[0].mirrorPercentage.value: -1"},
		{"mirror percent", "mirror: {host: b}, mirrorPercent: 50", "spec.http[0].mirrorPercent: warning: deprecated"},
		{"mirror percent in snake case", "mirror: {host: b}, mirror_percent: 50", "spec.http[0].mirror_percent: warning: deprecated"},
		{"mirror percent twice", "mirror: {host: b}, mirror_percent: 50, mirrorPercent: 50", "spec.http[0]: mirrorPercent and mirror_percent exclude"},
		{"mirror host", "mirror: {host: '*'}", "spec.http[0].mirror.host: "},
		{"mirror and mirrors", "mirror: {host: b}, mirrors: [{destination: {host: c}}]", "spec.http[0].mirrors: mirror and mirrors exclude"},
		{"mirrors", "mirrors: [{destination: {host: b}}, {destination: {host: c}, percentage: {value: 10}}]", ""},
		{"mirrors destination", "mirrors: [{percentage: {value: 10}}]", "spec.http[0].mirrors[0].destination: missing"},
		{"mirrors percentage", "mirrors: [{destination: {host: b}, percentage: {value: 200}}]", "spec.http[0].mirrors[0].percentage.value: 200"},
		{"rewrite empty", "rewrite: {}", "spec.http[0].rewrite: must set uri"},
		{"rewrite uri and regex", "rewrite: {uri: /x, uriRegexRewrite: {match: a, rewrite: b}}", "spec.http[0].rewrite.uriRegexRewrite: uri and"},
		{"rewrite regex without match", "rewrite: {uriRegexRewrite: {rewrite: b}}", "spec.http[0].rewrite.uriRegexRewrite: must set both"},
		{"rewrite regex without rewrite", "rewrite: {uriRegexRewrite: {match: b}}", "spec.http[0].rewrite.uriRegexRewrite: must set both"},
		{"rewrite regex syntax", "rewrite: {uriRegexRewrite: {match: '(', rewrite: b}}", "spec.http[0].rewrite.uriRegexRewrite.match: error parsing"},
		{"rewrite regex", `rewrite: {uriRegexRewrite: {match: '^/a/(.*)', rewrite: '/\1'}}`, ""},
		{"authority twice", "rewrite: {authority: b}, headers: {request: {set: {host: c}}}", "spec.http[0]: the authority is rewritten 2 times"},
		{"authority twice in headers", "headers: {request: {set: {host: c}, add: {':authority': d}}}", "spec.http[0]: the authority is rewritten 2 times"},
		{"authority once", "headers: {request: {set: {':authority': c}}}", ""},
		{"corsPolicy", "corsPolicy: {allowOrigins: [{exact: https://x}, {prefix: 'https://y'}, {regex: 'a|b'}], allowMethods: [GET, '*'], allowHeaders: ['*'], exposeHeaders: [x-a], maxAge: 24h, allowCredentials: ~, unmatchedPreflights: IGNORE}", ""},
		{"corsPolicy origin empty", "corsPolicy: {allowOrigins: [{exact: https://x}, {}]}", "spec.http[0].corsPolicy.allowOrigins[1]: must not be empty"},
		{"corsPolicy origin exact", "corsPolicy: {allowOrigins: [{exact: ''}]}", "spec.http[0].corsPolicy.allowOrigins[0]: must not be empty"},
		{"corsPolicy origin of nobody", "corsPolicy: {allowOrigins: [{regex: x}, {exact: https://x/}]}", "spec.http[0].corsPolicy.allowOrigins[1]: warning: matches no origin that a browser sends: an origin ends"},
		{"corsPolicy old origin empty", "corsPolicy: {allowOrigin: [https://x, '']}", "spec.http[0].corsPolicy.allowOrigin[1]: must not be empty"},
		{"corsPolicy null with credentials", "corsPolicy: {allowOrigins: [{exact: 'null'}], allowCredentials: true}", "spec.http[0].corsPolicy.allowCredentials: warning: lets pages of other sites act"},
		{"corsPolicy star with credentials", "corsPolicy: {allowOrigins: [{exact: https://x}], exposeHeaders: ['*'], allowCredentials: true}", "spec.http[0].corsPolicy.exposeHeaders[0]: warning: the star stands for no header"},
		{"corsPolicy origin prefix", "corsPolicy: {allowOrigins: [{prefix: ''}]}", "spec.http[0].corsPolicy.allowOrigins[0].prefix: must not be empty"},
		{"corsPolicy origin regex", "corsPolicy: {allowOrigins: [{regex: '*'}]}", "spec.http[0].corsPolicy.allowOrigins[0].regex: error parsing"},
		{"corsPolicy origin twice", "corsPolicy: {allowOrigins: [{exact: x, regex: x}]}", "spec.http[0].corsPolicy.allowOrigins[0]"},
		{"corsPolicy method", "corsPolicy: {allowOrigins: [{exact: https://x}], allowMethods: [GET, get]}", `spec.http[0].corsPolicy.allowMethods[1]: "get" is not one of`},
		{"corsPolicy allowed header", "corsPolicy: {allowOrigins: [{exact: https://x}], allowHeaders: ['x y']}", `spec.http[0].corsPolicy.allowHeaders[0]: "x y" is not a header name`},
		{"corsPolicy exposed header", "corsPolicy: {allowOrigins: [{exact: https://x}], exposeHeaders: ['']}", `spec.http[0].corsPolicy.exposeHeaders[0]: "" is not a header name`},
		{"corsPolicy age negative", "corsPolicy: {allowOrigins: [{exact: https://x}], maxAge: -1s}", "spec.http[0].corsPolicy.maxAge: -1s is less than 1ms"},
		{"corsPolicy age in parts", "corsPolicy: {allowOrigins: [{exact: https://x}], maxAge: 1.5s}", "spec.http[0].corsPolicy.maxAge: 1.5s is not a whole number of seconds"},
		{"corsPolicy unmatched", "corsPolicy: {allowOrigins: [{exact: https://x}], unmatchedPreflights: DROP}", "spec.http[0].corsPolicy.unmatchedPreflights"},
		{"corsPolicy unknown", "corsPolicy: {allowOrigins: [{exact: https://x}], allowPrivateNetwork: true}", "spec.http[0].corsPolicy.allowPrivateNetwork: unknown field"},
		{"corsPolicy without origins", "corsPolicy: {}", "spec.http[0].corsPolicy.allowOrigins: warning: missing: no origin is allowed"},
		{"corsPolicy deprecated", "corsPolicy: {allowOrigin: [https://x]}", "spec.http[0].corsPolicy.allowOrigin: warning: deprecated"},
		{"corsPolicy for all with credentials", "corsPolicy: {allowOrigins: [{regex: .*}], allowCredentials: true}", "spec.http[0].corsPolicy.allowCredentials: warning: lets pages of other sites"},
		{"corsPolicy for a star with credentials", "corsPolicy: {allowOrigins: [{exact: '*'}], allowCredentials: true}", "spec.http[0].corsPolicy.allowCredentials: warning: lets pages of other sites"},
		{"corsPolicy for names that begin so, with credentials", "corsPolicy: {allowOrigins: [{prefix: 'https://shop.example.com'}], allowCredentials: true}", "spec.http[0].corsPolicy.allowCredentials: warning: lets pages of other sites act with the credentials of their visitors: the origins that are allowed include https://shop.example.com.attacker.invalid"},
		{"corsPolicy for a port, with credentials", "corsPolicy: {allowOrigins: [{prefix: 'https://shop.example.com:'}], allowCredentials: true}", ""},
		{"corsPolicy for senders", "match: [{sourceLabels: {app: web}}, {sourceNamespace: a}], corsPolicy: {allowOrigins: [{exact: https://x}]}", "spec.http[0].corsPolicy: warning: has no effect: where a request arrives"},
		{"corsPolicy for some senders", "match: [{sourceLabels: {app: web}}, {uri: {prefix: /a}}], corsPolicy: {allowOrigins: [{exact: https://x}]}", ""},
		{"unknown field", "retry: {}", `spec.http[0].retry: unknown field "retry"`},
		{"snake case", "retries: {attempts: 1, per_try_timeout: 1s}", `spec.http[0].retries.per_try_timeout: unknown field`},
		{"null", "retries: ~", ""},
		{"nullable", "mirrorPercent: ~, retries: {attempts: 1, retryRemoteLocalities: ~}", ""},
	}, func(field string) string {
		return "{hosts: [a], http: [{route: [{destination: {host: a}}], " + field + "}]}"
	})
}

func TestRules_DestinationRule(t *testing.T) {
	check(t, "DestinationRule", []rule{
		{"host required", "{}", "spec.host: missing"},
		{"host", "{host: a b}", `spec.host: "a b" is not a host name`},
		{"host wildcard", "{host: '*.example.com'}", ""},
		{"host star", "{host: '*'}", ""},
		{"host IP", "{host: 10.0.0.1}", "spec.host: "},
		{"subset name", "{host: a, subsets: [{name: v_1}]}", `spec.subsets[0].name: "v_1" is not`},
		{"subset name required", "{host: a, subsets: [{}]}", "spec.subsets[0].name: missing"},
		{"subset duplicate", "{host: a, subsets: [{name: v1}, {name: v1}]}", `spec.subsets[1].name: there is a subset "v1" already`},
		{"subset labels", "{host: a, subsets: [{name: v1, labels: {version: 'a b'}}]}", `spec.subsets[0].labels.version: "a b" is not`},
		{"subset policy", "{host: a, subsets: [{name: v1, trafficPolicy: {}}]}", "spec.subsets[0].trafficPolicy: is empty"},
		{"policy empty", "{host: a, trafficPolicy: {}}", "spec.trafficPolicy: is empty"},
		{"policy with retryBudget alone", "{host: a, trafficPolicy: {retryBudget: {percent: 10}}}", ""},
		{"exportTo", "{host: a, exportTo: ['*']}", ""},
		{"exportTo duplicate", "{host: a, exportTo: [b, b]}", `spec.exportTo[1]: "b" is listed twice`},
		{"exportTo with selector", "{host: a, exportTo: [other], workloadSelector: {matchLabels: {a: b}}}",
			"spec.exportTo[0]: a rule with a workloadSelector"},
		{"exportTo own by name with selector", "{host: a, exportTo: [ns], workloadSelector: {matchLabels: {a: b}}}", ""},
		{"exportTo own with selector", "{host: a, exportTo: [.], workloadSelector: {matchLabels: {a: b}}}", ""},
		{"selector without labels", "{host: a, workloadSelector: {}}", "spec.workloadSelector: warning: selects every workload"},
		{"selector wildcard", "{host: a, workloadSelector: {matchLabels: {a: '*'}}}", "spec.workloadSelector.matchLabels.a: a=* has a wildcard"},
		{"selector wildcard in key", "{host: a, workloadSelector: {matchLabels: {'a*': b}}}", `spec.workloadSelector.matchLabels["a*"]: a*=b has`},
		{"selector value length", "{host: a, workloadSelector: {matchLabels: {a: " + long(64) + "}}}", "spec.workloadSelector.matchLabels.a: the value"},
		{"selector that is no label", "{host: a, workloadSelector: {matchLabels: {a: 'b c'}}}",
			"spec.workloadSelector.matchLabels.a: warning: selects no workload"},
	}, whole)

	check(t, "DestinationRule", []rule{
		{"retryBudget", "retryBudget: {percent: 10, minRetryConcurrency: 4294967295}, loadBalancer: {}", ""},
		{"retryBudget percent", "retryBudget: {percent: 101}, loadBalancer: {}", "spec.trafficPolicy.retryBudget.percent: 101"},
		{"retryBudget interval not enforced", "retryBudget: {budgetInterval: 1s}, loadBalancer: {}",
			"spec.trafficPolicy.retryBudget.budgetInterval: "},
		{"ports without port", "portLevelSettings: [{loadBalancer: {simple: RANDOM}}]", "spec.trafficPolicy.portLevelSettings[0].port: missing"},
		{"ports empty", "portLevelSettings: [{port: {number: 80}}]", "spec.trafficPolicy.portLevelSettings[0]: has no settings"},
		{"ports", "portLevelSettings: [{port: {number: 80}, loadBalancer: {simple: RANDOM}}]", ""},
		{"ports out of range", "portLevelSettings: [{port: {number: 70000}, loadBalancer: {simple: RANDOM}}]",
			"spec.trafficPolicy.portLevelSettings[0].port.number: warning: has no effect"},
		{"ports settings", "portLevelSettings: [{port: {number: 80}, connectionPool: {}}]",
			"spec.trafficPolicy.portLevelSettings[0].connectionPool: is empty"},
		{"ports at most", "portLevelSettings: [" + repeated(4097, func(int) string { return "{port: {number: 80}, tls: {}}" }) + "]",
			"spec.trafficPolicy.portLevelSettings: more than 4096"},
		{"TLS off", "tls: {mode: DISABLE}", ""},
		{"TLS off with settings", "tls: {sni: a}", "spec.trafficPolicy.tls: warning: mode DISABLE, the default, sends plaintext"},
		{"TLS mode", "tls: {mode: STRICT}", `spec.trafficPolicy.tls.mode: "STRICT" is not one of`},
		{"TLS", "tls: {mode: SIMPLE, caCertificates: /ca, subjectAltNames: [a.com, '10.0.0.1'], sni: a.com}", ""},
		{"TLS SIMPLE with a certificate", "tls: {mode: SIMPLE, clientCertificate: /c}", "spec.trafficPolicy.tls: warning: mode SIMPLE presents"},
		{"TLS MUTUAL", "tls: {mode: MUTUAL, clientCertificate: /c, privateKey: /k}", ""},
		{"TLS MUTUAL without key", "tls: {mode: MUTUAL, clientCertificate: /c}", "spec.trafficPolicy.tls: mode MUTUAL needs"},
		{"TLS MUTUAL without certificate", "tls: {mode: MUTUAL, privateKey: /k}", "spec.trafficPolicy.tls: mode MUTUAL needs"},
		{"TLS credentialName", "tls: {mode: MUTUAL, credentialName: c}", "spec.trafficPolicy.tls.credentialName: credentialName is a Secret"},
		{"TLS credentialName without TLS", "tls: {credentialName: c}", "spec.trafficPolicy.tls.credentialName: credentialName is a Secret"},
		{"TLS caCrl", "tls: {mode: SIMPLE, caCrl: /crl}", "spec.trafficPolicy.tls.caCrl: certificate revocation lists"},
		{"TLS insecureSkipVerify", "tls: {mode: SIMPLE, insecureSkipVerify: true}", "spec.trafficPolicy.tls.insecureSkipVerify: is not enforced"},
		{"TLS insecureSkipVerify off", "tls: {mode: SIMPLE, insecureSkipVerify: false}", ""},
		{"TLS name empty", "tls: {mode: SIMPLE, subjectAltNames: ['']}", `spec.trafficPolicy.tls.subjectAltNames[0]: "" is not a name`},
		{"TLS name with comma", "tls: {mode: SIMPLE, subjectAltNames: ['a,b']}", `spec.trafficPolicy.tls.subjectAltNames[0]: "a,b" is not a name`},
		{"TLS ISTIO_MUTUAL", "tls: {mode: ISTIO_MUTUAL, subjectAltNames: ['spiffe://td/ns/a/sa/b'], sni: a}", ""},
		{"TLS ISTIO_MUTUAL with DNS name", "tls: {mode: ISTIO_MUTUAL, subjectAltNames: [a.com]}",
			`spec.trafficPolicy.tls.subjectAltNames[0]: "a.com" is not a SPIFFE ID`},
		{"TLS ISTIO_MUTUAL with clientCertificate", "tls: {mode: ISTIO_MUTUAL, clientCertificate: /c}",
			"spec.trafficPolicy.tls.clientCertificate: does not go with mode ISTIO_MUTUAL"},
		{"TLS ISTIO_MUTUAL with privateKey", "tls: {mode: ISTIO_MUTUAL, privateKey: /k}",
			"spec.trafficPolicy.tls.privateKey: does not go with mode ISTIO_MUTUAL"},
		{"TLS ISTIO_MUTUAL with caCertificates", "tls: {mode: ISTIO_MUTUAL, caCertificates: /ca}",
			"spec.trafficPolicy.tls.caCertificates: does not go with mode ISTIO_MUTUAL"},
	}, func(policy string) string { return "{host: a, trafficPolicy: {" + policy + "}}" })

	check(t, "DestinationRule", []rule{
		{"balancer of unknown name", "simple: LEAST_LOAD", `spec.trafficPolicy.loadBalancer.simple: "LEAST_LOAD" is not`},
		{"balancer unspecified", "simple: UNSPECIFIED", ""},
		{"balancer deprecated", "simple: LEAST_CONN", "spec.trafficPolicy.loadBalancer.simple: warning: LEAST_CONN is deprecated"},
		{"balancer simple and hash", "simple: RANDOM, consistentHash: {httpHeaderName: h}",
			"spec.trafficPolicy.loadBalancer: simple and consistentHash exclude"},
		{"hash two keys", "consistentHash: {httpHeaderName: h, useSourceIp: true}",
			"spec.trafficPolicy.loadBalancer.consistentHash: httpHeaderName and useSourceIp exclude"},
		{"hash two algorithms", "consistentHash: {httpHeaderName: h, ringHash: {}, maglev: {tableSize: 7}}",
			"spec.trafficPolicy.loadBalancer.consistentHash: ringHash and maglev exclude"},
		{"hash deprecated ring size", "consistentHash: {httpHeaderName: h, minimumRingSize: 10}",
			"spec.trafficPolicy.loadBalancer.consistentHash.minimumRingSize: warning: deprecated"},
		{"hash cookie name required", "consistentHash: {httpCookie: {ttl: 1s}}",
			"spec.trafficPolicy.loadBalancer.consistentHash.httpCookie.name: missing"},
		{"hash cookie name empty", "consistentHash: {httpCookie: {name: '', ttl: 1s}}",
			"spec.trafficPolicy.loadBalancer.consistentHash.httpCookie.name: "},
		{"hash cookie for the session", "consistentHash: {httpCookie: {name: c, ttl: 0s}}", ""},
		{"hash cookie below a second", "consistentHash: {httpCookie: {name: c, ttl: 1500ms}}",
			"spec.trafficPolicy.loadBalancer.consistentHash.httpCookie.ttl: warning: counts as 1s"},
		{"hash cookie ttl negative", "consistentHash: {httpCookie: {name: c, ttl: -1s}}",
			"spec.trafficPolicy.loadBalancer.consistentHash.httpCookie.ttl: -1s is negative, which cannot be enforced"},
		{"hash cookie without ttl", "consistentHash: {httpCookie: {name: c, path: /}}",
			"spec.trafficPolicy.loadBalancer.consistentHash.httpCookie: warning: path and attributes have no effect"},
		{"hash cookie path", "consistentHash: {httpCookie: {name: c, ttl: 1s, path: /;}}",
			"spec.trafficPolicy.loadBalancer.consistentHash.httpCookie.path: "},
		{"hash cookie attributes", "consistentHash: {httpCookie: {name: c, ttl: 1s, attributes: [{name: SameSite, value: Lax}, {name: Secure}]}}", ""},
		{"hash cookie attribute", "consistentHash: {httpCookie: {name: c, ttl: 1s, attributes: [{name: a, value: b;c}]}}",
			"spec.trafficPolicy.loadBalancer.consistentHash.httpCookie.attributes[0]: "},
		{"hash without key", "consistentHash: {}", "spec.trafficPolicy.loadBalancer.consistentHash: warning: names no key"},
		{"hash header empty", "consistentHash: {httpHeaderName: ''}", "spec.trafficPolicy.loadBalancer.consistentHash.httpHeaderName: must not"},
		{"hash query empty", "consistentHash: {httpQueryParameterName: ''}", "spec.trafficPolicy.loadBalancer.consistentHash.httpQueryParameterName: must"},
		{"hash source", "consistentHash: {useSourceIp: true}", "spec.trafficPolicy.loadBalancer.consistentHash.useSourceIp: warning: "},
		{"hash no source", "consistentHash: {useSourceIp: false}", "spec.trafficPolicy.loadBalancer.consistentHash.useSourceIp: warning: false"},
		{"hash ring size", "consistentHash: {httpHeaderName: h, ringHash: {minimumRingSize: 8388609}}",
			"spec.trafficPolicy.loadBalancer.consistentHash.ringHash.minimumRingSize: 8388609 is out of range"},
		{"warmup of another algorithm", "simple: RANDOM, warmup: {duration: 1s}", "spec.trafficPolicy.loadBalancer.warmup: warning: has no effect"},
		{"maglev size required", "consistentHash: {httpHeaderName: h, maglev: {}}",
			"spec.trafficPolicy.loadBalancer.consistentHash.maglev.tableSize: 0 is not a prime"},
		{"maglev size not prime", "consistentHash: {httpHeaderName: h, maglev: {tableSize: 9}}",
			"spec.trafficPolicy.loadBalancer.consistentHash.maglev.tableSize: 9 is not a prime"},
		{"maglev size too large", "consistentHash: {httpHeaderName: h, maglev: {tableSize: 5000011}}",
			"spec.trafficPolicy.loadBalancer.consistentHash.maglev.tableSize: 5000011 is not"},
		{"maglev size", "consistentHash: {httpHeaderName: h, maglev: {tableSize: 65537}}", ""},
		{"warmup", "warmup: {duration: 30s, minimumPercent: 100, aggression: 1}", ""},
		{"warmup duration required", "warmup: {}", "spec.trafficPolicy.loadBalancer.warmup.duration: missing"},
		{"warmup duration", "warmup: {duration: 0s}", "spec.trafficPolicy.loadBalancer.warmup.duration: 0s is less"},
		{"warmup percent", "warmup: {duration: 1s, minimumPercent: 101}", "spec.trafficPolicy.loadBalancer.warmup.minimumPercent: 101"},
		{"warmup aggression", "warmup: {duration: 1s, aggression: 0.9}", "spec.trafficPolicy.loadBalancer.warmup.aggression: 0.9 is less"},
		{"warmup null", "warmup: {duration: 1s, aggression: ~}", ""},
		{"warmup in seconds", "warmupDurationSecs: 1500us", "spec.trafficPolicy.loadBalancer.warmupDurationSecs: warning: deprecated"},
		{"zone-aware not enforced", "zoneAwareLbSetting: {}", "spec.trafficPolicy.loadBalancer.zoneAwareLbSetting: zone-aware balancing is not enforced"},
	}, func(lb string) string { return "{host: a, trafficPolicy: {loadBalancer: {" + lb + "}}}" })

	const lb = "spec.trafficPolicy.loadBalancer.localityLbSetting"
	check(t, "DestinationRule", []rule{
		{"locality distribute", "distribute: [{from: eu/a/*, to: {eu/a/*: 80, us: 20}}]", ""},
		{"locality distribute and failover", "distribute: [{from: eu, to: {eu: 100}}], failover: [{from: eu, to: us}]", lb + ".failover: distribute and"},
		{"locality weight 0", "distribute: [{from: eu, to: {eu: 100, us: 0}}]", lb + ".distribute[0].to.us: 0 is not a weight"},
		{"locality weights", "distribute: [{from: eu, to: {eu: 99}}]", lb + ".distribute[0].to: the weights add up to 99"},
		{"locality overlap in to", "distribute: [{from: eu, to: {us: 50, us/a: 50}}]", lb + ".distribute[0].to: the places us and us/a overlap"},
		{"locality overlap in from", "distribute: [{from: eu, to: {eu: 100}}, {from: eu/a, to: {eu: 100}}]", lb + ".distribute: the places eu and"},
		{"locality duplicate from", "distribute: [{from: eu/a, to: {eu: 100}}, {from: eu/a, to: {eu: 100}}]", lb + ".distribute: the places"},
		{"locality the rest", "distribute: [{from: eu/a, to: {eu: 100}}, {from: eu/*, to: {eu: 100}}, {from: '*', to: {us: 100}}]", ""},
		{"locality broader without star", "distribute: [{from: eu/a, to: {eu: 100}}, {from: eu, to: {eu: 100}}]", lb + ".distribute: the places"},
		{"locality after the rest", "distribute: [{from: '*', to: {us: 100}}, {from: eu, to: {eu: 100}}]", lb + ".distribute: the places"},
		{"locality star in the middle", "distribute: [{from: eu/*/b, to: {eu: 100}}]", lb + ".distribute[0].from: "},
		{"locality empty part", "distribute: [{from: eu//b, to: {eu: 100}}]", lb + ".distribute[0].from: "},
		{"locality failover", "failover: [{from: eu, to: us}]", ""},
		{"locality failover to itself", "failover: [{from: eu, to: eu}]", lb + ".failover[0].to: a region cannot"},
		{"locality failover of a zone", "failover: [{from: eu/a, to: us}]", lb + ".failover[0]: from and to"},
		{"locality failover wildcard", "failover: [{from: '*', to: us}]", lb + ".failover[0]: from and to"},
		{"locality failoverPriority", "failoverPriority: [topology.kubernetes.io/region, version=v1]", ""},
		{"locality failoverPriority not enforced", "failover: [{from: eu, to: us}], failoverPriority: [a]",
			lb + ".failoverPriority: together with distribute or failover it is not enforced yet"},
	}, func(locality string) string {
		return "{host: a, trafficPolicy: {outlierDetection: {}, loadBalancer: {localityLbSetting: {" + locality + "}}}}"
	})
	check(t, "DestinationRule", []rule{
		{"locality without outlierDetection", "{host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {failover: [{from: eu, to: us}]}}}}",
			lb + ": warning: has no effect without outlierDetection"},
	}, whole)

	const pool = "spec.trafficPolicy.connectionPool"
	check(t, "DestinationRule", []rule{
		{"pool empty", "", pool + ": is empty"},
		{"pool tcp", "tcp: {maxConnections: 1, connectTimeout: 1ms, maxConnectionDuration: 1h, idleTimeout: 0s, tcpKeepalive: {probes: 4294967295, time: 1s, interval: 1s}}", ""},
		{"pool maxConnections", "tcp: {maxConnections: -1}", pool + ".tcp.maxConnections: -1 is negative"},
		{"pool connectTimeout", "tcp: {connectTimeout: 0s}", pool + ".tcp.connectTimeout: 0s is less"},
		{"pool maxConnectionDuration", "tcp: {maxConnectionDuration: 1us}", pool + ".tcp.maxConnectionDuration: 1µs is less"},
		{"pool idleTimeout", "tcp: {idleTimeout: 1500us}", pool + ".tcp.idleTimeout: 1.5ms is not a whole"},
		{"pool keepalive time", "tcp: {tcpKeepalive: {time: 0s}}", pool + ".tcp.tcpKeepalive.time: 0s is less"},
		{"pool keepalive interval", "tcp: {tcpKeepalive: {interval: 0s}}", pool + ".tcp.tcpKeepalive.interval: 0s is less"},
		{"pool http", "http: {http1MaxPendingRequests: 1, http2MaxRequests: 1, maxRequestsPerConnection: 1, maxRetries: 1, idleTimeout: 1s, h2UpgradePolicy: UPGRADE}", ""},
		{"pool http1MaxPendingRequests", "http: {http1MaxPendingRequests: -1}", pool + ".http.http1MaxPendingRequests: -1 is negative"},
		{"pool http2MaxRequests", "http: {http2MaxRequests: -1}", pool + ".http.http2MaxRequests: -1 is negative"},
		{"pool maxRequestsPerConnection", "http: {maxRequestsPerConnection: -1}", pool + ".http.maxRequestsPerConnection: -1 is negative"},
		{"pool maxRetries", "http: {maxRetries: -1}", pool + ".http.maxRetries: -1 is negative"},
		{"pool maxConcurrentStreams", "http: {maxConcurrentStreams: -1}", pool + ".http.maxConcurrentStreams: -1 is negative"},
		{"pool maxConcurrentStreams not enforced", "http: {maxConcurrentStreams: 1}", pool + ".http.maxConcurrentStreams: a limit of streams on a connection is not enforced"},
		{"pool http idleTimeout", "http: {idleTimeout: 0s}", pool + ".http.idleTimeout: 0s is less"},
		{"pool h2UpgradePolicy", "http: {h2UpgradePolicy: NEVER}", pool + `.http.h2UpgradePolicy: "NEVER" is not`},
		{"pool useClientProtocol", "http: {useClientProtocol: true}", pool + ".http.useClientProtocol: warning: has no meaning"},
		{"pool http2KeepAlive not enforced", "http: {http2KeepAlive: {interval: 1s}}", pool + ".http.http2KeepAlive: HTTP/2 pings"},
		{"pool out of range", "tcp: {maxConnections: 4294967296}", pool + ".tcp.maxConnections: 4294967296 is out of range"},
	}, func(settings string) string { return "{host: a, trafficPolicy: {connectionPool: {" + settings + "}}}" })

	const outlier = "spec.trafficPolicy.outlierDetection"
	check(t, "DestinationRule", []rule{
		{"outlier defaults", "", ""},
		{"outlier consecutiveErrors", "consecutiveErrors: 3", outlier + ".consecutiveErrors: warning: deprecated"},
		{"outlier consecutiveErrors negative", "consecutiveErrors: -3", outlier + ".consecutiveErrors: warning: deprecated, and without effect"},
		{"outlier local errors without split", "consecutiveLocalOriginFailures: 1", outlier + ".consecutiveLocalOriginFailures: works only with"},
		{"outlier no local errors without split", "consecutiveLocalOriginFailures: 0", ""},
		{"outlier local errors", "splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 1", ""},
		{"outlier most errors", "consecutive5xxErrors: 4294967295", ""},
		{"outlier interval", "interval: 0s", outlier + ".interval: 0s is less"},
		{"outlier baseEjectionTime", "baseEjectionTime: 1us", outlier + ".baseEjectionTime: 1µs is less"},
		{"outlier maxEjectionPercent", "maxEjectionPercent: 101", outlier + ".maxEjectionPercent: 101"},
		{"outlier maxEjectionPercent negative", "maxEjectionPercent: -1", outlier + ".maxEjectionPercent: -1"},
		{"outlier minHealthPercent", "minHealthPercent: 101", outlier + ".minHealthPercent: 101"},
		{"outlier status", "outlierDetectionHttpErrorCodes: [99]", outlier + ".outlierDetectionHttpErrorCodes[0]: 99 is not"},
		{"outlier statuses", "outlierDetectionHttpErrorCodes: [100, 599]", ""},
	}, func(settings string) string {
		return "{host: a, trafficPolicy: {outlierDetection: {" + settings + "}}}"
	})
}

func TestRules_ServiceEntry(t *testing.T) {
	check(t, "ServiceEntry", []rule{
		{"hosts required", "{ports: [{name: http, number: 80}]}", "spec.hosts: missing"},
		{"hosts empty", "{hosts: []}", "spec.hosts: empty"},
		{"hosts at most", "{hosts: [" + repeated(257, func(i int) string { return fmt.Sprintf("a%d.com", i) }) + "]}", "spec.hosts: is too long"},
		{"host star", "{hosts: ['*']}", `spec.hosts[0]: "*" is every host`},
		{"host", "{hosts: [a_b.com]}", `spec.hosts[0]: "a_b.com" is not a host name`},
		{"host wildcard", "{hosts: ['*.a.com']}", ""},
		{"host partial wildcard", "{hosts: ['*a.com']}", `spec.hosts[0]: warning: "*" stands for whole labels`},
		{"host short", "{hosts: [a]}", `spec.hosts[0]: warning: "a" has no dot: callers mean the service of that name in their own namespace: write the full name, such as a.ns.svc.cluster.local`},
		{"address", "{hosts: [a.com], addresses: [10.0.0.1, '2001:db8::1', 10.0.0.0/8]}", "spec.addresses[2]: warning: 10.0.0.0/8 has no meaning"},
		{"address of one host", "{hosts: [a.com], addresses: [10.0.0.1/32]}", ""},
		{"address wrong", "{hosts: [a.com], addresses: [10.0.0.256]}", `spec.addresses[0]: "10.0.0.256" is neither`},
		{"address network with DNS", "{hosts: [a.com], addresses: [10.0.0.1/32], resolution: DNS}", "spec.addresses[0]: 10.0.0.1/32 is a network"},
		{"port name", "{hosts: [a.com], ports: [{name: a_b, number: 80}]}", `spec.ports[0].name: "a_b" is not`},
		{"port name required", "{hosts: [a.com], ports: [{number: 80}]}", "spec.ports[0].name: missing"},
		{"port name duplicate", "{hosts: [a.com], ports: [{name: a, number: 80}, {name: a, number: 81}]}", `spec.ports[1].name: there is a port "a"`},
		{"port number", "{hosts: [a.com], ports: [{name: a, number: 0}]}", "spec.ports[0].number: 0 is not a port"},
		{"port number required", "{hosts: [a.com], ports: [{name: a}]}", "spec.ports[0].number: missing"},
		{"port number duplicate", "{hosts: [a.com], ports: [{name: a, number: 80}, {name: b, number: 80}]}", "spec.ports[1].number: there is a port 80"},
		{"port protocol", "{hosts: [a.com], ports: [{name: a, number: 80, protocol: grpc-web}]}", ""},
		{"port protocol unknown", "{hosts: [a.com], ports: [{name: a, number: 80, protocol: HTTP3}]}", `spec.ports[0].protocol: "HTTP3" is not`},
		{"port protocol other than HTTP", "{hosts: [a.com], ports: [{name: a, number: 80, protocol: REDIS}]}", "spec.ports[0].protocol: warning: "},
		{"port targetPort", "{hosts: [a.com], ports: [{name: a, number: 80, targetPort: 0}]}", "spec.ports[0].targetPort: 0 is not"},
		{"several hosts without protocol", "{hosts: [a.com, b.com], resolution: DNS, ports: [{name: a, number: 80}]}", "spec.ports[0].protocol: several hosts"},
		{"several hosts with TCP", "{hosts: [a.com, b.com], resolution: DNS, ports: [{name: a, number: 80, protocol: TCP}]}", "spec.ports[0].protocol: several"},
		{"several hosts with TLS", "{hosts: [a.com, b.com], resolution: DNS, ports: [{name: a, number: 443, protocol: TLS}]}", ""},
		{"several hosts unresolved", "{hosts: [a.com, b.com], ports: [{name: a, number: 80, protocol: TCP}]}", ""},
		{"resolution unknown", "{hosts: [a.com], resolution: dns}", `spec.resolution: "dns" is not`},
		{"resolution not enforced", "{hosts: ['*.a.com'], resolution: DYNAMIC_DNS}", "spec.resolution: DYNAMIC_DNS is not enforced"},
		{"NONE with endpoints", "{hosts: [a.com], endpoints: [{address: 10.0.0.1}]}", "spec.endpoints: does not go with resolution NONE"},
		{"STATIC without endpoints", "{hosts: [a.com], resolution: STATIC}", "spec.endpoints: warning: missing"},
		{"STATIC with host name", "{hosts: [a.com], resolution: STATIC, endpoints: [{address: b.com}]}", `spec.endpoints[0].address: "b.com" is not an IP address`},
		{"DNS of a wildcard", "{hosts: ['*.a.com'], resolution: DNS}", "spec.hosts[0]: without endpoints the hosts are looked up"},
		{"DNS of a wildcard with endpoints", "{hosts: ['*.a.com'], resolution: DNS, endpoints: [{address: b.com}]}", ""},
		{"DNS_ROUND_ROBIN", "{hosts: [a.com], resolution: DNS_ROUND_ROBIN, endpoints: [{address: b.com}]}", ""},
		{"DNS_ROUND_ROBIN with two", "{hosts: [a.com], resolution: DNS_ROUND_ROBIN, endpoints: [{address: b.com}, {address: c.com}]}",
			"spec.endpoints: DNS_ROUND_ROBIN takes one"},
		{"selector not enforced", "{hosts: [a.com], resolution: STATIC, workloadSelector: {labels: {a: b}}}",
			"spec.workloadSelector: selecting pods and WorkloadEntries needs an API server and is not enforced"},
		{"subjectAltNames", "{hosts: [a.com], subjectAltNames: ['spiffe://a/b', a.com]}", ""},
		{"subjectAltNames empty value", "{hosts: [a.com], subjectAltNames: ['']}", `spec.subjectAltNames[0]: "" is not a name`},
		{"location", "{hosts: [a.com], location: MESH_INTERNAL}", ""},
		{"location unknown", "{hosts: [a.com], location: MESH}", `spec.location: "MESH" is not`},
		{"exportTo none", "{hosts: [a.com], exportTo: ['~']}", ""},
		{"exportTo none and more", "{hosts: [a.com], exportTo: ['~', a]}", `spec.exportTo[0]: "~" goes with no other`},
	}, whole)

	check(t, "ServiceEntry", []rule{
		{"endpoint", "address: 10.0.0.1, ports: {http: 8080}, labels: {a: b}, locality: eu/a/1, weight: 0, serviceAccount: a", ""},
		{"endpoint address required", "labels: {a: b}", "spec.endpoints[0].address: missing: it is required"},
		{"endpoint address", "address: a b", `spec.endpoints[0].address: "a b" is neither`},
		{"endpoint address wildcard", "address: '*.a.com'", `spec.endpoints[0].address: "*.a.com" is neither`},
		{"endpoint address length", "address: " + strings.Repeat("a.", 128) + "b", "spec.endpoints[0].address: "},
		{"endpoint Unix socket not enforced", "address: unix:///a", "spec.endpoints[0].address: connections to Unix sockets are not enforced"},
		{"endpoint network", "address: a.com, network: n1", "spec.endpoints[0].network: warning: there are no gateways"},
		{"endpoint port unknown", "address: a.com, ports: {grpc: 80}", `spec.endpoints[0].ports.grpc: there is no port "grpc"`},
		{"endpoint port", "address: a.com, ports: {http: 0}", "spec.endpoints[0].ports.http: 0 is not a port"},
		{"endpoint labels", "address: a.com, labels: {a: '*'}", `spec.endpoints[0].labels.a: "*" is not`},
		{"endpoint locality length", "address: a.com, locality: " + long(2049), "spec.endpoints[0].locality: is too long"},
		{"endpoint serviceAccount length", "address: a.com, serviceAccount: " + long(254), "spec.endpoints[0].serviceAccount: is too long"},
	}, func(endpoint string) string {
		return "{hosts: [a.com], ports: [{name: http, number: 80, protocol: HTTP}], resolution: DNS, endpoints: [{" + endpoint + "}]}"
	})
}

func TestRules_PeerAuthentication(t *testing.T) {
	check(t, "PeerAuthentication", []rule{
		{"empty", "{}", ""},
		{"mode", "{mtls: {mode: STRICT}}", ""},
		{"mode unknown", "{mtls: {mode: strict}}", `spec.mtls.mode: "strict" is not one of UNSET, DISABLE, PERMISSIVE, STRICT`},
		{"mode as a number", "{mtls: {mode: 3}}", `spec.mtls.mode: 3 is not one of UNSET, DISABLE, PERMISSIVE, STRICT`},
		{"ports", "{selector: {matchLabels: {a: b}}, portLevelMtls: {'8080': {mode: DISABLE}}}", ""},
		{"ports without selector", "{portLevelMtls: {'8080': {mode: DISABLE}}}", "spec.portLevelMtls: ports belong to workloads"},
		{"ports empty", "{selector: {matchLabels: {a: b}}, portLevelMtls: {}}", "spec.portLevelMtls: is empty"},
		{"port range", "{selector: {matchLabels: {a: b}}, portLevelMtls: {'65536': {}}}", `spec.portLevelMtls.65536: "65536" is not a port`},
		{"port 0", "{selector: {matchLabels: {a: b}}, portLevelMtls: {'0': {}}}", `spec.portLevelMtls.0: "0" is not a port`},
		{"port with a zero in front", "{selector: {matchLabels: {a: b}}, portLevelMtls: {'080': {}}}", `spec.portLevelMtls.080: "080" is not a port`},
		{"port name", "{selector: {matchLabels: {a: b}}, portLevelMtls: {http: {}}}", `spec.portLevelMtls.http: "http" is not a port`},
		{"selector empty", "{selector: {}}", "spec.selector: warning: selects every workload"},
		{"selector wildcard", "{selector: {matchLabels: {a: 'b*'}}}", "spec.selector.matchLabels.a: a=b* has a wildcard"},
	}, whole)
}

func TestRules_AuthorizationPolicy(t *testing.T) {
	check(t, "AuthorizationPolicy", []rule{
		{"empty denies all", "{}", ""},
		{"DENY without rules", "{action: DENY}", "spec.rules: missing: a DENY policy without rules has no effect"},
		{"DENY with no rules", "{action: DENY, rules: []}", "spec.rules: missing"},
		{"DENY everything", "{action: DENY, rules: [{}]}", ""},
		{"CUSTOM without rules", "{action: CUSTOM, provider: {name: p}}", "spec.rules: missing"},
		{"CUSTOM without provider", "{action: CUSTOM, rules: [{}]}", "spec.provider.name: missing"},
		{"CUSTOM not enforced", "{action: CUSTOM, provider: {name: p}, rules: [{}]}", "spec.action: CUSTOM is not enforced"},
		{"CUSTOM of a gateway", "{targetRef: {kind: Gateway, group: gateway.networking.k8s.io, name: a}, action: CUSTOM, provider: {name: p}, rules: [{}]}",
			"spec.targetRef: warning: has no meaning in-process"},
		{"CUSTOM that selects a gateway", "{selector: {matchLabels: {istio: ingressgateway}}, action: CUSTOM, provider: {name: p}, rules: [{}]}",
			"spec.selector: warning: has no meaning in-process: it selects a gateway"},
		{"provider without CUSTOM", "{provider: {name: p}, rules: [{}]}", "spec.provider: goes with action CUSTOM only"},
		{"action unknown", "{action: LOG}", `spec.action: "LOG" is not`},
		{"from empty", "{rules: [{from: []}]}", "spec.rules[0].from: is empty"},
		{"to empty", "{rules: [{to: []}]}", "spec.rules[0].to: is empty"},
		{"source required", "{rules: [{from: [{}]}]}", "spec.rules[0].from[0].source: missing"},
		{"operation required", "{rules: [{to: [{}]}]}", "spec.rules[0].to[0].operation: missing"},
		{"null rule", "{rules: [~]}", "spec.rules[0]: has no value"},
		{"rules at most", "{rules: [" + repeated(513, func(int) string { return "{}" }) + "]}", "spec.rules: is too long"},
		{"targetRef not enforced", "{targetRef: {kind: Service, name: a}}", "spec.targetRef: is not enforced: it attaches the policy to a waypoint"},
		{"targetRefs not enforced", "{targetRefs: [{kind: Service, name: a}]}", "spec.targetRefs[0]: is not enforced"},
		{"targetRef of a ServiceEntry", "{targetRef: {kind: ServiceEntry, group: networking.istio.io, name: a}}", "spec.targetRef: is not enforced"},
		{"targetRef of a gateway", "{targetRef: {kind: Gateway, group: gateway.networking.k8s.io, name: a}}",
			"spec.targetRef: warning: has no meaning in-process"},
		{"targetRef of gateways", "{targetRefs: [{kind: GatewayClass, group: gateway.networking.k8s.io, name: istio}]}",
			"spec.targetRefs[0]: warning: has no meaning in-process"},
		{"targetRef of a waypoint", "{targetRef: {kind: Gateway, group: gateway.networking.k8s.io, name: waypoint}}", "spec.targetRef: is not enforced"},
		{"targetRef of one with a name", "{targetRef: {kind: Gateway, group: gateway.networking.k8s.io, name: shop-waypoint}}", "spec.targetRef: is not enforced"},
		{"targetRef of waypoints", "{targetRef: {kind: GatewayClass, group: gateway.networking.k8s.io, name: istio-waypoint}}",
			"spec.targetRef: is not enforced"},
		{"selector", "{selector: {matchLabels: {app: a}}}", ""},
		{"selector wildcard", "{selector: {matchLabels: {app: '*'}}}", "spec.selector.matchLabels.app: app=* has a wildcard"},
	}, whole)

	check(t, "AuthorizationPolicy", []rule{
		{"source empty", "", "spec.rules[0].from[0].source: is empty"},
		{"source", "principals: [cluster.local/ns/a/sa/b, '*/sa/c', '*'], notIpBlocks: [10.0.0.0/8]", ""},
		{"source with SPIFFE ID", "principals: [spiffe://cluster.local/ns/a/sa/b]", "spec.rules[0].from[0].source.principals[0]: principals are written without spiffe://"},
		{"source without SPIFFE ID", "notPrincipals: [spiffe://a]", "spec.rules[0].from[0].source.notPrincipals[0]: principals are written"},
		{"source with an expression", "principals: ['*/sa/(a|b)']", `spec.rules[0].from[0].source.principals[0]: "*/sa/(a|b)" is not enforced`},
		{"source with what is no expression", "principals: ['td/(a)', 'td/(a*'], notNamespaces: [a.b, '*a-*']", ""},
		{"source namespaces with an expression", "notNamespaces: ['team-[ab]']",
			`spec.rules[0].from[0].source.notNamespaces[0]: "team-[ab]" is not enforced: Istio takes "[" for`},
		{"source serviceAccounts with an expression", "serviceAccounts: [ns/a|b]",
			`spec.rules[0].from[0].source.serviceAccounts[0]: "ns/a|b" is not enforced`},
		{"source empty value", "principals: ['']", "spec.rules[0].from[0].source.principals[0]: must not be empty"},
		{"source requestPrincipals", "requestPrincipals: ['*'], notRequestPrincipals: ['https://i/s']", ""},
		{"source requestPrincipals empty", "requestPrincipals: ['']", "spec.rules[0].from[0].source.requestPrincipals[0]: must not be empty"},
		{"source notRequestPrincipals empty", "notRequestPrincipals: ['']", "spec.rules[0].from[0].source.notRequestPrincipals[0]: must not be empty"},
		{"source ipBlocks", "ipBlocks: [10.0.0.1/33]", `spec.rules[0].from[0].source.ipBlocks[0]: "10.0.0.1/33" is neither`},
		{"source ipBlocks with a zone", "ipBlocks: ['fe80::1%eth0']", `spec.rules[0].from[0].source.ipBlocks[0]: "fe80::1%eth0" is neither`},
		{"source remoteIpBlocks", "remoteIpBlocks: [a]", `spec.rules[0].from[0].source.remoteIpBlocks[0]: "a" is neither`},
		{"source serviceAccounts", "serviceAccounts: [a, ns/b]", ""},
		{"source serviceAccounts wildcard", "serviceAccounts: [ns/*]", `spec.rules[0].from[0].source.serviceAccounts[0]: "ns/*" has a wildcard`},
		{"source serviceAccounts slashes", "notServiceAccounts: [a/b/c]", `spec.rules[0].from[0].source.notServiceAccounts[0]: "a/b/c" is not`},
		{"source serviceAccounts half", "serviceAccounts: [a/]", `spec.rules[0].from[0].source.serviceAccounts[0]: "a/" is not`},
		{"source serviceAccounts length", "serviceAccounts: [" + long(321) + "]", "spec.rules[0].from[0].source.serviceAccounts[0]: a service account has at most"},
		{"source serviceAccounts at most", "serviceAccounts: [" + repeated(17, func(int) string { return "a" }) + "]",
			"spec.rules[0].from[0].source.serviceAccounts: is too long"},
		{"source serviceAccounts and namespaces", "serviceAccounts: [a], namespaces: [b]", "spec.rules[0].from[0].source.serviceAccounts: service accounts exclude"},
		{"source trustDomains", "trustDomains: [td]", ""},
	}, func(source string) string { return "{rules: [{from: [{source: {" + source + "}}]}]}" })

	check(t, "AuthorizationPolicy", []rule{
		{"operation empty", "", "spec.rules[0].to[0].operation: is empty"},
		{"operation", "methods: [GET], hosts: ['*.a.com'], ports: ['8080'], notPaths: [/admin*]", ""},
		{"operation empty value", "methods: ['']", "spec.rules[0].to[0].operation.methods[0]: must not be empty"},
		{"operation method in small letters", "methods: [GET, Post]", `spec.rules[0].to[0].operation.methods[1]: warning: "Post" is the method of no request: write "POST"`},
		{"operation other method in small letters", "notMethods: [get]", `spec.rules[0].to[0].operation.notMethods[0]: warning: "get" is the method of no request: write "GET"`},
		{"operation methods of our own", "methods: [Purge, 'get*', '*']", ""},
		{"operation port", "ports: ['65536']", `spec.rules[0].to[0].operation.ports[0]: "65536" is not a port`},
		{"operation port name", "notPorts: [http]", `spec.rules[0].to[0].operation.notPorts[0]: "http" is not a port`},
		{"operation port 0", "ports: ['0']", ""},
		{"path with two stars", "paths: ['*foo*']", ""},
		{"path template", "paths: ['/a/{*}/b/{**}', '/{**}/']", ""},
		{"path template suffix", "paths: ['/a/{*}.txt']", `spec.rules[0].to[0].operation.paths[0]: "/a/{*}.txt" has braces`},
		{"path template name", "paths: ['/a/{name}']", `spec.rules[0].to[0].operation.paths[0]: "/a/{name}" has braces`},
		{"path template after the rest", "paths: ['/{**}/{*}']", `spec.rules[0].to[0].operation.paths[0]: "/{**}/{*}" has an operator after {**}`},
		{"path template and star", "paths: ['/{*}/a*']", `spec.rules[0].to[0].operation.paths[0]: "/{*}/a*" has operators`},
		{"path template empty segment", "notPaths: ['/{*}//a']", `spec.rules[0].to[0].operation.notPaths[0]: "/{*}//a" has operators`},
		{"path literal after the rest", "paths: ['/{**}/a']", ""},
	}, func(operation string) string { return "{rules: [{to: [{operation: {" + operation + "}}]}]}" })

	check(t, "AuthorizationPolicy", []rule{
		{"condition key required", "values: [a]", "spec.rules[0].when[0].key: missing"},
		{"condition without values", "key: source.ip", "spec.rules[0].when[0]: has no values"},
		{"condition empty value", "key: source.namespace, values: ['']", "spec.rules[0].when[0].values[0]: must not be empty"},
		{"condition unknown", "key: source.name, values: [a]", `spec.rules[0].when[0].key: unknown key "source.name"`},
		{"condition empty key", "key: '', values: [a]", `spec.rules[0].when[0].key: unknown key ""`},
		{"condition header", "key: 'request.headers[x-a]', notValues: [a]", ""},
		{"condition header without name", "key: request.headers, values: [a]", `spec.rules[0].when[0].key: "request.headers" is not complete`},
		{"condition header of peers not enforced", "key: 'request.headers[X-Forwarded-Client-Cert]', values: [a]",
			"spec.rules[0].when[0].key: request.headers[X-Forwarded-Client-Cert] is not enforced: anybody"},
		{"condition header of peers with underscores", "key: 'request.headers[x_forwarded_client_cert]', values: [a]",
			"spec.rules[0].when[0].key: request.headers[x_forwarded_client_cert] is not enforced: anybody"},
		{"condition header empty name", "key: 'request.headers[]', values: [a]", `spec.rules[0].when[0].key: "request.headers[]" is not complete`},
		{"condition claims", "key: 'request.auth.claims[a][b]', values: [c]", ""},
		{"condition claims without name", "key: request.auth.claims, values: [c]", `spec.rules[0].when[0].key: "request.auth.claims" is not`},
		{"condition ip", "key: source.ip, values: [10.0.0.0/8], notValues: [10.1.1.1]", ""},
		{"condition ip wrong", "key: remote.ip, notValues: [a]", `spec.rules[0].when[0].notValues[0]: "a" is neither`},
		{"condition port", "key: destination.port, values: ['70000']", `spec.rules[0].when[0].values[0]: "70000" is not a port`},
		{"condition principal", "key: source.principal, values: [spiffe://a]", "spec.rules[0].when[0].values[0]: principals are written"},
		{"condition namespace with an expression", "key: source.namespace, values: [a+]", `spec.rules[0].when[0].values[0]: "a+" is not enforced`},
		{"condition serviceAccount", "key: source.serviceAccount, values: ['*']", `spec.rules[0].when[0].values[0]: "*" has a wildcard`},
		{"condition audiences", "key: request.auth.audiences, values: [a]", ""},
		{"condition presenter", "key: request.auth.presenter, values: [a]", ""},
		{"condition sni", "key: connection.sni, values: [a.com]", ""},
		{"condition of old", "key: 'destination.labels[a]', values: [a]", "spec.rules[0].when[0].key: destination.labels[a] is not a key"},
		{"condition inline header not enforced", "key: 'request.experimental.inline.headers[x-a]', values: [a]",
			"spec.rules[0].when[0].key: request.experimental.inline.headers[x-a] is not enforced: use request.headers"},
		{"condition of Envoy not enforced", "key: 'experimental.envoy.filters.a[b]', values: [a]", "spec.rules[0].when[0].key: experimental.envoy.filters.a[b] is not enforced"},
	}, func(when string) string { return "{rules: [{when: [{" + when + "}]}]}" })
}

// publicKey is a JSON Web Key.
const publicKey = `{"kty":"EC","crv":"P-256","kid":"k","x":"JZnUTpjYGzarM6JbhB6vpcs49ip_MO-wKGNqGB8iq8E","y":"wSGId-crDuMNxDOltZ3qnOfk47UCfuzS_13NcHBDX-M"}`

func TestRules_RequestAuthentication(t *testing.T) {
	check(t, "RequestAuthentication", []rule{
		{"empty", "{}", ""},
		{"issuer or jwksUri", "{jwtRules: [{}]}", "spec.jwtRules[0].issuer: missing: set issuer or jwksUri"},
		{"jwksUri without issuer", "{jwtRules: [{jwksUri: 'https://a'}]}", ""},
		{"issuer that is null", "{jwtRules: [{issuer: null, jwksUri: 'https://a'}]}", ""},
		{"empty issuer", "{jwtRules: [{issuer: '', jwksUri: 'https://a'}]}", "spec.jwtRules[0].issuer: must not be empty"},
		{"empty jwksUri", "{jwtRules: [{issuer: a, jwksUri: ''}]}", "spec.jwtRules[0].jwksUri: must not be empty"},
		{"targetRefs not enforced", "{targetRefs: [{kind: Service, name: a}]}", "spec.targetRefs[0]: is not enforced: it attaches the policy to a waypoint"},
		{"targetRef of a gateway", "{targetRef: {kind: Gateway, group: gateway.networking.k8s.io, name: a}}", "spec.targetRef: warning: has no meaning in-process"},
	}, whole)

	check(t, "RequestAuthentication", []rule{
		{"jwksUri", "jwksUri: 'https://a.com/keys'", ""},
		{"jwksUri scheme", "jwksUri: 'ftp://a.com/keys'", `spec.jwtRules[0].jwksUri: "ftp://a.com/keys" is not`},
		{"jwksUri port", "jwksUri: 'https://a.com:x/keys'", `spec.jwtRules[0].jwksUri: "https://a.com:x/keys" is not`},
		{"jwksUri in snake case", "jwks_uri: 'ftp://a'", `spec.jwtRules[0].jwks_uri: "ftp://a" is not`},
		{"jwksUri and jwks", `jwksUri: 'https://a', jwks: '{"keys":[` + publicKey + `]}'`, "spec.jwtRules[0]: jwksUri and jwks exclude"},
		{"jwks", `jwks: '{"keys":[` + publicKey + `]}'`, ""},
		{"jwks with a key of no use", `jwks: '{"keys":[` + publicKey + `,{"kty":"oct","k":"AAAA"}]}'`,
			"spec.jwtRules[0].jwks: warning: keys[1] is left out: it is a private or a symmetric key"},
		{"jwks of one key", `jwks: '` + publicKey + `'`, "spec.jwtRules[0].jwks: is not a JSON Web Key Set that can verify a token"},
		{"jwks of a key that is too short", `jwks: '{"keys":[{"kty":"RSA","e":"AQAB","n":"x"}]}'`, "spec.jwtRules[0].jwks: is not a JSON Web Key Set that can verify a token"},
		{"why, in one line", `jwks: '{"keys":[{"kty":"oct","k":"AAAA"}]}'`, "spec.jwtRules[0].jwks: is not a JSON Web Key Set that can verify a token: the key set has no key that can verify a token; keys[0] is left out"},
		{"discovery of an issuer that is no URL", "audiences: [a]", "spec.jwtRules[0]: cannot be enforced: the URI \"i/.well-known/openid-configuration\" is not"},
		{"jwks not JSON", "jwks: x", "spec.jwtRules[0].jwks: is not a JSON Web Key Set"},
		{"jwks without keys", "jwks: '{}'", "spec.jwtRules[0].jwks: is not"},
		{"audience", "audiences: ['']", "spec.jwtRules[0].audiences[0]: must not be empty"},
		{"fromHeaders name", "fromHeaders: [{name: ''}]", "spec.jwtRules[0].fromHeaders[0].name: must not be empty"},
		{"fromHeaders name required", "fromHeaders: [{prefix: 'Bearer '}]", "spec.jwtRules[0].fromHeaders[0].name: missing"},
		{"fromParams", "fromParams: ['']", "spec.jwtRules[0].fromParams[0]: must not be empty"},
		{"fromCookies", "fromCookies: ['']", "spec.jwtRules[0].fromCookies[0]: must not be empty"},
		{"output header", "jwksUri: 'https://a', outputClaimToHeaders: [{header: x-a, claim: sub}]", ""},
		{"output header twice", "jwksUri: 'https://a', outputClaimToHeaders: [{header: x-a, claim: sub}, {header: X-A, claim: iss}]", `spec.jwtRules[0]: cannot be enforced: ClaimHeaders: the header "X-A" is set twice`},
		{"output header name", "outputClaimToHeaders: [{header: x_a, claim: sub}]", `spec.jwtRules[0].outputClaimToHeaders[0].header: "x_a" is not`},
		{"output claim", "outputClaimToHeaders: [{header: x-a, claim: ''}]", "spec.jwtRules[0].outputClaimToHeaders[0].claim: must not"},
		{"output claim required", "outputClaimToHeaders: [{header: x-a}]", "spec.jwtRules[0].outputClaimToHeaders[0].claim: missing"},
		{"timeout", "timeout: 0s", "spec.jwtRules[0].timeout: 0s is less"},
		{"spaceDelimitedClaims", "spaceDelimitedClaims: ['']", "spec.jwtRules[0].spaceDelimitedClaims[0]: must not be empty"},
		{"spaceDelimitedClaims of the user", "jwksUri: 'https://a', spaceDelimitedClaims: [roles, sub]", "spec.jwtRules[0]: cannot be enforced: SpaceDelimited: sub is not a list of words"},
	}, func(rule string) string { return "{jwtRules: [{issuer: i, " + rule + "}]}" })
}

func TestRules_Metadata(t *testing.T) {
	tests := []struct {
		name, kind, metadata, want string
	}{
		{"name", "DestinationRule", "{name: A}", "metadata.name: "},
		{"name with dots", "DestinationRule", "{name: a.b}", ""},
		{"namespace", "DestinationRule", "{name: a, namespace: a.b}", "metadata.namespace: "},
		{"revision", "DestinationRule", "{name: a, labels: {istio.io/rev: canary}}", `metadata.labels["istio.io/rev"]: warning: has no effect`},
		{"revision of a policy", "AuthorizationPolicy", "{name: a, labels: {istio.io/rev: canary}}", `metadata.labels["istio.io/rev"]: warning: has no effect`},
		{"dry run elsewhere", "DestinationRule", "{name: a, annotations: {istio.io/dry-run: 'true'}}", `metadata.annotations["istio.io/dry-run"]: goes with`},
		{"dry run", "AuthorizationPolicy", "{name: a, annotations: {istio.io/dry-run: 'true'}}", ""},
		{"dry run value", "AuthorizationPolicy", "{name: a, annotations: {istio.io/dry-run: 'maybe'}}", `metadata.annotations["istio.io/dry-run"]: "maybe" is`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			spec := "{host: a}"
			if tt.kind == "AuthorizationPolicy" {
				spec = "{}"
			}
			got := findings(t, "apiVersion: x/v1\nkind: "+tt.kind+"\nmetadata: "+tt.metadata+"\nspec: "+spec+"\n")
			if tt.want == "" && len(got) > 0 || tt.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], tt.want)) {
				t.Errorf("found %q, want %q", got, tt.want)
			}
		})
	}
	got := findings(t, "apiVersion: x/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, annotations: {istio.io/dry-run: 'true'}}\n"+
		"spec: {action: AUDIT, rules: [{}]}\n")
	if len(got) != 1 || !strings.HasSuffix(got[0], "goes with action ALLOW and DENY only") {
		t.Errorf("dry run of AUDIT: found %q", got)
	}
}

// TestRules_SeveralFindings has the rules that are never broken alone.
func TestRules_SeveralFindings(t *testing.T) {
	tests := []struct {
		name, kind, spec string
		want             []string
	}{
		{"weights add up to 0", "VirtualService", "{hosts: [a], http: [{route: [{destination: {host: a}}, {destination: {host: b}}]}]}", []string{
			"spec.http[0].route[0].weight: warning: a destination without weight",
			"spec.http[0].route[1].weight: warning: a destination without weight",
			"spec.http[0].route: the weights add up to 0",
		}},
		{"fault delay percent out of range", "VirtualService",
			"{hosts: [a], http: [{route: [{destination: {host: a}}], fault: {delay: {fixedDelay: 1s, percent: 150}}}]}", []string{
				"spec.http[0].fault.delay.percent: warning: deprecated",
				"spec.http[0].fault.delay.percent: warning: 150 is more than 100",
			}},
		{"fault two delays", "VirtualService",
			"{hosts: [a], http: [{route: [{destination: {host: a}}], fault: {delay: {exponentialDelay: 1s, fixedDelay: 1s, percentage: {value: 5}}}}]}", []string{
				"spec.http[0].fault.delay.exponentialDelay: Istio does not implement",
				"spec.http[0].fault.delay: fixedDelay and exponentialDelay exclude",
			}},
		{"mirror percent out of range", "VirtualService",
			"{hosts: [a], http: [{route: [{destination: {host: a}}], mirror: {host: b}, mirrorPercent: 101}]}", []string{
				"spec.http[0].mirrorPercent: warning: deprecated",
				"spec.http[0].mirrorPercent: 101 is not a percentage",
			}},
		{"TLS routes", "VirtualService", "{hosts: [a], tls: [{match: [{sniHosts: [a]}], route: [{destination: {host: a}}]}]}", []string{
			"spec.tls: routes for TLS connections are not enforced",
		}},
		{"tunnel and proxyProtocol", "DestinationRule",
			"{host: a, trafficPolicy: {tunnel: {targetHost: a, targetPort: 1}, proxyProtocol: {version: V1}}}", []string{
				"spec.trafficPolicy.tunnel: tunnels carry", "spec.trafficPolicy.proxyProtocol: the PROXY protocol is not enforced",
				"spec.trafficPolicy: tunnel and proxyProtocol exclude",
			}},
		{"TLS credentialName and files", "DestinationRule",
			"{host: a, trafficPolicy: {tls: {mode: SIMPLE, credentialName: c, caCertificates: /ca}}}", []string{
				"spec.trafficPolicy.tls.credentialName: credentialName is a Secret", "spec.trafficPolicy.tls.credentialName: credentialName and files",
			}},
		{"deprecated minimumRingSize with ringHash", "DestinationRule",
			"{host: a, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: h, minimumRingSize: 1, ringHash: {}}}}}", []string{
				"spec.trafficPolicy.loadBalancer.consistentHash.minimumRingSize: warning: deprecated",
				"spec.trafficPolicy.loadBalancer.consistentHash.minimumRingSize: does not go with",
			}},
		{"endpoint of a network without address", "ServiceEntry", "{hosts: [a.com], resolution: STATIC, endpoints: [{network: n1}]}", []string{
			"spec.endpoints[0].network: warning: there are no gateways",
			"spec.endpoints[0].address: missing, which sends requests to the gateway of the network; that is not enforced",
		}},
		{"targetRefs and selector", "RequestAuthentication",
			"{selector: {matchLabels: {a: b}}, targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: a}]}", []string{
				"spec: selector, targetRef and targetRefs exclude", "spec.targetRefs[0]: warning: has no meaning in-process",
			}},
		{"CUSTOM with identities", "AuthorizationPolicy", "{action: CUSTOM, provider: {name: p}, rules: [{from: [{source: {namespaces: [a]}}]}]}", []string{
			"spec.action: CUSTOM is not enforced", "spec.rules[0].from[0].source.namespaces: does not go with action CUSTOM",
		}},
		{"CUSTOM with claims", "AuthorizationPolicy", "{action: CUSTOM, provider: {name: p}, rules: [{when: [{key: 'request.auth.claims[a]', values: [b]}]}]}", []string{
			"spec.action: CUSTOM is not enforced",
			"spec.rules[0].when[0].key: request.auth.claims[a] does not go with action CUSTOM",
		}},
		{"targetRef kind", "AuthorizationPolicy", "{targetRef: {kind: Pod, name: a}}", []string{
			`spec.targetRef.kind: a policy cannot belong to a Pod of ""`, "spec.targetRef: is not enforced",
		}},
		{"targetRef group", "AuthorizationPolicy", "{targetRef: {kind: Service, group: apps, name: a}}", []string{
			`spec.targetRef.kind: a policy cannot belong to a Service of "apps"`, "spec.targetRef: is not enforced",
		}},
		{"targetRef name and namespace", "AuthorizationPolicy", "{targetRef: {kind: ServiceEntry, group: networking.istio.io, name: '', namespace: b}}", []string{
			`spec.targetRef.name: "" is not a name`, "spec.targetRef.namespace: a policy belongs", "spec.targetRef: is not enforced",
		}},
		{"selector and endpoints", "ServiceEntry",
			"{hosts: [a.com], resolution: STATIC, workloadSelector: {labels: {a: b}}, endpoints: [{address: 10.0.0.1}]}", []string{
				"spec.workloadSelector: selecting pods", "spec.workloadSelector: endpoints and workloadSelector exclude",
			}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := findings(t, "apiVersion: x/v1\nkind: "+tt.kind+"\nmetadata: {name: x}\nspec: "+tt.spec+"\n")
			for i, want := range tt.want {
				if len(got) != len(tt.want) || !strings.HasPrefix(got[i], want) {
					t.Fatalf("found %q\nwant  %q", got, tt.want)
				}
			}
		})
	}
}

// FuzzCheck checks that no document makes Check, Expand or Table panic.
func FuzzCheck(f *testing.F) {
	for kind, specs := range map[string][]string{
		"VirtualService": {
			"{hosts: [a], http: [{match: [{uri: {prefix: /}, headers: {a: {regex: '*'}}}], route: [{destination: {host: a}}], retries: {attempts: 1, retryOn: 5xx}}]}",
			"{hosts: [a], http: [{delegate: {name: x}, match: [{uri: {prefix: /}}], fault: {abort: {grpcStatus: OK}}}, {redirect: {uri: /}}]}",
			"{http: [{match: [{uri: {prefix: /a}}], route: [{destination: {host: a}}], mirrors: [{destination: {host: b}}], rewrite: {uri: /}}]}",
		},
		"DestinationRule": {
			"{host: a, subsets: [{name: v1, trafficPolicy: {portLevelSettings: [{port: {number: 1}, tls: {mode: SIMPLE}}]}}]}",
			"{host: a, trafficPolicy: {outlierDetection: {}, loadBalancer: {localityLbSetting: {distribute: [{from: '*', to: {a/b: 100}}]}}}}",
		},
		"ServiceEntry": {
			"{hosts: ['*.a', b], addresses: [10.0.0.0/8], ports: [{name: a, number: 1}], resolution: DNS, endpoints: [{address: a, ports: {a: 1}, locality: a/b/c/d}]}",
		},
		"PeerAuthentication":    {"{selector: {matchLabels: {a: b}}, portLevelMtls: {'1': {mode: STRICT}}}"},
		"AuthorizationPolicy":   {"{rules: [{from: [{source: {principals: [a]}}], to: [{operation: {paths: ['/{**}']}}], when: [{key: 'request.headers[a]', values: [a]}]}]}"},
		"RequestAuthentication": {`{jwtRules: [{issuer: a, jwks: '{"keys":[` + publicKey + `]}', outputClaimToHeaders: [{header: a, claim: b}]}]}`},
	} {
		for _, spec := range specs {
			f.Add("kind: " + kind + "\napiVersion: x/v1\nmetadata: {name: x}\nspec: " + spec)
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		client := istio.Client{Namespace: "default", ClusterDomain: "cluster.local"}
		var dec yamldoc.Decoder
		for _, doc := range yamldoc.Parse([]byte(text))[0] {
			switch doc.Text("kind") {
			case "VirtualService":
				vs := new(istio.VirtualService)
				if dec.Decode(doc, vs) {
					if vs.Check(doc); doc.Failed() {
						continue
					}
					vs.Table(doc, client)
					delegate := *vs
					delegate.Spec.Hosts = nil
					e := vs.Expand(func(string, string) (*istio.VirtualService, bool) { return &delegate, true })
					e.Table(doc, client)
				}
			case "DestinationRule":
				dr := new(istio.DestinationRule)
				if dec.Decode(doc, dr) {
					if dr.Check(doc); doc.Failed() {
						continue
					}
					merged := istio.Merge(dr.Spec.TrafficPolicy, dr.Spec.TrafficPolicy, 1)
					merged.Settings(discovery.Locality{Region: "a"}, nil)
				}
			case "ServiceEntry":
				se := new(istio.ServiceEntry)
				if dec.Decode(doc, se) {
					if se.Check(doc); doc.Failed() {
						continue
					}
					for _, name := range se.Names() {
						se.Endpoints(name)
					}
				}
			default:
				for _, into := range []interface{ Check(*yamldoc.Document) }{
					new(istio.PeerAuthentication), new(istio.AuthorizationPolicy), new(istio.RequestAuthentication),
				} {
					if dec.Decode(doc, into) {
						into.Check(doc)
					}
					if ap, ok := into.(*istio.AuthorizationPolicy); ok && !doc.Failed() {
						ap.Policy("corp")
						ap.Selects("default", nil, "istio-system")
					}
				}
			}
		}
	})
}
