package bench

import (
	"fmt"
	"net/http"
	"os"
	"sync/atomic"
	"testing"

	"github.com/nosidecar/mesh/retry"
)

func TestMain(m *testing.M) {
	ServeProcess()
	os.Exit(m.Run())
}

// BenchmarkLoopback measures throughput and CPU time with the server in this process, so that both ends count.
func BenchmarkLoopback(b *testing.B) { benchmarkLoopback(b, NewServer) }

// BenchmarkLoopbackClient measures the CPU time of the client alone.
func BenchmarkLoopbackClient(b *testing.B) { benchmarkLoopback(b, StartServer) }

// BenchmarkMutual is BenchmarkLoopback with mTLS over HTTP/2, and the whole mesh on both ends.
func BenchmarkMutual(b *testing.B) {
	callers, err := MutualCallers()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(callers[0].Close)
	for _, inFlight := range []int{8, 64} {
		for _, caller := range callers {
			b.Run(fmt.Sprintf("%d/%s", inFlight, caller.Name), func(b *testing.B) { benchmarkWorker(b, caller.Worker(), inFlight) })
		}
	}
}

func benchmarkLoopback(b *testing.B, start func(Protocol) (*Server, error)) {
	for _, protocol := range Protocols {
		callers := newCallers(b, protocol, start)
		for _, inFlight := range []int{8, 64} {
			for _, caller := range callers {
				b.Run(fmt.Sprintf("%s/%d/%s", protocol, inFlight, caller.Name), func(b *testing.B) { benchmarkWorker(b, caller.Worker(), inFlight) })
			}
		}
	}
}

func benchmarkWorker(b *testing.B, worker Worker, inFlight int) {
	b.ReportAllocs()
	var begun atomic.Int64
	result, err := Load(inFlight, func() bool { return begun.Add(1) <= int64(b.N) }, worker)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(result.PerSecond(), "req/s")
	b.ReportMetric(result.CPUPerCall(), "cpu-µs/op")
}

func newCallers(tb testing.TB, protocol Protocol, start func(Protocol) (*Server, error)) []Caller {
	s, err := start(protocol)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Close)
	callers, err := Callers(s)
	if err != nil {
		tb.Fatal(err)
	}
	for _, c := range callers {
		tb.Cleanup(c.Close)
	}
	return callers
}

// TestCallers checks that what is measured is what was meant: every caller gets the answer, in the protocol, at the first
// try.
func TestCallers(t *testing.T) {
	for _, start := range []struct {
		name string
		f    func(Protocol) (*Server, error)
	}{{"same process", NewServer}, {"own process", StartServer}} {
		for _, protocol := range Protocols {
			for _, c := range newCallers(t, protocol, start.f) {
				t.Run(fmt.Sprintf("%s/%s/%s", start.name, protocol, c.Name), func(t *testing.T) {
					for _, url := range c.URLs {
						resp, err := c.Client.Get(url)
						if err != nil {
							t.Fatal(err)
						}
						resp.Body.Close()
						major := 1
						if protocol == HTTP2 {
							major = 2
						}
						if resp.ProtoMajor != major || resp.StatusCode != http.StatusOK || resp.ContentLength != int64(len(answer)) {
							t.Errorf("got HTTP/%d, status %d, %d bytes", resp.ProtoMajor, resp.StatusCode, resp.ContentLength)
						}
						if n := retry.Attempts(resp); n != 1 {
							t.Errorf("%d attempts, want 1", n)
						}
					}
				})
			}
		}
	}
}
