package engine

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/engine/sockets"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
)

func scaled(b testing.TB, endpoints int) *Engine {
	var registry discovery.Memory
	list := make([]discovery.Endpoint, endpoints)
	for i := range list {
		list[i] = discovery.Endpoint{Address: fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255), Port: 80}
	}
	registry.Set("big", list...)
	made, err := sockets.NewTemplate(&http.Transport{})
	if err != nil {
		b.Fatal(err)
	}
	e, err := New(Config{Resolver: &registry, Template: made, Hooks: Hooks{Error: func(f Failure) error { return f.Err }}})
	if err != nil {
		b.Fatal(err)
	}
	plan, findings := policy.Compile(nil, policy.Workload{})
	if findings.Err() != nil {
		b.Fatal(findings)
	}
	settle, err := e.Apply(plan, false)
	if err != nil {
		b.Fatal(err)
	}
	settle()
	b.Cleanup(e.Close)
	return e
}

// The first call of a service, when n others have been called.
func BenchmarkFirstCall(b *testing.B) {
	for _, n := range []int{100, 1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			e := scaled(b, 0)
			v := e.view.Load()
			for i := range n {
				t := route.Target{Host: fmt.Sprintf("s%d.default.svc.cluster.local", i), Port: 80}
				c, err := newClusterLocked(e, t, e.clusterConfig(v.plan, t), nil)
				if err != nil {
					b.Fatal(err)
				}
				c.config.documented = true
				v.clusters.addLocked(c)
			}
			b.ReportAllocs()
			t := route.Target{Host: "new.default.svc.cluster.local", Port: 80}
			for b.Loop() {
				c, _, err := e.create(v.plan, t)
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				e.drop(c)
				b.StartTimer()
			}
		})
	}
}

func BenchmarkHosts(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			e := scaled(b, 0)
			v := e.view.Load()
			names := make([]string, n)
			for i := range names {
				names[i] = fmt.Sprintf("s%d", i)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				v.hosts.get("http", names[i%n])
			}
		})
	}
}

func BenchmarkOneEndpointOf10000(b *testing.B) {
	e := scaled(b, 0)
	t := route.Target{Host: "big.default.svc.cluster.local", Port: 80}
	c, _, err := e.create(e.view.Load().plan, t)
	if err != nil {
		b.Fatal(err)
	}
	sets := [2][]discovery.Endpoint{}
	for i := range 10000 {
		sets[0] = append(sets[0], discovery.Endpoint{Address: fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255), Port: 80})
	}
	sets[1] = append(sets[1], sets[0][1:]...)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		c.update(sets[i%2])
	}
}
