package policy

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
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

// TestHostMap_Share takes maps through random changes, few and many at once: each has what was set, earlier ones stay as they were, and what does
// not change is shared.
func TestHostMap_Share(t *testing.T) {
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 1))
		keep := func(last, now *string) *string {
			if last != nil && *last == *now {
				return last
			}
			return now
		}
		host := func() string { return []string{"", "*."}[rng.IntN(20)/19] + fmt.Sprintf("h%d", rng.IntN(300)) }
		want, was := make(map[string]string), make(map[string]string)
		last, room := new(hostMap[string]), []*string(nil)
		for range rng.IntN(300) {
			want[host()] = "0"
		}
		for range 12 {
			for range []int{0, 1, 3, 200}[rng.IntN(4)] {
				if at := host(); rng.IntN(2) == 0 {
					delete(want, at)
				} else {
					want[at] = fmt.Sprint(rng.IntN(3))
				}
			}
			m := newHostMap(last, &room)
			for _, at := range slices.Sorted(maps.Keys(want)) {
				value := want[at]
				m.set(at, &value)
			}
			unchanged := m.share(last, keep)
			clear(room[:cap(room)])
			if unchanged != maps.Equal(want, was) {
				t.Fatalf("seed %d: share reports %v of %v after %v", seed, unchanged, want, was)
			}
			if unchanged && len(m.exact) > 0 && &m.exact[0] != &last.exact[0] {
				t.Fatalf("seed %d: what did not change is not shared", seed)
			}
			for i, of := range []*hostMap[string]{&m, last} {
				values := []map[string]string{want, was}[i]
				got := make(map[string]string)
				for at, value := range of.all() {
					got[at] = *value
				}
				for end, value := range of.wild {
					got["*"+end] = *value
				}
				if !maps.Equal(got, values) {
					t.Fatalf("seed %d: the map has %v, want %v", seed, got, values)
				}
				for n := range 300 {
					at := fmt.Sprintf("h%d", n)
					if value, has := values[at]; has != (of.plain(at) != nil) || has && *of.plain(at) != value {
						t.Fatalf("seed %d: %s is not %q", seed, at, value)
					}
				}
			}
			last, was = &m, maps.Clone(want)
		}
	}
}
