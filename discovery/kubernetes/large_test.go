package kubernetes_test

import (
	"context"
	"fmt"
	"io"
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
		const version = `"resourceVersion":"9999"`
		var made [many]string
		for i := range made {
			made[i] = string(kubetest.Event("MODIFIED", largeSlice(i, 8999, true)))
		}
		event := func(i int, kind, is string, ready bool) string {
			text := strings.Replace(strings.Replace(made[i], "MODIFIED", kind, 1), version, `"resourceVersion":"`+is+`"`, 1)
			if !ready {
				text = strings.Replace(text, `"ready":true`, `"ready":false`, 1)
			}
			return text
		}
		sent := make(chan struct{})
		s.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "endpointslices") {
				return false
			}
			w.Header().Set("Content-Type", "application/json")
			for i := range many {
				io.WriteString(w, event(i, "ADDED", fmt.Sprint(1+i), true))
			}
			w.Write(kubetest.Event("BOOKMARK", []byte(`{"kind":"EndpointSlice","metadata":{"resourceVersion":"1000","annotations":{"k8s.io/initial-events-end":"true"}}}`)))
			for i := range changes {
				w.(http.Flusher).Flush()
				time.Sleep(time.Millisecond)
				ready := i/many%2 == 1 || i%3 == 0
				io.WriteString(w, event(i%many, "MODIFIED", fmt.Sprint(1001+i), ready))
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
