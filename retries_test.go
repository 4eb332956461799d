package mesh_test

import (
	"context"
	"errors"
	"io"
	"iter"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/meshtest"
)

const retryDocument = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: api}
spec:
  hosts: [api]
  http:
  - route: [{destination: {host: api}}]
    retries: {attempts: 2, retryOn: "5xx"}
    headers:
      request:
        set: {x-route: api}
`

func TestRetriedResponsesAreClosed(t *testing.T) {
	noLeaks(t)
	var calls atomic.Int32
	api := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1)%3 != 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		io.WriteString(w, strings.Repeat("x", 1000))
	})
	var dials atomic.Int32
	c := newMesh(t, retryDocument, mesh.WithDiscovery(discovery.Static{"api": {api}}), mesh.WithTransport(counting(&dials))).Client()
	for range 20 {
		a := get(t, c, "http://api/")
		if a.status != http.StatusOK || len(a.body) != 1000 {
			t.Fatalf("status %d, %d bytes", a.status, len(a.body))
		}
	}
	if n := dials.Load(); n != 1 {
		t.Errorf("60 requests in a row took %d connections, want 1", n)
	}
}

// The body of a response that is retried may never end. It is closed after a while, next to what becomes of the call.
func TestRetriedResponseThatDoesNotEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		f := new(meshtest.Fleet)
		f.Registry.Set("api", f.Add(t, func(w http.ResponseWriter, r *http.Request) {
			if calls.Add(1)%2 == 0 {
				io.WriteString(w, "well")
				return
			}
			w.WriteHeader(http.StatusServiceUnavailable)
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}))
		c := f.Mesh(t, retryDocument).Client()
		for range 20 {
			if a := get(t, c, "http://api/"); a.status != http.StatusOK || a.body != "well" {
				t.Errorf("status %d, %q", a.status, a.body)
			}
		}
	})
}

func TestRetryOverOneConnection(t *testing.T) {
	noLeaks(t)
	var calls atomic.Int32
	api := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	c := newMesh(t, retryDocument+`
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: api}
spec:
  host: api
  trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}}
`, mesh.WithDiscovery(discovery.Static{"api": {api}})).Client()
	if a := get(t, c, "http://api/"); a.status != http.StatusOK {
		t.Errorf("status %d, want 200 at the third try", a.status)
	}
}

func TestErrorsSayWhoseTimeoutItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		f.Registry.Set("api", f.Add(t, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
		c := f.Mesh(t, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: api}
spec:
  hosts: [api]
  http:
  - route: [{destination: {host: api}}]
    timeout: 5s
`).Client()

		_, err := try(c, "http://api/")
		var failure *mesh.Error
		var netErr net.Error
		if !errors.As(err, &failure) || !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &netErr) || !netErr.Timeout() {
			t.Errorf("our timeout: %v", err)
		}

		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://api/", nil)
		if _, err := c.Do(req); errors.As(err, &failure) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the caller's deadline: %v, want it unwrapped", err)
		}

		ctx, cancel = context.WithCancel(context.Background())
		time.AfterFunc(time.Second, cancel)
		req, _ = http.NewRequestWithContext(ctx, http.MethodGet, "http://api/", nil)
		if _, err := c.Do(req); errors.As(err, &failure) || !errors.Is(err, context.Canceled) {
			t.Errorf("the caller's cancel: %v, want it unwrapped", err)
		}
	})
}

// slowly is a resolver that takes its time.
type slowly struct {
	discovery.Resolver
	takes time.Duration
}

func (s slowly) Watch(ctx context.Context, of discovery.Service) iter.Seq2[[]discovery.Endpoint, error] {
	return func(yield func([]discovery.Endpoint, error) bool) {
		time.Sleep(s.takes)
		s.Resolver.Watch(ctx, of)(yield)
	}
}

// The timeout of a first call includes the wait for its endpoints, and the error names the timeout that the document has.
func TestTimeoutIncludesDiscovery(t *testing.T) {
	for _, takes := range []time.Duration{time.Second, 4 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			f := new(meshtest.Fleet)
			f.Registry.Set("api", f.Add(t, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
			m := f.Mesh(t, virtualService("timeout: 3s"), mesh.WithDiscovery(slowly{&f.Registry, takes}))
			began := time.Now()
			_, err := try(m.Client(), "http://api/")
			if took := time.Since(began); took != 3*time.Second || err == nil || !strings.Contains(err.Error(), "call not complete after 3s") {
				t.Errorf("endpoints after %v: %v after %v, want that the call is not complete after 3s", takes, err, took)
			}
		})
	}
}
