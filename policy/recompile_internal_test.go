package policy

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nosidecar/mesh/policy/route"
)

var (
	recompileRounds = flag.Int("recompile-rounds", 25, "how many sequences of reloads TestRecompile_IsCompile makes")
	recompileSeed   = flag.Uint64("recompile-seed", 0, "the seed of the first sequence")
)

// stored is a document of a random set: one variant of its kind, in a namespace, of a name.
type stored struct {
	kind, namespace, name string
	spec                  int
	created               int // 0: it does not say
	before                int // lines of comments before it
	uid                   int // 0: it does not say
}

// variants are specs of each kind. The last one of a kind has a mistake.
var variants = map[string][]string{
	"networking.istio.io/v1 VirtualService": {
		`{hosts: [a], http: [{route: [{destination: {host: b}}]}]}`,
		`{hosts: [a, b.shop], http: [{match: [{uri: {prefix: /v2}, sourceNamespace: shop}, {port: 8080}], route: [{destination: {host: a, subset: v1}}], timeout: 3s}]}`,
		`{hosts: ["*.shop.svc.cluster.local", b], http: [{match: [{port: 80}], route: [{destination: {host: b.default.svc.cluster.local, subset: v2}, weight: 1}, {destination: {host: c}, weight: 3}]}]}`,
		`{hosts: ["*.cluster.local"], exportTo: ["."], http: [{route: [{destination: {host: a}}], retries: {attempts: 1}}]}`,
		`{hosts: [b], exportTo: [shop], http: [{name: x, directResponse: {status: 418}}]}`,
		`{hosts: [c], http: [{match: [{uri: {prefix: /a}}], delegate: {name: y}}, {route: [{destination: {host: c}}]}]}`,
		`{hosts: [a, c], http: [{match: [{uri: {prefix: /a}}, {headers: {x: {exact: y}}}], delegate: {name: z, namespace: shop}}, {delegate: {name: y, namespace: default}}]}`,
		`{http: [{match: [{uri: {prefix: /a/b}}], route: [{destination: {host: b, subset: v1}}]}, {route: [{destination: {host: a}}], fault: {abort: {httpStatus: 500, percentage: {value: 50}}}}]}`,
		`{http: [{route: [{destination: {host: c, port: {number: 80}}}], mirror: {host: a, subset: v2}}]}`,
		`{http: [{match: [{uri: {prefix: /a/b}}], route: [{destination: {host: b, subset: v1}}], timeout: 1s}, {route: [{destination: {host: a}}]}]}`,
		`{http: [{route: [{destination: {host: b, subset: v1}}], corsPolicy: {}}]}`,
		`{hosts: [a], gateways: [edge], http: [{route: [{destination: {host: b}}], corsPolicy: {}}]}`,
		`{hosts: [b], gateways: [edge], http: [{delegate: {name: z}}]}`,
		`{hosts: [b], gateways: [edge, mesh], http: [{match: [{gateways: [edge]}], route: [{destination: {host: b}}], corsPolicy: {}}, {match: [{sourceLabels: {app: web}}], route: [{destination: {host: c}}]}]}`,
		`{http: [{route: [{destination: {host: b}}], rewrite: {uri: no-slash}}]}`,
		`{hosts: [a], http: [{route: [{destination: {host: b}}], retries: {perTryTimeout: 1s}}]}`,
	},
	"networking.istio.io/v1 DestinationRule": {
		`{host: a, subsets: [{name: v1, labels: {version: v1}}]}`,
		`{host: a, exportTo: ["."], trafficPolicy: {connectionPool: {tcp: {maxConnections: 7}}}, subsets: [{name: v1}, {name: v2, labels: {version: v2}}]}`,
		`{host: b, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}, portLevelSettings: [{port: {number: 80}, tls: {mode: DISABLE}}]}}`,
		`{host: b, workloadSelector: {matchLabels: {app: web}}, trafficPolicy: {retryBudget: {percent: 10}}, subsets: [{name: v2}]}`,
		`{host: b, workloadSelector: {matchLabels: {app: other}}, trafficPolicy: {outlierDetection: {consecutive5xxErrors: 3}}}`,
		`{host: "*.svc.cluster.local", trafficPolicy: {loadBalancer: {simple: RANDOM}}}`,
		`{host: c.shop.svc.cluster.local, exportTo: [default, shop], subsets: [{name: v1, trafficPolicy: {outlierDetection: {consecutive5xxErrors: 3}}}]}`,
		`{host: a, trafficPolicy: {connectionPool: {http: {http2MaxRequests: -1}}}}`,
	},
	"networking.istio.io/v1 ServiceEntry": {
		`{hosts: [a.default.svc.cluster.local], location: MESH_INTERNAL, ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 10.0.0.1, labels: {version: v1}}]}`,
		`{hosts: [a.default.svc.cluster.local, api.example], ports: [{number: 8080, name: grpc, protocol: GRPC}], resolution: STATIC, endpoints: [{address: 10.0.0.2}], subjectAltNames: ["spiffe://td/ns/a/sa/b"]}`,
		`{hosts: ["*.example"], exportTo: ["."], ports: [{number: 443, name: https, protocol: HTTPS}], resolution: NONE}`,
		`{hosts: [b.default.svc.cluster.local], addresses: [10.1.1.1], location: MESH_INTERNAL, ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS, endpoints: [{address: b.example}]}`,
		`{hosts: [api.example], ports: [], resolution: SOMEHOW}`,
	},
	"networking.istio.io/v1 Sidecar": {
		`{egress: [{hosts: ["./*", "shop/*"]}]}`,
		`{egress: [{hosts: ["*/a.default.svc.cluster.local", "./b.default.svc.cluster.local"]}], outboundTrafficPolicy: {mode: REGISTRY_ONLY}}`,
		`{workloadSelector: {labels: {app: web}}, egress: [{hosts: ["shop/*", "*/*.example"]}]}`,
		`{outboundTrafficPolicy: {mode: REGISTRY_ONLY}}`,
		`{egress: [{hosts: ["~/*"]}], outboundTrafficPolicy: {mode: ALLOW_ANY}}`,
		`{egress: [{port: {number: 80, protocol: HTTP}, hosts: ["./*"]}]}`,
	},
	"security.istio.io/v1 PeerAuthentication": {
		`{mtls: {mode: STRICT}}`,
		`{selector: {matchLabels: {app: web}}, mtls: {mode: DISABLE}, portLevelMtls: {"8080": {mode: PERMISSIVE}}}`,
		`{selector: {matchLabels: {app: other}}}`,
		`{mtls: {mode: SOME}}`,
	},
	"security.istio.io/v1 AuthorizationPolicy": {
		`{}`,
		`{action: DENY, rules: [{to: [{operation: {paths: ["/admin*"]}}]}]}`,
		`{selector: {matchLabels: {app: web}}, rules: [{when: [{key: "request.headers[x-envoy-a]", values: [b]}]}, {from: [{source: {namespaces: [shop]}}]}]}`,
		`{action: AUDIT, rules: [{}]}`,
		`{action: DENY}`,
	},
	"linkerd.io/v1alpha2 ServiceProfile": {
		`{routes: [{name: r, condition: {pathRegex: "/v2/.*"}, timeout: 1s, isRetryable: true}]}`,
		`{retryBudget: {retryRatio: 0.3, minRetriesPerSecond: 5, ttl: 10s}, routes: [{condition: {method: GET}, timeout: 2s}]}`,
		`{dstOverrides: [{authority: "b.default.svc.cluster.local:80", weight: 1}, {authority: "c.default.svc.cluster.local:80", weight: 2}]}`,
		`{routes: [{condition: {}}]}`,
	},
	"split.smi-spec.io/v1alpha4 TrafficSplit": {
		`{service: a, backends: [{service: b, weight: 1}, {service: c, weight: 1}]}`,
		`{service: c.default, backends: [{service: a, weight: 90}, {service: b, weight: 10}], matches: [{kind: HTTPRouteGroup, name: x}]}`,
		`{service: b, backends: [{service: b, weight: 10}, {service: c, weight: 90}]}`,
		`{service: b, backends: []}`,
	},
	"specs.smi-spec.io/v1alpha4 HTTPRouteGroup": {
		`{matches: [{name: m, pathRegex: "/v2/.*", methods: [GET]}]}`,
		`{matches: [{name: m, headers: {x-user: "a.*"}}, {name: n, headers: {x-forwarded-client-cert: "a.*"}}]}`,
		`{matches: [{name: m, pathRegex: "("}]}`,
	},
	"v1 Service": {
		`{ports: [{port: 80}]}`,
		`{ports: [{name: grpc, port: 8080}]}`,
		`{ports: [{name: http, port: 80}, {name: grpc, port: 8080}]}`,
		`{retry.linkerd.io/http: 5xx, timeout.linkerd.io/request: 3s}|{ports: [{port: 80}]}`,
		`{retry.linkerd.io/grpc: unavailable, balancer.linkerd.io/failure-accrual: consecutive}|{ports: []}`,
		`{balancer.linkerd.io/failure-accrual: consecutive}|{ports: [{port: 80}]}`,
		`{timeout.linkerd.io/idle: 3s}|{ports: [{port: 80}]}`,
		`{ports: [{port: 0}]}`,
	},
	"consul.hashicorp.com/v1alpha1 ServiceRouter": {
		`{routes: [{match: {http: {pathPrefix: /v2}}, destination: {service: y, prefixRewrite: /, requestTimeout: 3s}}]}`,
		`{routes: [{match: {http: {header: [{name: x, exact: y, invert: true}]}}, destination: {serviceSubset: v1, numRetries: 2, retryOn: [5xx]}}, {destination: {service: z}}]}`,
		`{routes: [{match: {http: {pathRegex: "("}}}]}`,
	},
	"consul.hashicorp.com/v1alpha1 ServiceSplitter": {
		`{splits: [{weight: 90, serviceSubset: v1}, {weight: 10, service: z}]}`,
		`{splits: [{weight: 50, service: y}, {weight: 50, service: z}]}`,
		`{splits: [{weight: 50, service: y}]}`,
	},
	"consul.hashicorp.com/v1alpha1 ServiceResolver": {
		`{subsets: {v1: {}}, defaultSubset: v1, failover: {"*": {service: z}}}`,
		`{subsets: {v1: {}, v2: {}}, connectTimeout: 3s, loadBalancer: {policy: maglev, hashPolicies: [{field: header, fieldValue: x}]}}`,
		`{redirect: {service: z, datacenter: dc2}}`,
		`{redirect: {}}`,
	},
	"consul.hashicorp.com/v1alpha1 ServiceDefaults": {
		`{protocol: http}`,
		`{protocol: http, upstreamConfig: {defaults: {limits: {maxConnections: 7}}, overrides: [{name: y, connectTimeoutMs: 7}]}}`,
		`{protocol: udp}`,
	},
	"consul.hashicorp.com/v1alpha1 ServiceIntentions": {
		`{destination: {name: x}, sources: [{name: y, action: allow}, {name: "*", action: deny}]}`,
		`{destination: {name: "*"}, sources: [{name: y, action: deny}]}`,
		`{destination: {name: x}, sources: [{name: y, permissions: [{action: allow, http: {pathRegex: "/a.*"}}]}]}`,
		`{destination: {name: x}, sources: [{name: y, permissions: [{action: allow, http: {pathRegex: "("}}]}]}`,
	},
	"gateway.networking.k8s.io/v1 HTTPRoute": {
		`{parentRefs: [{group: "", kind: Service, name: a}], rules: [{matches: [{path: {value: /v2}}], backendRefs: [{name: b, port: 80}]}, {backendRefs: [{name: c, port: 80}]}]}`,
		`{parentRefs: [{group: "", kind: Service, name: a, namespace: default}, {group: core, kind: Service, name: b, port: 80}], rules: [{backendRefs: [{name: b, namespace: shop, port: 8080, weight: 0}]}]}`,
		`{parentRefs: [{group: "", kind: Service, name: b, sectionName: grpc}, {name: edge}], rules: [{filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /x}}}], backendRefs: [{name: b, port: 80}]}]}`,
		`{parentRefs: [{group: networking.istio.io, kind: ServiceEntry, name: x}]}`,
		`{parentRefs: [{group: "", kind: Service, name: a, port: 8080}, {group: "", kind: Service, name: a, port: 80}], rules: [{matches: [{method: GET}, {path: {type: Exact, value: /v2}}], backendRefs: [{name: a, port: 80}]}]}`,
		`{parentRefs: [{group: "", kind: Service, name: c, namespace: shop}, {group: networking.istio.io, kind: ServiceEntry, name: y}], rules: [{backendRefs: [{name: b, port: 80}]}]}`,
		`{parentRefs: [{group: policy.linkerd.io, kind: Server, name: x}], hostnames: ["*.example"], rules: [{matches: [{path: {value: /v2}}, {headers: [{name: x-request-id, value: a}]}]}]}`,
		`{parentRefs: [{group: policy.linkerd.io, kind: Server, name: x}], rules: [{matches: [{method: GET}]}]}`,
		`{parentRefs: [{name: edge}], rules: [{backendRefs: [{name: b}]}]}`,
		`{parentRefs: [{group: "", kind: Service, name: a}], rules: [{backendRefs: [{name: b}]}]}`,
	},
	"gateway.networking.k8s.io/v1 GRPCRoute": {
		`{parentRefs: [{group: "", kind: Service, name: a, port: 8080}], rules: [{matches: [{method: {service: s}}], backendRefs: [{name: b, port: 80}]}]}`,
		`{parentRefs: [{group: "", kind: Service, name: b}, {group: "", kind: Service, name: a}], rules: [{matches: [{headers: [{name: x, value: "1"}]}], backendRefs: [{name: c, port: 80}]}]}`,
		`{parentRefs: [{group: policy.linkerd.io, kind: Server, name: y}], rules: [{matches: [{method: {service: s}}]}]}`,
		`{parentRefs: [{group: "", kind: Service, name: a}], rules: [{matches: [{method: {}}]}]}`,
	},
	"policy.linkerd.io/v1beta3 HTTPRoute": {
		`{parentRefs: [{group: core, kind: Service, name: a, namespace: default}]}`,
		`{parentRefs: [{group: policy.linkerd.io, kind: Server, name: x}, {group: policy.linkerd.io, kind: Server, name: y}], rules: [{matches: [{path: {type: Exact, value: /a}}]}]}`,
		`{parentRefs: [{name: a}]}`,
	},
	"policy.linkerd.io/v1beta3 Server": {
		`{podSelector: {}, port: 8080}`,
		`{podSelector: {matchLabels: {app: web}}, port: http, proxyProtocol: HTTP/1}`,
		`{podSelector: {matchLabels: {app: web}}, port: 80, accessPolicy: audit}`,
		`{podSelector: {matchLabels: {app: other}}, port: 80, accessPolicy: all-authenticated}`,
		`{podSelector: {}, port: 9090, proxyProtocol: gRPC}`,
		`{port: 80}`,
	},
	"policy.linkerd.io/v1alpha1 AuthorizationPolicy": {
		`{targetRef: {group: policy.linkerd.io, kind: Server, name: x}, requiredAuthenticationRefs: [{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: x}]}`,
		`{targetRef: {group: policy.linkerd.io, kind: Server, name: y}, requiredAuthenticationRefs: [{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: y, namespace: shop}, {group: policy.linkerd.io, kind: NetworkAuthentication, name: x}]}`,
		`{targetRef: {kind: Namespace, name: default}, requiredAuthenticationRefs: [{kind: ServiceAccount, name: a}]}`,
		`{targetRef: {group: policy.linkerd.io, kind: Server, name: x}, requiredAuthenticationRefs: [{group: policy.linkerd.io, kind: NetworkAuthentication, name: z}]}`,
		`{targetRef: {group: gateway.networking.k8s.io, kind: HTTPRoute, name: x}, requiredAuthenticationRefs: [{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: x}]}`,
		`{targetRef: {group: policy.linkerd.io, kind: HTTPRoute, name: y}, requiredAuthenticationRefs: [{kind: ServiceAccount, name: b}]}`,
		`{targetRef: {group: gateway.networking.k8s.io, kind: GRPCRoute, name: x}, requiredAuthenticationRefs: [{kind: ServiceAccount, name: b}]}`,
		`{targetRef: {group: policy.linkerd.io, kind: Server, name: x}}`,
	},
	"policy.linkerd.io/v1beta1 ServerAuthorization": {
		`{server: {name: x}, client: {unauthenticated: true}}`,
		`{server: {selector: {}}, client: {meshTLS: {serviceAccounts: [{name: a, namespace: shop}]}}}`,
		`{server: {name: x}}`,
	},
	"policy.linkerd.io/v1alpha1 MeshTLSAuthentication": {
		`{identities: ["*"]}`,
		`{identities: [web.shop.serviceaccount.identity.linkerd.cluster.local, nobody.example]}`,
		`{identityRefs: [{kind: ServiceAccount, name: a}]}`,
		`{}`,
	},
	"policy.linkerd.io/v1alpha1 NetworkAuthentication": {
		`{networks: [{cidr: 10.0.0.0/8}]}`,
		`{networks: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]}`,
		`{networks: [{cidr: x}]}`,
	},
	"access.smi-spec.io/v1alpha3 TrafficTarget": {
		`{destination: {kind: ServiceAccount, name: x}, rules: [{kind: HTTPRouteGroup, name: x, matches: [m, n]}], sources: [{kind: ServiceAccount, name: a, namespace: shop}]}`,
		`{destination: {kind: ServiceAccount, name: x}, rules: [{kind: TCPRoute, name: y}], sources: [{kind: ServiceAccount, name: b, namespace: shop}]}`,
		`{destination: {kind: ServiceAccount, name: x}, rules: [{kind: HTTPRouteGroup, name: y}, {kind: TCPRoute, name: x}], sources: [{kind: ServiceAccount, name: a, namespace: shop}]}`,
		`{destination: {kind: ServiceAccount, name: other}, rules: [{kind: HTTPRouteGroup, name: z}], sources: [{kind: ServiceAccount, name: a, namespace: shop}]}`,
		`{destination: {kind: ServiceAccount, name: x}, rules: [], sources: []}`,
	},
	"specs.smi-spec.io/v1alpha4 TCPRoute": {
		`{matches: {ports: [80]}}`,
		`{matches: {ports: []}}`,
		`{matches: {ports: [0]}}`,
	},
	"v1 ConfigMap":                       {`{}`},
	"networking.istio.io/v1 Gateway":     {`{}`},
	"networking.istio.io/v1 EnvoyFilter": {`{}`},
}

var kinds = slices.Sorted(maps.Keys(variants))

// workloads are those that random documents are compiled for.
var workloads = []Workload{
	{},
	{Namespace: "shop", Labels: map[string]string{"app": "web"}},
	{Labels: map[string]string{"app": "web"}, TrustDomain: "td", Unlabelled: true, Service: "x"},
	{Labels: map[string]string{"app": "web"}, ServiceAccount: "x", Ports: map[string]int{"http": 8080}},
}

// randomStored returns a document, which has no mistake unless broken.
func randomStored(rng *rand.Rand, broken bool) stored {
	d := stored{kind: kinds[rng.IntN(len(kinds))], created: rng.IntN(5), before: rng.IntN(3)}
	if rng.IntN(2) == 0 {
		d.kind = []string{"networking.istio.io/v1 VirtualService", "networking.istio.io/v1 VirtualService", "gateway.networking.k8s.io/v1 HTTPRoute",
			"gateway.networking.k8s.io/v1 GRPCRoute"}[rng.IntN(4)]
	}
	if n := len(variants[d.kind]); broken {
		d.spec = n - 1 - rng.IntN(min(n, 2))
	} else if d.spec = rng.IntN(max(1, n-1)); strings.HasSuffix(d.kind, "VirtualService") {
		d.spec = rng.IntN(n - 2)
	}
	if d.place(rng); strings.HasSuffix(d.kind, "EnvoyFilter") && !broken {
		d.kind, d.spec = "v1 ConfigMap", 0
	}
	return d
}

// place gives a document a namespace and a name.
func (d *stored) place(rng *rand.Rand) {
	d.namespace = []string{"", "default", "default", "shop", "istio-system"}[rng.IntN(5)]
	if strings.HasPrefix(d.kind, "consul") {
		d.namespace = "" // they have none
	}
	if d.protects() && d.namespace == "" {
		d.namespace = "default"
	}
	switch d.name = []string{"x", "y", "z"}[rng.IntN(3)]; {
	case d.kind == "v1 Service":
		d.name = []string{"a", "b", "c"}[rng.IntN(3)]
	case strings.HasSuffix(d.kind, "ServiceProfile"):
		d.name = []string{"a.default.svc.cluster.local", "b.default.svc.cluster.local", "api.example"}[rng.IntN(3)]
	}
}

// protects reports whether the document is of a kind that must say its namespace.
func (d stored) protects() bool {
	return strings.HasPrefix(d.kind, "security") || strings.HasPrefix(d.kind, "access") || strings.HasPrefix(d.kind, "policy.linkerd.io")
}

func (d stored) fields(indent string) string {
	version, kind, _ := strings.Cut(d.kind, " ")
	metadata := "name: " + d.name
	if d.namespace != "" {
		metadata += ", namespace: " + d.namespace
	}
	if d.created > 0 {
		metadata += fmt.Sprintf(", creationTimestamp: \"2026-01-0%dT00:00:00Z\"", d.created)
	}
	if d.uid > 0 {
		metadata += fmt.Sprintf(", uid: \"%d\"", d.uid)
	}
	spec := variants[d.kind][d.spec]
	if annotations, rest, ok := strings.Cut(spec, "|"); ok && kind == "Service" {
		metadata, spec = metadata+", annotations: "+annotations, rest
	}
	return fmt.Sprintf("apiVersion: %s\n%skind: %s\n%smetadata: {%s}\n%sspec: %s\n", version, indent, kind, indent, metadata, indent, spec)
}

// written writes documents into up to three sources, some of them as the items of a List.
func written(rng *rand.Rand, docs []stored) []Source {
	sources := make([]Source, 1+rng.IntN(3))
	for i := range sources {
		sources[i].Name = fmt.Sprintf("%d.yaml", i)
	}
	list := rng.IntN(2) == 0
	var items strings.Builder
	for _, d := range docs {
		if list && d.name < "y" { // so that Lists stay the same now and then
			items.WriteString("- " + d.fields("  "))
			continue
		}
		to := &sources[rng.IntN(len(sources))]
		to.Data = append(to.Data, strings.Repeat("# a comment\n", d.before)+d.fields("")+"---\n"...)
	}
	if items.Len() > 0 {
		to := &sources[rng.IntN(len(sources))]
		to.Data = append(to.Data, "apiVersion: v1\nkind: List\nitems:\n"+items.String()...)
	}
	return sources
}

// TestRecompile_IsCompile takes random documents through sequences of reloads, with mistakes among them: what comes of each
// is what comes of compiling the documents afresh.
func TestRecompile_IsCompile(t *testing.T) {
	accepted, refused := 0, 0
	for seed := range uint64(*recompileRounds) {
		seed += *recompileSeed
		a, r := reloads(t, seed)
		accepted, refused = accepted+a, refused+r
		if t.Failed() {
			t.Fatalf("with the seed %d", seed)
		}
	}
	if accepted < *recompileRounds || refused < *recompileRounds {
		t.Errorf("%d sets of documents were accepted and %d refused: the test says little", accepted, refused)
	}
}

// TestRecompile_AloneIsCompile does the same with documents that stand alone, among others: what comes of each reload is what comes of
// compiling the documents afresh with the same last good versions.
func TestRecompile_AloneIsCompile(t *testing.T) {
	accepted, refused := 0, 0
	for seed := range uint64(*recompileRounds) {
		seed += *recompileSeed
		rng := rand.New(rand.NewPCG(seed, 2))
		w := workloads[rng.IntN(len(workloads))]
		var docs []stored
		var last *Plan
		for range 12 {
			docs = changed(rng, docs)
			for range rng.IntN(3) {
				d := randomStored(rng, true)
				d.uid = rng.IntN(3)
				if i := slices.IndexFunc(docs, func(o stored) bool { return o.kind == d.kind && o.namespace == d.namespace }); i >= 0 {
					d.name = docs[i].name
					docs[i] = d
				} else {
					docs = append(docs, d)
				}
			}
			sources := written(rng, docs)
			for i := range sources {
				sources[i].Alone = rng.IntN(5) > 0
				if rng.IntN(20) == 0 {
					sources[i].Data = append([]byte("kind: [\n---\n"), sources[i].Data...)
				}
			}
			history := new(Plan)
			if last != nil {
				history = &Plan{workload: last.workload, kept: last.kept, keptToo: last.keptToo, refused: last.refused}
			}
			want, wantFindings := Recompile(history, sources, w)
			got, gotFindings := Recompile(last, sources, w)
			for _, findings := range []Findings{gotFindings, wantFindings} {
				for i := range findings {
					findings[i].Since = time.Time{} // each is the time of the call
				}
			}
			if !slices.Equal(gotFindings, wantFindings) {
				t.Errorf("the findings are\n%v\nwant\n%v\nof\n%s", gotFindings, wantFindings, texts(sources))
			}
			if (got == nil) != (want == nil) {
				t.Fatalf("Recompile = %v, Compile = %v", got, want)
			}
			if got == nil {
				continue
			}
			accepted++
			refused += len(got.refused)
			if last = got; rng.IntN(3) > 0 {
				samePlan(t, got, want)
			}
			if t.Failed() {
				t.Fatalf("with the seed %d, of\n%s", seed, texts(sources))
			}
		}
	}
	if accepted < 2**recompileRounds || refused < *recompileRounds {
		t.Errorf("%d sets of documents were accepted with %d refused documents: the test says little", accepted, refused)
	}
}

// TestRecompile_OneChange takes documents that make routes together, and exchanges one of them after the other for each variant
// of its kind, and back.
func TestRecompile_OneChange(t *testing.T) {
	for _, set := range [][]stored{{
		{kind: "networking.istio.io/v1 VirtualService", name: "root", spec: 6},
		{kind: "networking.istio.io/v1 VirtualService", namespace: "shop", name: "z", spec: 8},
		{kind: "networking.istio.io/v1 VirtualService", name: "y", spec: 7},
		{kind: "networking.istio.io/v1 VirtualService", name: "b", spec: 2},
		{kind: "linkerd.io/v1alpha2 ServiceProfile", name: "a.default.svc.cluster.local"},
		{kind: "linkerd.io/v1alpha2 ServiceProfile", name: "b.default.svc.cluster.local"},
		{kind: "split.smi-spec.io/v1alpha4 TrafficSplit", name: "x", spec: 1},
		{kind: "split.smi-spec.io/v1alpha4 TrafficSplit", name: "y", spec: 2},
		{kind: "specs.smi-spec.io/v1alpha4 HTTPRouteGroup", name: "x"},
		{kind: "v1 Service", name: "a"}, {kind: "v1 Service", name: "b", spec: 1}, {kind: "v1 Service", namespace: "shop", name: "c"},
	}, {
		{kind: "gateway.networking.k8s.io/v1 HTTPRoute", name: "x", spec: 0},
		{kind: "gateway.networking.k8s.io/v1 HTTPRoute", name: "y", spec: 2},
		{kind: "gateway.networking.k8s.io/v1 HTTPRoute", name: "z", spec: 3},
		{kind: "gateway.networking.k8s.io/v1 HTTPRoute", name: "w", spec: 5}, // of a wildcard
		{kind: "gateway.networking.k8s.io/v1 HTTPRoute", namespace: "shop", name: "x", spec: 5},
		{kind: "gateway.networking.k8s.io/v1 GRPCRoute", name: "x", spec: 0},
		{kind: "gateway.networking.k8s.io/v1 GRPCRoute", namespace: "shop", name: "x", spec: 1},
		{kind: "policy.linkerd.io/v1beta3 HTTPRoute", name: "x"},
		{kind: "networking.istio.io/v1 ServiceEntry", name: "x", spec: 1},
		{kind: "networking.istio.io/v1 ServiceEntry", name: "y", spec: 2},
		{kind: "networking.istio.io/v1 VirtualService", name: "b", spec: 4},
		{kind: "networking.istio.io/v1 Sidecar", name: "x"},
		{kind: "linkerd.io/v1alpha2 ServiceProfile", name: "api.example"},
		{kind: "split.smi-spec.io/v1alpha4 TrafficSplit", name: "y", spec: 2},
		{kind: "v1 Service", name: "a", spec: 2}, {kind: "v1 Service", name: "b", spec: 1}, {kind: "v1 Service", namespace: "shop", name: "c"},
	}, {
		{kind: "policy.linkerd.io/v1beta3 Server", namespace: "default", name: "x"},
		{kind: "policy.linkerd.io/v1beta3 Server", namespace: "default", name: "y", spec: 2},
		{kind: "policy.linkerd.io/v1alpha1 AuthorizationPolicy", namespace: "default", name: "x"},
		{kind: "policy.linkerd.io/v1alpha1 AuthorizationPolicy", namespace: "default", name: "y", spec: 1},
		{kind: "policy.linkerd.io/v1alpha1 AuthorizationPolicy", namespace: "default", name: "z", spec: 3},
		{kind: "policy.linkerd.io/v1alpha1 AuthorizationPolicy", namespace: "default", name: "w", spec: 4},
		{kind: "policy.linkerd.io/v1alpha1 AuthorizationPolicy", namespace: "default", name: "v", spec: 5},
		{kind: "gateway.networking.k8s.io/v1 HTTPRoute", namespace: "default", name: "x", spec: 6, created: 2},
		{kind: "policy.linkerd.io/v1beta3 HTTPRoute", namespace: "default", name: "y", spec: 1, created: 1},
		{kind: "policy.linkerd.io/v1beta1 ServerAuthorization", namespace: "default", name: "x"},
		{kind: "policy.linkerd.io/v1alpha1 MeshTLSAuthentication", namespace: "default", name: "x"},
		{kind: "policy.linkerd.io/v1alpha1 MeshTLSAuthentication", namespace: "shop", name: "y", spec: 1},
		{kind: "policy.linkerd.io/v1alpha1 NetworkAuthentication", namespace: "default", name: "x"},
		{kind: "policy.linkerd.io/v1alpha1 NetworkAuthentication", namespace: "default", name: "z"},
		{kind: "access.smi-spec.io/v1alpha3 TrafficTarget", namespace: "default", name: "x"},
		{kind: "access.smi-spec.io/v1alpha3 TrafficTarget", namespace: "default", name: "y", spec: 1},
		{kind: "access.smi-spec.io/v1alpha3 TrafficTarget", namespace: "default", name: "z", spec: 2},
		{kind: "specs.smi-spec.io/v1alpha4 HTTPRouteGroup", name: "x", spec: 1}, {kind: "specs.smi-spec.io/v1alpha4 HTTPRouteGroup", name: "y"},
		{kind: "specs.smi-spec.io/v1alpha4 TCPRoute", name: "x"}, {kind: "specs.smi-spec.io/v1alpha4 TCPRoute", name: "y", spec: 1},
	}} {
		oneChange(t, set, workloads[len(workloads)-1])
	}
}

// oneChange exchanges one document of a set after the other for each variant of its kind, and back.
func oneChange(t *testing.T, set []stored, w Workload) {
	t.Helper()
	sources := func(docs []stored) []Source {
		var text strings.Builder
		for _, d := range docs {
			text.WriteString(d.fields("") + "---\n")
		}
		return []Source{{Name: "a.yaml", Data: []byte(text.String())}}
	}
	first, findings := Compile(sources(set), w)
	if first == nil {
		t.Fatal(findings)
	}
	accepted := 0
	for i, d := range set {
		few := min(len(variants[d.kind]), 11) // of VirtualServices, the others are not about routes
		for spec := range few + 1 {
			changed := slices.Clone(set)
			if changed[i].spec = spec; spec == few {
				changed = slices.Delete(changed, i, i+1)
			}
			last := first
			for _, docs := range [][]stored{changed, set} {
				want, wantFindings := Compile(sources(docs), w)
				got, gotFindings := Recompile(last, sources(docs), w)
				if !slices.Equal(gotFindings, wantFindings) {
					t.Errorf("the findings are\n%v\nwant\n%v\nof\n%s", gotFindings, wantFindings, texts(sources(docs)))
				}
				if (got == nil) != (want == nil) {
					t.Fatalf("Recompile = %v, Compile = %v", got, want)
				}
				if got != nil {
					samePlan(t, got, want)
					last, accepted = got, accepted+1
				}
				if t.Failed() {
					t.Fatalf("after a change of %s %s to %v", d.kind, d.name, docs)
				}
			}
		}
	}
	if accepted < 60 {
		t.Errorf("%d sets of documents were accepted: the test says little", accepted)
	}
}

// reloads makes one sequence of reloads.
func reloads(t *testing.T, seed uint64) (accepted, refused int) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 1))
	w := workloads[rng.IntN(len(workloads))]
	var docs []stored
	var last *Plan
	for range 8 {
		docs = changed(rng, docs)
		set := slices.Clone(docs)
		if rng.IntN(3) == 0 { // for this reload alone
			bad := randomStored(rng, true)
			if i := slices.IndexFunc(set, func(o stored) bool { return o.kind == bad.kind }); i >= 0 {
				set[i].spec = bad.spec
			} else {
				set = append(set, bad)
			}
		}
		if len(set) > 0 && rng.IntN(8) == 0 { // the very same twice
			set = append(set, set[rng.IntN(len(set))])
		}
		sources := written(rng, set)
		want, wantFindings := Compile(sources, w)
		got, gotFindings := Recompile(last, sources, w)
		if !slices.Equal(gotFindings, wantFindings) {
			t.Errorf("the findings are\n%v\nwant\n%v\nof\n%s", gotFindings, wantFindings, texts(sources))
		}
		if (got == nil) != (want == nil) {
			t.Fatalf("Recompile = %v, Compile = %v", got, want)
		}
		if got == nil {
			refused++
			continue
		}
		accepted++
		if last = got; rng.IntN(3) > 0 { // else nobody has asked when the next set comes
			samePlan(t, got, want)
		}
		if t.Failed() {
			t.Logf("of\n%s", texts(sources))
			return accepted, refused
		}
	}
	return accepted, refused
}

// changed adds, changes, removes and moves documents.
func changed(rng *rand.Rand, docs []stored) []stored {
	docs = slices.Clone(docs)
	for range 1 + rng.IntN(4) {
		switch n := rng.IntN(7); {
		case n < 3 || len(docs) == 0:
			d := randomStored(rng, false)
			same := slices.IndexFunc(docs, func(o stored) bool {
				return o.kind == d.kind && o.name == d.name && o.namespace == d.namespace
			})
			if same >= 0 {
				docs[same] = d
			} else {
				docs = append(docs, d)
			}
		case n == 3:
			i := rng.IntN(len(docs))
			docs = slices.Delete(docs, i, i+1)
		case n == 4:
			docs[rng.IntN(len(docs))].created = rng.IntN(5)
		case n == 5: // another name and namespace
			i := rng.IntN(len(docs))
			d := docs[i]
			d.place(rng)
			if !slices.ContainsFunc(docs, func(o stored) bool { return o.kind == d.kind && o.name == d.name && o.namespace == d.namespace }) {
				docs[i] = d
			}
		default:
			rng.Shuffle(len(docs), func(i, j int) { docs[i], docs[j] = docs[j], docs[i] })
		}
	}
	return docs
}

// texts returns the text of sources for a message.
func texts(sources []Source) string {
	var all strings.Builder
	for _, s := range sources {
		fmt.Fprintf(&all, "# %s (alone: %v)\n%s\n", s.Name, s.Alone, s.Data)
	}
	return all.String()
}

// deciding returns what decides in a plan, without the documents that it was made of: those are decoded as far as somebody has asked.
func deciding(in *Inbound) *Inbound {
	out := *in
	out.CORS = nil // functions cannot be compared
	out.allowlists = slices.Clone(in.allowlists)
	for i := range out.allowlists {
		out.allowlists[i].from = nil
	}
	return &out
}

// samePlan compares two plans in everything that they say.
func samePlan(t *testing.T, got, want *Plan) {
	t.Helper()
	equal := func(what string, got, want any) {
		t.Helper()
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s is\n%+v\nwant\n%+v", what, got, want)
		}
	}
	equal("the workload", got.workload, want.workload)
	equal("what documents name", exacts(&got.named), exacts(&want.named))
	equal("what wildcards name", wilds(&got.named), wilds(&want.named))
	equal("what is claimed", exacts(&got.claims), exacts(&want.claims))
	equal("what wildcards claim", wilds(&got.claims), wilds(&want.claims))
	equal("what has entries", exacts(&got.entries), exacts(&want.entries))
	equal("what wildcards have entries", wilds(&got.entries), wilds(&want.entries))
	equal("the ports", maps.Collect(got.ports.all()), maps.Collect(want.ports.all()))
	equal("the budgets", got.budgets, want.budgets)
	equal("the failure accruals", got.accruals, want.accruals)
	equal("the peers", got.peers, want.peers)
	equal("what is in force", got.inForce, want.inForce)
	for _, host := range []string{"a", "b", "b.shop", "c", "x"} {
		for _, path := range []string{"/", "/a"} {
			policyOf := func(in *Inbound) any {
				if in.CORS == nil {
					return nil
				}
				return in.CORS(&route.Request{Method: "GET", Authority: host, Path: path, Port: 80})
			}
			equal("the CORS policy of "+host+path, policyOf(got.inbound), policyOf(want.inbound))
		}
	}
	equal("what is inbound", deciding(got.inbound), deciding(want.inbound))
	if equal("that there are config entries", got.consul != nil, want.consul != nil); want.consul != nil {
		equal("the services of Consul", got.consul.services, want.consul.services)
		for name, c := range want.consul.chains {
			sameBuilt(t, name, got, want, nil, nil, got.consul.chains[name].built(got), c.built(want))
		}
	}
	for host, c := range want.claims.all() {
		sameClaim(t, host, got, want, got.claims.plain(host), c)
	}
	for end, c := range want.claims.wild {
		sameClaim(t, "*"+end, got, want, got.claims.wild[end], c)
	}
	hosts := append(exacts(&want.named), "a", "b.shop", "c.shop.svc", "other", "other.shop", "x.example", "github.com", "localhost")
	for _, host := range hosts {
		a, b := got.Host(host), want.Host(host)
		if a.Service != b.Service || a.Document != b.Document || a.Known != b.Known || a.Hidden != b.Hidden || a.RegistryOnly != b.RegistryOnly || !reflect.DeepEqual(a.Entry, b.Entry) {
			t.Errorf("Host(%s) = %+v, want %+v", host, a, b)
		}
		for i := range b.Routes.Len() {
			equal(fmt.Sprintf("the origin of route %d of %s", i, host), a.Origin(a.Routes.Rule(i), -1), b.Origin(b.Routes.Rule(i), -1))
		}
		for _, subset := range []string{"", "v1", "v2"} {
			for _, port := range []int{0, 80, 8080} {
				target := route.Target{Host: host, Subset: subset, Port: port}
				equal(fmt.Sprintf("Cluster(%v)", target), got.Cluster(target), want.Cluster(target))
			}
		}
	}
}

// exacts returns the hosts of a map that are not wildcards.
func exacts[T any](m *hostMap[T]) []string { return slices.Sorted(maps.Keys(maps.Collect(m.all()))) }

func wilds[T any](m *hostMap[T]) []string { return slices.Sorted(maps.Keys(m.wild)) }

// placed returns where routes come from, with the places of the documents in a plan.
func placed(p *Plan, c *claim, b *built) []any {
	var all []any
	for _, o := range b.origins {
		by := o.by
		switch is := by.(type) { // which the plans may hold in different forms
		case *profile:
			if is.service != nil {
				by = is.service.said
			} else {
				by = is.peek()
			}
		case *gatewayRoute:
			by = is.peek()
		}
		all = append(all, o.document, o.index, o.matches, by, p.placeOf(c, o.by))
	}
	return all
}

// sameClaim compares the routes of a host, those for some ports and those behind them.
func sameClaim(t *testing.T, host string, got, want *Plan, a, b *claim) {
	t.Helper()
	for ; a != nil && b != nil; a, b = a.otherwise, b.otherwise {
		if !slices.Equal(a.ports(), b.ports()) {
			t.Errorf("%s is claimed at the ports %v, want %v", host, a.ports(), b.ports())
		}
		sameBuilt(t, host, got, want, a, b, got.built(a), want.built(b))
	}
	if (a == nil) != (b == nil) {
		t.Errorf("%s: the chains of claims differ in length", host)
	}
}

// sameBuilt compares the routes of a host. Those that come from Consul are told apart by their entries, which are read again.
func sameBuilt(t *testing.T, host string, got, want *Plan, a, b *claim, x, y *built) {
	t.Helper()
	if x.name != y.name || x.routes.Len() != y.routes.Len() || !reflect.DeepEqual(placed(got, a, x), placed(want, b, y)) {
		t.Errorf("%s is claimed by %s with %d routes of %v, want %s with %d of %v", host, x.name, x.routes.Len(), x.origins, y.name, y.routes.Len(), y.origins)
		return
	}
	for i := range y.routes.Len() {
		if !reflect.DeepEqual(x.routes.Rule(i).Route, y.routes.Rule(i).Route) {
			t.Errorf("route %d of %s is\n%+v\nwant\n%+v", i, host, x.routes.Rule(i).Route, y.routes.Rule(i).Route)
		}
	}
}

// TestRecompile_KnowsWhatCannotBeEnforced: documents that cannot be enforced together are not combined again because others have changed.
func TestRecompile_KnowsWhatCannotBeEnforced(t *testing.T) {
	object := func(kind, api, name, spec string) Source {
		return Source{Name: name, Alone: true, Data: fmt.Appendf(nil, "{apiVersion: %s, kind: %s, metadata: {name: %s, namespace: default, uid: %s}, spec: %s}", api, kind, name, name, spec)}
	}
	profile := func(path string) Source {
		return object("ServiceProfile", "linkerd.io/v1alpha2", "pay.default.svc.cluster.local", "{routes: [{name: r, condition: {pathRegex: '"+path+"'}, timeout: 3s}]}")
	}
	leads := object("VirtualService", "networking.istio.io/v1", "web", "{hosts: [web], http: [{match: [{uri: {regex: '/a.*'}}], route: [{destination: {host: pay}}]}]}")
	other := func(timeout string) Source {
		return object("VirtualService", "networking.istio.io/v1", "other", "{hosts: [other], http: [{timeout: "+timeout+", route: [{destination: {host: other}}]}]}")
	}
	const host = "web.default.svc.cluster.local"
	first, _ := Compile([]Source{profile("(/a$|/b)"), leads, other("1s")}, Workload{})
	known := first.unenforceable[host]
	if len(known) != 1 {
		t.Fatalf("%d joints cannot be enforced, want 1: %v", len(known), first.unenforceable)
	}
	second, findings := Recompile(first, []Source{profile("(/a$|/b)"), leads, other("2s")}, Workload{})
	if again := second.unenforceable[host]; len(again) != 1 || again[0] != known[0] {
		t.Error("what cannot be enforced was combined again")
	}
	if len(findings) == 0 {
		t.Error("nothing is said the second time")
	}
	third, findings := Recompile(second, []Source{profile("/b"), leads, other("2s")}, Workload{})
	if len(third.unenforceable) != 0 || len(findings) != 0 {
		t.Errorf("after the profile was mended: %v, %v", third.unenforceable, findings)
	}
}
