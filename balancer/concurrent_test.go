package balancer_test

import (
	"slices"
	"sync"
	"testing"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/discovery"
)

// While an Update attaches its hosts, another one adds the same endpoint. The host that is in nobody's set is given back, once, and the
// other one gets the calls.
func TestHostsLostToAConcurrentUpdate(t *testing.T) {
	set := endpoints(2)
	var b *balancer.Balancer
	var lost, removed, drained []*balancer.Host
	b, err := balancer.New(balancer.Config{}, balancer.Hooks{
		Attach: func(h *balancer.Host) any {
			if lost == nil {
				lost = append(lost, h)
				var other sync.WaitGroup
				other.Go(func() { b.Update(set[:1]) })
				other.Wait()
			}
			return nil
		},
		Removed: func(h *balancer.Host) { removed = append(removed, h) },
		Drained: func(h *balancer.Host) {
			if !slices.Contains(removed, h) {
				t.Errorf("%s is drained before it is removed", h.ID())
			}
			drained = append(drained, h)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	b.Update(set)
	hosts := b.Hosts()
	if len(hosts) != 2 || hosts[0].ID() != set[0].ID() || hosts[1].ID() != set[1].ID() || slices.Contains(hosts, lost[0]) {
		t.Fatalf("the hosts are %v, and %v is lost", hosts, lost)
	}
	if !slices.Equal(removed, lost) || !slices.Equal(drained, lost) {
		t.Errorf("removed are %v and drained %v, want both to be %v", removed, drained, lost)
	}
	if lost[0].TakesCalls() {
		t.Error("a lost host takes calls")
	}
	for range 20 {
		h := pick(t, b, balancer.PickInfo{})
		if !slices.Contains(hosts, h) {
			t.Errorf("picked %s, which is not in the set", h.ID())
		}
		h.Release(0, false)
	}
	b.Update([]discovery.Endpoint{})
	if len(removed) != 3 || len(drained) != 3 {
		t.Errorf("%d of 3 hosts are removed, %d drained", len(removed), len(drained))
	}
}

// An endpoint that is in the set twice is attached once.
func TestEndpointThatIsTwiceInTheSet(t *testing.T) {
	var attached []string
	b, err := balancer.New(balancer.Config{}, balancer.Hooks{Attach: func(h *balancer.Host) any {
		attached = append(attached, h.ID())
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	set := endpoints(2)
	b.Update([]discovery.Endpoint{set[0], set[1], set[0], set[1], set[0]})
	if want := []string{set[0].ID(), set[1].ID()}; !slices.Equal(attached, want) || len(b.Hosts()) != 2 {
		t.Errorf("attached are %v, of %d hosts, want %v", attached, len(b.Hosts()), want)
	}
}
