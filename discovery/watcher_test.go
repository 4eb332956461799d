package discovery_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/discovery"
)

func newScript() *script {
	return &script{steps: make(chan event)}
}

// log records updates and errors as text.
type log struct {
	mu    sync.Mutex
	lines []string
}

func (l *log) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
}

func (l *log) update(endpoints []discovery.Endpoint) {
	l.add("set " + addresses(endpoints))
}

func (l *log) fail(_ discovery.Service, err error) {
	l.add("error " + err.Error())
}

// next returns what was added since the last call, once everything has settled.
func (l *log) next() []string {
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := l.lines
	l.lines = nil
	return lines
}

func (l *log) want(t *testing.T, lines ...string) {
	t.Helper()
	if got := l.next(); !slices.Equal(got, lines) {
		t.Errorf("got %q, want %q", got, lines)
	}
}

func TestWatcher_SharesOneWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newScript()
		w := discovery.NewWatcher(r, nil)
		defer w.Close()
		var first, second, late log
		sub1 := w.Subscribe(orders, first.update)
		sub2 := w.Subscribe(orders, second.update)
		r.steps <- event{set: "10.0.0.1"}
		first.want(t, "set 10.0.0.1:80")
		second.want(t, "set 10.0.0.1:80")

		sub1.Close()
		sub1.Close()
		sub3 := w.Subscribe(orders, late.update)
		late.want(t, "set 10.0.0.1:80") // what is known, at once
		r.steps <- event{set: "10.0.0.1 10.0.0.2"}
		first.want(t)
		second.want(t, "set 10.0.0.1:80 10.0.0.2:80")
		late.want(t, "set 10.0.0.1:80 10.0.0.2:80")
		if r.watches != 1 {
			t.Errorf("%d watches, want 1", r.watches)
		}

		sub2.Close()
		sub3.Close() // the last one ends the watch
		synctest.Wait()
		var again log
		w.Subscribe(orders, again.update)
		again.want(t) // nothing is known any more
		if r.watches != 2 {
			t.Errorf("%d watches, want a second one", r.watches)
		}
	})
}

func TestErrorIsNotAnEmptySet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newScript()
		var l log
		w := discovery.NewWatcher(r, l.fail)
		defer w.Close()
		sub := w.Subscribe(orders, l.update)

		r.steps <- event{err: errors.New("down")} // the first failure poisons nothing
		l.want(t, "error down")
		r.steps <- event{set: "10.0.0.1"}
		l.want(t, "set 10.0.0.1:80")
		if err := sub.Wait(t.Context()); err != nil {
			t.Errorf("Wait = %v, want nil", err)
		}

		// Neither error is a set: nobody is told that there are no endpoints.
		r.steps <- event{err: errors.New("down again")}
		r.steps <- event{err: discovery.ErrUnknownService}
		l.want(t, "error down again", "error discovery: unknown service")
		if err := sub.Wait(t.Context()); err != nil {
			t.Errorf("Wait = %v, want nil while the last good set is kept", err)
		}
		if err := sub.Err(); !errors.Is(err, discovery.ErrUnknownService) {
			t.Errorf("Err = %v, want the last error", err)
		}
		var late log
		w.Subscribe(orders, late.update)
		late.want(t, "set 10.0.0.1:80")

		r.steps <- event{set: "none"} // an empty set is
		l.want(t, "set ")
		if err := sub.Err(); err != nil {
			t.Errorf("Err = %v after a good set, want nil", err)
		}
	})
}

func TestWaitHonoursContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newScript()
		w := discovery.NewWatcher(r, nil)
		defer w.Close()
		sub := w.Subscribe(orders, func([]discovery.Endpoint) {})

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := sub.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Wait = %v, want the deadline", err)
		}

		down, gaveUp := errors.New("down"), errors.New("gave up")
		r.steps <- event{err: down}
		synctest.Wait()
		ctx2, cancel2 := context.WithCancelCause(t.Context())
		cancel2(gaveUp)
		if err := sub.Wait(ctx2); !errors.Is(err, gaveUp) || !errors.Is(err, down) {
			t.Errorf("Wait = %v, want the cause and the resolver's error", err)
		}

		waited := make(chan error, 1)
		go func() { waited <- sub.Wait(t.Context()) }()
		synctest.Wait()
		r.steps <- event{set: "10.0.0.1"}
		if err := <-waited; err != nil {
			t.Errorf("Wait = %v, want nil once there is a set", err)
		}
	})
}

func TestWatcher_UnknownService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m discovery.Memory
		w := discovery.NewWatcher(&m, nil)
		defer w.Close()
		var l log
		sub := w.Subscribe(orders, l.update)
		if err := sub.Wait(t.Context()); !errors.Is(err, discovery.ErrUnknownService) {
			t.Errorf("Wait = %v, want ErrUnknownService", err)
		}
		m.Set("orders", at("10.0.0.1", 80))
		l.want(t, "set 10.0.0.1:80")
		if err := sub.Wait(t.Context()); err != nil {
			t.Errorf("Wait = %v, want nil after the service appeared", err)
		}
	})
}

func TestWatcher_LeavesOutInvalidEndpoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		endpoints := []discovery.Endpoint{
			at("10.0.0.1", 80),
			{Port: 80},
			at("10.0.0.2", 65536),
			at("10.0.0.3", -1),
			{Address: "10.0.0.4", Ports: []discovery.Port{{Number: 80, Target: 70000}}},
			at("10.0.0.5", 65535),
			at("10.0.0.6:80", 80),
			at("[::1]", 80),
			at("::1", 80),
			at("fe80::1%eth0", 80),
		}
		var l log
		var reported []string
		w := discovery.NewWatcher(discovery.Static{"orders": endpoints}, func(_ discovery.Service, err error) {
			reported = strings.Split(err.Error(), "\n")
		})
		defer w.Close()
		w.Subscribe(orders, l.update)
		l.want(t, "set 10.0.0.1:80 10.0.0.5:65535 [::1]:80 [fe80::1%eth0]:80")
		if len(reported) != 6 || !strings.Contains(reported[1], "10.0.0.2 has port 65536") {
			t.Errorf("reported %q, want the four invalid ones", reported)
		}
		if endpoints[1].Address != "" {
			t.Error("the resolver's slice was changed")
		}
	})
}

func TestWatcher_RestartsAWatchThatEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newScript()
		var l log
		w := discovery.NewWatcher(r, l.fail)
		defer w.Close()
		w.Subscribe(orders, l.update)
		r.steps <- event{set: "10.0.0.1"}
		l.want(t, "set 10.0.0.1:80")

		begin := time.Now()
		for range 10 {
			r.steps <- event{} // ends the iteration; the next is received by the one begun after the backoff
		}
		r.steps <- event{set: "10.0.0.2"}
		if lines := l.next(); lines[len(lines)-1] != "set 10.0.0.2:80" {
			t.Errorf("got %q, want the new set in the end", lines)
		}
		r.steps <- event{}
		defer synctest.Wait() // Close need not wait for the backoff
		// Ten waits of 0.5 s, 0.5 s, 1 s, 2 s ... 30 s, each between half of that and all.
		if took := time.Since(begin); took < 60*time.Second || took > 154*time.Second {
			t.Errorf("ten restarts took %v", took)
		}
	})
}

func TestWatcher_CloseWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newScript()
		w := discovery.NewWatcher(r, nil)
		var finished atomic.Bool
		sub := w.Subscribe(orders, func([]discovery.Endpoint) {
			time.Sleep(time.Second)
			finished.Store(true)
		})
		r.steps <- event{set: "10.0.0.1"}
		waiting := w.Subscribe(discovery.Service{Host: "other"}, func([]discovery.Endpoint) {})
		waited := make(chan error, 1)
		go func() { waited <- waiting.Wait(context.Background()) }()
		synctest.Wait()
		if err := w.Close(); err != nil || !finished.Load() {
			t.Errorf("Close = %v with the update finished: %t; want it to wait", err, finished.Load())
		}
		if err := w.Close(); err != nil {
			t.Errorf("second Close = %v", err)
		}
		if err := <-waited; err == nil {
			t.Error("Wait succeeded as the watcher was closed")
		}
		sub.Close()
		waiting.Close()
		late := w.Subscribe(orders, func([]discovery.Endpoint) { t.Error("update from a closed watcher") })
		if err := late.Wait(t.Context()); err == nil || late.Err() == nil {
			t.Error("Wait on a closed watcher succeeded")
		}
		late.Close()
	})
}

// A subscriber may use the watcher in its update, and what comes meanwhile is delivered afterwards, in order.
func TestWatcher_UpdateMayReenter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m discovery.Memory
		m.Set("orders", at("10.0.0.1", 1))
		w := discovery.NewWatcher(&m, nil)
		defer w.Close()
		var l, nested log
		var sub *discovery.Subscription
		subscribed := make(chan struct{})
		sub = w.Subscribe(orders, func(endpoints []discovery.Endpoint) {
			l.update(endpoints)
			switch endpoints[0].Port {
			case 1:
				m.Set("orders", at("10.0.0.1", 2))
			case 2:
				w.Subscribe(orders, nested.update)
				m.Set("orders", at("10.0.0.1", 3))
			case 3:
				<-subscribed
				sub.Close()
				m.Set("orders", at("10.0.0.1", 4))
			}
		})
		close(subscribed)
		l.want(t, "set 10.0.0.1:1", "set 10.0.0.1:2", "set 10.0.0.1:3")
		if lines := nested.next(); lines[len(lines)-1] != "set 10.0.0.1:4" {
			t.Errorf("the nested subscriber got %q, want it to end at 4", lines)
		}
	})
}

// What comes while a subscriber is busy waits for it, and only the latest does. The others do not wait.
func TestWatcher_SlowSubscriberGetsTheLatest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m discovery.Memory
		m.Set("orders", at("10.0.0.1", 1))
		w := discovery.NewWatcher(&m, nil)
		defer w.Close()
		var quick, slow log
		w.Subscribe(orders, quick.update)
		quick.want(t, "set 10.0.0.1:1")

		busy := make(chan struct{})
		go w.Subscribe(orders, func(endpoints []discovery.Endpoint) {
			slow.update(endpoints)
			<-busy
		})
		slow.want(t, "set 10.0.0.1:1")
		for port := 2; port <= 4; port++ {
			m.Set("orders", at("10.0.0.1", port))
			synctest.Wait()
		}
		quick.want(t, "set 10.0.0.1:2", "set 10.0.0.1:3", "set 10.0.0.1:4")
		slow.want(t)
		close(busy)
		slow.want(t, "set 10.0.0.1:4")
	})
}

// However subscribing and changing interleave, no subscriber sees an older set after a newer one, nor ends on an old one.
func TestWatcher_OrderUnderRace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m discovery.Memory
		m.Set("orders", at("10.0.0.1", 1))
		w := discovery.NewWatcher(&m, nil)
		defer w.Close()
		w.Subscribe(orders, func([]discovery.Endpoint) {})
		go func() {
			for port := 2; port <= 500; port++ {
				m.Set("orders", at("10.0.0.1", port))
			}
		}()
		last := make([]int, 200)
		for i := range last {
			go func() {
				w.Subscribe(orders, func(endpoints []discovery.Endpoint) {
					if port := endpoints[0].Port; port > last[i] {
						last[i] = port
					} else {
						t.Errorf("subscriber %d got set %d after %d", i, port, last[i])
					}
				})
			}()
		}
		synctest.Wait()
		for i, port := range last {
			if port != 500 {
				t.Errorf("subscriber %d ends at set %d, want 500", i, port)
			}
		}
	})
}

// Who waited may use what update has stored.
func TestSubscription_WaitIsForTheUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := discovery.NewWatcher(discovery.Static{"a": {{Address: "10.0.0.1"}}}, nil)
		defer w.Close()
		updating := make(chan struct{})
		sub := w.Subscribe(discovery.Service{Host: "a"}, func([]discovery.Endpoint) { <-updating })
		waited := make(chan error, 1)
		go func() { waited <- sub.Wait(t.Context()) }()
		synctest.Wait()
		select {
		case err := <-waited:
			t.Fatalf("Wait returned %v while the first update was under way", err)
		default:
		}
		close(updating)
		if err := <-waited; err != nil {
			t.Errorf("Wait = %v", err)
		}

		closed := w.Subscribe(discovery.Service{Host: "unknown"}, func([]discovery.Endpoint) {})
		if err := closed.Wait(t.Context()); !errors.Is(err, discovery.ErrUnknownService) {
			t.Errorf("Wait for an unknown service = %v", err)
		}
	})
}
