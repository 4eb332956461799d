package policy

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy/internal/istio"
)

// TestHostMap_FindsTheMostSpecificHost compares look-ups with trying all hosts.
func TestHostMap_FindsTheMostSpecificHost(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	name := func() string {
		labels := make([]string, 1+rng.IntN(3))
		for i := range labels {
			labels[i] = strings.Repeat(string(rune('a'+rng.IntN(2))), 1+rng.IntN(2))
		}
		return strings.Join(labels, ".")
	}
	for range 200 {
		var m hostMap[string]
		var hosts []string
		for range rng.IntN(12) {
			host := []string{"", "", "*", "*."}[rng.IntN(4)] + name()
			if rng.IntN(12) == 0 {
				host = "*"
			}
			has, added := m.add(host, &host)
			if *has != host || !added && m.of(host) != has {
				t.Fatalf("add(%s) has %s", host, *has)
			}
			if added {
				hosts = append(hosts, host)
			}
		}
		for range 20 {
			asked := []string{"", "", "", "*."}[rng.IntN(4)] + name()
			want := ""
			for _, host := range hosts {
				if istio.Matches(host, asked) && (want == "" || host == asked || want != asked && len(host) > len(want)) {
					want = host
				}
			}
			got := ""
			if value := m.find(asked); value != nil {
				got = *value
			}
			if got != want {
				t.Fatalf("find(%s) = %q, want %q of %q", asked, got, want, hosts)
			}
		}
	}
}

// TestHostMap_LooksUpOnceForEachLength: thousands of wildcards take no more look-ups than their lengths.
func TestHostMap_LooksUpOnceForEachLength(t *testing.T) {
	var m hostMap[int]
	for i := range 10_000 {
		m.set(fmt.Sprintf("*.n%d.example", i), &i)
	}
	if len(m.ends) != 4 {
		t.Errorf("10000 wildcards of 4 lengths take %d look-ups", len(m.ends))
	}
	if got := m.find("a.n4321.example"); got == nil || *got != 4321 {
		t.Errorf("find = %v, want the wildcard of n4321", got)
	}
}
