package mesh_test

import (
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/policy"
)

// BenchmarkServices shows how much memory a service takes: one that documents name, and one that was called, too.
func BenchmarkServices(b *testing.B) {
	const services = 10_000
	for _, side := range []struct {
		name string
		opts []mesh.Option
	}{
		{name: "documents"},
		{name: "documents, circuit", opts: []mesh.Option{mesh.WithProtection(mesh.Protection{Circuit: &breaker.Config{}})}},
	} {
		b.Run(side.name, func(b *testing.B) {
			for b.Loop() {
				documents, called, _ := memoryOfServices(b, services, side.opts...)
				b.ReportMetric(documents, "B/service")
				b.ReportMetric(called, "B/called")
			}
		})
	}
}

// TestServicesThatAreCalledTakeLittle bounds what a called service takes: it used to be 12 kB of heap, and a goroutine with a stack of 4 kB
// that waited for endpoints.
func TestServicesThatAreCalledTakeLittle(t *testing.T) {
	for name, opts := range map[string][]mesh.Option{
		"documents":          nil,
		"documents, circuit": {mesh.WithProtection(mesh.Protection{Circuit: &breaker.Config{}})},
	} {
		t.Run(name, func(t *testing.T) {
			_, called, goroutines := memoryOfServices(t, 500, opts...)
			if called > 8<<10 {
				t.Errorf("a called service takes %.0f bytes, want at most 8 kB", called)
			}
			if goroutines > 20 {
				t.Errorf("500 called services have %d goroutines, want none of their own", goroutines)
			}
		})
	}
}

// memoryOfServices returns how many bytes each service takes, how many a called one takes in addition, and how many goroutines the calls have
// added.
func memoryOfServices(tb testing.TB, services int, opts ...mesh.Option) (documents, called float64, goroutines int) {
	var registry discovery.Memory
	var sources []policy.Source
	for i := range services {
		name := fmt.Sprintf("s%d", i)
		registry.Set(name, discovery.Endpoint{Address: fmt.Sprintf("10.0.%d.%d", i>>8, i&255), Port: 8080})
		text := strings.ReplaceAll(fmt.Sprintf(benchDocuments, "", ""), "user-service", name)
		sources = append(sources, policy.Source{Name: name + ".yaml", Data: []byte(text)})
	}
	before := leak.Heap()
	m, err := mesh.New(tb.Context(), append(opts, mesh.WithDiscovery(&registry), mesh.WithPolicy(sources...))...)
	if err != nil {
		tb.Fatal(err)
	}
	defer m.Close()
	mesh.ReplaceConnections(m, noopTransport{})
	loaded, running := leak.Heap(), runtime.NumGoroutine()
	rt, buf := m.Transport(), make([]byte, 512)
	for i := range services {
		req, err := http.NewRequest(http.MethodGet, fmt.Sprintf("http://s%d/users/42", i), nil)
		if err != nil {
			tb.Fatal(err)
		}
		noopCall(tb, rt, req, buf)
	}
	after := leak.Heap()
	return float64(loaded-before) / float64(services), float64(after-loaded) / float64(services), runtime.NumGoroutine() - running
}
