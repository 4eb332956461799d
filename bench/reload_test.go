package bench

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/policy"
)

// manyDocuments returns a VirtualService and a DestinationRule for each of so many services beside the one that is called.
func manyDocuments(services int, timeout time.Duration) []policy.Source {
	sources := []policy.Source{{Name: "bench.yaml", Data: []byte(routed(false))}}
	for i := range services {
		sources = append(sources, policy.Source{Name: fmt.Sprintf("s%d.yaml", i), Data: fmt.Appendf(nil, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: s%[1]d}
spec:
  hosts: [s%[1]d]
  http:
  - match: [{uri: {prefix: /v2/}}]
    route: [{destination: {host: s%[1]d, subset: v2}}]
  - route: [{destination: {host: s%[1]d, subset: v1}}]
    timeout: %[2]v
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: s%[1]d}
spec:
  host: s%[1]d
  trafficPolicy: {outlierDetection: {consecutive5xxErrors: 5}}
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
`, i, timeout)})
		timeout = time.Second // only the first one changes
	}
	return sources
}

// BenchmarkReloadUnderLoad changes one of 10,000 documents ten times per second, while a service is called 500 times per second. Seconds with
// changes alternate with seconds without. It reports how long a change takes, and the medians of the 99th percentiles of the calls with and
// without changes, and of the ratios of neighbouring seconds.
func BenchmarkReloadUnderLoad(b *testing.B) {
	s, err := StartServer(HTTP)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(s.Close)
	m, err := NewMesh(s, false)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { m.Close() })
	sets := [][]policy.Source{manyDocuments(5000, time.Second), manyDocuments(5000, 2*time.Second)}
	if err := m.Apply(sets[0]...); err != nil {
		b.Fatal(err)
	}
	const round = 10 // changes
	var took, quiet, changing []time.Duration
	var ratios []float64
	for b.Loop() {
		without := callSteadily(b, m, s.URL(), func() { time.Sleep(round * 100 * time.Millisecond) })
		with := callSteadily(b, m, s.URL(), func() {
			for i := range round {
				start := time.Now()
				if err := m.Apply(sets[(i+1)%2]...); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(start))
				time.Sleep(100*time.Millisecond - time.Since(start))
			}
		})
		quiet, changing = append(quiet, quantile(without, 0.99)), append(changing, quantile(with, 0.99))
		ratios = append(ratios, float64(changing[len(changing)-1])/float64(quiet[len(quiet)-1]))
	}
	b.ReportMetric(0, "ns/op") // which has the pauses
	b.ReportMetric(float64(quantile(took, 0.5).Microseconds())/1000, "ms/change")
	b.ReportMetric(float64(quantile(quiet, 0.5).Microseconds())/1000, "ms-p99-quiet")
	b.ReportMetric(float64(quantile(changing, 0.5).Microseconds())/1000, "ms-p99-changing")
	b.ReportMetric(quantile(ratios, 0.5), "ratio")
}

// callSteadily makes a call every 2 ms while f runs, whether or not those before have ended, and returns how long each took from when it was due.
func callSteadily(b *testing.B, m *mesh.Mesh, url string, f func()) (took []time.Duration) {
	ctx, stop := context.WithCancel(b.Context())
	client := m.Client()
	var mu sync.Mutex
	var calls sync.WaitGroup
	calls.Go(func() {
		for due := time.Now(); ctx.Err() == nil; due = due.Add(2 * time.Millisecond) {
			time.Sleep(time.Until(due))
			calls.Go(func() {
				var buf [1024]byte
				err := get(context.Background(), client, url, buf[:])
				mu.Lock()
				defer mu.Unlock()
				if took = append(took, time.Since(due)); err != nil {
					b.Error(err)
				}
			})
		}
	})
	f()
	stop()
	calls.Wait()
	return took
}

// quantile returns a quantile of some values, which it sorts.
func quantile[T cmp.Ordered](values []T, q float64) T {
	slices.Sort(values)
	return values[min(int(q*float64(len(values))), len(values)-1)]
}

// TestManyDocuments checks that what is measured is what was meant: documents come into force one set after the other, and calls go on.
func TestManyDocuments(t *testing.T) {
	s, err := NewServer(HTTP)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	m, err := NewMesh(s, false)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for i := range 4 {
		if err := m.Apply(manyDocuments(3, time.Duration(1+i%2)*time.Second)...); err != nil {
			t.Fatal(err)
		}
		var buf [1024]byte
		if err := get(t.Context(), m.Client(), s.URL(), buf[:]); err != nil {
			t.Error(err)
		}
	}
}
