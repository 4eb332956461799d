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
	"github.com/nosidecar/mesh/policy"
)

// BenchmarkServices shows what a service takes of memory: one that documents are about, and one that was called beside that.
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
			var registry discovery.Memory
			var sources []policy.Source
			for i := range services {
				name := fmt.Sprintf("s%d", i)
				registry.Set(name, discovery.Endpoint{Address: fmt.Sprintf("10.0.%d.%d", i>>8, i&255), Port: 8080})
				text := strings.ReplaceAll(fmt.Sprintf(benchDocuments, "", ""), "user-service", name)
				sources = append(sources, policy.Source{Name: name + ".yaml", Data: []byte(text)})
			}
			for b.Loop() {
				before := heapInUse()
				m, err := mesh.New(b.Context(), append(side.opts, mesh.WithDiscovery(&registry), mesh.WithPolicy(sources...))...)
				if err != nil {
					b.Fatal(err)
				}
				mesh.ReplaceConnections(m, noopTransport{})
				loaded := heapInUse()
				rt, buf := m.Transport(), make([]byte, 512)
				for i := range services {
					req, err := http.NewRequest(http.MethodGet, fmt.Sprintf("http://s%d/users/42", i), nil)
					if err != nil {
						b.Fatal(err)
					}
					noopCall(b, rt, req, buf)
				}
				called := heapInUse()
				b.ReportMetric(float64(loaded-before)/services, "B/service")
				b.ReportMetric(float64(called-loaded)/services, "B/called")
				m.Close()
			}
		})
	}
}

// heapInUse returns the bytes that are in use.
func heapInUse() int64 {
	for range 3 { // what is cleaned up in one round is free in the next
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
