package realservers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/consul/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery/consul"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/meshgrpc"
	entries "github.com/nosidecar/mesh/policy/consul"
	"github.com/nosidecar/mesh/realservers/servers"
	identities "github.com/nosidecar/mesh/tlsid/consul"
)

// native is services of Connect without sidecars, on one agent.
type native struct {
	t      *testing.T
	agent  *servers.Consul
	client *api.Client
}

// member makes the mesh of a process of a service. Everything that it knows comes from Consul.
func (n *native) member(service string, opts ...mesh.Option) *mesh.Mesh {
	n.t.Helper()
	resolver, err := consul.New(n.client, consul.Config{})
	if err != nil {
		n.t.Fatal(err)
	}
	m, err := mesh.New(n.t.Context(), append([]mesh.Option{
		mesh.WithDiscovery(resolver), mesh.WithIdentity(identities.Source{Service: service, Client: n.client}),
		mesh.WithPolicyFeed(&entries.Intentions{Service: service, Client: n.client}),
	}, opts...)...)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { m.Close() })
	return m
}

// listen listens for a service and registers that as an instance which speaks mTLS itself.
func (n *native) listen(service string) net.Listener {
	n.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { ln.Close() })
	err = n.client.Agent().ServiceRegister(&api.AgentServiceRegistration{
		Name: service, Address: "127.0.0.1", Port: ln.Addr().(*net.TCPAddr).Port, Connect: &api.AgentServiceConnect{Native: true},
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return ln
}

// serve serves HTTP as a service. It answers with who calls.
func (n *native) serve(service string) {
	n.t.Helper()
	m, inner := n.member(service), n.listen(service)
	s := &http.Server{Handler: m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, mesh.PeerID(r.Context()))
	}))}
	go s.Serve(m.Listen(inner))
	n.t.Cleanup(func() { s.Close() })
}

// serveGRPC serves gRPC's health service as a service.
func (n *native) serveGRPC(service string) {
	n.t.Helper()
	m, inner := n.member(service), n.listen(service)
	s := grpc.NewServer(meshgrpc.ServerOptions(m)...)
	grpc_health_v1.RegisterHealthServer(s, health.NewServer())
	go s.Serve(m.Listen(inner))
	n.t.Cleanup(s.Stop)
}

// serveRaw echoes what it reads as a service.
func (n *native) serveRaw(service string) {
	n.t.Helper()
	m, inner := n.member(service), n.listen(service)
	ln := m.ListenTCP(inner)
	n.t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
}

// intend writes who may call a service.
func (n *native) intend(service, caller, action string) {
	n.t.Helper()
	entry := &api.ServiceIntentionsConfigEntry{Kind: "service-intentions", Name: service, Sources: []*api.SourceIntention{{Name: caller, Action: api.IntentionAction(action)}}}
	if _, _, err := n.client.ConfigEntries().Set(entry, nil); err != nil {
		n.t.Fatal(err)
	}
}

// side is the calling side.
type side struct {
	t    *testing.T
	mesh *mesh.Mesh
	http *http.Client
	grpc grpc_health_v1.HealthClient
}

func (n *native) caller(service string) *side {
	n.t.Helper()
	m := n.member(service)
	conn, err := grpc.NewClient("mesh:///rpc:80", meshgrpc.DialOptions(m)...)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { conn.Close() })
	return &side{n.t, m, m.Client(), grpc_health_v1.NewHealthClient(conn)}
}

// get returns what the service web answers, and whether it was asked over a connection that was open already.
func (s *side) get() (code int, body string, reused bool, err error) {
	ctx := httptrace.WithClientTrace(s.t.Context(), &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) { reused = info.Reused }})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://web/", nil)
	if err != nil {
		return 0, "", false, err
	}
	resp, err := s.http.Do(req)
	if err != nil {
		return 0, "", false, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(data), reused, err
}

func (s *side) check() error {
	_, err := s.grpc.Check(s.t.Context(), &grpc_health_v1.HealthCheckRequest{})
	return err
}

// echo sends a byte to the service raw and has it back.
func (s *side) echo() (net.Conn, error) {
	conn, err := s.mesh.DialContext(s.t.Context(), "tcp", "raw:80")
	if err != nil {
		return nil, err
	}
	if _, err = io.WriteString(conn, "x"); err == nil {
		_, err = io.ReadFull(conn, make([]byte, 1))
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func startNative(t *testing.T, extra map[string]any) *native {
	t.Helper()
	agent := servers.StartConsul(t, servers.ConsulConfig{Extra: extra})
	return &native{t, agent, consulClient(t, agent, nil)}
}

// Processes with certificates of Connect call each other over HTTP, gRPC and raw TCP; an intention turned to deny refuses the next
// request on an open connection; and without the agent all of that goes on.
func TestConsulConnect(t *testing.T) {
	n := startNative(t, nil)
	for _, service := range []string{"web", "rpc", "raw"} {
		n.intend(service, "api", "allow")
	}
	n.serve("web")
	n.serveGRPC("rpc")
	n.serveRaw("raw")
	api := n.caller("api")
	own, err := api.mesh.Identity()
	if err != nil {
		t.Fatal(err)
	}
	works := func(when string) (open net.Conn) {
		t.Helper()
		await.True(t, "the services to be found "+when, func() bool {
			code, body, _, err := api.get()
			return err == nil && code == http.StatusOK && body == own.ID().String()
		})
		await.True(t, "a call of gRPC to succeed "+when, func() bool { return api.check() == nil })
		await.True(t, "a raw connection "+when, func() bool { open, err = api.echo(); return err == nil })
		return open
	}
	open := works("at first")
	defer open.Close()

	other := n.caller("other")
	if code, _, _, err := other.get(); err != nil || code != http.StatusForbidden {
		t.Errorf("a service that no intention names: %d, %v", code, err)
	}
	if err := other.check(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a service that no intention names, over gRPC: %v", err)
	}
	if conn, err := other.echo(); err == nil {
		conn.Close()
		t.Error("a service that no intention names has a raw connection")
	}

	for _, service := range []string{"web", "rpc", "raw"} {
		n.intend(service, "api", "deny")
	}
	var reused bool
	await.True(t, "requests to be refused", func() bool {
		var code int
		code, _, reused, err = api.get()
		return err == nil && code == http.StatusForbidden
	})
	if !reused {
		t.Error("the request was refused over a new connection")
	}
	await.True(t, "calls of gRPC to be refused", func() bool { return status.Code(api.check()) == codes.PermissionDenied })
	if _, err := open.Read(make([]byte, 1)); err == nil {
		t.Error("the open raw connection goes on")
	}
	if conn, err := api.echo(); err == nil {
		conn.Close()
		t.Error("a raw connection is served")
	}

	for _, service := range []string{"web", "rpc", "raw"} {
		n.intend(service, "api", "allow")
	}
	works("again").Close()
	n.agent.Kill()
	for range 20 {
		if code, _, _, err := api.get(); err != nil || code != http.StatusOK {
			t.Fatalf("without the agent: %d, %v", code, err)
		}
		if err := api.check(); err != nil {
			t.Fatalf("without the agent, over gRPC: %v", err)
		}
	}
	if conn, err := api.echo(); err != nil {
		t.Errorf("without the agent, over a raw connection: %v", err)
	} else {
		conn.Close()
	}
	if code, _, _, err := other.get(); err != nil || code != http.StatusForbidden {
		t.Errorf("a service that no intention names, without the agent: %d, %v", code, err)
	}
	n.agent.Restart(t)
	n.intend("web", "api", "deny")
	await.True(t, "the agent that is back to be followed", func() bool {
		code, _, _, err := api.get()
		return err == nil && code == http.StatusForbidden
	})
}

// A new root with a key of another type, and certificates of it, come while calls are made: none fails.
func TestConsulConnectRotatesUnderLoad(t *testing.T) {
	n := startNative(t, map[string]any{"connect": map[string]any{"enabled": true, "test_ca_leaf_root_change_spread": "2s"}})
	n.intend("web", "api", "allow")
	n.serve("web")
	api := n.caller("api")
	await.True(t, "a call to succeed", func() bool { code, _, _, err := api.get(); return err == nil && code == http.StatusOK })
	before, err := api.mesh.Identity()
	if err != nil {
		t.Fatal(err)
	}

	ctx, stop := context.WithCancel(t.Context())
	var calls, failed atomic.Int64
	var load sync.WaitGroup
	for range 2 {
		load.Go(func() {
			for ctx.Err() == nil {
				code, _, _, err := api.get()
				if calls.Add(1); err != nil || code != http.StatusOK {
					failed.Add(1)
					t.Logf("a call failed: %d, %v", code, err)
				}
			}
		})
	}
	config := &consulCA{Provider: "consul", Config: map[string]any{"PrivateKeyType": "ec", "PrivateKeyBits": 384, "LeafCertTTL": "72h"}}
	if _, err := n.client.Raw().Write("/v1/connect/ca/configuration", config, nil, nil); err != nil {
		t.Fatal(err)
	}
	await.True(t, "a certificate of the new root", func() bool {
		now, err := api.mesh.Identity()
		return err == nil && !now.Certificate().Leaf.Equal(before.Certificate().Leaf) && len(now.Bundles()[0].X509Authorities()) == 2
	})
	settled := calls.Load() + 20
	await.True(t, "calls with it", func() bool { return calls.Load() > settled })
	stop()
	load.Wait()
	t.Logf("%d calls, %d failed", calls.Load(), failed.Load())
	if failed.Load() > 0 {
		t.Error("calls failed while the root was rotated")
	}
}

type consulCA struct {
	Provider string
	Config   map[string]any
}

// Whoever may not have a certificate, or not see intentions, is told that it is denied, and keeps what it had.
func TestConsulConnectDenied(t *testing.T) {
	agent := servers.StartConsul(t, servers.ConsulConfig{ACL: "deny"})
	root := agent.Client()
	token := func(name, rules string) (secret, policyID string) {
		t.Helper()
		p, _, err := root.ACL().PolicyCreate(&api.ACLPolicy{Name: name, Rules: rules}, nil)
		if err != nil {
			t.Fatal(err)
		}
		created, _, err := root.ACL().TokenCreate(&api.ACLToken{Policies: []*api.ACLLink{{ID: p.ID}}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return created.SecretID, p.ID
	}
	nothing, _ := token("nothing", ``)
	reads, _ := token("reads", `service "web" { policy = "read" }`)
	all, policyID := token("all", `service "web" { policy = "write" }`)
	as := func(secret string) *api.Client { return consulClient(t, agent, &api.Config{Token: secret}) }

	for name, secret := range map[string]string{"no token": "", "a token without rights": nothing, "an unknown token": "00000000-1111-2222-3333-444444444444"} {
		// The name is one that was never issued: what an agent has issued, it hands out to anybody.
		wants(t, name+", certificate", firstOf((identities.Source{Service: "web-" + strings.ReplaceAll(name, " ", "-"), Client: as(secret)}).Watch(t.Context())), true)
		wants(t, name+", intentions", firstOf((&entries.Intentions{Service: "web", Client: as(secret)}).Watch(t.Context())), true)
		if roots, _, err := as(secret).Agent().ConnectCARoots(nil); secret != "00000000-1111-2222-3333-444444444444" && (err != nil || len(roots.Roots) == 0) {
			t.Errorf("%s, roots: %v", name, err)
		}
	}
	wants(t, "service:read, intentions", firstOf((&entries.Intentions{Service: "web", Client: as(reads)}).Watch(t.Context())), false)
	wants(t, "service:read, certificate", firstOf((identities.Source{Service: "web", Client: as(reads)}).Watch(t.Context())), true)
	wants(t, "service:write, certificate", firstOf((identities.Source{Service: "web", Client: as(all)}).Watch(t.Context())), false)

	// The rights go while both are followed.
	n := &native{t, agent, as(agent.Token)}
	n.intend("web", "api", "allow")
	denied := make(chan error, 100)
	m, err := mesh.New(t.Context(), mesh.WithIdentity(identities.Source{Service: "web", Client: as(all)}),
		mesh.WithPolicyFeed(&entries.Intentions{Service: "web", Client: as(all)}),
		mesh.WithObserver(mesh.Observer{PolicyLoad: func(load mesh.PolicyLoad) {
			if load.Err != nil {
				select {
				case denied <- load.Err:
				default:
				}
			}
		}}))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	loaded := m.Status().Documents
	if _, _, err := root.ACL().PolicyUpdate(&api.ACLPolicy{ID: policyID, Name: "all", Rules: ``}, nil); err != nil {
		t.Fatal(err)
	}
	n.intend("web", "api", "deny") // ends the query that waits
	if err := await.Receive(t, "the denial", denied); !strings.Contains(err.Error(), "denied") {
		t.Errorf("the intentions: %v", err)
	}
	if now := m.Status().Documents; fmt.Sprint(now.Version) != fmt.Sprint(loaded.Version) {
		t.Errorf("the intentions are %v now, were %v", now, loaded)
	}
	if _, err := m.Identity(); err != nil {
		t.Errorf("the identity: %v", err)
	}
}

// firstOf returns the first error of a sequence, if it begins with one.
func firstOf[T any](seq func(func(T, error) bool)) error {
	for _, err := range seq {
		return err
	}
	return errors.New("it ended")
}

func wants(t *testing.T, what string, err error, denied bool) {
	t.Helper()
	if (err != nil) != denied || denied && !strings.Contains(err.Error(), "denied") {
		t.Errorf("%s: %v, want denied %v", what, err, denied)
	}
}
