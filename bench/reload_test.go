package bench

import (
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

// BenchmarkReloadUnderLoad changes one of 10,000 documents again and again, while a service is called 500 times a second. It reports how long
// a change takes, and the 99th percentile of the calls without changes and with them.
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
	quiet := callSteadily(b, m, s.URL(), func() { time.Sleep(2 * time.Second) })
	var took []time.Duration
	changed := callSteadily(b, m, s.URL(), func() {
		for i := 1; b.Loop(); i++ {
			start := time.Now()
			if err := m.Apply(sets[i%2]...); err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(start))
			time.Sleep(100 * time.Millisecond)
		}
	})
	b.ReportMetric(0, "ns/op") // which has the pauses
	b.ReportMetric(float64(quantile(took, 0.5).Microseconds())/1000, "ms/change")
	b.ReportMetric(float64(quantile(quiet, 0.99).Microseconds())/1000, "ms-p99-quiet")
	b.ReportMetric(float64(quantile(changed, 0.99).Microseconds())/1000, "ms-p99-changing")
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

// quantile returns a quantile of some times.
func quantile(times []time.Duration, q float64) time.Duration {
	slices.Sort(times)
	return times[min(int(q*float64(len(times))), len(times)-1)]
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
