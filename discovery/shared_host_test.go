package discovery_test

import (
	"testing"
	"testing/synctest"

	"github.com/nosidecar/mesh/discovery"
)

// TestWatcher_ServicesOfOneHost: Services that differ in anything but their host have watches of their own, and closing one of them, in any order,
// leaves the others.
func TestWatcher_ServicesOfOneHost(t *testing.T) {
	remote, outside := orders, orders
	remote.Local = false
	outside.Name, outside.Namespace, outside.Local = "", "", false
	services := []discovery.Service{orders, remote, outside}
	for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
		synctest.Test(t, func(t *testing.T) {
			var m discovery.Memory
			w := discovery.NewWatcher(&m, nil)
			defer w.Close()
			logs, subs := make([]log, len(services)), make([]*discovery.Subscription, len(services))
			for i, service := range services {
				subs[i] = w.Subscribe(service, logs[i].update)
			}
			m.Set("orders", at("10.0.0.1", 80)) // only a caller in the namespace may use the bare name
			logs[0].want(t, "set 10.0.0.1:80")
			m.Set("orders.shop", at("10.0.0.2", 80))
			logs[0].want(t, "set 10.0.0.2:80")
			logs[1].want(t, "set 10.0.0.2:80")
			logs[2].want(t)
			closed := make(map[int]bool)
			for _, i := range order {
				m.Set(orders.Host, at("10.0.0.3", 80))
				for j := range services {
					if closed[j] {
						logs[j].want(t)
					} else {
						logs[j].want(t, "set 10.0.0.3:80")
					}
				}
				subs[i].Close()
				closed[i] = true
			}
			subs[order[1]] = w.Subscribe(services[order[1]], logs[order[1]].update)
			logs[order[1]].want(t, "set 10.0.0.3:80")
			m.Set(orders.Host, at("10.0.0.4", 80))
			logs[order[1]].want(t, "set 10.0.0.4:80")
			logs[order[0]].want(t)
		})
	}
	for i := range services { // closing the watcher ends the watches of all the others
		synctest.Test(t, func(t *testing.T) {
			var m discovery.Memory
			w := discovery.NewWatcher(&m, nil)
			logs, subs := make([]log, len(services)), make([]*discovery.Subscription, len(services))
			for j, service := range services {
				subs[j] = w.Subscribe(service, logs[j].update)
			}
			subs[i].Close()
			w.Close()
			m.Set(orders.Host, at("10.0.0.1", 80))
			for j := range logs {
				logs[j].want(t)
			}
		})
	}
}

// TestMemory_NamesWithNothingInCommon: a service is found under each of its names, also if they begin with different labels.
func TestMemory_NamesWithNothingInCommon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		odd := discovery.Service{Host: "api.example.com", Name: "orders", Namespace: "shop", Local: true}
		var m discovery.Memory
		w := discovery.NewWatcher(&m, nil)
		defer w.Close()
		var l log
		sub := w.Subscribe(odd, l.update)
		m.Set("orders", at("10.0.0.1", 80))
		l.want(t, "set 10.0.0.1:80")
		m.Set("Orders.Shop.svc.", at("10.0.0.2", 80))
		l.want(t, "set 10.0.0.2:80")
		m.Set("api.example.com", at("10.0.0.3", 80))
		l.want(t, "set 10.0.0.3:80")
		m.Remove("api.example.com")
		l.want(t, "set 10.0.0.2:80")
		m.Set("api.other.com", at("10.0.0.4", 80)) // which only begins alike
		l.want(t)
		sub.Close()
		m.Set("orders.shop.svc", at("10.0.0.5", 80))
		m.Set("api.example.com", at("10.0.0.6", 80))
		l.want(t)
		w.Subscribe(odd, l.update)
		l.want(t, "set 10.0.0.6:80")
	})
}
