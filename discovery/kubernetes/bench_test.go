package kubernetes_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/discovery/kubernetes"
	"github.com/nosidecar/mesh/internal/kubernetes/kubetest"
)

// largeSlice returns a slice of 100 endpoints as the controller writes them, 20 KB. One of them is ready or not.
func largeSlice(number, version int, ready bool) []byte {
	type m = map[string]any
	var endpoints []any
	for i := range 100 {
		endpoints = append(endpoints, m{"addresses": []string{fmt.Sprintf("10.%d.0.%d", number, i)}, "nodeName": fmt.Sprintf("node-%d.eu-west-1.compute.internal", i%50),
			"conditions": m{"ready": i != 0 || ready, "serving": true, "terminating": false}, "zone": fmt.Sprintf("eu-west-1%c", 'a'+i%3),
			"targetRef": m{"kind": "Pod", "namespace": "shop", "name": fmt.Sprintf("orders-7d9c4f6b5-%05d", i), "uid": fmt.Sprintf("00000000-0000-0000-%04d-%012d", number, i)}})
	}
	data, err := json.Marshal(m{"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "metadata": m{"namespace": "shop", "name": fmt.Sprintf("orders-%03d", number),
		"uid": fmt.Sprintf("slice-%d", number), "resourceVersion": fmt.Sprint(1000 + version), "labels": m{"kubernetes.io/service-name": "orders"}},
		"addressType": "IPv4", "ports": []any{m{"name": "http", "port": 8080, "protocol": "TCP"}}, "endpoints": endpoints})
	if err != nil {
		panic(err)
	}
	return data
}

// BenchmarkResolver_LargeService follows a service of 10,000 endpoints that changes 1,000 times a second. An iteration is a second; what
// a processor has to do in it is reported, with what the scripted server does.
func BenchmarkResolver_LargeService(b *testing.B) {
	const many = 100 // slices
	s := newServer()
	s.Apply(serviceOf("orders", http80))
	events := make(chan []byte, 1000)
	s.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "endpointslices") {
			return false
		}
		w.Header().Set("Content-Type", "application/json")
		for i := range many {
			w.Write(kubetest.Event("ADDED", largeSlice(i, 0, true)))
		}
		w.Write(kubetest.Event("BOOKMARK", []byte(`{"kind":"EndpointSlice","metadata":{"resourceVersion":"1000","annotations":{"k8s.io/initial-events-end":"true"}}}`)))
		w.(http.Flusher).Flush()
		for {
			select {
			case <-r.Context().Done():
				return true
			case event := <-events:
				w.Write(event)
				w.(http.Flusher).Flush()
			}
		}
	})
	r := &kubernetes.Resolver{Client: (*kubernetes.Client)(s.Start(b))}
	watcher := discovery.NewWatcher(r, func(_ discovery.Service, err error) { b.Error(err) })
	defer watcher.Close()
	updates := 0
	sub := watcher.Subscribe(orders, func(endpoints []discovery.Endpoint) { updates++ })
	if err := sub.Wait(context.Background()); err != nil {
		b.Fatal(err)
	}
	runtime.GC()
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	b.ReportMetric(float64(memory.HeapAlloc)/1e6, "MB-at-rest")
	// They are made before, since that takes longer than to read them.
	prepared := make([][]byte, 20*many)
	for i := range prepared {
		prepared[i] = kubetest.Event("MODIFIED", largeSlice(i%many, i+1, i/many%2 == 1))
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	before, begun := processor(), updates
	sent := 0
	b.ReportAllocs()
	b.ResetTimer()
	for b.Loop() {
		for range 1000 {
			<-tick.C
			// The versions go on when the events are sent again.
			old, now := fmt.Sprintf(`"resourceVersion":"%d"`, 1001+sent%len(prepared)), fmt.Sprintf(`"resourceVersion":"%d"`, 1001+sent)
			events <- []byte(strings.Replace(string(prepared[sent%len(prepared)]), old, now, 1))
			sent++
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(processor()-before)/float64(time.Millisecond)/float64(sent)*1000, "ms-of-processor/1000-changes")
	b.ReportMetric(float64(updates-begun)/float64(sent)*1000, "updates/1000-changes")
}

// processor returns how long this process has run on a processor.
func processor() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
