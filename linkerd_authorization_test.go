package mesh_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/policy"
)

// serverOf is a Server of Linkerd for a port of payment-service.
func serverOf(port any, more string) string {
	return fmt.Sprintf("---\napiVersion: policy.linkerd.io/v1beta3\nkind: Server\nmetadata: {name: payment, namespace: default, labels: {of: payment}}\n"+
		"spec: {podSelector: {matchLabels: {app: payment-service}}, port: %v%s}\n", port, more)
}

func serverAuthorization(client string) string {
	return "---\napiVersion: policy.linkerd.io/v1beta1\nkind: ServerAuthorization\nmetadata: {name: payment, namespace: default}\n" +
		"spec: {server: {selector: {matchLabels: {of: payment}}}, client: {" + client + "}}\n"
}

func authorizationPolicy(refs string) string {
	return "---\napiVersion: policy.linkerd.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: payment, namespace: default}\n" +
		"spec: {targetRef: {group: policy.linkerd.io, kind: Server, name: payment}, requiredAuthenticationRefs: [" + refs + "]}\n"
}

const (
	ordersAlone = "---\napiVersion: policy.linkerd.io/v1alpha1\nkind: MeshTLSAuthentication\nmetadata: {name: orders, namespace: auth}\n" +
		"spec: {identities: [order-service.default.serviceaccount.identity.linkerd.cluster.local]}\n"
	loopback  = "---\napiVersion: policy.linkerd.io/v1alpha1\nkind: NetworkAuthentication\nmetadata: {name: here, namespace: auth}\nspec: {networks: [{cidr: 127.0.0.0/8}]}\n"
	elsewhere = "---\napiVersion: policy.linkerd.io/v1alpha1\nkind: NetworkAuthentication\nmetadata: {name: here, namespace: auth}\n" +
		"spec: {networks: [{cidr: 127.0.0.0/8, except: [127.0.0.1]}]}\n"
	byOrders = "{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: orders, namespace: auth}"
	fromHere = "{group: policy.linkerd.io, kind: NetworkAuthentication, name: here, namespace: auth}"
)

// linkerdTown is a payment-service that two services and a client without an identity call.
type linkerdTown struct {
	server  *mesh.Mesh
	port    int
	other   string // the URL of another port
	clients map[string]*http.Client
}

func newLinkerdTown(t *testing.T, opts ...mesh.Option) *linkerdTown {
	w := newTown(t)
	l := &linkerdTown{server: w.member(t, "payment-service", "", opts...)}
	e := w.serve(t, l.server, "payment-service", whoCalls)
	l.port = int(e.Port)
	l.other = "http://" + addressOf(serveMesh(t, l.server, whoCalls))
	l.clients = map[string]*http.Client{
		"order":     w.member(t, "order-service", strict).Client(),
		"cart":      w.member(t, "cart-service", strict).Client(),
		"plaintext": newMesh(t, "", mesh.WithDiscovery(&w.registry)).Client(),
	}
	return l
}

// asks checks with which status each client is answered: "order 200, cart 403, plaintext 403".
func (l *linkerdTown) asks(t *testing.T, name, want string) {
	t.Helper()
	var got []string
	for _, client := range []string{"order", "cart", "plaintext"} {
		a, err := try(l.clients[client], "http://payment-service/")
		if err != nil {
			t.Errorf("%s: %s: %v", name, client, err)
			continue
		}
		got = append(got, fmt.Sprintf("%s %d", client, a.resp.StatusCode))
	}
	if got := strings.Join(got, ", "); got != want {
		t.Errorf("%s: %s, want %s", name, got, want)
	}
}

func (l *linkerdTown) apply(t *testing.T, documents string) {
	t.Helper()
	if err := l.server.Apply(policy.Source{Name: "linkerd.yaml", Data: []byte(documents)}); err != nil {
		t.Fatal(err)
	}
}

const (
	allPass   = "order 200, cart 200, plaintext 200"
	orderOnly = "order 200, cart 403, plaintext 403"
	nobody    = "order 403, cart 403, plaintext 403"
	known     = "order 200, cart 200, plaintext 403"
)

func TestLinkerd_ServersAndWhatAuthorizes(t *testing.T) {
	noLeaks(t)
	l := newLinkerdTown(t)
	l.asks(t, "without documents", allPass)
	server := serverOf(l.port, "")
	const orders = "meshTLS: {serviceAccounts: [{name: order-service}]}"
	for _, test := range []struct{ name, documents, want string }{
		{"a Server alone", server, nobody},
		{"one for another port", serverOf(l.port+1, ""), allPass},
		{"one that lets all in", serverOf(l.port, ", accessPolicy: all-unauthenticated"), allPass},
		{"one that lets those with an identity in", serverOf(l.port, ", accessPolicy: all-authenticated"), known},
		{"one that audits", serverOf(l.port, ", accessPolicy: audit"), allPass},
		{"a ServerAuthorization of one", server + serverAuthorization(orders), orderOnly},
		{"of all with an identity", server + serverAuthorization(`meshTLS: {identities: ["*"]}`), known},
		{"of all in a namespace", server + serverAuthorization(`meshTLS: {identities: ["*.default.serviceaccount.identity.linkerd.cluster.local"]}`), known},
		{"of all in another namespace", server + serverAuthorization(`meshTLS: {identities: ["*.shop.serviceaccount.identity.linkerd.cluster.local"]}`), nobody},
		{"by SPIFFE ID", server + serverAuthorization(`meshTLS: {identities: ["spiffe://cluster.local/ns/default/sa/order-service"]}`), orderOnly},
		{"with TLS", server + serverAuthorization("meshTLS: {unauthenticatedTLS: true}"), known},
		{"of everybody", server + serverAuthorization("unauthenticated: true"), allPass},
		{"in a network", server + serverAuthorization("unauthenticated: true, networks: [{cidr: 127.0.0.1}]"), allPass},
		{"in another network", server + serverAuthorization(orders+", networks: [{cidr: 10.0.0.0/8}]"), nobody},
		{"in a network without this address", server + serverAuthorization(orders+", networks: [{cidr: 127.0.0.0/8, except: [127.0.0.1]}]"), nobody},
		{"an AuthorizationPolicy", server + ordersAlone + authorizationPolicy(byOrders), orderOnly},
		{"of what is not there", server + authorizationPolicy(byOrders), nobody},
		{"of a network", server + loopback + authorizationPolicy(fromHere), allPass},
		{"of both", server + ordersAlone + loopback + authorizationPolicy(byOrders+", "+fromHere), orderOnly},
		{"of both, elsewhere", server + ordersAlone + elsewhere + authorizationPolicy(byOrders+", "+fromHere), nobody},
		{"of both, one of which is not there", server + ordersAlone + authorizationPolicy(byOrders+", "+fromHere), nobody},
		{"of a ServiceAccount", server + authorizationPolicy("{kind: ServiceAccount, name: order-service}"), orderOnly},
		{"of nothing", server + authorizationPolicy(""), allPass},
		{"two that authorize", server + serverAuthorization(orders) + authorizationPolicy("{kind: ServiceAccount, name: cart-service}"), known},
		{"no Server again", serverAuthorization(orders), allPass},
	} {
		l.apply(t, test.documents)
		l.asks(t, test.name, test.want)
		if a, err := try(l.clients["plaintext"], l.other); err != nil || a.resp.StatusCode != http.StatusOK {
			t.Errorf("%s: at another port: %v, %v", test.name, a.resp, err)
		}
	}
}

// What Linkerd allows, an AuthorizationPolicy of Istio may deny, and the other way round.
func TestLinkerd_BesideIstio(t *testing.T) {
	noLeaks(t)
	l := newLinkerdTown(t)
	istio := func(rule string) string {
		return "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: default}\nspec: {" + rule + "}\n"
	}
	const orders = "rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/order-service]}}]}]"
	l.apply(t, serverOf(l.port, ", accessPolicy: all-unauthenticated")+istio(orders))
	l.asks(t, "Istio allows one", orderOnly)
	l.apply(t, serverOf(l.port, ", accessPolicy: all-authenticated")+istio("action: DENY, "+orders))
	l.asks(t, "Istio denies one", "order 403, cart 200, plaintext 403")
	l.apply(t, serverOf(l.port, "")+istio("rules: [{}]"))
	l.asks(t, "Linkerd allows nobody", nobody)
}

func TestLinkerd_DocumentBrokenWhileRunning(t *testing.T) {
	noLeaks(t)
	l := newLinkerdTown(t)
	good := serverOf(l.port, "") + serverAuthorization("meshTLS: {serviceAccounts: [{name: order-service}]}")
	l.apply(t, good)
	for _, broken := range []string{
		serverOf(0, ""), serverOf(l.port, ", accessPolicy: some"), serverOf(l.port, ", proxyProtocol: SMTP"), serverOf(`"8080"`, ""),
		good + serverAuthorization("{}"), strings.Replace(good, "serviceAccounts", "accounts", 1), strings.Replace(good, "v1beta3", "v1", 1),
		strings.Replace(good, "podSelector:", "podselector:", 1), strings.Replace(good, "client: {meshTLS", "client: {unauthenticated: true, meshTLS", 1),
		good + strings.Replace(serverOf(l.port, ""), "name: payment", "name: second", 1),
	} {
		err := l.server.Apply(policy.Source{Name: "linkerd.yaml", Data: []byte(broken)})
		findings, ok := errors.AsType[policy.Findings](err)
		if !ok || findings[0].File == "" || findings[0].Line == 0 || findings[0].Field == "" {
			t.Errorf("%s: %v, want an error with file, line and field", broken, err)
		}
		l.asks(t, "after a broken document", orderOnly)
	}
	if _, err := mesh.New(t.Context(), mesh.WithPolicy(policy.Source{Name: "linkerd.yaml", Data: []byte(serverOf(0, ""))})); err == nil {
		t.Error("New with a broken Server: no error")
	}
}

// A Server whose port is not known by its name protects every port, until the program says which one it is.
func TestLinkerd_NamedPort(t *testing.T) {
	noLeaks(t)
	l := newLinkerdTown(t)
	other := func() int { return get(t, l.clients["plaintext"], l.other).resp.StatusCode }
	l.apply(t, serverOf("http", ""))
	l.asks(t, "a port that is not known", nobody)
	if got := other(); got != http.StatusForbidden {
		t.Errorf("the other port: %d, want 403", got)
	}

	ln := rawtest.Listen(t)
	port := ln.Addr().(*net.TCPAddr).Port
	named := newMesh(t, serverOf("http", ""), mesh.WithWorkload(policy.Workload{
		Labels: map[string]string{"app": "payment-service"}, Ports: map[string]int{"http": port},
	}))
	srv := &http.Server{Handler: named.Handler(says("hello"))}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(named.Listen(ln)) }()
	defer func() { srv.Close(); <-done }()
	plain := newMesh(t, "").Client()
	if got := get(t, plain, "http://"+ln.Addr().String()).resp.StatusCode; got != http.StatusForbidden {
		t.Errorf("the port of that name: %d, want 403", got)
	}
	if got := get(t, plain, "http://"+addressOf(serveMesh(t, named, says("hello")))).resp.StatusCode; got != http.StatusOK {
		t.Errorf("another one: %d, want 200", got)
	}
}

// A Server for HTTP denies raw connections, whoever makes them.
func TestLinkerd_RawConnections(t *testing.T) {
	noLeaks(t)
	for protocol, want := range map[string]bool{"unknown": true, "opaque": true, "TLS": true, "HTTP/1": false, "HTTP/2": false, "gRPC": false} {
		m := newMesh(t, "", mesh.WithWorkload(policy.Workload{Labels: map[string]string{"app": "payment-service"}}))
		ln := rawtest.Listen(t)
		if err := m.Apply(policy.Source{Name: "linkerd.yaml", Data: []byte(
			serverOf(ln.Addr().(*net.TCPAddr).Port, ", accessPolicy: all-unauthenticated, proxyProtocol: "+protocol))}); err != nil {
			t.Fatal(err)
		}
		tcp := m.ListenTCP(ln)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				conn, err := tcp.Accept()
				if err != nil {
					return
				}
				io.ReadFull(conn, make([]byte, 1))
				io.WriteString(conn, "hello")
				conn.Close()
			}
		}()
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, "x") // PERMISSIVE waits for the first byte
		said, _ := io.ReadAll(conn)
		conn.Close()
		tcp.Close()
		<-done
		if got := string(said) == "hello"; got != want {
			t.Errorf("%s: the connection is accepted: %t, want %t", protocol, got, want)
		}
	}
}

// The reason of a denial is told to observers, and not to the peer.
func TestLinkerd_ReasonOfADenial(t *testing.T) {
	noLeaks(t)
	var seen mesh.Inbound
	ended := make(chan struct{}, 1)
	observer := mesh.Observer{InboundEnd: func(_ context.Context, in *mesh.Inbound) { seen = *in; ended <- struct{}{} }}
	m := newMesh(t, "", mesh.WithObserver(observer), mesh.WithWorkload(policy.Workload{Labels: map[string]string{"app": "payment-service"}}))
	e := serveMesh(t, m, says("hello"))
	if err := m.Apply(policy.Source{Name: "linkerd.yaml", Data: []byte(serverOf(e.Port, ""))}); err != nil {
		t.Fatal(err)
	}
	a := get(t, newMesh(t, "").Client(), "http://"+addressOf(e))
	<-ended
	if a.resp.StatusCode != http.StatusForbidden || strings.Contains(a.body, "Linkerd") || !strings.Contains(seen.Decision.Reason, "Server default/payment of Linkerd") {
		t.Errorf("%d %q, reason %q", a.resp.StatusCode, a.body, seen.Decision.Reason)
	}
}
