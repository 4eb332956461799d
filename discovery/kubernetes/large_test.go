package kubernetes_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/kubernetes/kubetest"
)

// A service of 10,000 endpoints changes 1,000 times a second. Changes are collected, none is lost, and little is kept of what was read. What
// it costs is logged, with what the scripted server does; BenchmarkResolver_LargeService measures it over connections.
func TestResolver_LargeService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const many, changes = 100, 1000 // slices, and changes of them
		s, r := start(t, serviceOf("orders", http80))
		// In each slice, the first endpoint is ready or not.
		event := func(kind string, slice, version int, ready bool) []byte {
			return kubetest.Event(kind, largeSlice(slice, version, ready))
		}
		var made [many][2][]byte
		for i := range made {
			made[i] = [2][]byte{event("MODIFIED", i, 8999, false), event("MODIFIED", i, 8999, true)}
		}
		sent := make(chan struct{})
		s.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "endpointslices") {
				return false
			}
			w.Header().Set("Content-Type", "application/json")
			for i := range many {
				w.Write(event("ADDED", i, 0, true))
			}
			w.Write(kubetest.Event("BOOKMARK", []byte(`{"kind":"EndpointSlice","metadata":{"resourceVersion":"1000","annotations":{"k8s.io/initial-events-end":"true"}}}`)))
			for i := range changes {
				w.(http.Flusher).Flush()
				time.Sleep(time.Millisecond)
				ready := i/many%2 == 1 || i%3 == 0
				w.Write(bytes.Replace(made[i%many][map[bool]int{true: 1}[ready]], []byte(`"resourceVersion":"9999"`), fmt.Appendf(nil, `"resourceVersion":"%d"`, 1001+i), 1))
			}
			w.(http.Flusher).Flush()
			close(sent)
			<-r.Context().Done()
			return true
		})
		began := processor()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		answers := 0
		var last []discovery.Endpoint
		done := make(chan struct{})
		go func() {
			defer close(done)
			for endpoints, err := range r.Watch(ctx, orders) {
				if err != nil {
					t.Error(err)
				}
				answers++
				last = endpoints
			}
		}()
		<-sent
		time.Sleep(time.Second)
		used := processor() - began
		var memory runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&memory)
		cancel()
		<-done
		// What is sent last of slice i is change 900+i, of a round in which all are ready.
		if len(last) != 100*many {
			t.Errorf("%d endpoints in the end, want %d", len(last), 100*many)
		}
		if answers < 8 || answers > 2+changes/50 {
			t.Errorf("%d answers in a second, want 10 to 20 a second", answers)
		}
		if kept := memory.HeapAlloc >> 20; kept > 100 {
			t.Errorf("%d MiB are kept", kept)
		}
		t.Logf("%d changes: %d answers, %v of a processor, %d MiB on the heap", changes, answers, used.Round(time.Millisecond), memory.HeapAlloc>>20)
	})
}
