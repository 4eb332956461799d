package discovery_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/discovery"
)

// zone is a fake name server.
type zone struct {
	mu      sync.Mutex // guards all; see change
	addrs   map[string][]string
	srv     map[string][]*net.SRV
	srvErr  error
	err     error
	queries []string
}

func newZone() *zone {
	return &zone{addrs: make(map[string][]string), srv: make(map[string][]*net.SRV)}
}

// change runs f while no lookup is under way.
func (z *zone) change(f func()) {
	z.mu.Lock()
	defer z.mu.Unlock()
	f()
}

// asked returns the lookups made so far.
func (z *zone) asked() []string {
	z.mu.Lock()
	defer z.mu.Unlock()
	return slices.Clone(z.queries)
}

func (z *zone) query(ctx context.Context, text string) error {
	z.queries = append(z.queries, text)
	if _, ok := ctx.Deadline(); !ok {
		return errors.New("a lookup without deadline")
	}
	return z.err
}

func (z *zone) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if err := z.query(ctx, network+" "+host); err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, addr := range z.addrs[host] {
		addrs = append(addrs, netip.MustParseAddr(addr))
	}
	if addrs == nil {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return addrs, nil
}

func (z *zone) LookupSRV(ctx context.Context, service, proto, name string) (string, []*net.SRV, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if err := z.query(ctx, "srv "+service+proto+name); err != nil {
		return "", nil, err
	}
	records, ok := z.srv[name]
	if !ok {
		return "", nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	return name, records, z.srvErr
}

func TestDNSPolls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := newZone()
		z.addrs[orders.Host] = []string{"10.0.0.1", "::ffff:10.0.0.2", "fd00::1", "10.0.0.1"}
		w := start(t, discovery.DNS{Resolver: z}, orders)
		want(t, w.next(), "10.0.0.1:0 10.0.0.2:0") // no IPv6 where there is IPv4, nothing twice

		// The same set in another order is no change.
		z.change(func() { z.addrs[orders.Host] = []string{"10.0.0.2", "10.0.0.1"} })
		time.Sleep(time.Minute)
		want(t, w.next())
		if n := len(z.asked()); n < 2 || n > 3 {
			t.Errorf("%d lookups in a minute, want 2 or 3", n)
		}

		z.change(func() { z.addrs[orders.Host] = []string{"10.0.0.1", "10.0.0.2", "10.0.0.3"} }) // scale up
		time.Sleep(33 * time.Second)
		want(t, w.next(), "10.0.0.1:0 10.0.0.2:0 10.0.0.3:0")
	})
}

func TestDNSJitterAndRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := newZone()
		for _, last := range []string{"1", "2", "3", "4", "5", "6", "7", "8"} {
			z.addrs["api.example.com"] = append(z.addrs["api.example.com"], "10.0.0."+last)
		}
		waits, firsts := make(map[time.Duration]bool), make(map[string]bool)
		for range 20 {
			ctx, cancel := context.WithCancel(t.Context())
			resolver := discovery.DNS{Resolver: z, Interval: 10 * time.Second}
			var begin time.Time
			for endpoints, err := range resolver.Watch(ctx, discovery.Service{Host: "api.example.com"}) {
				if err != nil {
					waits[time.Since(begin)] = true
					z.err = nil
					break
				}
				firsts[endpoints[0].Address] = true
				begin = time.Now()
				z.err = errors.New("down") // met by the next lookup
			}
			cancel()
		}
		for wait := range waits {
			if wait < 9*time.Second || wait > 11*time.Second {
				t.Errorf("looked up again after %v, want 10s give or take a tenth", wait)
			}
		}
		if len(waits) < 10 {
			t.Errorf("only %d different waits in 20 watches: no jitter", len(waits))
		}
		if len(firsts) < 2 {
			t.Errorf("20 clients all begin with %v", firsts)
		}
	})
}

func TestDNS_KeepsTryingThroughErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := newZone()
		z.addrs[orders.Host] = []string{"10.0.0.1"}
		z.err = errors.New("server failure")
		w := start(t, discovery.DNS{Resolver: z, Interval: 30 * time.Second}, orders)
		want(t, w.next(), "error")
		z.change(func() { z.err = nil })
		time.Sleep(time.Second) // the first retry is soon
		want(t, w.next(), "10.0.0.1:0")

		// A name that existed and is gone is an error, not an unknown service, and not an empty set.
		z.change(func() { delete(z.addrs, orders.Host) })
		time.Sleep(34 * time.Second)
		for _, e := range w.next() {
			if e.err == nil || errors.Is(e.err, discovery.ErrUnknownService) {
				t.Errorf("yielded %v for a name that is gone, want a plain error", e)
			}
		}
		time.Sleep(10 * time.Minute)
		if n := len(w.next()); n < 20 || n > 50 {
			t.Errorf("%d attempts in ten minutes, want one every 15 to 30 seconds", n)
		}

		// Back as it was: no change to tell of.
		z.change(func() { z.addrs[orders.Host] = []string{"10.0.0.1"} })
		time.Sleep(31 * time.Second)
		want(t, w.next())
		z.change(func() { z.addrs[orders.Host] = []string{"10.0.0.2"} })
		time.Sleep(34 * time.Second)
		want(t, w.next(), "10.0.0.2:0")
	})
}

func TestDNS_UnknownService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := newZone()
		w := start(t, discovery.DNS{Resolver: z}, orders)
		events := w.next()
		want(t, events, "unknown")
		if dnsErr, ok := errors.AsType[*net.DNSError](events[0].err); !ok || dnsErr.Name != orders.Host {
			t.Errorf("%v does not hold the lookup's error for the host", events[0].err)
		}
		tried := []string{"ip orders.shop.svc.cluster.local", "ip orders.shop.svc", "ip orders"} // not orders.shop
		if !slices.Equal(z.asked(), tried) {
			t.Errorf("looked up %q, want %q", z.asked(), tried)
		}
		time.Sleep(5 * time.Minute)
		want(t, w.next()) // once is enough
		z.change(func() { z.addrs["orders"] = []string{"10.0.0.1"} })
		time.Sleep(30 * time.Second)
		want(t, w.next(), "10.0.0.1:0")

		// From now on that is its name: when it is gone, the next one that exists may be somebody else's.
		z.change(func() {
			delete(z.addrs, "orders")
			z.addrs["orders.shop.svc"] = []string{"192.0.2.1"}
		})
		time.Sleep(34 * time.Second)
		for _, e := range w.next() {
			if e.err == nil {
				t.Errorf("yielded %v after the name was gone", e)
			}
		}
	})
}

func TestDNS_Network(t *testing.T) {
	for _, tt := range []struct {
		name, network string
		addrs         []string
		want, query   string
	}{
		{"default takes IPv4", "", []string{"10.0.0.1", "fd00::1"}, "10.0.0.1:0", "ip api.example.com"},
		{"default falls back to IPv6", "", []string{"fd00::1"}, "[fd00::1]:0", "ip api.example.com"},
		{"both", "ip", []string{"10.0.0.1", "fd00::1"}, "10.0.0.1:0 [fd00::1]:0", "ip api.example.com"},
		{"one", "ip6", []string{"fd00::1"}, "[fd00::1]:0", "ip6 api.example.com"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				z := newZone()
				z.addrs["api.example.com"] = tt.addrs
				r := discovery.DNS{Resolver: z, Network: tt.network}
				w := start(t, r, discovery.Service{Host: "api.example.com"})
				want(t, w.next(), tt.want)
				if z.asked()[0] != tt.query {
					t.Errorf("looked up %q, want %q", z.asked()[0], tt.query)
				}
			})
		})
	}
}

func TestDNS_SRV(t *testing.T) {
	primary := []*net.SRV{
		{Target: "a.example.com.", Port: 8001, Priority: 10, Weight: 3},
		{Target: "b.example.com.", Port: 8002, Priority: 10, Weight: 0},
		{Target: "backup.example.com.", Port: 8003, Priority: 20, Weight: 9},
	}
	for _, tt := range []struct {
		name string
		dns  discovery.DNS
		host string
	}{
		{"of the name", discovery.DNS{SRV: true}, "api.example.com"},
		{"with prefix", discovery.DNS{SRV: true, SRVPrefix: "_grpc._tcp"}, "srv.example.com"},
		{"by the look of the name", discovery.DNS{SRVPrefix: "_unused"}, "_grpc._tcp.srv.example.com"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				z := newZone()
				z.srv["api.example.com"] = primary
				z.srv["_grpc._tcp.srv.example.com"] = primary
				tt.dns.Resolver = z
				for endpoints, err := range tt.dns.Watch(t.Context(), discovery.Service{Host: tt.host}) {
					if err != nil {
						t.Fatal(err)
					}
					if got, want := addresses(endpoints), "a.example.com:8001 b.example.com:8002"; got != want {
						t.Errorf("endpoints %q, want %q", got, want)
					}
					for _, e := range endpoints {
						if e.Address == "a.example.com" && e.Weight != 3 {
							t.Errorf("weight %d, want 3", e.Weight)
						}
					}
					break
				}
			})
		})
	}
	t.Run("a new weight is a change", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			z := newZone()
			z.srv["api.example.com"] = []*net.SRV{{Target: "a.", Port: 1, Weight: 1}}
			w := start(t, discovery.DNS{SRV: true, Resolver: z}, discovery.Service{Host: "api.example.com"})
			want(t, w.next(), "a:1")
			z.change(func() { z.srv["api.example.com"] = []*net.SRV{{Target: "a.", Port: 1, Weight: 2}} })
			time.Sleep(33 * time.Second)
			want(t, w.next(), "a:1")
			z.change(func() { z.srv["api.example.com"] = []*net.SRV{{Target: "."}} }) // "decidedly not available"
			time.Sleep(33 * time.Second)
			want(t, w.next(), "")
		})
	})
	t.Run("a part of the answer is unusable", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			z := newZone()
			z.srv["api.example.com"] = []*net.SRV{{Target: "a.", Port: 1}}
			z.srvErr = errors.New("records with invalid names")
			w := start(t, discovery.DNS{SRV: true, Resolver: z}, discovery.Service{Host: "api.example.com"})
			want(t, w.next(), "error", "a:1")
		})
	})
}

func TestDNS_LiteralsAreNotLookedUp(t *testing.T) {
	for host, set := range map[string]string{
		"10.0.0.7":  "10.0.0.7:0",
		"fd00::7":   "[fd00::7]:0",
		"[fd00::7]": "[fd00::7]:0",
		"localhost": "localhost:0",
		"LocalHost": "localhost:0",
	} {
		t.Run(host, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				z := newZone()
				w := start(t, discovery.DNS{Resolver: z}, discovery.Service{Host: host})
				want(t, w.next(), set)
				time.Sleep(time.Hour)
				want(t, w.next())
				if len(z.asked()) > 0 {
					t.Errorf("looked up %q", z.asked())
				}
			})
		})
	}
}

// stuck is a name server that never answers, and counts the lookups that wait for it.
type stuck struct {
	zone
	waiting, most atomic.Int32
}

func (s *stuck) LookupNetIP(ctx context.Context, _, _ string) ([]netip.Addr, error) {
	s.most.Store(max(s.most.Load(), s.waiting.Add(1)))
	defer s.waiting.Add(-1)
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

func TestDNS_StuckLookup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stuck{}
		w := start(t, discovery.DNS{Resolver: s, Interval: time.Second}, orders)
		want(t, w.next())
		time.Sleep(time.Minute)
		if len(w.next()) == 0 {
			t.Error("a lookup that hangs is never reported")
		}
		if most := s.most.Load(); most != 1 {
			t.Errorf("%d lookups at once, want 1", most)
		}
	})
}

// TestConnectFailuresHaveNamesLookedUpAgain: an address that changes is known within moments of the first call that fails,
// and a dead endpoint that stays costs few lookups.
func TestConnectFailuresHaveNamesLookedUpAgain(t *testing.T) {
	t.Run("watched by the watcher", func(t *testing.T) {
		testRefresh(t, func(r discovery.Resolver) discovery.Resolver { return r })
	})
	t.Run("watched by another resolver", func(t *testing.T) {
		testRefresh(t, func(r discovery.Resolver) discovery.Resolver { return moved{r, 0} })
	})
}

func testRefresh(t *testing.T, around func(discovery.Resolver) discovery.Resolver) {
	synctest.Test(t, func(t *testing.T) {
		z := newZone()
		z.addrs[orders.Host] = []string{"10.0.0.1"}
		w := discovery.NewWatcher(around(discovery.DNS{Resolver: z, Interval: time.Hour}), nil)
		defer w.Close()
		var l log
		sub := w.Subscribe(orders, l.update)
		l.want(t, "set 10.0.0.1:0")

		time.Sleep(10 * time.Second)
		z.change(func() { z.addrs[orders.Host] = []string{"10.0.0.2"} })
		sub.Refresh()
		sub.Refresh()
		l.want(t, "set 10.0.0.2:0") // at once: the latest lookup is long ago

		z.change(func() { z.addrs[orders.Host] = []string{"10.0.0.3"} })
		sub.Refresh()
		l.want(t) // not twice within a second
		time.Sleep(time.Second)
		l.want(t, "set 10.0.0.3:0")

		before := len(z.asked())
		for range 600 { // ten minutes of failing calls
			sub.Refresh()
			time.Sleep(time.Second)
		}
		l.want(t)
		if n := len(z.asked()) - before; n < 5 || n > 12 {
			t.Errorf("%d lookups in ten minutes that change nothing, want fewer and fewer", n)
		}
		z.change(func() { z.addrs[orders.Host] = []string{"10.0.0.4"} })
		sub.Refresh()
		time.Sleep(20 * time.Minute)
		l.want(t, "set 10.0.0.4:0")
	})
}

func TestDNS_Invalid(t *testing.T) {
	for field, resolver := range map[string]discovery.DNS{
		"Interval": {Interval: -1},
		"Network":  {Network: "tcp"},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		yields := 0
		for endpoints, err := range resolver.Watch(ctx, orders) {
			yields++
			if endpoints != nil || err == nil || !strings.Contains(err.Error(), "DNS."+field) {
				t.Errorf("%s: %v, %v, want an error that names it", field, endpoints, err)
			}
			cancel()
		}
		if cancel(); yields != 1 {
			t.Errorf("%s: yielded %d times, want once", field, yields)
		}
	}
}
