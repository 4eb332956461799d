package engine_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/nosidecar/mesh/internal/meshtest"
)

// However many destinations a host has, each call goes to its own.
func TestManyDestinationsOfOneHost(t *testing.T) {
	const routes = 12
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		var document strings.Builder
		document.WriteString("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web}\nspec:\n  hosts: [web]\n  http:\n")
		for i := range routes {
			service := fmt.Sprintf("s%d", i)
			f.Registry.Set(service, f.Add(t, says(service)))
			fmt.Fprintf(&document, "  - {match: [{uri: {prefix: /%d/}}], route: [{destination: {host: %s}}]}\n", i, service)
		}
		f.Registry.Set("web", f.Add(t, says("web")))
		m := f.Mesh(t, document.String())
		for range 3 {
			for i := range routes {
				wantAnswer(t, m, fmt.Sprintf("http://web/%d/", i), fmt.Sprintf("s%d", i))
			}
		}
	})
}

// Each mirror of a route gets its own copies.
func TestSeveralMirrorsOfOneRoute(t *testing.T) {
	const calls = 3
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		var copies [3]atomic.Int32
		for i := range copies {
			f.Registry.Set(fmt.Sprintf("m%d", i), f.Add(t, func(http.ResponseWriter, *http.Request) { copies[i].Add(1) }))
		}
		f.Registry.Set("web", f.Add(t, says("web")))
		m := f.Mesh(t, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web]
  http:
  - {match: [{uri: {prefix: /other}}], route: [{destination: {host: web}}]}
  - {route: [{destination: {host: web}}], mirrors: [{destination: {host: m0}}, {destination: {host: m1}}, {destination: {host: m2}}]}
`)
		for range calls {
			wantAnswer(t, m, "http://web/", "web")
			synctest.Wait()
		}
		for i := range copies {
			if n := copies[i].Load(); n != calls {
				t.Errorf("mirror %d got %d copies, want %d", i, n, calls)
			}
		}
	})
}
