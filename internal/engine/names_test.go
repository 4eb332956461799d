package engine

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/engine/sockets"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
)

// names is a DNS in which some names have an address, and others never answer.
type names map[string]string

// template returns a template of connections.
func template(t *testing.T, like *http.Transport) *sockets.Template {
	t.Helper()
	made, err := sockets.NewTemplate(like)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func (n names) Watch(ctx context.Context, s discovery.Service) iter.Seq2[[]discovery.Endpoint, error] {
	return func(yield func([]discovery.Endpoint, error) bool) {
		switch address, ok := n[s.Host]; {
		case !ok:
			yield(nil, fmt.Errorf("%s: %w", s.Host, discovery.ErrUnknownService))
		case address == "":
			yield(nil, errors.New("server misbehaving"))
		case address == "none":
			yield([]discovery.Endpoint{}, nil)
		default:
			yield([]discovery.Endpoint{{Address: address, Port: 1}}, nil)
		}
		<-ctx.Done()
	}
}

// entry is an engine for a ServiceEntry with two names.
func entry(t *testing.T, dns names) *Engine {
	t.Helper()
	plan, findings := policy.Compile([]policy.Source{{Name: "test.yaml", Data: []byte(`
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db}
spec:
  hosts: [db.example]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 5432, name: tcp, protocol: TCP}]
  endpoints: [{address: first.example}, {address: second.example}]
`)}}, policy.Workload{Namespace: "default"})
	if err := findings.Err(); err != nil {
		t.Fatal(err)
	}
	e, err := New(Config{
		Template: template(t, &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
			client, server := net.Pipe()
			server.Close()
			return client, nil
		}}),
		Hooks: Hooks{Error: func(f Failure) error { return f.Err }},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	for _, watcher := range []**discovery.Watcher{&e.watcher, &e.names} {
		(*watcher).Close()
		*watcher = discovery.NewWatcher(dns, func(discovery.Service, error) {})
	}
	settle, err := e.Apply(plan, false)
	if err != nil {
		t.Fatal(err)
	}
	settle()
	return e
}

// One name of several that does not resolve, or does not answer, does not hold up the calls to the others.
func TestOneDeadNameOfSeveral(t *testing.T) {
	for _, test := range []struct {
		name string
		dns  names
		want error
	}{
		{"the first never answers", names{"first.example": "", "second.example": "10.0.0.1"}, nil},
		{"the second never answers", names{"first.example": "10.0.0.1", "second.example": ""}, nil},
		{"the first is not known", names{"second.example": "10.0.0.1"}, nil},
		{"the first has no address", names{"first.example": "none", "second.example": "10.0.0.1"}, nil},
		{"none is known", names{}, discovery.ErrUnknownService},
		{"none answers", names{"first.example": "", "second.example": ""}, errDiscoverySlow},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := entry(t, test.dns)
				began := time.Now()
				conn, _, err := e.DialContext(t.Context(), "tcp", "db.example:5432")
				if !errors.Is(err, test.want) {
					t.Errorf("error %v, want %v", err, test.want)
				}
				if took := time.Since(began); took > 0 && test.want != errDiscoverySlow {
					t.Errorf("it took %v, want no waiting", took)
				}
				if err == nil {
					conn.Close()
				}
			})
		})
	}
}

// DNS knows any number of hosts. The state of hosts that no document names is bounded.
func TestHostsOfDNSAreBounded(t *testing.T) {
	const hosts = 150
	synctest.Test(t, func(t *testing.T) {
		dns := names{"first.example": "10.0.0.1"}
		for i := range hosts {
			dns[fmt.Sprintf("host-%d.example", i)] = "10.0.0.2"
		}
		e := entry(t, dns)
		dial := func(host string) {
			t.Helper()
			conn, _, err := e.DialContext(t.Context(), "tcp", host+":5432")
			if err != nil {
				t.Fatal(err)
			}
			conn.Close()
		}
		dial("db.example")
		for i := range hosts {
			dial(fmt.Sprintf("host-%d.example", i))
			time.Sleep(time.Second)
		}
		if n := e.Clusters(); n != strangersKept+1 {
			t.Errorf("%d targets are kept after %d were called, want %d", n, hosts+1, strangersKept+1)
		}
		v := e.view.Load()
		if v.clusters.get(route.Target{Host: "host-0.example", Port: 5432}) != nil {
			t.Error("the target that was used longest ago is kept")
		}
		dial("host-0.example")
		time.Sleep(2 * strangerIdle)
		if n := e.Clusters(); n != 1 {
			t.Errorf("%d targets are kept when nobody calls them, want the one of a document", n)
		}
	})
}

// Callers may use more hosts at a time than are kept. What their calls have learned and count is not dropped meanwhile.
func TestHostsInUseAreKept(t *testing.T) {
	const hosts = strangersKept + 20
	synctest.Test(t, func(t *testing.T) {
		e := entry(t, nil)
		var inUse []*cluster
		for i := range hosts {
			c, current, err := e.enter(e.view.Load(), route.Target{Host: fmt.Sprintf("host-%d.example", i), Port: 5432}, new(time.Now()))
			if !current || err != nil {
				t.Fatal(current, err)
			}
			inUse = append(inUse, c)
		}
		if n := e.Clusters(); n != hosts {
			t.Errorf("%d targets are kept with calls to %d in flight", n, hosts)
		}
		for _, c := range inUse {
			c.leave()
		}
		time.Sleep(2*strangerIdle + time.Second)
		synctest.Wait()
		if n := e.Clusters(); n != 0 {
			t.Errorf("%d targets are kept when nobody calls them", n)
		}
	})
}

// late is a DNS that answers nothing until it is closed, and then that it knows no name.
type late chan struct{}

func (l late) Watch(ctx context.Context, s discovery.Service) iter.Seq2[[]discovery.Endpoint, error] {
	return func(yield func([]discovery.Endpoint, error) bool) {
		select {
		case <-l:
			yield(nil, fmt.Errorf("%s: %w", s.Host, discovery.ErrUnknownService))
			<-ctx.Done()
		case <-ctx.Done():
		}
	}
}

// A call that learns that its host does not exist forgets what it has used itself. Other calls may use what has taken the place of that.
func TestUnknownHostUnderOtherDocuments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, dns := entry(t, nil), make(late)
		e.watcher.Close()
		e.watcher = discovery.NewWatcher(dns, func(discovery.Service, error) {})
		var dials sync.WaitGroup
		dials.Go(func() {
			if conn, _, err := e.DialContext(t.Context(), "tcp", "late.example:5432"); err != nil {
				t.Error(err)
			} else {
				conn.Close() // outside the mesh
			}
		})
		synctest.Wait()
		if err := e.Treat(func(_ route.Target, c *policy.Cluster) { c.Eject = true }); err != nil {
			t.Fatal(err)
		}
		target := route.Target{Host: "late.example", Port: 5432}
		c, current, err := e.enter(e.view.Load(), target, new(time.Now()))
		if !current || err != nil {
			t.Fatal(current, err)
		}
		close(dns)
		dials.Wait()
		if e.view.Load().clusters.get(target) != c {
			t.Error("the target is dropped, although a call under the new documents is in flight")
		}
		c.leave()
		time.Sleep(2*strangerIdle + time.Second)
		synctest.Wait()
		if n := e.Clusters(); n != 0 {
			t.Errorf("%d targets are kept when nobody calls them", n)
		}
	})
}

// A connection that comes to nothing does not count as one that is there.
func TestFailedDialsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := entry(t, names{"silent.example": "", "empty.example": "none"})
		for _, host := range []string{"silent.example", "empty.example", "unknown.example"} {
			conn, _, err := e.DialContext(t.Context(), "tcp", host+":5432")
			if host == "unknown.example" { // which is outside the mesh
				conn.Close()
			} else if err == nil {
				t.Errorf("%s: there is a connection", host)
			}
		}
		time.Sleep(3 * strangerIdle)
		if n := e.Clusters(); n != 0 {
			t.Errorf("%d targets are kept, want none", n)
		}
	})
}
