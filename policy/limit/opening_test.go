package limit_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/memnet"
	"github.com/nosidecar/mesh/policy/limit"
)

// Calls that find no connection share the one that the first of them opens, also after all connections were lost. They do not wait for the
// response to its call, and with HTTP/1 not for each other.
func TestConns_ABurstOpensOneConnection(t *testing.T) {
	const calls = 20
	for _, tt := range []struct {
		protocol string
		want     int64 // connections per burst
	}{
		{overTLS, 1},
		{clear, 1},
		{overTLS1, calls},
		{plain, calls},
	} {
		t.Run(tt.protocol, func(t *testing.T) {
			arrived, answer := make(chan struct{}, calls), make(chan struct{})
			s := serve(t, tt.protocol, func(w http.ResponseWriter, req *http.Request) {
				arrived <- struct{}{}
				<-answer
				hello(w, req)
			})
			c := conns(t, newPool(t, limit.PoolConfig{}), s.template)
			for burst := range int64(2) {
				var callers sync.WaitGroup
				for range calls {
					callers.Go(func() { get(t, c, s.URL) })
				}
				for range calls {
					await.Receive(t, "all calls at once", arrived)
				}
				if n := s.conns.Load(); n < tt.want*(burst+1) || n > (tt.want+1)*(burst+1) && tt.want == 1 {
					t.Errorf("burst %d: %d connections in all, want %d per burst", burst, n, tt.want)
				}
				for range calls {
					answer <- struct{}{}
				}
				callers.Wait()
				s.CloseClientConnections()
				await.True(t, "no connection is left", func() bool { s.CloseClientConnections(); return c.Open() == 0 })
			}
		})
	}
}

// A burst of more calls than a connection has streams opens as many connections as it needs, whatever the number of streams was before. No call gets
// more than its one stream, so the server refuses none.
func TestConns_ABurstOpensAsManyConnectionsAsItNeeds(t *testing.T) {
	const calls, streams = 35, 10
	for _, tt := range []struct {
		name   string
		before int // calls
	}{
		{"the number of streams is not known", 0},
		{"the number of streams is known", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var arrived atomic.Int64
				answer := make(chan struct{})
				network, template := serveClear(t, streams, func(w http.ResponseWriter, req *http.Request) {
					arrived.Add(1)
					<-answer
					hello(w, req)
				})
				c := conns(t, newPool(t, limit.PoolConfig{}), template)
				for _, n := range []int{tt.before, calls} {
					arrived.Store(0)
					var callers sync.WaitGroup
					for range n {
						callers.Go(func() { get(t, c, "http://orders") })
					}
					synctest.Wait()
					if got := arrived.Load(); got != int64(n) {
						t.Errorf("%d of %d calls have arrived", got, n)
					}
					close(answer)
					callers.Wait()
					answer = make(chan struct{})
				}
				if n := network.Dials(); n != 4 {
					t.Errorf("%d connections for %d calls with %d streams each, want 4", n, calls, streams)
				}
			})
		})
	}
}

// A server that restarts lets its old connections end. A burst does not take the calls that are still on one for all that a connection takes.
func TestConns_ABurstToAServerThatRestarts(t *testing.T) {
	const calls = 35
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan struct{})
		wait := func(w http.ResponseWriter, req *http.Request) {
			<-answer
			hello(w, req)
		}
		network := new(memnet.Network)
		server := startClear(t, network, 0, wait)
		template := &http.Transport{DialContext: network.DialContext, Protocols: new(http.Protocols)}
		template.Protocols.SetUnencryptedHTTP2(true)
		c := conns(t, newPool(t, limit.PoolConfig{}), template)
		var callers sync.WaitGroup
		callers.Go(func() { get(t, c, "http://orders") })
		synctest.Wait()
		callers.Go(func() { server.Shutdown(t.Context()) })
		synctest.Wait()
		startClear(t, network, 0, wait)
		for range calls {
			callers.Go(func() { get(t, c, "http://orders") })
		}
		synctest.Wait()
		close(answer)
		callers.Wait()
		if n := network.Dials(); n != 2 {
			t.Errorf("%d connections, want the old one and a new one", n)
		}
	})
}

// Calls do not wait for the response to the first one on a connection, however many streams the server permits: only until it has said so.
func TestConns_TheFirstCallKeepsNoOtherWaiting(t *testing.T) {
	for _, streams := range []int{0, 3, 99, 100, 101} {
		for _, protocol := range []string{clear, overTLS} {
			t.Run(fmt.Sprint(protocol, " ", streams), func(t *testing.T) {
				const calls = 3
				arrived, answer := make(chan struct{}, calls), make(chan struct{})
				s := serveStreams(t, protocol, streams, func(w http.ResponseWriter, req *http.Request) {
					arrived <- struct{}{}
					<-answer
					hello(w, req)
				})
				c := conns(t, newPool(t, limit.PoolConfig{}), s.template)
				var callers sync.WaitGroup
				for range calls {
					callers.Go(func() { get(t, c, s.URL) })
				}
				for range calls {
					await.Receive(t, "all calls at once", arrived)
				}
				close(answer)
				callers.Wait()
				if n := s.conns.Load(); n != 1 {
					t.Errorf("%d connections, want 1", n)
				}
			})
		}
	}
}

var errRefused = errors.New("refused for the test")

// dialSlowly has dial called before template dials, which fails with its error. It returns the number of dials.
func dialSlowly(template *http.Transport, dial func(n int64, address string) error) *atomic.Int64 {
	dials, inner := new(atomic.Int64), template.DialContext
	template.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if err := dial(dials.Add(1), address); err != nil {
			return nil, err
		}
		return inner(ctx, network, address)
	}
	return dials
}

// call makes a call, and returns its error.
func call(ctx context.Context, c *limit.Conns, url string) error {
	resp, err := c.RoundTrip(httptest.NewRequestWithContext(ctx, http.MethodGet, url, nil))
	if err == nil {
		resp.Body.Close()
	}
	return err
}

// What fails the connection fails all calls that wait for it, instead of one dial after another.
func TestConns_ADialThatFailsFailsAllThatWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, template := serveClear(t, 0, hello)
		dials := dialSlowly(template, func(int64, string) error { time.Sleep(time.Second); return errRefused })
		c := conns(t, newPool(t, limit.PoolConfig{}), template)
		began := time.Now()
		var callers sync.WaitGroup
		for range 20 {
			callers.Go(func() {
				if err := call(t.Context(), c, "http://orders"); !errors.Is(err, errRefused) {
					t.Errorf("a call ended with %v, want the error of the dial", err)
				}
			})
		}
		callers.Wait()
		if took := time.Since(began); took != time.Second || dials.Load() != 1 {
			t.Errorf("%d dials in %v, want 1 in a second", dials.Load(), took)
		}
	})
}

// A call that gives up, or that net/http refuses, concerns no other call.
func TestConns_TheCallThatDialsConcernsNoOther(t *testing.T) {
	for _, tt := range []struct {
		name  string
		first func(ctx context.Context, c *limit.Conns) error
		dials int64
	}{
		{"it gives up", func(ctx context.Context, c *limit.Conns) error {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			return call(ctx, c, "http://orders")
		}, 1},
		{"it is canceled by its channel", func(ctx context.Context, c *limit.Conns) error {
			req := httptest.NewRequestWithContext(ctx, http.MethodGet, "http://orders", nil)
			cancel := make(chan struct{})
			req.Cancel = cancel //lint:ignore SA1019 deprecated, but still honoured by net/http
			time.AfterFunc(time.Second, func() { close(cancel) })
			_, err := c.RoundTrip(req)
			return err
		}, 1},
		{"it cannot be sent", func(ctx context.Context, c *limit.Conns) error {
			req := httptest.NewRequestWithContext(ctx, http.MethodGet, "http://orders", nil)
			req.Header["bad name"] = []string{"x"}
			_, err := c.RoundTrip(req)
			return err
		}, 1},
		{"its trace panics", func(ctx context.Context, c *limit.Conns) (err error) {
			defer func() { err = recover().(error) }()
			return call(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { panic(errRefused) }}), c, "http://orders")
		}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, template := serveClear(t, 0, hello)
				dials := dialSlowly(template, func(int64, string) error { time.Sleep(5 * time.Second); return nil })
				c := conns(t, newPool(t, limit.PoolConfig{}), template)
				var callers sync.WaitGroup
				callers.Go(func() {
					if err := tt.first(t.Context(), c); err == nil {
						t.Error("the first call went well")
					}
				})
				synctest.Wait()
				for range 20 {
					callers.Go(func() {
						if err := call(t.Context(), c, "http://orders"); err != nil {
							t.Error(err)
						}
					})
				}
				callers.Wait()
				if n := dials.Load(); n != tt.dials {
					t.Errorf("%d dials, want %d", n, tt.dials)
				}
				time.Sleep(time.Minute) // for a dial that nobody needs any more
			})
		})
	}
}

// A call that waits for a connection gives up when its context ends. Calls to another authority do not wait for it.
func TestConns_WaitForAnOpeningEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, template := serveClear(t, 0, hello)
		dialSlowly(template, func(_ int64, address string) error {
			if address == "orders:80" {
				time.Sleep(5 * time.Second)
			}
			return nil
		})
		c := conns(t, newPool(t, limit.PoolConfig{}), template)
		began := time.Now()
		var callers sync.WaitGroup
		callers.Go(func() { get(t, c, "http://orders") })
		synctest.Wait()
		callers.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			req := httptest.NewRequestWithContext(ctx, http.MethodPost, "http://orders", nil)
			b := &leak.Body{Reader: http.NoBody}
			req.Body = b
			if _, err := c.RoundTrip(req); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Second || b.Closed.Load() != 1 {
				t.Errorf("it ended with %v after %v, and its body was closed %d times", err, time.Since(began), b.Closed.Load())
			}
		})
		callers.Go(func() {
			if get(t, c, "http://other"); time.Since(began) != 0 {
				t.Errorf("a call to another authority took %v", time.Since(began))
			}
		})
		callers.Wait()
	})
}

// Where few calls or none can share a connection, they do not make connections one after another, nor more than they need.
func TestConns_CallsThatCannotShareDialAtOnce(t *testing.T) {
	const calls = 60
	for _, tt := range []struct {
		name    string
		config  limit.PoolConfig
		streams int
		want    int64 // dials, each of a second
		after   time.Duration
	}{
		{"one call per connection", limit.PoolConfig{MaxRequestsPerConnection: 1}, 0, calls, 0},
		{"two calls per connection", limit.PoolConfig{MaxRequestsPerConnection: 2}, 0, calls / 2, 0},
		{"ten streams per connection", limit.PoolConfig{}, 10, calls / 10, time.Second}, // which the first connection tells
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, template := serveClear(t, tt.streams, func(w http.ResponseWriter, req *http.Request) {
					time.Sleep(10 * time.Second)
					hello(w, req)
				})
				dials := dialSlowly(template, func(int64, string) error { time.Sleep(time.Second); return nil })
				c := conns(t, newPool(t, tt.config), template)
				var callers sync.WaitGroup
				for range calls {
					callers.Go(func() { get(t, c, "http://orders") })
				}
				time.Sleep(tt.after)
				synctest.Wait()
				if n := dials.Load(); n != tt.want {
					t.Errorf("%d dials for %d calls after %v, want %d", n, calls, tt.after, tt.want)
				}
				callers.Wait()
				if n := dials.Load(); n != tt.want {
					t.Errorf("%d dials for %d calls, want %d", n, calls, tt.want)
				}
			})
		})
	}
}
