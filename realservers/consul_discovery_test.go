package realservers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/discovery/consul"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/realservers/servers"
)

// consulClient returns a client of an agent, over HTTPS if it serves that. config may be nil.
func consulClient(t testing.TB, agent *servers.Consul, config *api.Config) *api.Client {
	t.Helper()
	if config == nil {
		config = &api.Config{Token: agent.Token}
	}
	config.Address = "http://" + agent.HTTP
	if agent.HTTPS != "" {
		config.Address, config.TLSConfig.CAFile = "https://"+agent.HTTPS, agent.CACert
	}
	client, err := consul.NewClient(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// caller calls the service web through a mesh that finds it in Consul.
type caller struct {
	t      *testing.T
	consul *api.Client
	*http.Client
}

func newCaller(t *testing.T, client *api.Client) *caller {
	t.Helper()
	resolver, err := consul.New(client, consul.Config{})
	if err != nil {
		t.Fatal(err)
	}
	m, err := mesh.New(t.Context(), mesh.WithEmptyPolicy(), mesh.WithDiscovery(resolver))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return &caller{t, client, m.Client()}
}

// call returns which instance answers.
func (c *caller) call() string {
	c.t.Helper()
	resp, err := c.Get("http://web/")
	if err != nil {
		c.t.Fatalf("a call failed: %v", err)
	}
	defer resp.Body.Close()
	name, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		c.t.Fatalf("a call failed: %s, %v", resp.Status, err)
	}
	return string(name)
}

// answeredBy returns who answers many calls.
func (c *caller) answeredBy() string {
	c.t.Helper()
	seen := map[string]bool{}
	for range 30 {
		seen[c.call()] = true
	}
	var names []string
	for name := range seen {
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// follows waits until these instances get the calls, and no others. None may fail meanwhile.
func (c *caller) follows(change, want string) {
	c.t.Helper()
	began := time.Now()
	await.True(c.t, fmt.Sprintf("after %s, calls to %s", change, want), func() bool { return c.answeredBy() == want })
	c.t.Logf("%s: followed after %v", change, time.Since(began).Round(time.Millisecond))
}

// instance starts a server that answers with its name.
func instance(t *testing.T, name string) (address string, port int) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, name) }))
	t.Cleanup(s.Close)
	at := s.Listener.Addr().(*net.TCPAddr)
	return at.IP.String(), at.Port
}

// register registers an instance of web until the test is over or Close is called.
func (c *caller) register(name string) *consul.Registration {
	c.t.Helper()
	address, port := instance(c.t, name)
	service := api.AgentServiceRegistration{ID: name, Name: "web", Address: address, Port: port, Meta: map[string]string{"version": "v1"}}
	r, err := consul.Register(c.t.Context(), c.consul, service, func(err error) { c.t.Logf("%s: %v", name, err) })
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // the agent may be gone
		_ = r.Close(ctx)
	})
	return r
}

// known waits until calls find the service: until the servers know it, it is a host like any other.
func (c *caller) known() {
	c.t.Helper()
	await.True(c.t, "a call to succeed", func() bool {
		resp, err := c.Get("http://web/")
		if err == nil {
			resp.Body.Close()
		}
		return err == nil
	})
}

// listed waits until the servers list so many instances. Those that have no leader take no registrations.
func (c *caller) listed(n int) {
	c.t.Helper()
	began := time.Now()
	await.True(c.t, fmt.Sprintf("%d instances in Consul", n), func() bool {
		c.call()
		all, _, err := c.consul.Health().Service("web", "", false, nil)
		return err == nil && len(all) == n
	})
	c.t.Logf("Consul lists %d instances after %v", n, time.Since(began).Round(time.Millisecond))
}

func (c *caller) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func TestConsulDiscoveryFollows(t *testing.T) {
	leak.Check(t)
	agent := servers.StartConsul(t, servers.ConsulConfig{})
	c := newCaller(t, consulClient(t, agent, nil))
	c.register("one")
	c.known()
	c.follows("the first instance", "one")
	c.register("two")
	three := c.register("three")
	c.follows("scaling up", "one three two")
	c.must(three.Close(t.Context()))
	c.follows("scaling down", "one two")

	address, port := instance(t, "checked")
	c.must(c.consul.Agent().ServiceRegister(&api.AgentServiceRegistration{ID: "checked", Name: "web", Address: address, Port: port,
		Check: &api.AgentServiceCheck{CheckID: "alive", TTL: "1h", Status: api.HealthPassing}}))
	c.follows("an instance of another kind", "checked one two")
	c.must(c.consul.Agent().UpdateTTL("alive", "", api.HealthCritical))
	c.follows("a failed check", "one two")
	c.must(c.consul.Agent().UpdateTTL("alive", "", api.HealthWarning))
	c.follows("a warning", "checked one two")
	c.must(c.consul.Agent().ServiceDeregister("checked"))
	c.follows("deregistration", "one two")

	c.must(c.consul.Agent().EnableServiceMaintenance("two", "upgrade"))
	c.follows("maintenance of a service", "one")
	c.must(c.consul.Agent().DisableServiceMaintenance("two"))
	c.follows("its end", "one two")

	agent.Kill()
	for range 5 {
		if got := c.answeredBy(); got != "one two" {
			t.Errorf("without an agent, calls to %q, want the last known instances", got)
		}
	}
	agent.Restart(t)
	c.register("four")
	c.follows("a restart of the agent", "four one two")

	agent.Suspend(t)
	for range 5 {
		if got := c.answeredBy(); got != "four one two" {
			t.Errorf("while the agent hangs, calls to %q, want the last known instances", got)
		}
	}
	agent.Resume(t)
	c.must(c.consul.Agent().EnableServiceMaintenance("four", "upgrade"))
	c.follows("an agent that hung", "one two")
	agent.Stop()
	if got := c.answeredBy(); got != "one two" {
		t.Errorf("after the agent shut down, calls to %q, want the last known instances", got)
	}
}

// Instances that are replaced one after the other, each deregistered before its server stops, fail no call.
func TestConsulDiscoveryWhileInstancesAreReplaced(t *testing.T) {
	leak.Check(t)
	agent := servers.StartConsul(t, servers.ConsulConfig{})
	c := newCaller(t, consulClient(t, agent, nil))
	c.register("constant")
	c.known()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			resp, err := c.Get("http://web/")
			if err != nil {
				done <- err
				return
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		done <- nil
	}()
	for _, name := range []string{"one", "two", "three"} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, name) }))
		at := server.Listener.Addr().(*net.TCPAddr)
		r, err := consul.Register(t.Context(), c.consul, api.AgentServiceRegistration{ID: name, Name: "web", Address: at.IP.String(), Port: at.Port}, nil)
		c.must(err)
		c.follows("the arrival of "+name, "constant "+name)
		c.must(r.Close(t.Context()))
		server.Close()
	}
	cancel()
	if err := await.Receive(t, "the end of the calls", done); err != nil {
		t.Errorf("a call failed: %v", err)
	}
}

// An agent that comes back without its services has them again from those who registered them. Nobody notices.
func TestConsulDiscoveryAfterLossOfState(t *testing.T) {
	leak.Check(t)
	agent := servers.StartConsul(t, servers.ConsulConfig{Dev: true})
	c := newCaller(t, consulClient(t, agent, nil))
	c.register("one")
	c.known()
	c.follows("the first instance", "one")
	agent.Kill()
	agent.Restart(t)
	await.True(t, "that the agent has the service again", func() bool {
		if got := c.call(); got != "one" {
			t.Errorf("a call to %q, want the last known instance", got)
		}
		services, err := c.consul.Agent().Services()
		return err == nil && services["one"] != nil
	})
	c.register("two")
	c.follows("the loss of all state", "one two")
}

func TestConsulDiscoveryWhenTheLeaderDies(t *testing.T) {
	leak.Check(t)
	agents := servers.StartConsulCluster(t, 3, servers.ConsulConfig{})
	edge := servers.StartConsulClient(t, "edge", agents, servers.ConsulConfig{})
	c := newCaller(t, consulClient(t, edge, nil))
	c.register("one")
	c.known()
	c.follows("the first instance", "one")
	leader := slices.IndexFunc(agents, func(a *servers.Consul) bool {
		self, err := a.Client().Agent().Self()
		return err == nil && self["Stats"]["consul"].(map[string]any)["leader"] == "true"
	})
	if leader < 0 {
		t.Fatal("no server says that it leads")
	}
	agents[leader].Kill()
	c.register("two")
	c.listed(2)
	c.follows("the death of the leader", "one two")

	// Without a majority nothing can be written, and what is known holds.
	agents[(leader+1)%3].Kill()
	for range 5 {
		if got := c.answeredBy(); got != "one two" {
			t.Errorf("without a majority, calls to %q, want the last known instances", got)
		}
	}
	three := c.register("three") // which the client agent takes
	if got := c.answeredBy(); got != "one two" {
		t.Errorf("without a majority, calls to %q, want the last known instances", got)
	}
	agents[leader].Restart(t)
	c.listed(3)
	c.follows("the return of a server", "one three two")
	c.must(three.Close(t.Context()))
	c.follows("scaling down", "one two")
}

// faults stands in front of an agent and spoils its answers.
type faults struct {
	agent http.Handler
	of    string // how the paths of these answers begin

	mu   sync.Mutex
	mode string
	n    int           // answers that were spoilt in this mode
	last time.Time     // when the last one was asked for
	gap  time.Duration // the longest time between two
	end  chan struct{} // closed at the end of this mode
}

// spoil begins a mode: reset, 429, 500, torn, empty, hang, or none.
func (f *faults) spoil(mode string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.end != nil {
		close(f.end)
	}
	f.mode, f.n, f.gap, f.end = mode, 0, 0, make(chan struct{})
}

func (f *faults) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n
}

// longest returns the longest time between two answers that were spoilt.
func (f *faults) longest() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.gap
}

func (f *faults) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	mode, end := f.mode, f.end
	spoilt := mode != "" && strings.HasPrefix(r.URL.Path, f.of)
	if spoilt {
		now := time.Now()
		if f.n++; f.n > 1 {
			f.gap = max(f.gap, now.Sub(f.last))
		}
		f.last = now
	}
	f.mu.Unlock()
	switch {
	case !spoilt:
		// A query that blocks ends with the mode, so that the next one meets it.
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		go func() {
			select {
			case <-end:
				cancel()
			case <-ctx.Done():
			}
		}()
		f.agent.ServeHTTP(w, r.WithContext(ctx))
	case mode == "hang":
		select {
		case <-end:
		case <-r.Context().Done():
		}
		panic(http.ErrAbortHandler)
	case mode == "429":
		http.Error(w, "Too Many Requests", http.StatusTooManyRequests)
	case mode == "500":
		http.Error(w, "No cluster leader", http.StatusInternalServerError)
	default:
		query := r.URL.Query()
		query.Del("index")
		r.URL.RawQuery = query.Encode()
		answer := httptest.NewRecorder()
		f.agent.ServeHTTP(answer, r)
		body := answer.Body.Bytes()
		switch mode {
		case "reset":
			answer.Header().Set("X-Consul-Index", "1")
		case "torn":
			body = body[:len(body)/2]
		case "empty":
			answer.Header().Set("X-Consul-Index", "1")
			body = []byte("[]")
		}
		for name, values := range answer.Header() {
			if strings.HasPrefix(name, "X-Consul-") {
				w.Header()[name] = values
			}
		}
		if mode == "torn" {
			w.Header().Set("Content-Length", fmt.Sprint(answer.Body.Len()))
		}
		w.Write(body)
	}
}

// newFaults starts a proxy in front of an agent, which spoils nothing yet, and returns its URL. What it may spoil is below the path of.
func newFaults(t *testing.T, agent *servers.Consul, of string) (f *faults, url string) {
	t.Helper()
	f = &faults{agent: forward(t, agent.HTTP), of: of}
	f.spoil("")
	proxy := httptest.NewServer(f)
	t.Cleanup(proxy.Close)
	return f, proxy.URL
}

// A faulty Consul is not asked more often for its faults, and leaves no service without endpoints.
func TestConsulDiscoveryWithFaults(t *testing.T) {
	leak.Check(t)
	agent := servers.StartConsul(t, servers.ConsulConfig{})
	f, url := newFaults(t, agent, "/v1/health/")
	client, err := consul.NewClient(&api.Config{Address: url})
	if err != nil {
		t.Fatal(err)
	}
	c := newCaller(t, client)
	c.register("one")
	c.known()
	c.follows("the first instance", "one")
	for _, mode := range []string{"empty", "reset", "429", "500", "torn"} {
		began := time.Now()
		f.spoil(mode)
		some := 5
		if mode == "500" {
			some = 9 // until the pause is as long as it gets
		}
		await.True(t, fmt.Sprintf("%d answers that are spoilt (%s)", some, mode), func() bool {
			if got := c.call(); got != "one" {
				t.Errorf("%s: a call to %q, want the last known instance", mode, got)
			}
			return f.count() >= some
		})
		// Two at once, then one a second at most; a busy machine only makes it fewer.
		if n, took := f.count(), time.Since(began); float64(n) > 2+2*took.Seconds() {
			t.Errorf("%s: %d queries in %v, want at most two a second", mode, n, took)
		} else {
			t.Logf("%s: %d queries in %v, %v apart at most", mode, n, took.Round(time.Millisecond), f.longest().Round(time.Millisecond))
		}
		// The pause is two seconds at most, and could be ten for an error that lasts; see the tests of internal/consul.
		if gap := f.longest(); mode == "500" && gap > 5*time.Second {
			t.Errorf("%s: asked again after %v, want 2 s", mode, gap)
		}
	}
	f.spoil("hang")
	await.True(t, "a query that hangs", func() bool { return c.call() == "one" && f.count() > 0 })
	if n := f.count(); n > 2 {
		t.Errorf("%d queries while the agent hangs, want one", n)
	}
	f.spoil("")
	c.register("two")
	c.follows("the last of the faults", "one two")
}

// forward returns a handler that passes requests on.
func forward(t *testing.T, address string) http.Handler {
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := r.Clone(r.Context())
		out.URL.Scheme, out.URL.Host, out.RequestURI = "http", address, ""
		resp, err := transport.RoundTrip(out)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		defer resp.Body.Close()
		for name, values := range resp.Header {
			w.Header()[name] = values
		}
		w.WriteHeader(resp.StatusCode)
		io.Copy(w, resp.Body)
	})
}

// heard is what a watch yielded last.
type heard struct {
	mu        sync.Mutex
	endpoints int // -1: no answer yet
	denied    bool
	unknown   bool
}

func (h *heard) get() (endpoints int, denied, unknown bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.endpoints, h.denied, h.unknown
}

// brief makes the waits of queries short: a policy that was narrowed shows only when one is over.
type brief struct{ base http.Transport }

func (b *brief) RoundTrip(req *http.Request) (*http.Response, error) {
	if query := req.URL.Query(); query.Has("index") {
		query.Set("wait", "2s")
		req = req.Clone(req.Context())
		req.URL.RawQuery = query.Encode()
	}
	return b.base.RoundTrip(req)
}

// hear watches web with a token until the test is over.
func hear(t *testing.T, agent *servers.Consul, token string) *heard {
	t.Helper()
	brief := &brief{}
	t.Cleanup(brief.base.CloseIdleConnections)
	resolver, err := consul.New(consulClient(t, agent, &api.Config{Token: token, HttpClient: &http.Client{Transport: brief}}), consul.Config{})
	if err != nil {
		t.Fatal(err)
	}
	h := &heard{endpoints: -1}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for endpoints, err := range resolver.Watch(ctx, discovery.Service{Host: "web"}) {
			h.mu.Lock()
			switch {
			case errors.Is(err, discovery.ErrUnknownService):
				h.unknown = true
			case err != nil:
				h.denied = strings.Contains(err.Error(), "denied")
			default:
				h.endpoints, h.denied, h.unknown = len(endpoints), false, false
			}
			h.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return h
}

// Denied and narrowed tokens never leave a service without endpoints, and are told from a service that has none.
func TestConsulDiscoveryDenied(t *testing.T) {
	leak.Check(t)
	agent := servers.StartConsul(t, servers.ConsulConfig{ACL: "deny"})
	acl := agent.Client().ACL()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// token makes a token that has one policy, with its name.
	token := func(name, rules string) (*api.ACLToken, *api.ACLPolicy) {
		t.Helper()
		policy, _, err := acl.PolicyCreate(&api.ACLPolicy{Name: name, Rules: rules}, nil)
		must(err)
		token, _, err := acl.TokenCreate(&api.ACLToken{Policies: []*api.ACLTokenPolicyLink{{Name: name}}}, nil)
		must(err)
		return token, policy
	}
	const both = `service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }`
	allowed, _ := token("allowed", both)
	narrowed, policy := token("narrowed", both)
	deleted, _ := token("deleted", both)
	nothing, _ := token("nothing", "")
	noNode, _ := token("no-node", `service_prefix "" { policy = "read" }`)
	onlyWrite, _ := token("only-write", `service "web" { policy = "write" }`)
	noService, _ := token("no-service", `node_prefix "" { policy = "read" }`)

	before := map[string]*heard{ // before there is an instance
		"no token": hear(t, agent, ""), "token without rights": hear(t, agent, nothing.SecretID), "unknown token": hear(t, agent, "6e9b3a31-0000-4000-8000-000000000000"),
		"no node:read": hear(t, agent, noNode.SecretID), "service:write only": hear(t, agent, onlyWrite.SecretID), "no service:read": hear(t, agent, noService.SecretID),
	}
	for name, h := range before {
		// Only a Consul that leaves something out can say so: whoever may read the nodes, or only the service, sees none either way.
		await.True(t, name+": denied", func() bool { _, denied, _ := h.get(); return denied })
		if n, _, unknown := h.get(); n >= 0 || unknown {
			t.Errorf("%s: %d endpoints, unknown %v, want only the denial", name, n, unknown)
		}
	}
	good := hear(t, agent, allowed.SecretID)
	await.True(t, "an unknown service", func() bool { _, _, unknown := good.get(); return unknown })

	must(agent.Client().Agent().ServiceRegister(&api.AgentServiceRegistration{ID: "one", Name: "web", Address: "127.0.0.1", Port: 80}))
	all := map[string]*heard{"allowed": good, "narrowed": hear(t, agent, narrowed.SecretID), "deleted": hear(t, agent, deleted.SecretID)}
	for name, h := range all {
		await.True(t, name+": an endpoint", func() bool { n, _, _ := h.get(); return n == 1 })
	}
	policy.Rules = ""
	_, _, err := acl.PolicyUpdate(policy, nil)
	must(err)
	_, err = acl.TokenDelete(deleted.AccessorID, nil)
	must(err)
	must(agent.Client().Agent().ServiceRegister(&api.AgentServiceRegistration{ID: "two", Name: "web", Address: "127.0.0.1", Port: 81}))
	await.True(t, "two endpoints with rights", func() bool { n, _, _ := good.get(); return n == 2 })
	for _, name := range []string{"narrowed", "deleted"} {
		await.True(t, name+": denied", func() bool { _, denied, _ := all[name].get(); return denied })
		if n, _, _ := all[name].get(); n == 0 {
			t.Errorf("%s: no endpoints, want the last ones", name)
		}
	}
	policy.Rules = both
	_, _, err = acl.PolicyUpdate(policy, nil)
	must(err)
	await.True(t, "the narrowed token to have its rights back", func() bool {
		n, denied, _ := all["narrowed"].get()
		return n == 2 && !denied
	})
	for _, id := range []string{"one", "two"} {
		must(agent.Client().Agent().ServiceDeregister(id))
	}
	await.True(t, "no endpoints, once there are none", func() bool { n, _, _ := all["narrowed"].get(); return n == 0 })
	for name, h := range before {
		if n, _, unknown := h.get(); n >= 0 || unknown {
			t.Errorf("%s: %d endpoints, unknown %v, want only the denial", name, n, unknown)
		}
	}
}

// dialled counts connections.
type dialled struct{ made, open, most atomic.Int64 }

func (d *dialled) transport() *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		d.made.Add(1)
		now := d.open.Add(1)
		for most := d.most.Load(); now > most && !d.most.CompareAndSwap(most, now); most = d.most.Load() {
		}
		return &countedConn{Conn: conn, gone: func() { d.open.Add(-1) }}, nil
	}}
}

type countedConn struct {
	net.Conn
	once sync.Once
	gone func()
}

func (c *countedConn) Close() error {
	c.once.Do(c.gone)
	return c.Conn.Close()
}

// Two hundred services take one connection over HTTPS, and few over HTTP.
func TestConsulDiscoveryOfManyServices(t *testing.T) {
	for _, secure := range []bool{true, false} {
		t.Run(map[bool]string{true: "HTTPS", false: "HTTP"}[secure], func(t *testing.T) {
			leak.Check(t)
			agent := servers.StartConsul(t, servers.ConsulConfig{TLS: secure})
			const many = 200
			registerMany(t, agent, many, "v1")
			var d dialled
			resolver, err := consul.New(consulClient(t, agent, &api.Config{Transport: d.transport()}), consul.Config{})
			if err != nil {
				t.Fatal(err)
			}
			w := watchMany(resolver, many, func(err error) { t.Log(err) })
			defer w.Close()
			await.True(t, "the endpoints of all", func() bool { return w.have("v1") == many })
			began := time.Now()
			registerMany(t, agent, many, "v2")
			await.True(t, "that all are followed", func() bool { return w.have("v2") == many })
			t.Logf("%d changes: all followed after %v; %d connections, %d at a time", many, time.Since(began), d.made.Load(), d.most.Load())
			if secure && d.made.Load() != 1 {
				t.Errorf("%d connections, want one", d.made.Load())
			}
			if d.most.Load() > 72 {
				t.Errorf("%d connections at a time, want at most 72", d.most.Load())
			}
		})
	}
}

// registerMany registers service-0, service-1 and so on, with a version in their metadata.
func registerMany(t testing.TB, agent *servers.Consul, n int, version string) {
	t.Helper()
	if err := register(agent, n, version); err != nil {
		t.Fatal(err)
	}
}

func register(agent *servers.Consul, n int, version string) error {
	client := agent.Client()
	for i := range n {
		name := fmt.Sprintf("service-%d", i)
		err := client.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: name, Address: "127.0.0.1", Port: 10000 + i, Meta: map[string]string{"version": version}})
		if err != nil {
			return err
		}
	}
	return nil
}

// watching is the versions of many services.
type watching struct {
	*discovery.Watcher

	mu       sync.Mutex
	versions []string
}

func watchMany(resolver discovery.Resolver, n int, failed func(error)) *watching {
	w := &watching{versions: make([]string, n)}
	w.Watcher = discovery.NewWatcher(resolver, func(_ discovery.Service, err error) { failed(err) })
	for i := range n {
		w.Subscribe(discovery.Service{Host: fmt.Sprintf("service-%d", i)}, func(endpoints []discovery.Endpoint) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if len(endpoints) > 0 {
				w.versions[i] = endpoints[0].Labels["version"]
			}
		})
	}
	return w
}

// have returns how many services have a version.
func (w *watching) have(version string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, v := range w.versions {
		if v == version {
			n++
		}
	}
	return n
}
