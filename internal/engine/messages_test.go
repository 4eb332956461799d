package engine_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/engine"
	"github.com/nosidecar/mesh/internal/engine/sockets"
	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// message is a call of a protocol that has nothing to do with HTTP: a line with a path, answered with a line.
type message struct {
	engine.Call
	path   string
	header map[string][]string
	reply  string
	first  engine.Attempt
}

var _ engine.Adapter = (*message)(nil)

// send sends a message to host, and returns the answer.
func send(ctx context.Context, e *engine.Engine, host, path string, header map[string][]string) (string, *engine.Refusal, error) {
	m := &message{path: path, header: header}
	m.Begin(ctx, e, engine.Routed, nil)
	refused, err := m.Serve(m.Context(), &engine.Request{Host: host, Request: route.Request{
		Method: "SAY", Scheme: "http", Authority: host, Path: path, Header: header, Port: 80,
	}}, m)
	if err != nil {
		return "", nil, err
	}
	m.End(0, nil, nil)
	return m.reply, refused, nil
}

func (m *message) Outside(context.Context) error { return m.NotInMesh() }

func (m *message) Bytes() (sent, received int64) { return 0, 0 }
func (m *message) NewLimits() *deadline.Call     { return new(deadline.Call) }

func (m *message) Prepare(to *route.Backend, match int) error {
	out := &http.Request{URL: &url.URL{Path: m.path}}
	if err := to.Rewrite(out, match); err != nil {
		return err
	}
	m.path = out.URL.Path
	return nil
}

func (m *message) Failure(err error) failure.Kind { return failure.Of(m.Context(), nil, err) }

func (m *message) HashKey(key *balancer.HashKey) (string, bool) {
	values := m.header[key.Name]
	return strings.Join(values, ","), len(values) > 0
}

func (m *message) Mirror(rule *route.Rule) {
	path := m.path
	m.Engine().Mirrors.Copy(m.Context(), rule.Route.Mirrors, rule.Route.Timeout, "shop", func(to *route.Mirror, _ string) (func(context.Context) error, error) {
		return func(ctx context.Context) error {
			c := &message{path: path}
			c.Begin(ctx, m.Engine(), engine.Copied, nil)
			_, err := c.Serve(c.Context(), &engine.Request{Host: "shop", Target: to.Target}, c)
			if err == nil {
				c.End(0, nil, nil)
			}
			return err
		}, nil
	})
}

func (m *message) Send(ctx context.Context) (retry.Reason, error) {
	m.Multiplexed()
	loop := m.Loop()
	if loop.Policy == nil {
		return retry.Succeeded, m.attempt(ctx, &m.first, 1)
	}
	loop.Budget.Deposit()
	err := m.attempt(ctx, &m.first, 1)
	for n := 1; err != nil; n++ {
		if !m.Failure(err).Retriable(uint32(loop.Policy.Config().On.Conditions)) {
			return retry.NotRetriable, err
		}
		wait, stopped, ok := loop.Next(ctx, n, 0)
		if !ok {
			return stopped, err
		}
		time.Sleep(wait)
		err = m.attempt(ctx, new(engine.Attempt), n+1)
		loop.Limiter.Release()
	}
	return retry.Succeeded, nil
}

func (m *message) attempt(ctx context.Context, a *engine.Attempt, n int) error {
	if err := m.Acquire(ctx, a, n); err != nil {
		return err
	}
	reply, err := m.exchange(ctx, a.Connections())
	if err == nil {
		m.reply = reply
		a.Answered(http.StatusOK)
	}
	return a.End(err)
}

func (m *message) exchange(ctx context.Context, conns *sockets.Connections) (string, error) {
	conn, err := conns.Dial(ctx, false)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := io.WriteString(conn, m.path+"\n"); err != nil {
		return "", err
	}
	return bufio.NewReader(conn).ReadString('\n')
}

// network is message servers.
type network struct {
	running sync.WaitGroup

	mu   sync.Mutex
	seen []string // "server path"
}

func (n *network) dial(_ context.Context, _, address string) (net.Conn, error) {
	host, _, _ := net.SplitHostPort(address)
	if host == "10.0.0.9" {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
	}
	client, server := net.Pipe()
	n.running.Go(func() {
		defer server.Close()
		path, err := bufio.NewReader(server).ReadString('\n')
		if err != nil {
			return
		}
		n.mu.Lock()
		n.seen = append(n.seen, host+" "+strings.TrimSpace(path))
		n.mu.Unlock()
		if strings.HasPrefix(path, "/hangs") {
			_, _ = server.Read(make([]byte, 1)) // until the caller gives up
			return
		}
		fmt.Fprintf(server, "%s\n", host)
	})
	return client, nil
}

const shop = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop]
  http:
  - match: [{uri: {prefix: /beta}, headers: {x-tester: {exact: "yes"}}}]
    rewrite: {uri: /new}
    route: [{destination: {host: beta}}]
  - match: [{uri: {prefix: /aborted}}]
    fault: {abort: {percentage: {value: 100}, httpStatus: 500}}
    route: [{destination: {host: shop}}]
  - match: [{uri: {prefix: /mirrored}}]
    mirror: {host: beta}
    mirrorPercentage: {value: 100}
    route: [{destination: {host: shop}}]
  - match: [{uri: {prefix: /hangs}}]
    timeout: 2s
    route: [{destination: {host: shop}}]
  - match: [{uri: {prefix: /}}]
    retries: {attempts: 2, retryOn: connect-failure}
    route: [{destination: {host: shop}}]
`

// ends are what observers get at the ends of calls and attempts.
type ends struct {
	mu  sync.Mutex
	all []end
}

type end struct {
	engine.CallEnd
	engine.Outcome
	target route.Target
}

func (e *ends) Attempt(ctx context.Context, _ *engine.Attempt, _ int, _ map[string][]string, _ engine.HeaderSetter) (
	context.Context, engine.AttemptObserver) {
	return ctx, nil
}

func (e *ends) Answered(map[string][]string) {}

func (e *ends) Ticket() uint64 { return 0 }

func (e *ends) Message(uint64, bool) {}

func (e *ends) End(c *engine.Call, how engine.CallEnd) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, end{how, c.Outcome(), c.Target()})
}

func newShop(t *testing.T, n *network, told *ends, protections ...engine.HostProtection) *engine.Engine {
	t.Helper()
	plan, findings := policy.Compile([]policy.Source{{Name: "shop.yaml", Data: []byte(shop)}}, policy.Workload{})
	if err := findings.Err(); err != nil {
		t.Fatal(err)
	}
	template, err := sockets.NewTemplate(&http.Transport{DialContext: n.dial})
	if err != nil {
		t.Fatal(err)
	}
	e, err := engine.New(engine.Config{
		Resolver: discovery.Static{
			"shop": {{Address: "10.0.0.9", Port: 80}, {Address: "10.0.0.1", Port: 80}},
			"beta": {{Address: "10.0.0.2", Port: 80}},
		},
		Template: template, Protections: protections,
		Hooks: engine.Hooks{
			Error: func(f engine.Failure) error { return fmt.Errorf("%s [%s] %w", f.Layer, f.Flags, f.Err) },
			Call: func(ctx context.Context, _ engine.CallStart) (context.Context, engine.CallObserver) {
				return ctx, told
			},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	settle, err := e.Apply(plan, false)
	if err != nil {
		t.Fatal(err)
	}
	settle()
	return e
}

// A protocol that has nothing to do with HTTP passes the same stages.
func TestProtocolOfMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n network
		var told ends
		e := newShop(t, &n, &told)
		defer n.running.Wait()
		defer e.Close()
		tester := map[string][]string{"X-Tester": {"yes"}}
		for range 4 { // whichever endpoint comes first
			if reply, refused, err := send(t.Context(), e, "shop", "/", nil); reply != "10.0.0.1\n" || refused != nil || err != nil {
				t.Errorf("/: %q, %v, %v", reply, refused, err)
			}
		}
		if reply, _, err := send(t.Context(), e, "shop", "/beta/1", tester); reply != "10.0.0.2\n" || err != nil {
			t.Errorf("/beta: %q, %v", reply, err)
		}
		_, refused, err := send(t.Context(), e, "shop", "/aborted", nil)
		if err != nil || refused == nil || refused.Layer != engine.LayerFault || refused.Flags != engine.FlagFaultInjected {
			t.Errorf("/aborted: %+v, %v", refused, err)
		}
		if _, _, err := send(t.Context(), e, "nobody", "/", nil); !errors.Is(err, engine.ErrNotInMesh) {
			t.Errorf("outside the mesh: %v", err)
		}
		began := time.Now()
		_, _, err = send(t.Context(), e, "shop", "/hangs", nil)
		if _, ours := errors.AsType[*deadline.Error](err); !ours || !strings.HasPrefix(err.Error(), "timeout [UT]") {
			t.Errorf("/hangs: %v", err)
		} else if took := time.Since(began); took != 2*time.Second {
			t.Errorf("/hangs took %v", took)
		}
		if _, _, err := send(t.Context(), e, "shop", "/mirrored", nil); err != nil && !strings.Contains(err.Error(), "refused") {
			t.Errorf("/mirrored: %v", err)
		}
		synctest.Wait()
		for _, want := range []string{"10.0.0.1 /", "10.0.0.2 /new/1", "10.0.0.2 /mirrored"} {
			if !slices.Contains(n.seen, want) {
				t.Errorf("the servers saw %q, want %q among them", n.seen, want)
			}
		}
		if calls := 4 + 1 + 1 + 1 + 1 + 2; len(told.all) != calls { // the mirrored one twice
			t.Errorf("observers were told of %d calls, want %d", len(told.all), calls)
		}
		if end := told.all[4]; end.Attempts != 1 || end.target.Host != "beta.default.svc.cluster.local" {
			t.Errorf("observers were told %+v", end)
		}
	})
}

// The same layers refuse calls of every protocol.
func TestMessagesAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n network
		var told ends
		e := newShop(t, &n, &told, engine.HostProtection{Hosts: []string{"shop"}, Protection: engine.Protection{
			RateLimit: limit.RateConfig{PerSecond: 1, Burst: 1},
		}})
		defer n.running.Wait()
		defer e.Close()
		for i, want := range []error{nil, limit.ErrRateLimited} {
			_, refused, err := send(t.Context(), e, "shop", "/", nil)
			if err != nil || (refused == nil) != (want == nil) || refused != nil && !errors.Is(refused, want) {
				t.Errorf("call %d: %v, %v, want %v", i, refused, err, want)
			}
		}
		if flags := told.all[1].Flags; flags != engine.FlagRateLimited {
			t.Errorf("flags %v, want RL", flags)
		}
	})
}
