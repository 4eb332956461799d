package engine

import (
	"fmt"
	"math"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"
	"weak"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
)

// documented returns an engine whose documents name so many hosts, and the targets that these are.
func documented(t *testing.T, hosts int) (*Engine, []route.Target) {
	t.Helper()
	e := scaled(t, 0)
	targets := make([]route.Target, hosts)
	var document strings.Builder
	document.WriteString("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: all}\nspec:\n" +
		"  http: [{timeout: 1s, route: [{destination: {host: s0}}]}]\n  hosts:\n")
	for i := range targets {
		fmt.Fprintf(&document, "  - s%d\n", i)
		targets[i] = route.Target{Host: fmt.Sprintf("s%d.default.svc.cluster.local", i), Port: 80}
	}
	plan, findings := policy.Compile([]policy.Source{{Name: "all.yaml", Data: []byte(document.String())}}, policy.Workload{})
	if findings.Err() != nil {
		t.Fatal(findings)
	}
	settle, err := e.Apply(plan, false)
	if err != nil {
		t.Fatal(err)
	}
	settle()
	return e, targets
}

// The first call of a service once copied the table of all services.
func TestFirstCallCostsTheSameHoweverManyServicesThereAre(t *testing.T) {
	const many, few = 4000, 100
	e, targets := documented(t, many)
	plan := e.Plan()
	call := func(targets []route.Target) int {
		return leak.Allocated(func() {
			for _, target := range targets {
				if c, current, err := e.create(plan, target); c == nil || !current || err != nil {
					t.Fatal(c, current, err)
				}
			}
		}) / len(targets)
	}
	first := call(targets[:few])
	call(targets[few : many-few])
	last := call(targets[many-few:])
	t.Logf("a first call allocates %d bytes, and %d when there are %d services", first, last, many)
	if last > 2*first {
		t.Errorf("a first call allocates %d bytes when there are %d services, and %d when there are few", last, many, first)
	}
	if n := e.Clusters(); n != many {
		t.Errorf("%d targets are kept, want %d", n, many)
	}
}

// Beyond 1,024 hosts, the cache of hosts was once copied and emptied again and again.
func TestHostsAreCachedWithoutACliff(t *testing.T) {
	const hosts = 10_000
	e := scaled(t, 0)
	cache := &e.view.Load().hosts
	names := make([]string, hosts)
	for i := range names {
		names[i] = fmt.Sprintf("s%d", i)
	}
	ask := func() {
		for _, name := range names {
			cache.get("http", name)
		}
	}
	if first := leak.Allocated(ask) / hosts; first > 4096 {
		t.Errorf("a new host allocates %d bytes", first)
	}
	least := math.Inf(1) // other goroutines of the process allocate now and then
	for range 10 {
		least = min(least, testing.AllocsPerRun(1, ask))
	}
	if least > 0 {
		t.Errorf("asking %d hosts again allocates %v times, want never", hosts, least)
	}
}

// Hosts that callers make up are forgotten; hosts that they keep calling stay.
func TestCachedHostsAreBounded(t *testing.T) {
	const names = 3*hostsCached + 10
	e := scaled(t, 0)
	cache := &e.view.Load().hosts
	called := cache.get("http", "called")
	for i := range names {
		cache.get("http", fmt.Sprintf("made-up-%d", i))
		if i%100 == 0 && cache.get("http", "called") != called {
			t.Fatalf("a host that is called all the time is forgotten after %d others", i)
		}
	}
	n := 0
	cache.plain.each(func(*host) { n++ })
	if n > 2*hostsCached {
		t.Errorf("%d hosts are cached, want at most %d", n, 2*hostsCached)
	}
}

// A host that somebody made up stays in the cache for a while, but once it also kept the target that turned out not to exist.
func TestCachedHostsKeepNoTargets(t *testing.T) {
	e := scaled(t, 0)
	v := e.view.Load()
	h := v.hosts.get("http", "made-up")
	call := &Call{engine: e, host: h, start: e.clock.now()}
	if current, err := call.enter(v, &Request{Target: route.Target{Host: "made-up", Port: 80}}); err != nil || !current {
		t.Fatal(current, err)
	}
	call.cluster.leave()
	e.drop(call.cluster)
	target := weak.Make(call.cluster)
	call = nil
	for range 3 { // what is cleaned up in one round is free in the next
		runtime.GC()
	}
	if target.Value() != nil {
		t.Error("the target is kept")
	}
	runtime.KeepAlive(h)
}

// The text of a host may be part of a large header, which a host in the cache once kept whole.
func TestCachedHostsKeepNoHeader(t *testing.T) {
	e := scaled(t, 0)
	header := "stranger.example:8080, and much more"
	within := func(text string) bool {
		at, start := uintptr(unsafe.Pointer(unsafe.StringData(text))), uintptr(unsafe.Pointer(unsafe.StringData(header)))
		return start <= at && at < start+uintptr(len(header))
	}
	h := e.view.Load().hosts.get("http", header[:len("stranger.example:8080")])
	if h.away.Host != "stranger.example" || within(h.away.Host) || within(h.Service.Host) {
		t.Errorf("the host %q is a part of its header", h.away.Host)
	}
	e.view.Load().hosts.plain.young.Load().hosts.Range(func(authority, _ any) bool {
		if within(authority.(string)) {
			t.Errorf("the name %q is a part of its header", authority)
		}
		return true
	})
}

// A change of one endpoint once copied and described all of them.
func TestChangeOfOneEndpointIsCheap(t *testing.T) {
	const endpoints, updates = 10_000, 6
	for subset, most := range map[string]int{"": 100, "v1": 250} { // without the race detector, which empties pools, both are the same
		e := scaled(t, 0)
		if err := e.Treat(func(_ route.Target, c *policy.Cluster) {
			c.Missing = false
			if subset != "" {
				c.Subset = map[string]string{"version": subset}
			}
		}); err != nil {
			t.Fatal(err)
		}
		c, _, err := e.create(e.view.Load().plan, route.Target{Host: "big.default.svc.cluster.local", Port: 80, Subset: subset})
		if err != nil {
			t.Fatal(err)
		}
		set := make([]discovery.Endpoint, endpoints)
		for i := range set {
			set[i] = discovery.Endpoint{Address: fmt.Sprintf("10.0.%d.%d", i>>8, i&255), Port: 80, Labels: map[string]string{"version": "v1"}}
		}
		c.update(set)
		c.update(set[1:])
		bytes := leak.Allocated(func() {
			for i := range updates {
				c.update(set[i%2:])
			}
		}) / updates / endpoints
		if bytes > most {
			t.Errorf("subset %q: a change allocates %d bytes for each endpoint", subset, bytes)
		}
		if n := len(c.balancer.Hosts()); n != endpoints-1 {
			t.Errorf("subset %q: %d endpoints, want %d", subset, n, endpoints-1)
		}
	}
}

// Of ten thousand endpoints most are never called. Each once had sockets of its own for that.
func TestEndpointsThatAreNotCalledTakeLittleMemory(t *testing.T) {
	const endpoints = 10_000
	for _, test := range []struct {
		eject bool
		most  int // bytes for each
	}{{false, 384}, {true, 512}} {
		e := scaled(t, 0)
		if err := e.Treat(func(_ route.Target, c *policy.Cluster) { c.Eject = test.eject }); err != nil {
			t.Fatal(err)
		}
		c, _, err := e.create(e.view.Load().plan, route.Target{Host: "big.default.svc.cluster.local", Port: 80})
		if err != nil {
			t.Fatal(err)
		}
		set := make([]discovery.Endpoint, endpoints)
		for i := range set {
			set[i] = discovery.Endpoint{Address: fmt.Sprintf("10.0.%d.%d", i>>8, i&255), Port: 80}
		}
		before := leak.Heap()
		c.update(set)
		if each := (leak.Heap() - before) / endpoints; each > test.most {
			t.Errorf("with ejections %v: an endpoint takes %d bytes, want at most %d", test.eject, each, test.most)
		}
		runtime.KeepAlive(set)
	}
}

// Services that are not called any more are dropped, but neither those in use nor those called meanwhile.
func TestIdleServicesAreDropped(t *testing.T) {
	const services = 2 * clustersKept
	synctest.Test(t, func(t *testing.T) {
		e, targets := documented(t, services+1)
		defer e.Close()
		enter := func(target route.Target) *cluster {
			c, current, err := e.enter(e.view.Load(), target, new(time.Now()))
			if !current || err != nil {
				t.Fatal(current, err)
			}
			return c
		}
		var inUse []*cluster
		for i, target := range targets[:services] {
			if c := enter(target); i%4 == 0 {
				inUse = append(inUse, c)
			} else {
				c.leave()
			}
		}
		time.Sleep(clusterIdle - time.Minute)
		for i, target := range targets[:services] {
			if i%4 == 1 {
				enter(target).leave()
			}
		}
		time.Sleep(2 * time.Minute)
		enter(targets[services]).leave()
		if n := e.Clusters(); n != services/2+1 {
			t.Errorf("%d targets are kept, want %d", n, services/2+1)
		}
		for _, c := range inUse {
			if e.view.Load().clusters.get(c.target) != c {
				t.Fatalf("%v is dropped, although a call is in flight", c.target)
			}
			c.leave()
		}
		time.Sleep(clusterIdle + time.Minute)
		enter(targets[1]).leave()
		enter(targets[2]).leave() // a new one
		if n := e.Clusters(); n != 2 {
			t.Errorf("%d targets are kept, want the two that were called", n)
		}
	})
}

// Targets that documents do not name any more once stayed until somebody called a target that none had named.
func TestTargetsThatDocumentsForgetAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, targets := documented(t, 10)
		defer e.Close()
		for _, target := range targets {
			c, current, err := e.enter(e.view.Load(), target, new(time.Now()))
			if !current || err != nil {
				t.Fatal(current, err)
			}
			c.leave()
		}
		none, findings := policy.Compile(nil, policy.Workload{})
		if findings.Err() != nil {
			t.Fatal(findings)
		}
		settle, err := e.Apply(none, false)
		if err != nil {
			t.Fatal(err)
		}
		settle()
		time.Sleep(2*strangerIdle + time.Minute)
		synctest.Wait()
		if n := e.Clusters(); n != 0 {
			t.Errorf("%d targets are kept, want none", n)
		}
	})
}

// Calls in flight keep the state that they began with after a reload has replaced it. It ends with the last of them.
func TestReplacedStateEndsWithItsCalls(t *testing.T) {
	const endpoints = 3
	e := scaled(t, endpoints)
	target := route.Target{Host: "big", Port: 80}
	enter := func() *cluster {
		t.Helper()
		c, current, err := e.enter(e.view.Load(), target, new(time.Now()))
		if !current || err != nil {
			t.Fatal(current, err)
		}
		if err := c.wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		return c
	}
	hosts := func(c *cluster, want int, when string) {
		t.Helper()
		if n := len(c.balancer.Hosts()); n != want {
			t.Errorf("%s there are %d endpoints, want %d", when, n, want)
		}
	}
	replace := func(ejects bool) {
		t.Helper()
		if err := e.Treat(func(_ route.Target, c *policy.Cluster) { c.Eject = ejects }); err != nil {
			t.Fatal(err)
		}
	}
	busy := enter()
	replace(true)
	hosts(busy, endpoints, "with a call in flight")
	busy.leave()
	hosts(busy, 0, "after the last call")

	idle := enter()
	idle.leave()
	replace(false)
	hosts(idle, 0, "after a reload without calls")
	now := enter()
	hosts(now, endpoints, "in its place")
	now.leave()
}

// The routes in a status include those of new hosts, even if as many others have gone since the last status.
func TestRoutesOfHostsThatCameInPlaceOfOthers(t *testing.T) {
	var hosts cachedHosts
	for i := range hostsCached + 10 {
		hosts.put(fmt.Sprint(i), &host{})
	}
	before := hosts.changes.Load()
	for i := range hostsCached { // an old generation goes, and there are as many as before
		hosts.put(fmt.Sprint("other ", i), &host{})
	}
	if hosts.changes.Load() == before {
		t.Error("other hosts do not show")
	}
}

// Thousands of services are treated in a few ways, but each once kept a copy of its settings.
func TestServicesThatAreTreatedAlikeShareTheirSettings(t *testing.T) {
	const services = 100
	e, targets := documented(t, services)
	if err := e.Treat(func(t route.Target, c *policy.Cluster) { c.Eject = t.Host != targets[0].Host }); err != nil {
		t.Fatal(err)
	}
	seen := make(map[*treatment]int)
	for _, target := range targets {
		c, current, err := e.create(e.Plan(), target)
		if err != nil || !current {
			t.Fatal(current, err)
		}
		if c.config.Eject != (target != targets[0]) {
			t.Errorf("%v has the settings of others", target)
		}
		seen[c.config.treatment]++
	}
	if len(seen) != 2 {
		t.Errorf("%d services that are treated in 2 ways keep %d settings", services, len(seen))
	}
}
