package internal

import (
	"reflect"

	"github.com/nosidecar/mesh/policy/internal/gateway"
	"github.com/nosidecar/mesh/policy/internal/istio"
	"github.com/nosidecar/mesh/policy/internal/linkerd"
	"github.com/nosidecar/mesh/policy/internal/smi"
)

// Where the parts that are probed go.
const (
	inRoute       = "hosts: [a], http: [{route: [{destination: {host: a}}], %s}]"
	inMatch       = "hosts: [a], http: [{match: [{%s}], route: [{destination: {host: a}}]}]"
	inDestination = "hosts: [a], http: [{route: [%s]}]"
	inPolicy      = "host: a, trafficPolicy: {%s}"
	inEntry       = "hosts: [a.example.com], ports: [{number: 80, name: http, protocol: HTTP}], %s"
	inSidecar     = "egress: [{hosts: [./*]}], %s"
	inEndpoint    = "hosts: [a.example.com], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [%s]"
	inProfile     = "routes: [{name: a, %s}]"
	inHTTPRoute   = "parentRefs: [{group: '', kind: Service, name: a}], rules: [{%s}]"
	inSplit       = "service: a, backends: [%s]"
	inTarget      = "destination: {kind: ServiceAccount, name: a, %s}, rules: [{kind: TCPRoute, name: a}], sources: [{kind: ServiceAccount, name: b, namespace: c}]"
	inRules       = "destination: {kind: ServiceAccount, name: a}, rules: [%s], sources: [{kind: ServiceAccount, name: b, namespace: c}]"
	inSource      = "rules: [{from: [{source: {%s}}]}]"
	inCondition   = "rules: [{when: [{%s, values: [a]}]}]"
)

var sections = []section{
	{
		apiVersion: "networking.istio.io/v1", kind: "VirtualService", of: reflect.TypeFor[istio.VirtualService](),
		text: "Routes calls, as it does for sidecars: documents for gateways only are skipped.\n",
		probes: []probe{
			{`retries: {attempts: 1, retryRemoteLocalities: true}`, inRoute, "retryRemoteLocalities", false},
			{`retries: {attempts: 1, retryOn: retriable-headers}`, inRoute, "retryOn", false},
			{`timeout: 1s, retries: {attempts: 1, perTryTimeout: 2s}`, inRoute, "perTryTimeout", false},
			{`fault: {abort: {httpStatus: 500, percentage: {value: 0.1}}}`, inRoute, "percentage.value", false},
			{`fault: {abort: {httpStatus: 500, percentage: {value: 0.00001}}}`, inRoute, "percentage.value", false},
			{`fault: {abort: {httpStatus: 500}}`, inRoute, "percentage", false},
			{`fault: {delay: {fixedDelay: 1s, percent: 5}}`, inRoute, "percent", false},
			{`fault: {delay: {fixedDelay: 1s, percent: -5}}`, inRoute, "percent", false},
			{`mirror: {host: b}, mirrorPercent: 5`, inRoute, "mirrorPercent", false},
			{`mirror: {host: b, subset: v1}`, inRoute, "mirror.subset", false},
			{`headers: {request: {set: {x-peer: '%DOWNSTREAM_REMOTE_ADDRESS%'}}}`, inRoute, "x-peer", false},
			{`headers: {request: {set: {x-share: 5%}}}`, inRoute, "x-share", false},
			{`headers: {request: {set: {content-length: '0'}}}`, inRoute, "content-length", false},
			{`{destination: {host: '*.example.com'}}`, inDestination, "destination.host", false},
			{`{destination: {host: a, subset: v1}}`, inDestination, "destination.subset", false},
			{`{destination: {host: a}, weight: 1}, {destination: {host: b}}`, inDestination, "weight", false},
			{`redirect: {uri: /b, redirectCode: 304}`, "hosts: [a], http: [{%s}]", "redirectCode", false},
			{`redirect: {uri: /b}, timeout: 1s`, "hosts: [a], http: [{%s}]", "timeout", false},
			{`gateways: [mesh], sourceLabels: {app: web}`, inMatch, "gateways", false},
			{`uri: {regex: '/.*'}, ignoreUriCase: true`, inMatch, "ignoreUriCase", false},
			{`uri: {prefix: api}`, inMatch, "uri", false},
			{`method: {exact: get}`, inMatch, "method.exact", false},
			{`{route: [{destination: {host: a}}]}, {route: [{destination: {host: b}}]}`, "hosts: [a], http: [%s]", "http[1]", false},
			{`gateways: [edge]`, "hosts: [a], http: [{route: [{destination: {host: a}}]}], %s", "gateways", false},
			{`{delegate: {name: b}}`, "hosts: [a], http: [%s]", "delegate", false},
		},
	},
	{
		apiVersion: "networking.istio.io/v1", kind: "DestinationRule", of: reflect.TypeFor[istio.DestinationRule](),
		text: "Says how the endpoints of a host are chosen, connected to and watched.\n",
		probes: []probe{
			{`tls: {mode: SIMPLE, insecureSkipVerify: true}`, inPolicy, "insecureSkipVerify", false},
			{`tls: {mode: SIMPLE, clientCertificate: /cert.pem}`, inPolicy, "tls", false},
			{`tls: {mode: ISTIO_MUTUAL, caCertificates: /ca.pem}`, inPolicy, "caCertificates", false},
			{`tls: {mode: ISTIO_MUTUAL, subjectAltNames: [a.example.com]}`, inPolicy, "subjectAltNames[0]", false},
			{`tls: {mode: DISABLE, sni: a}`, inPolicy, "tls", false},
			{`connectionPool: {http: {maxConcurrentStreams: 5}}`, inPolicy, "maxConcurrentStreams", true},
			{`connectionPool: {http: {useClientProtocol: true}}`, inPolicy, "useClientProtocol", true},
			{`connectionPool: {http: {idleTimeout: 1s}, tcp: {idleTimeout: 2s}}`, inPolicy, "tcp.idleTimeout", false},
			{`connectionPool: {http: {maxRetries: 5}}, retryBudget: {percent: 10}`, inPolicy, "maxRetries", false},
			{`retryBudget: {percent: 0.2}, loadBalancer: {simple: RANDOM}`, inPolicy, "retryBudget.percent", false},
			{`outlierDetection: {consecutiveErrors: 5}`, inPolicy, "consecutiveErrors", false},
			{`outlierDetection: {consecutiveErrors: 5, consecutive5xxErrors: 3}`, inPolicy, "consecutiveErrors", false},
			{`loadBalancer: {simple: LEAST_CONN}`, inPolicy, "simple", false},
			{`loadBalancer: {simple: RANDOM, warmup: {duration: 1s}}`, inPolicy, "warmup", false},
			{`loadBalancer: {warmupDurationSecs: 1s}`, inPolicy, "warmupDurationSecs", false},
			{`loadBalancer: {localityLbSetting: {enabled: true}}`, inPolicy, "localityLbSetting", false},
			{`loadBalancer: {localityLbSetting: {failover: [{from: eu, to: us}], failoverPriority: [version]}}, outlierDetection: {}`,
				inPolicy, "failoverPriority", false},
			{`loadBalancer: {localityLbSetting: {failover: [{from: eu, to: us}, {from: eu, to: ap}]}}, outlierDetection: {}`,
				inPolicy, "failover[1].from", false},
			{`loadBalancer: {consistentHash: {httpHeaderName: x, ringHash: {minimumRingSize: 9000000}}}`, inPolicy, "minimumRingSize", false},
			{`workloadSelector: {matchLabels: {}}`, "host: a, %s", "workloadSelector", false},
		},
	},
	{
		apiVersion: "networking.istio.io/v1", kind: "ServiceEntry", of: reflect.TypeFor[istio.ServiceEntry](),
		text: "Adds hosts, and is a source of endpoints: its addresses, labels, localities and weights take the place of discovery.\n",
		probes: []probe{
			{`subjectAltNames: [a.example.com]`, inEntry, "subjectAltNames", false},
			{`location: MESH_INTERNAL, subjectAltNames: [a.example.com]`, inEntry, "subjectAltNames", false},
			{`resolution: DYNAMIC_DNS`, inEntry, "resolution", false},
			{`resolution: STATIC`, inEntry, "endpoints", false},
			{`addresses: [10.0.0.0/8]`, inEntry, "addresses[0]", false},
			{`{address: 'unix:///run/a.sock'}`, inEndpoint, "address", false},
			{`{network: east}`, inEndpoint, "address", false},
			{`{address: 10.0.0.1, network: east}`, inEndpoint, "network", false},
			{`ports: [{number: 27017, name: db, protocol: MONGO}]`, "hosts: [a.example.com], %s", "protocol", false},
			{`hosts: [a]`, "%s, ports: [{number: 80, name: http, protocol: HTTP}]", "hosts[0]", false},
			{`hosts: ['*a.example.com']`, "%s, ports: [{number: 80, name: http, protocol: HTTP}]", "hosts[0]", false},
		},
	},
	{
		apiVersion: "networking.istio.io/v1", kind: "Sidecar", of: reflect.TypeFor[istio.Sidecar](),
		text: "Says which hosts the workload knows (`egress[].hosts`), and what becomes of calls to others. Of the Sidecars that select the workload the oldest counts, " +
			"otherwise the oldest without a selector in its namespace, otherwise that in the root namespace. A host that is not imported is outside the mesh, whatever documents and discovery know of it.\n",
		probes: []probe{
			{`[./reviews]`, "egress: [{hosts: %s}]", "hosts[0]", false},
			{`[./*, ./api.example.com]`, "egress: [{hosts: %s}]", "hosts[1]", false},
			{`outboundTrafficPolicy: {}`, inSidecar, "outboundTrafficPolicy", false},
			{`ingress: [{port: {number: 80}}]`, inSidecar, "ingress[0]", false},
			{`ingress: [{port: {number: 80}, defaultEndpoint: '127.0.0.1:8080'}]`, inSidecar, "defaultEndpoint", false},
			{`ingress: [{port: {number: 80}, defaultEndpoint: 'unix:///run/a.sock'}]`, inSidecar, "defaultEndpoint", false},
		},
	},
	{
		apiVersion: "linkerd.io/v1alpha2", kind: "ServiceProfile", of: reflect.TypeFor[linkerd.ServiceProfile](),
		text: "Adds timeouts, retries and a budget to the calls of a service. `retries` is an extension: Linkerd rejects it.\n",
		probes: []probe{
			{`condition: {pathRegex: '/a|/b'}`, inProfile, "pathRegex", false},
			{`condition: {method: GET}, timeout: -1s`, inProfile, "timeout", false},
			{`condition: {any: []}`, inProfile, "any", false},
			{`condition: {method: GET}, isRetryable: true, responseClasses: [{condition: {status: {min: 200, max: 599}}, isFailure: false}]`,
				inProfile, "responseClasses", false},
			{`condition: {method: GET}, responseClasses: [{condition: {status: {}}, isFailure: true}]`, inProfile, "status", false},
			{`condition: {method: GET}, retries: {timeout: 1s}`, inProfile, "retries.limit", false},
			{`retryBudget: {retryRatio: 0.2, minRetriesPerSecond: 10, ttl: 2m}`, "%s", "ttl", false},
			{`dstOverrides: [{authority: b, weight: 1}]`, "%s", "authority", false},
			{`dstOverrides: [{authority: 'b:80', weight: 0}]`, "%s", "dstOverrides", false},
		},
	},
	{
		apiVersion: "gateway.networking.k8s.io/v1", kind: "HTTPRoute", of: reflect.TypeFor[gateway.HTTPRoute](),
		text: "Routes the calls to the Services that it is attached to; gateways among its parents are skipped. Linkerd's (`policy.linkerd.io`) are read as well. " +
			"The rules of all routes of a Service in one namespace are merged, by the precedence of the Gateway API. Those of the caller's namespace take the place of those in the namespace of " +
			"the Service; routes of other namespaces have no effect. A call that matches no rule gets a 404. " +
			"A route can also be attached to a Server of Linkerd: it says which requests AuthorizationPolicies of the route are about, and its `hostnames` count. " +
			"Of Linkerd's annotations, `retry.linkerd.io/http`, `retry.linkerd.io/limit`, `retry.linkerd.io/timeout` and `timeout.linkerd.io/request` are enforced.\n",
		probes: []probe{
			{`parentRefs: [{kind: Service, name: a}]`, "%s", "parentRefs[0].group", false},
			{`parentRefs: [{group: policy.linkerd.io, kind: Server, name: a, port: 80}]`, "%s", "port", false},
			{`parentRefs: [{group: '', kind: Service, name: a, sectionName: http}]`, "%s", "sectionName", false},
			{`backendRefs: [{group: multicluster.x-k8s.io, kind: ServiceImport, name: b, port: 80}]`, inHTTPRoute, "kind", false},
			{`backendRefs: []`, inHTTPRoute, "backendRefs", false},
			{`backendRefs: [{name: b, port: 80, filters: [{type: URLRewrite, urlRewrite: {hostname: c}}]}]`, inHTTPRoute, "filters[0]", false},
			{`backendRefs: [{name: b, port: 80}], timeouts: {request: 0.5s}`, inHTTPRoute, "timeouts.request", false},
		},
	},
	{
		apiVersion: "gateway.networking.k8s.io/v1", kind: "GRPCRoute", of: reflect.TypeFor[gateway.GRPCRoute](),
		text: "Routes calls of gRPC like an HTTPRoute. On a port of a Service that has GRPCRoutes, HTTPRoutes of the same namespace have no effect: other requests get a 404. " +
			"A call that matches no rule ends with `UNIMPLEMENTED`, and one without a backend with `UNAVAILABLE`. The annotation for retries is `retry.linkerd.io/grpc`.\n",
	},
	{
		apiVersion: "split.smi-spec.io/v1alpha4", kind: "TrafficSplit", of: reflect.TypeFor[smi.TrafficSplit](),
		text: "Divides the calls to a service. Weights are quantities (`500m`) in v1alpha1 and whole numbers later; `matches` exists from " +
			"v1alpha3 on.\n",
		probes: []probe{
			{`{service: b, weight: 0}`, inSplit, "backends", false},
			{`{service: a, weight: 1}`, inSplit, "service", false},
			{`{service: b, weight: 1}, {service: b, weight: 2}`, inSplit, "service", false},
			{`{service: b, weight: 5000000}`, inSplit, "weight", false},
		},
	},
	{
		apiVersion: "specs.smi-spec.io/v1alpha4", kind: "HTTPRouteGroup", of: reflect.TypeFor[smi.HTTPRouteGroup](),
		text: "Names the calls that a TrafficSplit divides, and the requests that a TrafficTarget allows. Up to v1alpha2 `matches` is next to the " +
			"metadata, later in `spec`; headers exist from v1alpha2 on.\n",
		probes: []probe{
			{`matches: [{name: a, methods: []}]`, "%s", "methods", false},
			{`matches: []`, "%s", "matches", false},
		},
	},
	{
		apiVersion: "specs.smi-spec.io/v1alpha4", kind: "TCPRoute", of: reflect.TypeFor[smi.TCPRoute](),
		text: "Names the ports that a TrafficTarget allows: all, if the list is empty and up to v1alpha3. They are ports of the workload.\n",
		probes: []probe{
			{`matches: {}`, "%s", "ports", false},
		},
	},
	{
		apiVersion: "access.smi-spec.io/v1alpha3", kind: "TrafficTarget", of: reflect.TypeFor[smi.TrafficTarget](),
		text: "Says which service accounts may do what with the workloads of another one. Once a TrafficTarget is about the service account of " +
			"the workload, in its namespace, only what one of them allows is allowed, and only if the documents of all other kinds allow it, too. " +
			"Without one, nothing is denied. In v1alpha1 `destination`, `specs` (in place of `rules`) and `sources` are next to the metadata; " +
			"`destination.port` exists up to v1alpha2.\n",
		probes: []probe{
			{`namespace: other`, inTarget, "namespace", false},
			{`port: 80`, inTarget, "port", false},
			{`{kind: HTTPRouteGroup, name: a, matches: []}`, inRules, "matches", false},
			{`{kind: TCPRoute, name: a, matches: [b]}`, inRules, "matches", false},
			{`{kind: UDPRoute, name: a}`, inRules, "kind", false},
			{`{kind: HTTPRouteGroup, name: a}`, inRules, "name", false},
			{`{kind: ServiceAccount, name: a}`, "destination: {kind: ServiceAccount, name: a}, rules: [{kind: TCPRoute, name: a}], sources: [%s]", "sources[0].namespace", false},
		},
	},
	{
		apiVersion: "v1", kind: "Service",
		text: "`spec.ports` counts, and [annotations of Linkerd](#from-linkerd-annotations-of-services-and-routes) for retries, a timeout and failing endpoints. Of a port, `port`, `name`, `appProtocol` and `protocol` count: they say which port a destination without one " +
			"means, which ports speak HTTP/2, and which backends of a TrafficSplit lack a port. The other fields of a Service have no " +
			"effect; fields that a Service does not have are errors. Endpoints come from discovery or a ServiceEntry.\n",
	},
	{
		apiVersion: "security.istio.io/v1", kind: "PeerAuthentication", of: reflect.TypeFor[istio.PeerAuthentication](),
		text: "Says which connections workloads accept. The mode of a port takes precedence over that of its workload (`selector`), then come the " +
			"mode of the namespace and that of the mesh (in `istio-system`, without `selector`). `UNSET` inherits; the default is `PERMISSIVE`. " +
			"Callers secure their connections by it, too.\n",
		probes: []probe{
			{`selector: {}`, "%s", "selector", false},
			{`portLevelMtls: {8080: {mode: STRICT}}`, "%s", "portLevelMtls", false},
		},
	},
	{
		apiVersion: "security.istio.io/v1", kind: "AuthorizationPolicy", of: reflect.TypeFor[istio.AuthorizationPolicy](),
		text: "Says which requests workloads accept: those of its namespace or, in `istio-system`, of all, as far as `selector` selects them. " +
			"A request that a `DENY` rule matches is denied; otherwise it is allowed if there is no `ALLOW` policy, or if a rule of one matches. " +
			"With the annotation `istio.io/dry-run` a policy is evaluated but not enforced.\n",
		probes: []probe{
			{`action: CUSTOM, provider: {name: opa}`, "rules: [{}], %s", "action", false},
			{`selector: {matchLabels: {istio: ingressgateway}}, action: CUSTOM, provider: {name: opa}`, "rules: [{}], %s", "selector", false},
			{`targetRef: {kind: Service, group: '', name: a}`, "%s", "targetRef", false},
			{`targetRefs: [{kind: GatewayClass, group: gateway.networking.k8s.io, name: istio-waypoint}]`, "%s", "targetRefs[0]", false},
			{`targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: a}]`, "%s", "targetRefs[0]", false},
			{`principals: [spiffe://cluster.local/ns/default/sa/a]`, inSource, "principals[0]", false},
			{`requestPrincipals: ['https://issuer']`, inSource, "source", false},
			{`key: 'experimental.envoy.filters.a[b]'`, inCondition, "key", false},
			{`key: 'request.experimental.inline.headers[a]'`, inCondition, "key", false},
			{`namespaces: ['team-[ab]']`, inSource, "namespaces[0]", false},
			{`paths: ['{*}/a']`, "rules: [{to: [{operation: {%s}}]}]", "operation", false},
			{`methods: [get]`, "rules: [{to: [{operation: {%s}}]}]", "methods[0]", false},
			{`key: 'request.headers[x-forwarded-client-cert]'`, inCondition, "key", false},
			{`key: 'request.headers[transfer-encoding]'`, inCondition, "when[0]", false},
			{`selector: {}`, "%s", "selector", false},
		},
	},
	{
		apiVersion: "telemetry.istio.io/v1", kind: "Telemetry", of: reflect.TypeFor[istio.Telemetry](),
		text: "Says what workloads report: which traces are sampled and what their spans say, which metrics there are and with which labels, " +
			"and which calls have a line in the access log. Documents in `istio-system` apply first, then those of the namespace, then " +
			"those that select the workload, the oldest first; what comes later wins. They change what the program reports with " +
			"`tracing`, `metrics` and `accesslog`; they do not turn these on. Spans have Istio's own tags only with `enableIstioTags: true`.\n",
		probes: []probe{
			{`tracing: [{providers: [{name: zipkin}]}]`, "%s", "providers", true},
			{`tracing: [{disableContextPropagation: true}]`, "%s", "disableContextPropagation", false},
			{`tracing: [{randomSamplingPercentage: 1}, {disableSpanReporting: true}]`, "%s", "tracing", false},
			{`tagOverrides: {a: {value: v1}}`, "metrics: [{overrides: [{%s}]}]", "value", false},
			{`tagOverrides: {a: {value: request.host}}`, "metrics: [{overrides: [{%s}]}]", "value", false},
			{`tagOverrides: {a: {operation: REMOVE}}`, "metrics: [{overrides: [{%s}]}]", "a", false},
			{`providers: [{name: envoy}], filter: {expression: 'response.code >= 500'}`, "accessLogging: [{%s}]", "expression", false},
			{`filter: {expression: 'response.code >= 500'}`, "accessLogging: [{%s}]", "filter", false},
			{`targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: a}]`, "%s", "targetRefs[0]", false},
			{`selector: {}`, "%s", "selector", false},
		},
	},
	{
		apiVersion: "security.istio.io/v1", kind: "RequestAuthentication", of: reflect.TypeFor[istio.RequestAuthentication](),
		text: "Says which tokens workloads accept: those of its namespace or, in `istio-system`, of all, as far as `selector` selects them. All rules of all documents " +
			"about a workload are alternatives. A request without a token passes; one with a token that no rule accepts is answered with 401 or 403.\n",
		probes: []probe{
			{`jwks: '{"keys":[{"kty":"oct","k":"AAAA"}]}'`, "jwtRules: [{issuer: a, %s}]", "jwks", false},
			{`issuer: a`, "jwtRules: [{%s}]", "jwtRules[0]", false},
			{`outputClaimToHeaders: [{header: x_a, claim: b}]`, "jwtRules: [{issuer: a, jwksUri: 'https://a', %s}]", "header", false},
			{`spaceDelimitedClaims: [sub]`, "jwtRules: [{issuer: a, jwksUri: 'https://a', %s}]", "jwtRules[0]", false},
			{`targetRefs: [{kind: Service, group: '', name: a}]`, "%s", "targetRefs[0]", false},
			{`targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: a}]`, "%s", "targetRefs[0]", false},
			{`selector: {}`, "%s", "selector", false},
		},
	},
	{
		apiVersion: "policy.linkerd.io/v1beta3", kind: "Server", of: reflect.TypeFor[linkerd.Server](),
		text: "Protects a port of workloads of its namespace: a request to it is denied unless a ServerAuthorization, an AuthorizationPolicy of Linkerd or `accessPolicy` authorizes it. " +
			"Ports without a Server are open. A port may be named: `Workload.Ports` says which number it has. Where the other dialects have policies, too, all of them must allow a request. " +
			"`externalWorkloadSelector` (from v1beta2 on) selects like `podSelector`; `accessPolicy` exists in v1beta3.\n",
		probes: []probe{
			{`port: http`, "podSelector: {}, %s", "port", false},
			{`port: '8080'`, "podSelector: {}, %s", "port", false},
			{`port: 80`, "%s", "podSelector", false},
			{`matchExpressions: [{key: app, operator: In}]`, "port: 80, podSelector: {%s}", "values", false},
		},
	},
	{
		apiVersion: "policy.linkerd.io/v1beta1", kind: "ServerAuthorization", of: reflect.TypeFor[linkerd.ServerAuthorization](),
		text: "Authorizes clients of Servers of its namespace. Without `networks` they must be in a network of the cluster: each private one, and the loopback.\n",
		probes: []probe{
			{`{}`, "server: {name: a}, client: %s", "client", false},
			{`networks: []`, "server: {name: a}, client: {unauthenticated: true, %s}", "networks", false},
			{`identities: [foo.example.com]`, "server: {selector: {}}, client: {meshTLS: {%s}}", "identities[0]", false},
			{`identities: ['*.b.shop.serviceaccount.identity.linkerd.cluster.local']`, "server: {selector: {}}, client: {meshTLS: {%s}}", "identities[0]", false},
			{`{cidr: 10.0.0.0/8, except: [11.0.0.0/8]}`, "server: {selector: {}}, client: {unauthenticated: true, networks: [%s]}", "except[0]", false},
		},
	},
	{
		apiVersion: "policy.linkerd.io/v1alpha1", kind: "AuthorizationPolicy", title: "AuthorizationPolicy of Linkerd", of: reflect.TypeFor[linkerd.AuthorizationPolicy](),
		text: "Authorizes clients of one Server, of all Servers of its namespace, or of the requests that belong to a route of Servers, that have all required authentications. If one of these is not there, nobody is authorized.\n",
		probes: []probe{
			{`requiredAuthenticationRefs: []`, "targetRef: {kind: Namespace, name: default}, %s", "requiredAuthenticationRefs", false},
			{`{kind: Namespace, name: shop}`, "requiredAuthenticationRefs: [{kind: ServiceAccount, name: a}], targetRef: %s", "targetRef.name", false},
			{`{group: policy.linkerd.io, kind: GRPCRoute, name: a}`, "requiredAuthenticationRefs: [{kind: ServiceAccount, name: a}], targetRef: %s", "targetRef", false},
			{`{kind: ServiceAccount, name: a}, {kind: ServiceAccount, name: b}`, "targetRef: {kind: Namespace, name: default}, requiredAuthenticationRefs: [%s]", "requiredAuthenticationRefs[1]", false},
			{`{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: a}`, "targetRef: {kind: Namespace, name: default}, requiredAuthenticationRefs: [%s]", "requiredAuthenticationRefs[0]", false},
		},
	},
	{
		apiVersion: "policy.linkerd.io/v1alpha1", kind: "MeshTLSAuthentication", of: reflect.TypeFor[linkerd.MeshTLSAuthentication](),
		text: "Lists identities, for AuthorizationPolicies of any namespace. `ACCOUNT.NAMESPACE.serviceaccount.identity.linkerd.TRUST-DOMAIN` is the SPIFFE ID " +
			"`spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`, where `cluster.local` means the trust domain of the workload.\n",
		probes: []probe{
			{`identities: ['*.local']`, "%s", "identities[0]", false},
			{`identities: ['*web.shop']`, "%s", "identities[0]", false},
			{`identities: []`, "%s", "spec", false},
		},
	},
	{
		apiVersion: "policy.linkerd.io/v1alpha1", kind: "NetworkAuthentication", of: reflect.TypeFor[linkerd.NetworkAuthentication](),
		text:   "Lists networks, for AuthorizationPolicies of any namespace. The address is that of the direct peer.\n",
		probes: []probe{{`networks: []`, "%s", "networks", false}},
	},
}
