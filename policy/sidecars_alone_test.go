package policy_test

import (
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy"
)

func TestSidecar_Findings(t *testing.T) {
	for spec, want := range map[string]string{
		"":                                                 "spec: error: empty",
		"egress: [{}]":                                     "spec.egress[0].hosts: error: missing",
		"egress: [{hosts: []}]":                            `spec.egress[0].hosts: error: empty`,
		"egress: [{hosts: [reviews]}]":                     `spec.egress[0].hosts[0]: error: "reviews" is not a namespace and a host`,
		"egress: [{hosts: [a/b/c]}]":                       `error: "a/b/c" is not a namespace and a host`,
		"egress: [{hosts: [/a.b]}]":                        `error: "/a.b" is not a namespace and a host`,
		"egress: [{hosts: ['a_b/*']}]":                     `error: "a_b" is neither a namespace nor`,
		"egress: [{hosts: ['./a_b.c']}]":                   `"a_b" is not a DNS label`,
		"egress: [{hosts: [./reviews]}]":                   `hosts[0]: warning: covers no service of the cluster: short names are not completed here: write shop/reviews.NAMESPACE.svc.cluster.local`,
		"egress: [{hosts: [./Api.example.com]}]":           "hosts[0]: warning: covers no host: their names have lower-case letters",
		"egress: [{hosts: [./*, shop/api.example.com]}]":   "hosts[1]: warning: has no effect: an entry before it covers it",
		"egress: [{hosts: ['*/*', shop/api.example.com]}]": "hosts[1]: warning: has no effect: an entry before it covers it",
		"egress: [{hosts: [./*]}, {hosts: [a/*]}]":         "spec.egress[0]: error: has no port, which only the last element may lack",
		"egress: [{port: {number: 80, protocol: HTTP, name: http}, hosts: [./*]}]":               "spec.egress[0].port: error: hosts that are known at one port only are not enforced",
		"egress: [{bind: 127.0.0.1, hosts: [./*]}]":                                              "spec.egress[0].bind: warning: there is no listener",
		"egress: [{captureMode: NONE, hosts: [./*]}]":                                            "spec.egress[0].captureMode: warning: there is no listener",
		"egress: [{captureMode: SOME, hosts: [./*]}]":                                            "captureMode: error",
		"outboundTrafficPolicy: {mode: SOME}":                                                    "mode: error",
		"outboundTrafficPolicy: {modes: ALLOW_ANY}":                                              `unknown field "modes"`,
		"outboundTrafficPolicy: {mode: ALLOW_ANY, egressProxy: {host: a.b, port: {number: 80}}}": "spec.outboundTrafficPolicy.egressProxy: error: egressProxy is not enforced",
		"inboundConnectionPool: {http: {idleTimeout: 15m}}":                                      "spec.inboundConnectionPool: error: inboundConnectionPool is not enforced",
		"workloadSelector: {labels: {app: 'a*'}}, egress: [{hosts: [./*]}]":                      "app=a* has a wildcard",
		"workloadSelector: {matchLabels: {app: a}}, egress: [{hosts: [./*]}]":                    `unknown field "matchLabels"`,
		"ingress: [{defaultEndpoint: '127.0.0.1:80'}]":                                           "spec.ingress[0].port: error: missing",
		"ingress: [{port: {number: 80}}]":                                                        "spec.ingress[0]: warning: has no effect: the program takes requests to port 80 itself",
		"ingress: [{port: {number: 80}, defaultEndpoint: '127.0.0.1:80'}]":                       "spec.ingress[0]: warning: has no effect",
		"ingress: [{port: {number: 80}, defaultEndpoint: '[::1]:80'}]":                           "spec.ingress[0]: warning: has no effect",
		"ingress: [{port: {number: 80}, defaultEndpoint: ':80'}]":                                "spec.ingress[0]: warning: has no effect",
		"ingress: [{port: {number: 80}, defaultEndpoint: '127.0.0.1:81'}]":                       "spec.ingress[0].defaultEndpoint: error: requests are not forwarded from port 80 to port 81",
		"ingress: [{port: {number: 80}, defaultEndpoint: '10.0.0.1:80'}]":                        `error: "10.0.0.1" is not this workload`,
		"ingress: [{port: {number: 80}, defaultEndpoint: 'unix:///a.sock'}]":                     "error: requests are not forwarded, and so not to a Unix socket",
		"ingress: [{port: {number: 80}, defaultEndpoint: '80'}]":                                 `error: "80" is not an address and a port`,
		"ingress: [{port: {number: 80}}, {port: {number: 80}}]":                                  "there is an element for port 80 already",
		"ingress: [{port: {number: 80}, tls: {mode: SIMPLE}}]":                                   "spec.ingress[0].tls: error",
		"ingress: [{port: {number: 80}, connectionPool: {tcp: {maxConnections: 1}}}]":            "spec.ingress[0].connectionPool: error",
	} {
		report := policy.Check([]policy.Source{{Name: "a", Data: []byte(sidecarOf("shop", "s", spec))}}, policy.Workload{Namespace: "shop"})
		if text := report.Findings.Error(); !strings.Contains(text, want) {
			t.Errorf("%s: the findings are\n%s\nwant %q", spec, text, want)
		}
	}
	for _, spec := range []string{"egress: [{hosts: ['*/*']}]", "egress: [{hosts: [./*, istio-system/*, 'prod/*.example.com']}], outboundTrafficPolicy: {mode: REGISTRY_ONLY}", "egress: [{hosts: [~/*]}]"} {
		report := policy.Check([]policy.Source{{Name: "a", Data: []byte(sidecarOf("shop", "s", spec))}}, policy.Workload{Namespace: "shop"})
		if len(report.Findings) > 0 || report.InForce[0] != 1 {
			t.Errorf("%s: %v in force, with\n%v", spec, report.InForce, report.Findings)
		}
	}
}

func TestSidecar_WithoutLabels(t *testing.T) {
	source := []policy.Source{{Name: "a", Data: []byte(sidecarOf("shop", "s", "workloadSelector: {labels: {app: web}}, egress: [{hosts: [./*]}]"))}}
	_, findings := policy.Compile(source, policy.Workload{Namespace: "shop"})
	if text := findings.Error(); !strings.Contains(text, "spec.workloadSelector: warning: does not apply to this process") {
		t.Errorf("the findings are\n%s", text)
	}
	for _, w := range []policy.Workload{{Namespace: "other"}, {Namespace: "shop", Labels: map[string]string{"app": "other"}}} {
		if _, findings := policy.Compile(source, w); len(findings) > 0 {
			t.Errorf("%s %v: the findings are\n%v", w.Namespace, w.Labels, findings)
		}
	}
}

// A Sidecar that cannot be used, and has no last good version, does not open what it may have closed: the network outside the mesh.
func TestAlone_Sidecar(t *testing.T) {
	const (
		bad    = "{ingress: [{port: {number: 80}, defaultEndpoint: 'unix:///a'}], egress: [{hosts: [./*]}], outboundTrafficPolicy: {mode: REGISTRY_ONLY}%s}"
		closes = "Sidecar shop/x, which is refused and has no last good version"
	)
	web, other := ", workloadSelector: {labels: {app: web}}", ", workloadSelector: {labels: {app: other}}"
	with := func(more string) object {
		return object{kind: "Sidecar", name: "x", spec: strings.Replace(bad, "%s", more, 1)}
	}
	in := func(namespace string, o object) object { o.namespace = namespace; return o }
	allows := object{kind: "Sidecar", name: "y", created: 9, spec: "{egress: [{hosts: ['*/*']}], outboundTrafficPolicy: {mode: ALLOW_ANY}}"}
	allowsWeb := allows
	allowsWeb.spec = "{outboundTrafficPolicy: {mode: ALLOW_ANY}, workloadSelector: {labels: {app: web}}}"
	for name, test := range map[string]struct {
		objects []object
		want    string
	}{
		"REGISTRY_ONLY":                          {[]object{with("")}, closes},
		"selects it":                             {[]object{with(web)}, closes},
		"selects others":                         {[]object{with(other)}, ""},
		"of another namespace":                   {[]object{in("other", with(""))}, ""},
		"of the root namespace":                  {[]object{in("istio-system", with(""))}, strings.Replace(closes, "shop", "istio-system", 1)},
		"of the root namespace, selects":         {[]object{in("istio-system", with(web))}, ""},
		"a selector that cannot be read":         {[]object{with(", workloadSelector: {label: {app: other}}")}, closes},
		"ALLOW_ANY":                              {[]object{{kind: "Sidecar", name: "x", spec: "{egress: [{}], outboundTrafficPolicy: {mode: ALLOW_ANY}}"}}, ""},
		"a mode that cannot be read":             {[]object{{kind: "Sidecar", name: "x", spec: "{outboundTrafficPolicy: {mode: [ALLOW_ANY]}}"}}, closes},
		"two modes":                              {[]object{{kind: "Sidecar", name: "x", spec: "{outboundTrafficPolicy: {mode: REGISTRY_ONLY, mode: ALLOW_ANY}}"}}, closes},
		"no outboundTrafficPolicy":               {[]object{{kind: "Sidecar", name: "x", spec: "{egress: [{}]}"}}, ""},
		"another one for the same workloads":     {[]object{with(""), allows}, closes},
		"another one that counts before it":      {[]object{with(""), allowsWeb}, ""},
		"another one that counts after it":       {[]object{with(web), allows}, closes},
		"of the root namespace, and one of shop": {[]object{in("istio-system", with("")), allows}, ""},
		"another API":                            {[]object{{kind: "Sidecar of networking.istio.io/v7", name: "x", spec: "{outboundTrafficPolicy: {mode: REGISTRY_ONLY}}"}}, closes},
		"no API that has the kind":               {[]object{{kind: "Sidecar of istio.io/v1", name: "x", spec: "{outboundTrafficPolicy: {mode: REGISTRY_ONLY}}"}}, closes},
	} {
		f := newFeed(t)
		f.yields(test.objects...)
		h := f.plan.Host("nobody.example.com")
		if h.Document != test.want || h.RegistryOnly != (test.want != "") || h.Hidden {
			t.Errorf("%s: refused by %q, hidden: %v, want %q\n%v", name, h.Document, h.Hidden, test.want, f.findings)
		}
		if f.allows("/"); test.want != "" {
			f.says("(in force: denial)")
		}
	}

	f := newFeed(t)
	good := object{kind: "Sidecar", name: "x", uid: 1, spec: "{egress: [{hosts: [./*]}], outboundTrafficPolicy: {mode: REGISTRY_ONLY}}"}
	worse := with("")
	worse.uid = 1
	f.yields(good)
	f.yields(worse)
	f.refused("Sidecar shop/x: last good")
	if h := f.plan.Host("api.prod.svc.cluster.local"); !h.RegistryOnly || !h.Hidden || h.Document != "Sidecar shop/x" {
		t.Errorf("the last good version is not in force: %+v", h)
	}
	f.yields()
	if h := f.plan.Host("api.prod.svc.cluster.local"); h.RegistryOnly || h.Hidden {
		t.Errorf("it is deleted, and still in force: %+v", h)
	}
}

// Calls to the hosts of a refused ServiceEntry that secures them fail as long as it would be imported: they do not leave the mesh.
func TestAlone_SidecarAndClosedHosts(t *testing.T) {
	entry := object{kind: "ServiceEntry", namespace: "ext", name: "e", spec: "{hosts: [api.example.com], location: MESH_INTERNAL, resolution: NONSENSE}"}
	rule := object{kind: "DestinationRule", namespace: "ext", name: "d", spec: "{host: web, trafficPolicy: {tls: {mode: NONSENSE}}}"}
	for hosts, hidden := range map[string]bool{"ext/*": false, "./*": true} {
		f := newFeed(t)
		f.yields(entry, rule, object{kind: "Sidecar", name: "x", spec: "{egress: [{hosts: [" + hosts + "]}]}"})
		for _, host := range []string{"api.example.com", "web.ext.svc.cluster.local"} {
			if h := f.plan.Host(host); h.Hidden != hidden || h.Known == hidden {
				t.Errorf("%s: %s is hidden: %v and known: %v, want hidden: %v\n%v", hosts, host, h.Hidden, h.Known, hidden, f.findings)
			}
		}
	}
}
