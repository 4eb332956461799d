package mesh_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/tlsid"
)

// allowing is a TrafficTarget of SMI for payment-service, with what it refers to.
func allowing(source, match string) string {
	return fmt.Sprintf(strict+`
---
apiVersion: access.smi-spec.io/v1alpha3
kind: TrafficTarget
metadata: {name: payment, namespace: default}
spec:
  destination: {kind: ServiceAccount, name: payment-service, namespace: default}
  rules: [{kind: HTTPRouteGroup, name: payments, matches: [%s]}]
  sources: [{kind: ServiceAccount, name: %s, namespace: default}]
---
apiVersion: specs.smi-spec.io/v1alpha4
kind: HTTPRouteGroup
metadata: {name: payments, namespace: default}
spec:
  matches:
  - {name: read, pathRegex: "/payments/[0-9]+$", methods: [GET]}
  - {name: debug, pathRegex: "/debug", headers: {x-debug: "on|yes"}}
`, match, source)
}

// TestTrafficTarget: over mTLS, the service account of the destination is that of the process's identity. The documents change while the
// connection goes on.
func TestTrafficTarget(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	server := w.member(t, "payment-service", allowing("order-service", "read"))
	w.serve(t, server, "payment-service", says("paid"))
	order, stranger := w.member(t, "order-service", strict).Client(), w.member(t, "stranger", strict).Client()
	check := func(c *http.Client, path string, want int, header ...string) {
		t.Helper()
		if a := get(t, c, "http://payment-service"+path, header...); a.status != want || want == http.StatusForbidden && a.body != "RBAC: access denied" {
			t.Errorf("%s is answered with %d, %q, want %d", path, a.status, a.body, want)
		}
	}
	check(order, "/payments/1", http.StatusOK)
	check(order, "/payments/1?x=/y", http.StatusOK)
	check(order, "/payments/1/items", http.StatusForbidden)
	check(order, "/payments/1/../../debug", http.StatusForbidden)
	check(order, "/debug", http.StatusForbidden, "x-debug", "on")
	check(stranger, "/payments/1", http.StatusForbidden)
	for _, step := range []struct {
		documents      string
		order, another int // for a request of each
	}{
		{allowing("stranger", "read"), http.StatusForbidden, http.StatusOK},
		{allowing("order-service", "debug"), http.StatusForbidden, http.StatusForbidden},
		{strings.ReplaceAll(allowing("order-service", "read"), "name: payments, namespace", "name: others, namespace"), http.StatusForbidden, http.StatusForbidden},
		{strings.ReplaceAll(allowing("order-service", "read"), "name: payment-service", "name: third"), http.StatusOK, http.StatusOK},
		{allowing("order-service", "read"), http.StatusOK, http.StatusForbidden},
	} {
		if err := server.Apply(yaml(step.documents)...); err != nil {
			t.Fatal(err)
		}
		check(order, "/payments/1", step.order)
		check(stranger, "/payments/1", step.another)
	}
	if err := server.Apply(yaml(allowing("order-service", "debug"))...); err != nil {
		t.Fatal(err)
	}
	check(order, "/debug/x", http.StatusOK, "x-debug", "yes")
	check(order, "/debug/x", http.StatusForbidden, "x-debug", "yes, but no")
}

// Over plaintext nobody has a service account.
func TestTrafficTargetOverPlaintext(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	server := w.member(t, "payment-service", strings.Replace(allowing("order-service", "read"), "STRICT", "PERMISSIVE", 1))
	e := w.serve(t, server, "payment-service", says("paid"))
	resp, err := http.Get("http://" + addressOf(e) + "/payments/1")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("the answer is %d", resp.StatusCode)
	}
}

// A TrafficTarget with a TCPRoute allows raw connections to its ports, and one with an HTTPRouteGroup allows none.
func TestTrafficTargetOfRawConnections(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	inner := rawtest.Listen(t)
	server := w.member(t, "postgres", "", mesh.WithEmptyPolicy())
	rawtest.Serve(t, server.ListenTCP(inner), func(c net.Conn) { io.WriteString(c, "hello") })
	e := endpointOf(t, inner.Addr().String())
	e.ServiceAccount = "postgres"
	w.registry.Set("postgres", e)
	client := w.member(t, "order-service", strict)
	const documents = strict + `
---
apiVersion: access.smi-spec.io/v1alpha3
kind: TrafficTarget
metadata: {name: db, namespace: default}
spec:
  destination: {kind: ServiceAccount, name: postgres}
  rules: [{kind: TCPRoute, name: ports}%s]
  sources: [{kind: ServiceAccount, name: %s, namespace: default}]
---
apiVersion: specs.smi-spec.io/v1alpha4
kind: TCPRoute
metadata: {name: ports, namespace: default}
spec: {matches: {ports: [%d]}}
---
apiVersion: specs.smi-spec.io/v1alpha4
kind: HTTPRouteGroup
metadata: {name: all, namespace: default}
spec: {matches: [{name: all}]}
`
	port := int(e.Port)
	for _, test := range []struct {
		more, source string
		port         int
		want         string
	}{
		{"", "order-service", port, "hello"},
		{"", "stranger", port, ""},
		{"", "order-service", port%60000 + 1, ""},
		{", {kind: HTTPRouteGroup, name: all}", "order-service", port, ""},
	} {
		if err := server.Apply(yaml(fmt.Sprintf(documents, test.more, test.source, test.port))...); err != nil {
			t.Fatal(err)
		}
		got := ""
		conn, err := client.DialContext(t.Context(), "tcp", "postgres:5432")
		if err == nil {
			text, _ := io.ReadAll(conn)
			conn.Close()
			got = string(text)
		}
		if got != test.want {
			t.Errorf("%+v: the connection says %q, %v", test, got, err)
		}
	}
}

// The service account comes from the identity, or from WithWorkload. If neither says it, requests are denied, and the finding says what to set.
func TestTrafficTargetNeedsTheServiceAccount(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	var loads []mesh.PolicyLoad
	observed := mesh.WithObserver(mesh.Observer{PolicyLoad: func(l mesh.PolicyLoad) { loads = append(loads, l) }})
	const documents = "apiVersion: access.smi-spec.io/v1alpha3\nkind: TrafficTarget\nmetadata: {name: x, namespace: default}\nspec:\n" +
		"  destination: {kind: ServiceAccount, name: payment-service}\n  rules: [{kind: TCPRoute, name: x}]\n  sources: [{kind: ServiceAccount, name: a, namespace: default}]\n" +
		"---\napiVersion: specs.smi-spec.io/v1alpha1\nkind: TCPRoute\nmetadata: {name: x, namespace: default}\n"
	for account, want := range map[string]int{"": http.StatusForbidden, "payment-service": http.StatusForbidden, "another": http.StatusOK} {
		loads = nil
		m := newMesh(t, documents, observed, mesh.WithWorkload(policy.Workload{ServiceAccount: account}))
		e := serveMesh(t, m, says("paid"))
		resp, err := http.Get("http://" + addressOf(e) + "/")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%q: the answer is %d, want %d", account, resp.StatusCode, want)
		}
		if told := len(loads) > 0 && strings.Contains(loads[0].Findings.Error(), "set ServiceAccount in mesh.WithWorkload"); told != (account == "") {
			t.Errorf("%q: the loads are %+v", account, loads)
		}
	}
	_, err := mesh.New(t.Context(), mesh.WithEmptyPolicy(), mesh.WithIdentity(w.Source("default", "payment-service")),
		mesh.WithWorkload(policy.Workload{ServiceAccount: "order-service"}))
	if err == nil || !strings.Contains(err.Error(), "is of the service account payment-service, and the workload is of order-service: correct ServiceAccount") {
		t.Errorf("New with an identity of another service account: %v", err)
	}
	first, second := w.identity(t, "payment-service"), w.identity(t, "order-service")
	source := make(lateSource, 2)
	source <- first
	m := newMesh(t, "", mesh.WithEmptyPolicy(), mesh.WithIdentity(source))
	source <- second
	source <- first
	if id, err := m.Identity(); err != nil || id.ID() != first.ID() {
		t.Errorf("after another service account the identity is %v, %v", id, err)
	}
	var _ tlsid.Source = source
}
