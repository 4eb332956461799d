package mesh_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/leak"
)

// Hosts that are longer than any name are not cached: otherwise callers that make them up could use up the memory.
func TestLongHostsAreNotRemembered(t *testing.T) {
	const times, length, most = 200, 256 << 10, 8 << 20
	m := newMesh(t, "", mesh.WithDiscovery(discovery.Static{}), mesh.WithRegistryOnly())
	before := leak.Heap()
	for i := range times {
		resp, err := m.Client().Get(fmt.Sprintf("http://%d.%s/", i, strings.Repeat("a", length)))
		if err == nil {
			resp.Body.Close()
			t.Fatalf("a host of %d bytes answers %d", length, resp.StatusCode)
		}
	}
	if grown := leak.Heap() - before; grown > most {
		t.Errorf("%d long hosts hold %d MB, want at most %d", times, grown>>20, most>>20)
	}
	runtime.KeepAlive(m)
}
