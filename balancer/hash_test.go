package balancer_test

import (
	"flag"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/discovery"
)

var update = flag.Bool("update", false, "rewrite testdata/golden.txt")

// homes returns the endpoint of each of n keys.
func homes(t testing.TB, b *balancer.Balancer, n int) []string {
	t.Helper()
	ids := make([]string, n)
	for i := range ids {
		h := pick(t, b, keyed(fmt.Sprint("key-", i)))
		ids[i] = h.ID()
		h.Release(0, false)
	}
	return ids
}

var hashing = []balancer.Algorithm{balancer.RingHash, balancer.Maglev}

// The golden file is a promise: processes of different releases must agree.
func TestSameKeysSameEndpointsEverywhere(t *testing.T) {
	var text strings.Builder
	text.WriteString("# Which endpoint, of 10.0.0.0:80 and on, gets which key. Must not change within a major version.\n")
	for _, algorithm := range hashing {
		for _, weights := range [][]uint32{{1, 1, 1}, {1, 2, 3, 4, 0}, slices.Repeat([]uint32{1}, 100)} {
			b := newBalancer(t, balancer.Config{Algorithm: algorithm})
			b.Update(weighted(weights...))
			name := fmt.Sprint(weights)
			if len(weights) > 10 {
				name = fmt.Sprintf("%d equal", len(weights))
			}
			fmt.Fprintf(&text, "\n%v, weights %s\n", algorithm, name)
			for i, id := range homes(t, b, 20) {
				fmt.Fprintf(&text, "key-%d %016x %s\n", i, balancer.Hash(fmt.Sprint("key-", i)), id)
			}
		}
	}
	const file = "testdata/golden.txt"
	if *update {
		if err := os.WriteFile(file, []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got := text.String(); got != string(want) {
		gotLines, wantLines := strings.Split(got, "\n"), strings.Split(string(want), "\n")
		for i := range min(len(gotLines), len(wantLines)) {
			if gotLines[i] != wantLines[i] {
				t.Fatalf("%s:%d: got %q, want %q", file, i+1, gotLines[i], wantLines[i])
			}
		}
		t.Fatalf("%d lines, want %d", len(gotLines), len(wantLines))
	}
}

func TestOrderAndHistoryDoNotMatter(t *testing.T) {
	for _, algorithm := range hashing {
		t.Run(algorithm.String(), func(t *testing.T) {
			set := weighted(1, 2, 3, 4, 5, 6, 7, 8)
			a := newBalancer(t, balancer.Config{Algorithm: algorithm})
			a.Update(set)
			b := newBalancer(t, balancer.Config{Algorithm: algorithm})
			b.Update(endpoints(20))
			b.Hosts()[3].SetEjected(true)
			reversed := slices.Clone(set)
			slices.Reverse(reversed)
			b.Update(reversed)
			for _, h := range b.Hosts() {
				h.SetEjected(false)
			}
			if !slices.Equal(homes(t, a, 1000), homes(t, b, 1000)) {
				t.Error("the same set gives the keys to other endpoints")
			}
		})
	}
}

func TestFewKeysMove(t *testing.T) {
	const keys = 5_000
	for _, c := range []struct {
		algorithm balancer.Algorithm
		from, to  int
		extra     float64 // of the keys that may move between endpoints that stay
	}{
		{balancer.RingHash, 4, 5, 0},
		{balancer.RingHash, 10, 11, 0},
		{balancer.RingHash, 11, 10, 0},
		{balancer.RingHash, 100, 99, 0},
		{balancer.RingHash, 1000, 1001, 0},
		{balancer.Maglev, 4, 5, 0.01},
		{balancer.Maglev, 10, 11, 0.01},
		{balancer.Maglev, 11, 10, 0.01},
		{balancer.Maglev, 100, 99, 0.01},
	} {
		for _, eject := range []bool{false, true} {
			if eject && c.to > c.from {
				continue
			}
			t.Run(fmt.Sprintf("%v/%d to %d/ejected %v", c.algorithm, c.from, c.to, eject), func(t *testing.T) {
				b := newBalancer(t, balancer.Config{Algorithm: c.algorithm})
				set := endpoints(max(c.from, c.to))
				b.Update(set[:c.from])
				before := homes(t, b, keys)
				if eject {
					b.Hosts()[c.to].SetEjected(true)
				} else {
					b.Update(set[:c.to])
				}
				after := homes(t, b, keys)
				own := set[min(c.from, c.to)].ID() // the one that came or went
				moved, extra := 0, 0
				for i := range before {
					if before[i] != after[i] {
						moved++
						if before[i] != own && after[i] != own {
							extra++
						}
					}
				}
				t.Logf("%d of %d keys moved, %d of them without need", moved, keys, extra)
				if moved == 0 || float64(extra) > c.extra*keys {
					t.Errorf("%d of %d keys moved, %d of them without need, want at most %v", moved, keys, extra, c.extra*keys)
				}
			})
		}
	}
}

func TestManyEndpointsAllGetKeys(t *testing.T) {
	const n = 10_000
	for _, algorithm := range hashing {
		t.Run(algorithm.String(), func(t *testing.T) {
			b := newBalancer(t, balancer.Config{Algorithm: algorithm})
			b.Update(endpoints(n))
			reached := map[*balancer.Host]bool{}
			hash := uint64(0)
			for range 100 * n {
				hash += 0x9e3779b97f4a7c15
				h := pick(t, b, balancer.PickInfo{Hash: hash, HasHash: true})
				h.Release(0, false)
				reached[h] = true
				if len(reached) == n {
					return
				}
			}
			t.Errorf("%d of %d endpoints get keys", len(reached), n)
		})
	}
}

func TestHashBalance(t *testing.T) {
	for _, c := range []struct {
		name    string
		cfg     balancer.Config
		weights []uint32
		within  float64 // of the fair share
	}{
		{"ring", balancer.Config{Algorithm: balancer.RingHash}, []uint32{1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, 0.2},
		{"ring, weighted", balancer.Config{Algorithm: balancer.RingHash}, []uint32{1, 2, 3, 4}, 0.2},
		{"larger ring", balancer.Config{Algorithm: balancer.RingHash, MinRingSize: 1 << 17}, []uint32{1, 1, 1, 1, 1}, 0.05},
		{"maglev", balancer.Config{Algorithm: balancer.Maglev}, []uint32{1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, 0.05},
		{"maglev, weighted", balancer.Config{Algorithm: balancer.Maglev}, []uint32{1, 2, 3, 4}, 0.05},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBalancer(t, c.cfg)
			set := weighted(c.weights...)
			b.Update(set)
			const keysDrawn = 50_000
			sum := 0.0
			for _, w := range c.weights {
				sum += float64(w)
			}
			for i, got := range tally(t, b, set, keysDrawn, keys()) {
				fair := keysDrawn * float64(c.weights[i]) / sum
				if math.Abs(float64(got)/fair-1) > c.within {
					t.Errorf("weight %d of %v has %d of %d keys, want %.0f ±%v%%", c.weights[i], c.weights, got, keysDrawn, fair, 100*c.within)
				}
			}
		})
	}
}

func TestRingSizeIsKept(t *testing.T) {
	b := newBalancer(t, balancer.Config{Algorithm: balancer.RingHash, MaxRingSize: 1000})
	set := weighted(1, 1_000_000)
	b.Update(set)
	counts := tally(t, b, set, 50_000, keys())
	if counts[0] == 0 || counts[0] > 500 {
		t.Errorf("weights 1 and 1,000,000 on a ring of 1,000 have %v keys, want few for the first, but some", counts)
	}
}

func TestWeightChangesMoveKeysOnlyToOrFromTheEndpoint(t *testing.T) {
	b := newBalancer(t, balancer.Config{Algorithm: balancer.RingHash})
	set := weighted(1, 1, 1, 1, 1)
	b.Update(set)
	before := homes(t, b, 10_000)
	heavier := weighted(1, 1, 3, 1, 1)
	b.Update(heavier)
	moved := 0
	for i, id := range homes(t, b, 10_000) {
		if id != before[i] {
			moved++
			if id != set[2].ID() {
				t.Fatalf("key-%d moved from %s to %s", i, before[i], id)
			}
		}
	}
	if moved == 0 {
		t.Error("no key moved")
	}
}

func TestHashWithLocality(t *testing.T) {
	own := discovery.Locality{Region: "eu"}
	set := endpoints(20)
	for i := range set {
		set[i].Locality.Region = []string{"eu", "us"}[i/10]
	}
	b := newBalancer(t, balancer.Config{
		Algorithm: balancer.RingHash, Locality: balancer.Locality{Enabled: true, Own: own},
	})
	b.Update(set)
	for _, h := range b.Hosts()[:5] {
		h.SetEjected(true) // 50% of eu carry 70%
	}
	if !slices.Equal(homes(t, b, 1000), homes(t, b, 1000)) {
		t.Error("a key goes to different endpoints, when a part of the calls goes elsewhere")
	}
}
