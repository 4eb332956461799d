package mesh_test

//lint:file-ignore SA1019 Request.Cancel is deprecated, but http.Client still uses it

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
)

// seen is a RoundTripper that answers as noopTransport does, and shows requests first.
type seen func(*http.Request)

func (s seen) RoundTrip(req *http.Request) (*http.Response, error) {
	s(req)
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	return noopTransport{}.RoundTrip(req)
}

// An http.Client with a Timeout ends calls through a mesh by their contexts. The Cancel channel, for RoundTrippers that it does not know,
// would cost a goroutine per call.
func TestClientTimeoutCostsNoGoroutine(t *testing.T) {
	noLeaks(t)
	called := false
	m := userMesh(t, "", seen(func(req *http.Request) {
		called = true
		if _, ok := req.Context().Deadline(); !ok {
			t.Error("the context of the request has no deadline")
		}
		if req.Cancel != nil {
			t.Error("the request has a Cancel channel")
		}
	}))
	client := &http.Client{Transport: m.Transport(), Timeout: time.Minute}
	resp, err := client.Get("http://user-service/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if !called {
		t.Error("nothing was sent")
	}
}

// A call that exceeds the Timeout of its http.Client ends in time, and not with an error of the mesh.
func TestClientTimeoutEndsCalls(t *testing.T) {
	for name, documents := range map[string]string{
		"without limits": fmt.Sprintf(benchDocuments, "", ""),
		"with limits":    fmt.Sprintf(benchDocuments, ", perTryTimeout: 10s", "timeout: 1h"),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := userMesh(t, documents, seen(func(req *http.Request) { <-req.Context().Done() }))
				defer m.Close()
				start := time.Now()
				_, err := (&http.Client{Transport: m.Transport(), Timeout: 3 * time.Second}).Get("http://user-service/users/1")
				if took := time.Since(start); took != 3*time.Second {
					t.Errorf("the call took %v", took)
				}
				timeout, ok := errors.AsType[net.Error](err)
				if _, ours := errors.AsType[*mesh.Error](err); ours || !ok || !timeout.Timeout() || !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("error %v, want a timeout of the caller's", err)
				}
			})
		})
	}
}

// Servers are told exactly how much time is left, however long ago the clock was read for another call. The caller's header stays as it is.
func TestServersAreToldTheTimeLeft(t *testing.T) {
	const told = "X-Envoy-Expected-Rq-Timeout-Ms"
	for _, test := range []struct {
		name, documents string
		timeout         time.Duration // of the http.Client
		want            string
	}{
		{"none", fmt.Sprintf(benchDocuments, "", ""), 0, ""},
		{"of the caller", fmt.Sprintf(benchDocuments, "", ""), 3 * time.Second, "3000"},
		{"of the route", fmt.Sprintf(benchDocuments, "", "timeout: 5s"), 0, "5000"},
		{"of both", fmt.Sprintf(benchDocuments, ", perTryTimeout: 2s", "timeout: 5s"), 3 * time.Second, "3000"},
		{"of the caller, later", fmt.Sprintf(benchDocuments, ", perTryTimeout: 2s", "timeout: 5s"), time.Hour, "5000"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var got http.Header
				m := userMesh(t, test.documents, seen(func(req *http.Request) { got = req.Header }))
				defer m.Close()
				client := &http.Client{Transport: m.Transport(), Timeout: test.timeout}
				for _, pause := range []time.Duration{0, 0, 60 * time.Millisecond, 39 * time.Millisecond, time.Millisecond, time.Minute} {
					time.Sleep(pause)
					for _, own := range []http.Header{{}, {"Accept": {"text/plain"}}} {
						req, _ := http.NewRequest(http.MethodGet, "http://user-service/users/1", nil)
						req.Header = own
						fields := len(own)
						resp, err := client.Do(req)
						if err != nil {
							t.Fatal(err)
						}
						if resp.Body.Close(); got.Get(told) != test.want || got.Get("Accept") != own.Get("Accept") {
							t.Errorf("after %v, the server gets %v, want %s: %q", pause, got, told, test.want)
						}
						if len(own) != fields || len(resp.Request.Header) != fields {
							t.Errorf("the caller's header is %v, that of the response's request %v", own, resp.Request.Header)
						}
					}
				}
			})
		})
	}
}

// userMesh returns a mesh in which all endpoints of user-service are rt.
func userMesh(t *testing.T, documents string, rt http.RoundTripper) *mesh.Mesh {
	var registry discovery.Memory
	registry.Set("user-service", discovery.Endpoint{Address: "10.0.0.1", Port: 8080})
	m := newMesh(t, documents, mesh.WithDiscovery(&registry))
	mesh.ReplaceConnections(m, rt)
	return m
}
