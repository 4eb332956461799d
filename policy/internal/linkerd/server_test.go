package linkerd_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/linkerd"
)

// checked returns what is found in a document, and the document.
func checked(t *testing.T, kind, version, spec string) (is any, findings []string) {
	t.Helper()
	text := fmt.Sprintf("apiVersion: policy.linkerd.io/%s\nkind: %s\nmetadata: {name: a, namespace: shop}\nspec: %s", version, kind, spec)
	doc := yamldoc.Parse([]byte(text))[0][0]
	into := linkerd.New(kind)
	if new(yamldoc.Decoder).Decode(doc, into) {
		into.Check(doc)
	}
	for _, p := range doc.Problems {
		severity := "error"
		if p.Warning {
			severity = "warning"
		}
		findings = append(findings, severity+" "+p.Path)
	}
	return into, findings
}

func TestCheck_Servers(t *testing.T) {
	const server = "{kind: Server, group: policy.linkerd.io, name: s}"
	const mtls = "{kind: MeshTLSAuthentication, group: policy.linkerd.io, name: m}"
	for _, test := range []struct{ kind, version, spec, want string }{
		{"Server", "v1beta3", "{podSelector: {}, port: 80}", ""},
		{"Server", "v1beta1", "{podSelector: {matchLabels: {app: a}}, port: http, proxyProtocol: HTTP/2}", ""},
		{"Server", "v1alpha1", "{podSelector: {matchLabels: {app: a}}, port: http}", ""},
		{"Server", "v1alpha1", "{podSelector: {}, port: http}", "error spec.podSelector"},
		{"Server", "v1alpha1", "{podSelector: {matchLabels: {app: a}, matchExpressions: []}, port: http}", "error spec.podSelector"},
		{"Server", "v1beta2", "{externalWorkloadSelector: {}, port: 80}", ""},
		{"Server", "v1beta1", "{externalWorkloadSelector: {}, port: 80}", "error spec.externalWorkloadSelector"},
		{"Server", "v1beta3", "{podSelector: {}, externalWorkloadSelector: {}, port: 80}", "error spec"},
		{"Server", "v1beta2", "{podSelector: {}, port: 80, accessPolicy: deny}", "error spec.accessPolicy"},
		{"Server", "v1beta3", "{podSelector: {}, port: 80, accessPolicy: allow}", "error spec.accessPolicy"},
		{"Server", "v1beta3", "{podSelector: {}, port: 80, proxyProtocol: http/1}", "error spec.proxyProtocol"},
		{"Server", "v1beta3", "{podSelector: {}}", "error spec.port"},
		{"Server", "v1beta3", "{podSelector: {}, port: 0}", "error spec.port"},
		{"Server", "v1beta3", "{podSelector: {}, port: 65536}", "error spec.port"},
		{"Server", "v1beta3", "{podSelector: {}, port: 0120}", "error spec.port"},
		{"Server", "v1beta3", "{podSelector: {}, port: 80.5}", "error spec.port"},
		{"Server", "v1beta3", "{podSelector: {}, port: [80]}", "error spec.port"},
		{"Server", "v1beta3", "{podSelector: {}, port: true}", "error spec.port"},
		{"Server", "v1beta3", `{podSelector: {}, port: "80"}`, "error spec.port"},
		{"Server", "v1beta3", "{podSelector: {}, port: Http}", "error spec.port"},
		{"Server", "v1beta3", "{port: 80}", "error spec.podSelector"},
		{"Server", "v1beta3", "{podSelector: {labels: {app: a}}, port: 80}", "error spec.podSelector.labels"},
		{"Server", "v1beta3", "{podSelector: {matchExpressions: [{key: a, operator: In}]}, port: 80}", "error spec.podSelector.matchExpressions[0].values"},
		{"Server", "v1beta3", "{podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}, port: 80}", "error spec.podSelector.matchExpressions[0].values"},
		{"Server", "v1beta3", "{podSelector: {matchExpressions: [{key: a, operator: Equals, values: [b]}]}, port: 80}", "error spec.podSelector.matchExpressions[0].operator"},

		{"ServerAuthorization", "v1beta1", "{server: {name: a}, client: {unauthenticated: true}}", ""},
		{"ServerAuthorization", "v1beta1", "{server: {}, client: {unauthenticated: true}}", "error spec.server"},
		{"ServerAuthorization", "v1beta1", "{server: {name: a, selector: {}}, client: {unauthenticated: true}}", "error spec.server"},
		{"ServerAuthorization", "v1beta1", "{server: {name: a}, client: {unauthenticated: false}}", "error spec.client"},
		{"ServerAuthorization", "v1beta1", "{server: {name: a}, client: {unauthenticated: true, meshTLS: {identities: ['*']}}}", "error spec.client.unauthenticated"},
		{"ServerAuthorization", "v1beta1", "{server: {name: a}, client: {meshTLS: {}}}", "error spec.client.meshTLS"},
		{"ServerAuthorization", "v1beta1", "{server: {name: a}, client: {meshTLS: {unauthenticatedTLS: true, identities: ['*']}}}", "error spec.client.meshTLS.unauthenticatedTLS"},
		{"ServerAuthorization", "v1beta1", "{server: {name: a}, client: {meshTLS: {serviceAccounts: [{name: A}]}}}", "error spec.client.meshTLS.serviceAccounts[0].name"},
		{"ServerAuthorization", "v1beta1", "{server: {name: a}, client: {unauthenticated: true, networks: [{cidr: 10.0.0.0/33}]}}", "error spec.client.networks[0].cidr"},
		{"ServerAuthorization", "v1beta1", "{server: {name: a}, client: {unauthenticated: true, networks: [{cidr: 10.0.0.0/8, except: [10.0.0.0/7]}]}}", "error spec.client.networks[0].except[0]"},
		{"ServerAuthorization", "v1beta1", "{server: {name: a}, client: {unauthenticated: true, networks: [{cidr: '::ffff:10.0.0.0/104'}]}}", "error spec.client.networks[0].cidr"},
		{"ServerAuthorization", "v1beta1", "{server: {name: a}}", "error spec.client"},

		{"AuthorizationPolicy", "v1alpha1", "{targetRef: " + server + ", requiredAuthenticationRefs: [" + mtls + "]}", ""},
		{"AuthorizationPolicy", "v1alpha1", "{targetRef: {kind: namespace, group: CORE, name: shop}, requiredAuthenticationRefs: [" + mtls + "]}", ""},
		{"AuthorizationPolicy", "v1alpha1", "{targetRef: {kind: Namespace, name: shop, namespace: shop}, requiredAuthenticationRefs: [" + mtls + "]}", ""},
		{"AuthorizationPolicy", "v1alpha1", "{targetRef: {kind: Namespace, name: shop, namespace: other}, requiredAuthenticationRefs: [" + mtls + "]}", "error spec.targetRef.namespace"},
		{"AuthorizationPolicy", "v1alpha1", "{targetRef: {group: policy.linkerd.io, kind: HTTPRoute, name: r}, requiredAuthenticationRefs: [" + mtls + "]}", ""},
		{"AuthorizationPolicy", "v1alpha1", "{targetRef: {group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}, requiredAuthenticationRefs: [" + mtls + "]}", ""},
		{"AuthorizationPolicy", "v1alpha1", "{targetRef: {group: gateway.networking.k8s.io, kind: GRPCRoute, name: r}, requiredAuthenticationRefs: [" + mtls + "]}", ""},
		{"AuthorizationPolicy", "v1alpha1", "{targetRef: {group: policy.linkerd.io, kind: GRPCRoute, name: r}, requiredAuthenticationRefs: [" + mtls + "]}", "error spec.targetRef"},
		{"AuthorizationPolicy", "v1alpha1", "{targetRef: {group: policy.linkerd.io, kind: HTTPRoute, name: ''}, requiredAuthenticationRefs: [" + mtls + "]}", "error spec.targetRef.name"},
		{"AuthorizationPolicy", "v1alpha1", "{targetRef: {group: policy.linkerd.io, kind: Server, name: A}, requiredAuthenticationRefs: [" + mtls + "]}", "error spec.targetRef.name"},
		{"AuthorizationPolicy", "v1alpha1", "{targetRef: " + server + "}", "error spec.requiredAuthenticationRefs"},
		{"AuthorizationPolicy", "v1alpha1", "{targetRef: " + server + ", requiredAuthenticationRefs: null}", "error spec.requiredAuthenticationRefs"},
		{"AuthorizationPolicy", "v1alpha1", "{targetRef: {kind: Server, name: s}, requiredAuthenticationRefs: [" + mtls + "]}", "error spec.targetRef"},
		{"AuthorizationPolicy", "v1alpha1", "{targetRef: {kind: Namespace, name: other}, requiredAuthenticationRefs: [" + mtls + "]}", "error spec.targetRef.name"},
		{"AuthorizationPolicy", "v1alpha1", "{targetRef: " + server + ", requiredAuthenticationRefs: [" + mtls + ", " + mtls + "]}", "error spec.requiredAuthenticationRefs[1]"},
		{"AuthorizationPolicy", "v1alpha1", "{targetRef: " + server + ", requiredAuthenticationRefs: [{kind: ServiceAccount, name: a}, " + mtls + "]}", "error spec.requiredAuthenticationRefs[1]"},
		{"AuthorizationPolicy", "v1alpha1", "{targetRef: " + server + ", requiredAuthenticationRefs: [{kind: MeshTLSAuthentication, name: a}]}", "error spec.requiredAuthenticationRefs[0]"},

		{"MeshTLSAuthentication", "v1alpha1", "{identities: ['*'], identityRefs: [{kind: Namespace, name: shop}, {kind: ServiceAccount, name: a}]}", ""},
		{"MeshTLSAuthentication", "v1alpha1", "{identities: []}", "error spec"},
		{"MeshTLSAuthentication", "v1alpha1", "{identities: ['a.*']}", "error spec.identities[0]"},
		{"MeshTLSAuthentication", "v1alpha1", "{identities: ['spiffe://a//b']}", "error spec.identities[0]"},
		{"MeshTLSAuthentication", "v1alpha1", "{identities: ['spiffe://A/b']}", "error spec.identities[0]"},
		{"MeshTLSAuthentication", "v1alpha1", "{identityRefs: [{kind: Namespace, name: shop, namespace: shop}]}", "error spec.identityRefs[0].namespace"},
		{"MeshTLSAuthentication", "v1alpha1", "{identityRefs: [{kind: Namespace, name: ''}]}", "error spec.identityRefs[0].name"},
		{"MeshTLSAuthentication", "v1alpha1", "{identityRefs: [{kind: Namespace, name: a.b}]}", "error spec.identityRefs[0].name"},
		{"MeshTLSAuthentication", "v1alpha1", "{identityRefs: [{kind: Pod, name: shop}]}", "error spec.identityRefs[0]"},
		{"NetworkAuthentication", "v1alpha1", "{networks: []}", "error spec.networks"},
		{"NetworkAuthentication", "v1alpha1", "{}", "error spec.networks"},
	} {
		if _, got := checked(t, test.kind, test.version, test.spec); strings.Join(got, ", ") != test.want {
			t.Errorf("%s %s %s: %q, want %q", test.kind, test.version, test.spec, got, test.want)
		}
	}
}

// Identities as Linkerd names them, and the SPIFFE IDs that they stand for; "" for none.
func TestClients_Identities(t *testing.T) {
	for id, want := range map[string]string{
		"*": "*",
		"web.shop.serviceaccount.identity.linkerd.cluster.local":  "town/ns/shop/sa/web",
		"web.shop.serviceaccount.identity.linkerd.town":           "town/ns/shop/sa/web",
		"web.shop.serviceaccount.identity.mesh.far.example.com":   "far.example.com/ns/shop/sa/web",
		"a.b.shop.serviceaccount.identity.linkerd.cluster.local":  "town/ns/shop/sa/a.b",
		"*.shop.serviceaccount.identity.linkerd.cluster.local":    "town/ns/shop/sa/*",
		"*.serviceaccount.identity.linkerd.cluster.local":         "town/ns/*",
		"*.serviceaccount.identity.linkerd.far":                   "far/ns/*",
		"*.identity.linkerd.cluster.local":                        "town/ns/*",
		"*.identity.mesh.town":                                    "town/ns/*",
		"*.linkerd.cluster.local":                                 "town/ns/*",
		"*.cluster.local":                                         "town/ns/*",
		"*.town":                                                  "town/ns/*",
		"spiffe://far/workload/x":                                 "far/workload/x",
		"spiffe://cluster.local/ns/shop/sa/web":                   "cluster.local/ns/shop/sa/web",
		"spiffe://far":                                            "",
		"*.b.shop.serviceaccount.identity.linkerd.cluster.local":  "",
		"*.shop.cluster.local":                                    "",
		"*.identity.cluster.local":                                "",
		"*.local":                                                 "",
		"*.xcluster.local":                                        "",
		"*.far":                                                   "",
		"shop.serviceaccount.identity.linkerd.cluster.local":      "",
		"serviceaccount.identity.linkerd.cluster.local":           "",
		"web.shop.xserviceaccount.identity.linkerd.cluster.local": "",
		"web.shop.serviceaccount.identity.linkerd":                "",
		"foo.example.com":                                         "",
	} {
		is, findings := checked(t, "MeshTLSAuthentication", "v1alpha1", "{identities: ['"+id+"']}")
		if findings != nil {
			t.Errorf("%s: %q", id, findings)
			continue
		}
		clients, strangers := is.(*linkerd.MeshTLSAuthentication).Clients("town")
		sources, ok := clients.Sources()
		if want == "" {
			if ok || len(strangers) != 1 || strangers[0].Why == "" {
				t.Errorf("%s is %v, want nobody, and why", id, sources)
			}
		} else if !ok || strangers != nil || !slices.Equal(sources[0].Principals, []string{want}) {
			t.Errorf("%s is %v, want %s; %v", id, sources, want, strangers)
		}
	}
}

// TestClients: whom each way to name clients means, and for whom a Server is.
func TestClients(t *testing.T) {
	for _, test := range []struct{ kind, spec, want string }{
		{"ServerAuthorization", "{server: {name: a}, client: {meshTLS: {unauthenticatedTLS: true}, networks: [{cidr: 10.0.0.0/8}]}}", "*"},
		{"ServerAuthorization", "{server: {name: a}, client: {meshTLS: {serviceAccounts: [{name: web}, {name: web, namespace: other}]}}}", "town/ns/shop/sa/web town/ns/other/sa/web"},
		{"MeshTLSAuthentication", "{identityRefs: [{kind: ServiceAccount, name: web}, {kind: ServiceAccount, name: web, namespace: other}, {kind: Namespace, name: far}]}",
			"town/ns/shop/sa/web town/ns/other/sa/web town/ns/far/sa/*"},
	} {
		is, findings := checked(t, test.kind, "v1alpha1", test.spec)
		var clients linkerd.Clients
		switch is := is.(type) {
		case *linkerd.ServerAuthorization:
			clients, _ = is.Clients("town")
		case *linkerd.MeshTLSAuthentication:
			clients, _ = is.Clients("town")
		}
		sources, ok := clients.Sources()
		if !ok || findings != nil || strings.Join(sources[0].Principals, " ") != test.want {
			t.Errorf("%s: %v %v, want %s", test.spec, sources, findings, test.want)
		}
	}
	for spec, want := range map[string]string{
		"{podSelector: {matchLabels: {app: a}}, port: 80}":                                               "true true",
		"{podSelector: {matchLabels: {app: b}}, port: 80}":                                               "false true",
		"{podSelector: {}, port: 80}":                                                                    "true false",
		"{externalWorkloadSelector: {matchLabels: {app: a}}, port: 80}":                                  "true true",
		"{externalWorkloadSelector: {matchExpressions: [{key: app, operator: DoesNotExist}]}, port: 80}": "false true",
		"{externalWorkloadSelector: {}, port: 80}":                                                       "true false",
	} {
		is, findings := checked(t, "Server", "v1beta2", spec)
		server := is.(*linkerd.Server).Spec
		if got := fmt.Sprint(server.Selects(map[string]string{"app": "a"}), " ", server.ByLabels()); got != want || findings != nil {
			t.Errorf("%s: selects, and by labels: %s, want %s; %v", spec, got, want, findings)
		}
	}
}

func FuzzCheck_Servers(f *testing.F) {
	for _, kind := range []string{"Server", "ServerAuthorization", "AuthorizationPolicy", "MeshTLSAuthentication", "NetworkAuthentication"} {
		f.Add(kind, "{podSelector: {matchExpressions: [{key: a, operator: In, values: [b]}]}, port: http, accessPolicy: audit}")
		f.Add(kind, "{server: {name: a}, client: {meshTLS: {identities: ['*.a.serviceaccount.identity.b.c']}, networks: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]}}")
		f.Add(kind, "{targetRef: {group: policy.linkerd.io, kind: Server, name: a}, requiredAuthenticationRefs: [{kind: ServiceAccount, name: b}]}")
		f.Add(kind, "{identities: ['spiffe://a/b', '*'], networks: [{cidr: '::/0'}]}")
	}
	f.Fuzz(func(t *testing.T, kind, spec string) {
		into := linkerd.New(kind)
		docs := yamldoc.Parse([]byte("apiVersion: policy.linkerd.io/v1beta3\nkind: x\nmetadata: {name: a}\nspec: " + spec))
		if into == nil || len(docs[0]) == 0 || !new(yamldoc.Decoder).Decode(docs[0][0], into) {
			return
		}
		if into.Check(docs[0][0]); docs[0][0].Failed() {
			return
		}
		switch is := into.(type) { // what is accepted can be translated, and authorizes nobody without saying whom
		case *linkerd.ServerAuthorization:
			clients, _ := is.Clients("cluster.local")
			if sources, ok := clients.Sources(); ok && len(sources) == 0 {
				t.Errorf("%s authorizes everybody", spec)
			}
		case *linkerd.MeshTLSAuthentication:
			clients, _ := is.Clients("cluster.local")
			if sources, ok := clients.Sources(); ok && len(sources) == 0 {
				t.Errorf("%s authorizes everybody", spec)
			}
		}
	})
}
