package breaker_test

import (
	"io"
	"net/http"
	"runtime"
	"testing"
	"time"

	"github.com/nosidecar/mesh/breaker"
)

// ways are Transports for which the end of a call is found out in different ways.
func ways(base http.RoundTripper) map[string]*breaker.Transport {
	timed := breaker.Config{ConsecutiveFailures: 2, SlowCallFraction: 1, SlowCall: time.Hour}
	return map[string]*breaker.Transport{
		"default": {Base: base, Config: breaker.Config{ConsecutiveFailures: 2}},
		"timed":   {Base: base, Config: timed},
		"asked": {Base: base, Config: breaker.Config{ConsecutiveFailures: 2}, IsFailure: func(resp *http.Response, err error) bool {
			return err != nil || resp.StatusCode >= 500
		}},
	}
}

// scripted is a body whose Reads and Closes are functions.
type scripted struct {
	read  func() error
	close func()
}

func (b scripted) Read([]byte) (int, error) { return 0, b.read() }
func (b scripted) Close() error             { b.close(); return nil }

func TestTransport_EndsOfBodies(t *testing.T) {
	nothing := func() {}
	fails := func() error { return io.ErrUnexpectedEOF }
	over := func() error { return io.EOF }
	read := func(b io.ReadCloser) { b.Read(make([]byte, 1)) }
	shut := func(b io.ReadCloser) { b.Close() }
	for _, test := range []struct {
		name   string
		status int
		body   scripted
		use    []func(io.ReadCloser)
		failed bool // one failure, or none
	}{
		{"read to the end", 200, scripted{over, nothing}, []func(io.ReadCloser){read, shut}, false},
		{"failed", 200, scripted{fails, nothing}, []func(io.ReadCloser){read, read, shut, shut}, true},
		{"closed, then read", 200, scripted{fails, nothing}, []func(io.ReadCloser){shut, read}, false},
		{"error status, read to the end again and again", 500, scripted{over, nothing}, []func(io.ReadCloser){read, read, shut, shut}, true},
		{"error status, closed", 500, scripted{over, nothing}, []func(io.ReadCloser){shut, shut, read}, true},
		{"error status, Close panics", 500, scripted{over, func() { panic("boom") }}, []func(io.ReadCloser){func(b io.ReadCloser) {
			defer func() { recover() }()
			b.Close()
		}}, true},
	} {
		base := roundTripFunc(func(req *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: test.status, Body: test.body, Request: req}, nil
		})
		for way, rt := range ways(base) {
			t.Run(test.name+"/"+way, func(t *testing.T) {
				call := func() {
					resp, err := rt.RoundTrip(newRequest(t))
					if err != nil {
						t.Fatal(err)
					}
					if got := onlyState(t, rt); got != breaker.Closed {
						t.Fatalf("state before the end of a body is %v", got)
					}
					for _, use := range test.use {
						use(resp.Body)
					}
				}
				call()
				call() // two failures open the circuit
				want := breaker.Closed
				if test.failed {
					want = breaker.Open
				}
				if got := onlyState(t, rt); got != want {
					t.Errorf("state after two calls is %v, want %v", got, want)
				}
			})
		}
	}
}

// TestTransport_CloseDuringRead is about a Read that fails because the caller closes the body: the server did nothing wrong.
func TestTransport_CloseDuringRead(t *testing.T) {
	for way := range ways(nil) {
		t.Run(way, func(t *testing.T) {
			reading, closing, read := make(chan struct{}), make(chan struct{}), make(chan struct{})
			body := scripted{
				read:  func() error { close(reading); <-closing; return http.ErrBodyReadAfterClose },
				close: func() { close(closing); <-read },
			}
			rt := ways(roundTripFunc(func(req *http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: 200, Body: body, Request: req}, nil
			}))[way]
			rt.Config.ConsecutiveFailures = 1
			resp, err := rt.RoundTrip(newRequest(t))
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				defer close(read)
				resp.Body.Read(make([]byte, 1))
			}()
			<-reading
			resp.Body.Close()
			if got := onlyState(t, rt); got != breaker.Closed {
				t.Errorf("state is %v, want closed", got)
			}
		})
	}
}

// bytesOf returns the bytes that f allocates.
func bytesOf(f func()) uint64 {
	f()
	var before, after runtime.MemStats
	const runs = 10_000
	runtime.ReadMemStats(&before)
	for range runs {
		f()
	}
	runtime.ReadMemStats(&after)
	return (after.TotalAlloc - before.TotalAlloc) / runs
}
