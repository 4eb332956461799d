package balancer_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/discovery"
)

// placed returns endpoints at places such as "eu/a/1".
func placed(places ...string) []discovery.Endpoint {
	set := endpoints(len(places))
	for i, p := range places {
		parts := append(strings.Split(p, "/"), "", "")
		set[i].Locality = discovery.Locality{Region: parts[0], Zone: parts[1], SubZone: parts[2]}
	}
	return set
}

func TestLocality(t *testing.T) {
	own := discovery.Locality{Region: "eu", Zone: "a", SubZone: "1"}
	regions := placed("eu/a/1", "us/a/1", "ap/a/1")
	two := placed("eu/a/1", "eu/a/1", "eu/a/1", "eu/a/1", "us", "us")
	for _, c := range []struct {
		name     string
		locality balancer.Locality
		panics   int
		set      []discovery.Endpoint
		eject    []int
		shares   []float64
	}{
		{name: "off", set: two, shares: []float64{1, 1, 1, 1, 1, 1}},
		{name: "off, more ejected than are believed", panics: 90, set: two, eject: []int{0}, shares: []float64{1, 1, 1, 1, 1, 1}},
		{
			name: "subzone", locality: balancer.Locality{Enabled: true, Own: own},
			set: placed("eu/a/1", "eu/a/2", "eu/b/1", "us/a/1"), shares: []float64{1, 0, 0, 0},
		}, {
			name: "then zone", locality: balancer.Locality{Enabled: true, Own: own},
			set: placed("eu/a/1", "eu/a/2", "eu/b/1", "us/a/1"), eject: []int{0}, shares: []float64{0, 1, 0, 0},
		}, {
			name: "then region", locality: balancer.Locality{Enabled: true, Own: own},
			set: placed("eu/a/1", "eu/a/2", "eu/b/1", "us/a/1"), eject: []int{0, 1}, shares: []float64{0, 0, 1, 0},
		}, {
			name: "then others", locality: balancer.Locality{Enabled: true, Own: own},
			set: placed("eu/a/1", "eu/a/2", "eu/b/1", "us/a/1"), eject: []int{0, 1, 2}, shares: []float64{0, 0, 0, 1},
		}, {
			name: "the same names elsewhere are not near", locality: balancer.Locality{Enabled: true, Own: own},
			set: placed("us/a/1", "eu/b/1"), shares: []float64{0, 1},
		}, {
			name: "a few ejected change nothing", locality: balancer.Locality{Enabled: true, Own: own},
			set: two, eject: []int{0}, shares: []float64{0, 1, 1, 1, 0, 0},
		}, {
			name: "half ejected carry 70%", locality: balancer.Locality{Enabled: true, Own: own},
			set: two, eject: []int{0, 1}, shares: []float64{0, 0, 35, 35, 15, 15},
		}, {
			name: "what no place can carry is shared", locality: balancer.Locality{Enabled: true, Own: own},
			// A quarter of eu carries 35%, none of us anything.
			set: two, eject: []int{0, 1, 2, 4, 5}, shares: []float64{0, 0, 0, 1, 0, 0},
		}, {
			name: "no panic while the others carry it", locality: balancer.Locality{Enabled: true, Own: own}, panics: 60,
			set: two, eject: []int{0, 1}, shares: []float64{0, 0, 35, 35, 15, 15},
		}, {
			name: "panic of one place", locality: balancer.Locality{Enabled: true, Own: own}, panics: 50,
			// eu carries 35%, us 70%; that is enough. Without one more of us, it would not be.
			set: placed("eu/a/1", "eu/a/1", "eu/a/1", "eu/a/1", "us", "us", "us", "us"), eject: []int{0, 1, 2, 4, 5, 6},
			shares: []float64{1, 1, 1, 1, 1, 1, 1, 1},
		}, {
			name: "one place doubts its ejections", locality: balancer.Locality{Enabled: true, Own: own}, panics: 50,
			// eu carries 14%, us 84%, which is not enough; most of eu is ejected, but not most of us.
			set:    placed("eu/a/1", "eu/a/1", "eu/a/1", "eu/a/1", "eu/a/1", "eu/a/1", "eu/a/1", "eu/a/1", "eu/a/1", "eu/a/1", "us", "us", "us", "us", "us"),
			eject:  []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 13, 14},
			shares: []float64{1.4, 1.4, 1.4, 1.4, 1.4, 1.4, 1.4, 1.4, 1.4, 1.4, 28, 28, 28, 0, 0},
		}, {
			name: "failover region", locality: balancer.Locality{Enabled: true, Own: own, Failover: []balancer.Failover{{"us", "eu"}, {"eu", "ap"}}},
			set: regions, eject: []int{0}, shares: []float64{0, 0, 1},
		}, {
			name: "failover region gone", locality: balancer.Locality{Enabled: true, Own: own, Failover: []balancer.Failover{{"us", "eu"}, {"eu", "ap"}}},
			set: regions, eject: []int{0, 2}, shares: []float64{0, 1, 0},
		}, {
			name: "failover of another region", locality: balancer.Locality{Enabled: true, Own: own, Failover: []balancer.Failover{{"us", "ap"}}},
			set: regions, eject: []int{0}, shares: []float64{0, 1, 1},
		}, {
			name:     "labels",
			locality: balancer.Locality{Enabled: true, FailoverPriority: []balancer.Label{{"topology.kubernetes.io/region", "us"}, {"version", "v1"}}},
			set:      labelled(regions, "v1", "v2", "v1"), shares: []float64{0, 1, 0},
		}, {
			name:     "labels, the first counts most",
			locality: balancer.Locality{Enabled: true, FailoverPriority: []balancer.Label{{"topology.kubernetes.io/region", "us"}, {"version", "v1"}}},
			set:      labelled(regions, "v1", "v2", "v1"), eject: []int{1}, shares: []float64{1, 0, 1},
		}, {
			name:     "distribute",
			locality: balancer.Locality{Enabled: true, Own: own, Distribute: []balancer.Distribution{{From: "us/*", To: []balancer.Portion{{"us/*", 1}}}, {From: "eu/a/*", To: []balancer.Portion{{"eu/a/*", 80}, {"us", 20}}}}},
			set:      two, shares: []float64{20, 20, 20, 20, 10, 10},
		}, {
			name:     "distribute, some ejected",
			locality: balancer.Locality{Enabled: true, Own: own, Distribute: []balancer.Distribution{{From: "eu/a/*", To: []balancer.Portion{{"eu/a/*", 80}, {"us", 20}}}}},
			set:      two, eject: []int{0, 1}, shares: []float64{0, 0, 28, 28, 10, 10}, // 80*0.7
		}, {
			name:     "distribute leaves a place out",
			locality: balancer.Locality{Enabled: true, Own: own, Distribute: []balancer.Distribution{{From: "eu", To: []balancer.Portion{{"us", 1}, {"ap", 1}}}}},
			set:      regions, shares: []float64{0, 1, 1},
		}, {
			name:     "distribute has no rule for us",
			locality: balancer.Locality{Enabled: true, Own: own, Distribute: []balancer.Distribution{{From: "us", To: []balancer.Portion{{"us", 1}}}}},
			set:      regions, shares: []float64{1, 1, 1},
		}, {
			name:     "distribute, panic",
			locality: balancer.Locality{Enabled: true, Own: own, Distribute: []balancer.Distribution{{From: "eu", To: []balancer.Portion{{"eu", 3}, {"us", 1}}}}}, panics: 50,
			set: placed("eu", "eu", "us", "us"), eject: []int{0, 1, 2}, shares: []float64{3, 3, 1, 1},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBalancer(t, balancer.Config{Locality: c.locality, PanicFraction: float64(c.panics) / 100})
			b.Update(c.set)
			hosts := b.Hosts()
			for _, i := range c.eject {
				hosts[i].SetEjected(true)
			}
			wantShares(t, tally(t, b, c.set, 10_000, noKey), c.shares...)
		})
	}
}

// Two places carry the whole load: 1.4/7 and 1.4*4/7 do not add up to exactly 1 for a computer, but the third one has no part in it, not
// even for attempts that all others have seen.
func TestRoundingIsNoShare(t *testing.T) {
	var places []string
	for range 7 {
		places = append(places, "eu/a/1")
	}
	for range 7 {
		places = append(places, "eu/a/2")
	}
	set := placed(append(places, "us/a/1")...)
	b := newBalancer(t, balancer.Config{Locality: balancer.Locality{Enabled: true, Own: discovery.Locality{Region: "eu", Zone: "a", SubZone: "1"}}})
	b.Update(set)
	var healthy []string
	for i, h := range b.Hosts()[:14] {
		if i < 3 || i >= 7 && i < 9 { // 3 and 2 of 7 carry 60% and 40%
			healthy = append(healthy, h.ID())
		} else {
			h.SetEjected(true)
		}
	}
	for range 100 {
		h := pick(t, b, balancer.PickInfo{Tried: healthy})
		if h.ID() == set[14].ID() {
			t.Fatal("a place without a share of the traffic gets a call")
		}
		h.Release(0, false)
	}
}

// TestLocalityExactly: two places carry half of the traffic each, which is just enough, so ejections count although there are many.
func TestLocalityExactly(t *testing.T) {
	set := placed(append(slices.Repeat([]string{"eu/a/1"}, 14), slices.Repeat([]string{"eu/a/2"}, 14)...)...)
	own := discovery.Locality{Region: "eu", Zone: "a", SubZone: "1"}
	b := newBalancer(t, balancer.Config{Locality: balancer.Locality{Enabled: true, Own: own}, PanicFraction: 0.5})
	b.Update(set)
	for i, h := range b.Hosts() {
		h.SetEjected(i%14 >= 5) // 140% of 5 of 14 are a half
	}
	for range 200 {
		h := pick(t, b, balancer.PickInfo{})
		if h.Ejected() {
			t.Fatal("an ejected endpoint gets a call")
		}
		h.Release(0, false)
	}
}

func labelled(set []discovery.Endpoint, versions ...string) []discovery.Endpoint {
	out := make([]discovery.Endpoint, len(set))
	for i, e := range set {
		e.Labels = map[string]string{"version": versions[i]}
		out[i] = e
	}
	return out
}
