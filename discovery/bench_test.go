package discovery_test

import (
	"fmt"
	"testing"

	"github.com/nosidecar/mesh/discovery"
)

// A change of a service, from Set to the last of 10 subscribers. With one endpoint more, changes would have to wait.
func BenchmarkWatcher_Update(b *testing.B) {
	endpoints := make([]discovery.Endpoint, 499)
	for i := range endpoints {
		endpoints[i] = at(fmt.Sprintf("10.0.%d.%d", i/250, i%250), 80)
	}
	var m discovery.Memory
	m.Set("orders", endpoints...)
	w := discovery.NewWatcher(&m, nil)
	defer w.Close()
	updated := make(chan struct{}, 10)
	for range cap(updated) {
		w.Subscribe(orders, func([]discovery.Endpoint) { updated <- struct{}{} })
		<-updated
	}
	b.ReportAllocs()
	for b.Loop() {
		m.Set("orders", endpoints...)
		for range cap(updated) {
			<-updated
		}
	}
}

// What a call pays that asks whether the endpoints are known.
func BenchmarkSubscription_Wait(b *testing.B) {
	w := discovery.NewWatcher(discovery.Static{"orders": {at("10.0.0.1", 80)}}, nil)
	defer w.Close()
	sub := w.Subscribe(orders, func([]discovery.Endpoint) {})
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		if err := sub.Wait(ctx); err != nil {
			b.Fatal(err)
		}
	}
}
