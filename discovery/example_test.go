package discovery_test

import (
	"context"
	"fmt"

	"github.com/nosidecar/mesh/discovery"
)

func ExampleMemory() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	var registry discovery.Memory
	registry.Set("orders", discovery.Endpoint{Address: "10.0.0.1", Port: 8080})

	for endpoints, err := range registry.Watch(ctx, discovery.Service{Host: "orders"}) {
		if err != nil {
			fmt.Println(err)
			continue
		}
		for _, e := range endpoints {
			fmt.Println(e.ID())
		}
		if len(endpoints) > 1 {
			break
		}
		registry.Set("orders",
			discovery.Endpoint{Address: "10.0.0.1", Port: 8080},
			discovery.Endpoint{Address: "10.0.0.2", Port: 8080})
	}
	// Output:
	// 10.0.0.1:8080
	// 10.0.0.1:8080
	// 10.0.0.2:8080
}

func ExampleWatcher() {
	table := discovery.Static{"orders": {{Address: "10.0.0.1", Port: 8080}}}
	watcher := discovery.NewWatcher(table, nil)
	defer watcher.Close()

	known := make(chan []discovery.Endpoint, 1)
	subscription := watcher.Subscribe(discovery.Service{Host: "orders"}, func(endpoints []discovery.Endpoint) {
		known <- endpoints
	})
	defer subscription.Close()

	fmt.Println((<-known)[0].ID())
	// Output: 10.0.0.1:8080
}
