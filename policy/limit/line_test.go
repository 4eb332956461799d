package limit_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/policy/limit"
)

// send makes a call with a slot of the pool, as [limit.Transport] does.
func send(ctx context.Context, pool *limit.Pool, c *limit.Conns, said string) (string, error) {
	slot, err := pool.Acquire(ctx, http2)
	if err != nil {
		return "", err
	}
	defer slot.Release()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://orders", strings.NewReader(said))
	if err != nil {
		return "", err
	}
	resp, err := c.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	return string(answer), err
}

// slowly answers, after a second, what it was sent.
func slowly(w http.ResponseWriter, req *http.Request) {
	body, _ := io.ReadAll(req.Body)
	time.Sleep(time.Second)
	w.Write(body)
}

// Where a connection has as many streams as the server permits, and there may be no more connections, calls wait for a stream.
func TestConns_WaitForAStream(t *testing.T) {
	for _, tt := range []struct {
		connections, streams, calls int
		want                        time.Duration
	}{
		{1, 1, 20, 20 * time.Second},
		{1, 4, 20, 5 * time.Second},
		{2, 2, 20, 5 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			_, template := serveClear(t, tt.streams, slowly)
			pool := newPool(t, limit.PoolConfig{MaxConnections: tt.connections})
			c := conns(t, pool, template)
			if _, err := send(t.Context(), pool, c, "first"); err != nil { // and the server has said what it permits
				t.Fatal(err)
			}
			var workers sync.WaitGroup
			begin := time.Now()
			for i := range tt.calls {
				workers.Go(func() {
					said := strings.Repeat("x", i+1)
					if got, err := send(t.Context(), pool, c, said); err != nil || got != said {
						t.Errorf("%+v: call %d got %q, %v", tt, i, got, err)
					}
					if n := pool.Stats().Connections; n > tt.connections {
						t.Errorf("%+v: %d connections", tt, n)
					}
				})
			}
			workers.Wait()
			if took := time.Since(begin); took < tt.want || took > tt.want+tt.want/5 {
				t.Errorf("%+v: took %v, want about %v", tt, took, tt.want)
			}
			if s := pool.Stats(); s.Active != 0 || s.Pending != 0 || s.Overflows != 0 {
				t.Errorf("%+v: %+v", tt, s)
			}
		})
	}
}

// A burst of first calls, before any connection is there, is no different.
func TestConns_WaitForTheFirstConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network, template := serveClear(t, 0, slowly)
		pool := newPool(t, limit.PoolConfig{MaxConnections: 1})
		c := conns(t, pool, template)
		var workers sync.WaitGroup
		for range 50 {
			workers.Go(func() {
				if _, err := send(t.Context(), pool, c, "said"); err != nil {
					t.Error(err)
				}
			})
		}
		workers.Wait()
		if n := network.Dials(); n != 1 {
			t.Errorf("%d dials, want 1", n)
		}
	})
}

// Calls that wait for a stream get one in the order of their arrival; later calls do not overtake them.
func TestConns_WaitInLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var served []string
		_, template := serveClear(t, 1, func(w http.ResponseWriter, req *http.Request) {
			body, _ := io.ReadAll(req.Body)
			mu.Lock()
			served = append(served, string(body))
			mu.Unlock()
			time.Sleep(time.Second)
		})
		pool := newPool(t, limit.PoolConfig{MaxConnections: 1})
		c := conns(t, pool, template)
		var workers sync.WaitGroup
		for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
			workers.Go(func() {
				if _, err := send(t.Context(), pool, c, name); err != nil {
					t.Error(err)
				}
			})
			time.Sleep(700 * time.Millisecond)
		}
		workers.Wait()
		if !slices.IsSorted(served) || len(served) != 6 {
			t.Errorf("served %v", served)
		}
	})
}

func TestConns_TheLineEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		_, template := serveClear(t, 1, func(w http.ResponseWriter, req *http.Request) {
			if req.Method == http.MethodGet {
				<-release
			}
		})
		pool := newPool(t, limit.PoolConfig{MaxConnections: 1, MaxPendingRequests: 2})
		c := conns(t, pool, template)
		if _, err := send(t.Context(), pool, c, ""); err != nil {
			t.Fatal(err)
		}
		var workers sync.WaitGroup
		workers.Go(func() {
			resp, err := c.RoundTrip(httptest.NewRequest(http.MethodGet, "http://orders", nil))
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
		})
		synctest.Wait()
		gaveUp := errors.New("the caller gave up")
		for range 2 { // one of them first in line
			ctx, cancel := context.WithCancelCause(t.Context())
			workers.Go(func() {
				if _, err := send(ctx, pool, c, "body"); err != gaveUp {
					t.Errorf("who gives up gets %v", err)
				}
			})
			time.AfterFunc(time.Minute, func() { cancel(gaveUp) }) // there is a connection, so the connect timeout is none of theirs
		}
		synctest.Wait()
		if n := pool.Stats().Pending; n != 2 {
			t.Errorf("%d pending, want 2", n)
		}
		if _, err := send(t.Context(), pool, c, "body"); err != limit.ErrOverflow {
			t.Errorf("who comes when the line is full gets %v", err)
		}
		time.Sleep(2 * time.Minute)
		close(release)
		workers.Wait()
		if _, err := send(t.Context(), pool, c, "body"); err != nil {
			t.Error(err)
		}
		if s := pool.Stats(); s.Active != 0 || s.Pending != 0 || s.Overflows != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// No call waits longer for a connection than the connect timeout, and bodies are closed.
func TestConns_NoConnectionNoLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, template := serveClear(t, 1, hello)
		template.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		pool := newPool(t, limit.PoolConfig{MaxConnections: 1, ConnectTimeout: time.Second})
		c := conns(t, pool, template)
		var workers sync.WaitGroup
		for i := range 5 {
			time.Sleep(time.Millisecond)
			workers.Go(func() {
				body := &closing{Reader: strings.NewReader("body")}
				begin := time.Now()
				req := httptest.NewRequest(http.MethodPost, "http://orders", body)
				_, err := c.RoundTrip(req)
				if took := time.Since(begin); !errors.Is(err, context.DeadlineExceeded) || took > time.Second {
					t.Errorf("call %d: %v after %v", i, err, took)
				}
				if !body.closed {
					t.Errorf("call %d: the body was not closed", i)
				}
			})
		}
		workers.Wait()
		if s := pool.Stats(); s != (limit.Stats{}) {
			t.Errorf("%+v, want no connection and no call", s)
		}
	})
}

// A call that waits for a stream goes on when one ends. It does not look for one from time to time.
func TestConns_TheNextInLineGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		arrived := make(chan time.Time, 2)
		_, template := serveClear(t, 1, func(w http.ResponseWriter, req *http.Request) {
			arrived <- time.Now()
			if said, _ := io.ReadAll(req.Body); string(said) == "long" {
				time.Sleep(100*time.Millisecond + 500*time.Microsecond)
			}
		})
		pool := newPool(t, limit.PoolConfig{MaxConnections: 1})
		c := conns(t, pool, template)
		var workers sync.WaitGroup
		var ended time.Time
		workers.Go(func() {
			if _, err := send(t.Context(), pool, c, "long"); err != nil {
				t.Error(err)
			}
			ended = time.Now()
		})
		<-arrived
		workers.Go(func() {
			if _, err := send(t.Context(), pool, c, "next"); err != nil {
				t.Error(err)
			}
		})
		workers.Wait()
		if began := <-arrived; began != ended {
			t.Errorf("the next call came %v after the stream ended", began.Sub(ended))
		}
	})
}

// A call for which there is no stream makes room for another connection: idle ones to other endpoints are closed.
func TestConns_TheLineMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, idle := serveClear(t, 1, hello)
		_, template := serveClear(t, 1, slowly)
		pool := newPool(t, limit.PoolConfig{MaxConnections: 2})
		other, c := conns(t, pool, idle), conns(t, pool, template)
		get(t, other, "http://orders")
		if _, err := send(t.Context(), pool, c, "first"); err != nil { // the server has said what it permits
			t.Fatal(err)
		}
		begin := time.Now()
		var workers sync.WaitGroup
		for range 2 {
			workers.Go(func() {
				if _, err := send(t.Context(), pool, c, "said"); err != nil {
					t.Error(err)
				}
			})
		}
		workers.Wait()
		if took := time.Since(begin); took > 1500*time.Millisecond || other.Open() != 0 || c.Open() != 2 {
			t.Errorf("two calls of a second took %v, with %d connections, and %d to another endpoint", took, c.Open(), other.Open())
		}
	})
}

// Idle connections for one host make room for another host at the same endpoint.
func TestConns_AnotherHostMakesRoom(t *testing.T) {
	for _, protocol := range []string{plain, clear, overTLS, overTLS1} {
		t.Run(protocol, func(t *testing.T) {
			s := serve(t, protocol, hello)
			pool := newPool(t, limit.PoolConfig{MaxConnections: 1})
			s.template.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, s.Listener.Addr().String())
			}
			c := conns(t, pool, s.template)
			scheme, _, _ := strings.Cut(s.URL, ":")
			for _, host := range []string{"example.com", "www.example.com", "example.com"} { // the certificate has these
				get(t, c, scheme+"://"+host)
				if n := pool.Stats(); n.Connections != 1 || n.Overflows != 0 {
					t.Errorf("after a call to %s: %+v", host, n)
				}
			}
		})
	}
}

// A dial that waits for room does not take what room there is later, when a stream has become free for the call that needed it.
func TestConns_TheLineNeedsNoRoomAnyMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network, template := serveClear(t, 1, func(_ http.ResponseWriter, req *http.Request) {
			if said, _ := io.ReadAll(req.Body); string(said) == "long" {
				time.Sleep(100*time.Millisecond + 500*time.Microsecond) // not when a dial that waits looks for room
			}
		})
		pool := newPool(t, limit.PoolConfig{MaxConnections: 1})
		c := conns(t, pool, template)
		var workers sync.WaitGroup
		for _, said := range []string{"long", "next"} {
			workers.Go(func() {
				if _, err := send(t.Context(), pool, c, said); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		workers.Wait()
		synctest.Wait() // the connection becomes idle a little after its last call
		c.CloseIdleConnections()
		synctest.Wait()
		if n := network.Dials(); c.Open() != 0 || n != 1 {
			t.Errorf("%d connections are open after %d dials, want none after one", c.Open(), n)
		}
	})
}

// A call that fails before it has dialled leaves no connection behind that counts.
func TestConns_ACallThatDoesNotDial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network, template := serveClear(t, 1, hello)
		pool := newPool(t, limit.PoolConfig{MaxConnections: 1})
		c := conns(t, pool, template)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := send(ctx, pool, c, "said"); !errors.Is(err, context.Canceled) || network.Dials() != 0 {
			t.Errorf("a call that was canceled before gets %v, after %d dials", err, network.Dials())
		}
		if s := pool.Stats(); c.Open() != 0 || s != (limit.Stats{}) {
			t.Errorf("%d connections are open, %+v", c.Open(), s)
		}
	})
}

// closing is a body that notes whether it was closed.
type closing struct {
	io.Reader
	closed bool
}

func (c *closing) Close() error {
	c.closed = true
	return nil
}

// A body is closed once it was sent, and also if the server answers before any of it was read.
func TestConns_BodiesAreClosed(t *testing.T) {
	for _, tt := range []struct {
		name, expect string
	}{
		{"read", ""},
		{"not read", "100-continue"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, template := serveClear(t, 1, func(w http.ResponseWriter, req *http.Request) {
					if tt.expect == "" {
						io.Copy(io.Discard, req.Body)
					}
					http.NewResponseController(w).Flush()
					time.Sleep(time.Second)
				})
				template.ExpectContinueTimeout = time.Hour
				c := conns(t, newPool(t, limit.PoolConfig{MaxConnections: 1}), template)
				body := &closing{Reader: strings.NewReader("body")}
				req := httptest.NewRequest(http.MethodPost, "http://orders", body)
				if tt.expect != "" {
					req.Header.Set("Expect", tt.expect)
				}
				resp, err := c.RoundTrip(req)
				if err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				synctest.Wait()
				if !body.closed {
					t.Error("the body was not closed")
				}
			})
		})
	}
}

// A call for which there is no place in line is refused at once, and its body is closed.
func TestConns_NoPlaceInLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, template := serveClear(t, 1, slowly)
		pool := newPool(t, limit.PoolConfig{MaxConnections: 1, MaxPendingRequests: 1})
		c := conns(t, pool, template)
		var others sync.WaitGroup
		for range 2 { // one with the stream, and one in line
			others.Go(func() {
				if _, err := send(t.Context(), pool, c, "x"); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		body := &closing{Reader: strings.NewReader("body")}
		began := time.Now()
		if _, err := c.RoundTrip(httptest.NewRequest(http.MethodPost, "http://orders", body)); !errors.Is(err, limit.ErrOverflow) || time.Now() != began {
			t.Errorf("%v after %v, want an overflow at once", err, time.Since(began))
		}
		if !body.closed {
			t.Error("the body was not closed")
		}
		others.Wait()
	})
}
