package istio

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// overlaps finds overlaps for the same hosts as a comparison of all pairs.
func TestOverlaps(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 2_000 {
		hosts := make([]string, random.IntN(8))
		for i := range hosts {
			host := []byte{"*a"[random.IntN(2)]}
			for range random.IntN(4) {
				host = append(host, "ab."[random.IntN(3)])
			}
			hosts[i] = string(host)
		}
		got := overlaps(hosts)
		for i, host := range hosts {
			want := false
			for _, other := range hosts[:i] {
				want = want || Matches(other, host) || Matches(host, other)
			}
			if (len(got[i]) > 0) != want || slices.ContainsFunc(got[i], func(at int) bool {
				return at >= i || !Matches(hosts[at], host) && !Matches(host, hosts[at])
			}) {
				t.Fatalf("overlaps(%q)[%d] = %d, want some: %t", hosts, i, got[i], want)
			}
		}
	}
}

// overlapping finds overlaps for the same places as a comparison of all pairs.
func TestOverlapping(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	within := func(place, other string) bool {
		return other == "*" || strings.HasPrefix(strings.TrimSuffix(place, "/*")+"/", strings.TrimSuffix(other, "/*")+"/")
	}
	for n := range 4_000 {
		ordered := n%2 == 0
		places := make([]string, random.IntN(8))
		for i := range places {
			parts := []string{"a", "b", "ab"}[random.IntN(3):][:1]
			for range random.IntN(3) {
				parts = append(parts[:len(parts):len(parts)], []string{"a", "b", "*"}[random.IntN(3)])
			}
			if places[i] = strings.Join(parts, "/"); random.IntN(10) == 0 {
				places[i] = "*"
			}
		}
		got := overlapping(places, ordered)
		for i, place := range places {
			overlap := func(other string) bool {
				rest := ordered && strings.HasSuffix(place, "*") && place != other
				return within(place, other) || within(other, place) && !rest
			}
			if (len(got[i]) > 0) != slices.ContainsFunc(places[:i], overlap) || slices.ContainsFunc(got[i], func(at int) bool {
				return at >= i || !overlap(places[at])
			}) {
				t.Fatalf("overlapping(%q, %t)[%d] = %d", places, ordered, i, got[i])
			}
		}
	}
}
