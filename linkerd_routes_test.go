package mesh_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy"
)

// serverRoute is an HTTPRoute that is attached to the Server payment.
func serverRoute(group, name, rules string) string {
	return fmt.Sprintf("---\napiVersion: %s\nkind: HTTPRoute\nmetadata: {name: %s, namespace: default}\n"+
		"spec: {parentRefs: [{group: policy.linkerd.io, kind: Server, name: payment}], rules: [%s]}\n", group, name, rules)
}

// policyOf is an AuthorizationPolicy of Linkerd for a target and a service account; "" for everybody.
func policyOf(target, account string) string {
	refs := ""
	if account != "" {
		refs = "{kind: ServiceAccount, name: " + account + "}"
	}
	group, kind, name := "policy.linkerd.io", "HTTPRoute", target
	if target == "payment" {
		kind = "Server"
	}
	if of, ok := strings.CutPrefix(target, "gateway/"); ok {
		group, name = "gateway.networking.k8s.io", of
	}
	return fmt.Sprintf("---\napiVersion: policy.linkerd.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: %s-%s, namespace: default}\n"+
		"spec: {targetRef: {group: %s, kind: %s, name: %s}, requiredAuthenticationRefs: [%s]}\n", name, account+"x", group, kind, name, refs)
}

const (
	linkerdsOwn = "policy.linkerd.io/v1beta3"
	gatewaysOwn = "gateway.networking.k8s.io/v1"
)

// get checks with which status the clients order, cart and plaintext are answered for a path.
func (l *linkerdTown) get(t *testing.T, name, path, want string, header ...string) {
	t.Helper()
	var got []string
	for _, client := range []string{"order", "cart", "plaintext"} {
		a, err := try(l.clients[client], "http://payment-service"+path, header...)
		if err != nil {
			t.Fatalf("%s: %s: %v", name, client, err)
		}
		got = append(got, fmt.Sprint(a.resp.StatusCode))
	}
	if got := strings.Join(got, " "); got != want {
		t.Errorf("%s: GET %s: %s, want %s", name, path, got, want)
	}
}

func TestLinkerd_RoutesOfServers(t *testing.T) {
	noLeaks(t)
	l := newLinkerdTown(t)
	server := serverOf(l.port, "")
	const (
		public    = "{matches: [{path: {value: /public}}]}"
		admin     = "{matches: [{path: {value: /admin}}]}"
		all       = "{}"
		anybody   = "200 200 200"
		orders    = "200 403 403"
		none      = "403 403 403"
		notFound  = "404 404 404"
		oddPublic = "/public/..%2Fadmin"
	)
	type asked struct{ path, want string }
	for _, test := range []struct {
		name, documents string
		asked           []asked
		header          []string
	}{
		{name: "a route without a policy", documents: server + serverRoute(linkerdsOwn, "r", public), asked: []asked{{"/public", none}, {"/other", notFound}}},
		{name: "a policy of the route", documents: server + serverRoute(linkerdsOwn, "r", public) + policyOf("r", "order-service"),
			asked: []asked{{"/public", orders}, {"/public/x", orders}, {"/publicly", notFound}, {"/", notFound}}},
		{name: "of a route of the Gateway API", documents: server + serverRoute(gatewaysOwn, "r", public) + policyOf("gateway/r", "order-service"), asked: []asked{{"/public", orders}, {"/", notFound}}},
		{name: "of a route with that name in the other group", documents: server + serverRoute(gatewaysOwn, "r", public) + policyOf("r", "order-service"), asked: []asked{{"/public", none}}},
		{name: "a policy of everybody", documents: server + serverRoute(linkerdsOwn, "r", public) + policyOf("r", ""), asked: []asked{{"/public", anybody}, {"/", notFound}}},
		{name: "a policy of the Server", documents: server + serverRoute(linkerdsOwn, "r", public) + policyOf("payment", "order-service"), asked: []asked{{"/public", orders}, {"/", notFound}}},
		{name: "an access policy", documents: serverOf(l.port, ", accessPolicy: all-authenticated") + serverRoute(linkerdsOwn, "r", public), asked: []asked{{"/public", "200 200 403"}, {"/", notFound}}},
		{name: "a ServerAuthorization", documents: server + serverAuthorization("meshTLS: {serviceAccounts: [{name: order-service}]}") + serverRoute(linkerdsOwn, "r", public), asked: []asked{{"/public", orders}}},
		{name: "the more specific route counts", documents: server + serverRoute(linkerdsOwn, "a", all) + serverRoute(linkerdsOwn, "b", admin) + policyOf("a", "") + policyOf("b", "order-service"),
			asked: []asked{{"/", anybody}, {"/admin", orders}, {"/admin/x", orders}, {"/administration", anybody}, {"/ADMIN", anybody}}},
		{name: "under every reading of the path", documents: server + serverRoute(linkerdsOwn, "a", all) + serverRoute(linkerdsOwn, "b", admin) + policyOf("a", "") + policyOf("b", "order-service"),
			asked: []asked{{"//admin", orders}, {"/x/../admin", orders}, {oddPublic, orders}, {"/admin;x", orders}, {"/%61dmin", orders}, {"/x/%2e%2e/admin", orders}, {`/x%5C..%5Cadmin`, orders}}},
		{name: "a way around to a public route", documents: server + serverRoute(linkerdsOwn, "a", public) + policyOf("a", ""), asked: []asked{{oddPublic, none}, {"/public/../admin", notFound}, {"/x/../public", anybody}}},
		{name: "an expression before a prefix", documents: server + serverRoute(linkerdsOwn, "a", all) + serverRoute(linkerdsOwn, "b", "{matches: [{path: {type: RegularExpression, value: '/[a-z]+/secret'}}]}") +
			policyOf("a", "") + policyOf("b", "order-service"), asked: []asked{{"/x/secret", orders}, {"/x/secrets", anybody}}},
		{name: "methods", documents: server + serverRoute(linkerdsOwn, "a", "{matches: [{method: POST}]}") + policyOf("a", ""), asked: []asked{{"/", notFound}}},
		{name: "headers", documents: server + serverRoute(linkerdsOwn, "a", "{matches: [{headers: [{name: x-of, value: '*'}]}]}") + policyOf("a", ""), asked: []asked{{"/", anybody}}, header: []string{"X-Of", "*"}},
		{name: "other headers", documents: server + serverRoute(linkerdsOwn, "a", "{matches: [{headers: [{name: x-of, value: '*'}]}]}") + policyOf("a", ""), asked: []asked{{"/", notFound}}, header: []string{"X-Of", "any"}},
		{name: "a header that nobody without an identity may assert", documents: server + serverRoute(linkerdsOwn, "a", "{matches: [{headers: [{name: x-envoy-of, value: a}]}]}") + policyOf("a", ""),
			asked: []asked{{"/", "200 200 404"}}, header: []string{"X-Envoy-Of", "a"}},
		{name: "hosts", documents: server + strings.Replace(serverRoute(linkerdsOwn, "a", all), "rules", "hostnames: ['*.example.com'], rules", 1) + policyOf("a", ""), asked: []asked{{"/", anybody}}, header: []string{"Host", "a.example.com:80"}},
		{name: "a host with what is no port", documents: server + strings.Replace(serverRoute(linkerdsOwn, "a", all), "rules", "hostnames: [a.example.com], rules", 1) + policyOf("a", "order-service") +
			strings.Replace(serverRoute(linkerdsOwn, "b", all), "rules", "hostnames: ['*.example.org'], rules", 1) + serverRoute(linkerdsOwn, "c", all) + policyOf("b", "") + policyOf("c", ""),
			asked: []asked{{"/", orders}}, header: []string{"Host", "a.example.com:x.example.org"}},
		{name: "other hosts", documents: server + strings.Replace(serverRoute(linkerdsOwn, "a", all), "rules", "hostnames: ['*.example.com'], rules", 1) + policyOf("a", ""), asked: []asked{{"/", notFound}}},
		{name: "a route of another Server", documents: server + strings.Replace(serverRoute(linkerdsOwn, "r", public), "name: payment}", "name: other}", 1) + policyOf("payment", ""), asked: []asked{{"/public", anybody}, {"/", anybody}}},
		{name: "a Server for gRPC", documents: serverOf(l.port, ", proxyProtocol: gRPC") + serverRoute(linkerdsOwn, "r", public) + policyOf("payment", ""), asked: []asked{{"/public", anybody}, {"/", anybody}}},
		{name: "no route again", documents: server + policyOf("payment", "order-service"), asked: []asked{{"/", orders}}},
	} {
		l.apply(t, test.documents)
		for _, a := range test.asked {
			l.get(t, test.name, a.path, a.want, test.header...)
		}
	}
}

// Documents with a mistake change nothing.
func TestLinkerd_RouteBrokenWhileRunning(t *testing.T) {
	noLeaks(t)
	l := newLinkerdTown(t)
	good := serverOf(l.port, "") + serverRoute(linkerdsOwn, "r", "{matches: [{path: {value: /public}}]}") + policyOf("r", "order-service")
	l.apply(t, good)
	for _, broken := range []struct{ field, from, to string }{
		{"spec.rules[0].filters[0]", "{matches:", "{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [a]}}], matches:"},
		{"spec.rules[0].filters[0]", "{matches:", "{filters: [{type: RequestRedirect, requestRedirect: {hostname: a}}], matches:"},
		{"spec.rules[0].matches[0].queryParams", "{path:", "{queryParams: [{name: a, value: b}], path:"},
		{"spec.rules[0].matches[0]", "{path:", "{headers: [{name: transfer-encoding, value: b}], path:"},
		{"spec.parentRefs[0].port", "name: payment}]", "name: payment, port: 80}]"},
		{"spec.parentRefs[0].sectionName", "name: payment}]", "name: payment, sectionName: a}]"},
		{"spec.parentRefs[0].namespace", "name: payment}]", "name: payment, namespace: other}]"},
		{"spec.hostnames[0]", "rules:", "hostnames: ['*'], rules:"},
		{"spec.targetRef", "kind: HTTPRoute, name: r", "kind: GRPCRoute, name: r"},
	} {
		text := strings.Replace(good, broken.from, broken.to, 1)
		err := l.server.Apply(policy.Source{Name: "linkerd.yaml", Data: []byte(text)})
		if findings, ok := err.(policy.Findings); !ok || findings[0].Field != broken.field || findings[0].Line == 0 {
			t.Errorf("%s: %v, want an error there", broken.field, err)
		}
		l.get(t, "after a broken document", "/public", "200 403 403")
		l.get(t, "after a broken document", "/", "404 404 404")
	}
}

// The kubelet's probes have no identity. A route and the network of the nodes let them in, and nobody else.
func TestLinkerd_Probes(t *testing.T) {
	noLeaks(t)
	l := newLinkerdTown(t)
	probes := serverRoute(linkerdsOwn, "probes", "{matches: [{path: {type: Exact, value: /healthz}, method: GET}]}") + serverRoute(linkerdsOwn, "rest", "{}") +
		"---\napiVersion: policy.linkerd.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: probes, namespace: default}\n" +
		"spec: {targetRef: {group: policy.linkerd.io, kind: HTTPRoute, name: probes}, requiredAuthenticationRefs: [" + fromHere + "]}\n" + policyOf("rest", "order-service")
	l.apply(t, serverOf(l.port, "")+probes+loopback)
	l.get(t, "from the nodes", "/healthz", "200 200 200")
	l.get(t, "from the nodes", "/", "200 403 403")
	l.apply(t, serverOf(l.port, "")+probes+elsewhere)
	l.get(t, "from elsewhere", "/healthz", "403 403 403")
	if a := get(t, l.clients["order"], "http://payment-service/"); a.resp.StatusCode != http.StatusOK {
		t.Errorf("the caller: %d", a.resp.StatusCode)
	}
}
