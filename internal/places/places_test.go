package places_test

import (
	"net/netip"
	"testing"

	"github.com/nosidecar/mesh/internal/places"
)

// A sender that is alone takes half of the places, and others still get some, wherever in its network a sender sends from.
func TestPlacesAreShared(t *testing.T) {
	p := places.Places{Most: 64}
	fill := func(from string) (taken int) {
		for p.Enter(netip.MustParseAddr(from)) {
			taken++
		}
		return taken
	}
	for _, step := range []struct {
		from string
		want int
	}{
		{"2001:db8::1", 32}, {"2001:db8::2", 0}, {"2001:db8:0:1::1", 16}, {"192.0.2.1", 8}, {"::ffff:192.0.2.1", 0}, {"192.0.2.2", 4},
	} {
		if got := fill(step.from); got != step.want {
			t.Errorf("%s gets %d places, want %d", step.from, got, step.want)
		}
	}
	for range 32 {
		p.Leave(netip.MustParseAddr("2001:db8::3"))
	}
	if got := fill("192.0.2.3"); got != 18 { // of the 36 that are free
		t.Errorf("when the first has left, another one gets %d places", got)
	}
}

func TestNetwork(t *testing.T) {
	for address, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "192.0.2.1", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::", "fe80::1%eth0": "fe80::",
	} {
		if got := places.Network(netip.MustParseAddr(address)); got != netip.MustParseAddr(want) {
			t.Errorf("%s: %v, want %s", address, got, want)
		}
	}
	if got := places.Network(netip.Addr{}); got.IsValid() {
		t.Errorf("no address: %v", got)
	}
}
