package discovery_test

import (
	"context"
	"errors"
	"iter"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/discovery"
)

// TestSubscription_CloseWhileASetIsDelivered: no call of update begins after Close, not even with a set that others have got already.
func TestSubscription_CloseWhileASetIsDelivered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m discovery.Memory
		m.Set("orders", at("10.0.0.1", 1))
		w := discovery.NewWatcher(&m, nil)
		defer w.Close()
		var second *discovery.Subscription
		w.Subscribe(orders, func(endpoints []discovery.Endpoint) {
			if endpoints[0].Port == 2 {
				second.Close()
			}
		})
		var l log
		second = w.Subscribe(orders, l.update)
		l.want(t, "set 10.0.0.1:1")
		m.Set("orders", at("10.0.0.1", 2))
		l.want(t)
	})
}

// TestSubscription_ClosedAtOnce, before the watch has begun.
func TestSubscription_ClosedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m discovery.Memory
		m.Set("orders", at("10.0.0.1", 80))
		w := discovery.NewWatcher(&m, nil)
		defer w.Close()
		for range 100 {
			w.Subscribe(orders, func([]discovery.Endpoint) {}).Close()
		}
		synctest.Wait()
		var l log
		w.Subscribe(orders, l.update)
		l.want(t, "set 10.0.0.1:80")
	})
}

// TestSubscription_CloseEndsItsWait, although the watch goes on for another subscriber.
func TestSubscription_CloseEndsItsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := discovery.NewWatcher(newScript(), nil)
		defer w.Close()
		w.Subscribe(orders, func([]discovery.Endpoint) {})
		sub := w.Subscribe(orders, func([]discovery.Endpoint) {})
		waited := make(chan error, 1)
		go func() { waited <- sub.Wait(context.Background()) }()
		synctest.Wait()
		sub.Close()
		if err := <-waited; err == nil {
			t.Error("Wait = nil after Close, want an error")
		}
	})
}

// TestSubscription_UpdateThatPanics gets later sets nevertheless: Subscribe may run on a goroutine that recovers.
func TestSubscription_UpdateThatPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m discovery.Memory
		m.Set("orders", at("10.0.0.1", 1))
		w := discovery.NewWatcher(&m, nil)
		defer w.Close()
		w.Subscribe(orders, func([]discovery.Endpoint) {})
		synctest.Wait() // the next subscriber gets the set at once
		var l log
		func() {
			defer func() {
				if p := recover(); p != "boom" {
					t.Errorf("Subscribe panicked with %v", p)
				}
			}()
			w.Subscribe(orders, func(endpoints []discovery.Endpoint) {
				if l.update(endpoints); endpoints[0].Port == 1 {
					panic("boom")
				}
			})
		}()
		l.want(t, "set 10.0.0.1:1")
		m.Set("orders", at("10.0.0.1", 2))
		l.want(t, "set 10.0.0.1:2")
	})
}

// TestSubscription_ServiceThatAppears is known from its first set on, even while that is being delivered.
func TestSubscription_ServiceThatAppears(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m discovery.Memory
		w := discovery.NewWatcher(&m, nil)
		defer w.Close()
		updating := make(chan struct{})
		sub := w.Subscribe(orders, func([]discovery.Endpoint) { <-updating })
		if err := sub.Wait(t.Context()); !errors.Is(err, discovery.ErrUnknownService) {
			t.Fatalf("Wait = %v before the service was registered", err)
		}
		m.Set("orders", at("10.0.0.1", 80))
		synctest.Wait()
		waited := make(chan error, 1)
		go func() { waited <- sub.Wait(t.Context()) }()
		synctest.Wait()
		close(updating)
		if err := <-waited; err != nil {
			t.Errorf("Wait = %v during the first update", err)
		}
	})
}

// deaf is a resolver that yields as long as its caller goes on, whatever the context says.
type deaf struct{ err error }

func (d deaf) Watch(context.Context, discovery.Service) iter.Seq2[[]discovery.Endpoint, error] {
	return func(yield func([]discovery.Endpoint, error) bool) {
		for yield([]discovery.Endpoint{at("10.0.0.1", 80)}, d.err) {
			time.Sleep(time.Second)
		}
	}
}

// TestWatcher_CloseStopsAResolverThatIgnoresItsContext.
func TestWatcher_CloseStopsAResolverThatIgnoresItsContext(t *testing.T) {
	for name, r := range map[string]deaf{"sets": {}, "errors": {errors.New("no answer")}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := discovery.NewWatcher(r, nil)
				w.Subscribe(orders, func([]discovery.Endpoint) {})
				time.Sleep(time.Minute)
				closed := make(chan struct{})
				go func() {
					w.Close()
					close(closed)
				}()
				select {
				case <-closed:
				case <-time.After(time.Hour):
					t.Fatal("Close waits for a watch that goes on")
				}
			})
		})
	}
}

// TestDNS_RefreshDuringAnOutage: calls that fail while names cannot be looked up cause no more lookups.
func TestDNS_RefreshDuringAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := newZone()
		z.addrs[orders.Host] = []string{"10.0.0.1"}
		w := discovery.NewWatcher(discovery.DNS{Resolver: z}, nil)
		defer w.Close()
		var l log
		sub := w.Subscribe(orders, l.update)
		l.want(t, "set 10.0.0.1:0")
		z.change(func() { z.err = errors.New("server failure") })
		time.Sleep(time.Minute)
		before := len(z.asked())
		for range 600 {
			sub.Refresh()
			time.Sleep(time.Second)
		}
		if n := len(z.asked()) - before; n < 15 || n > 45 {
			t.Errorf("%d lookups in ten minutes without an answer, want one every 15 to 30 seconds", n)
		}
	})
}

// TestDNS_RefreshAfterAQuietTime: what kept lookups apart earlier is over with the next one that nobody has asked for.
func TestDNS_RefreshAfterAQuietTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := newZone()
		z.addrs[orders.Host] = []string{"10.0.0.1"}
		w := discovery.NewWatcher(discovery.DNS{Resolver: z, Interval: time.Hour}, nil)
		defer w.Close()
		var l log
		sub := w.Subscribe(orders, l.update)
		l.want(t, "set 10.0.0.1:0")
		for range 600 {
			sub.Refresh()
			time.Sleep(time.Second)
		}
		time.Sleep(12 * time.Hour)
		sub.Refresh() // at once, or soon after a lookup that was just made
		time.Sleep(2 * time.Second)
		z.change(func() { z.addrs[orders.Host] = []string{"10.0.0.2"} })
		sub.Refresh()
		time.Sleep(5 * time.Second)
		l.want(t, "set 10.0.0.2:0")
	})
}
