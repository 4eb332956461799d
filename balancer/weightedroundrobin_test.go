package balancer_test

import (
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/discovery"
)

// reporting makes the hosts of b report once a second. utilization says of which utilization, at 100 requests a second; 0 is none.
func reporting(b *balancer.Balancer, length time.Duration, utilization func(i int) float64) {
	for range length / time.Second {
		for i, h := range b.Hosts() {
			h.Report(utilization(i), 100, 0)
		}
		time.Sleep(time.Second)
	}
}

// picks returns the share of n picks that each host gets.
func picks(t *testing.T, b *balancer.Balancer, n int) []string {
	t.Helper()
	count := map[string]int{}
	for range n {
		h := pick(t, b, balancer.PickInfo{})
		count[h.ID()]++
		h.Release(0, false)
	}
	var shares []string
	for _, h := range b.Hosts() {
		shares = append(shares, fmt.Sprintf("%.2f", float64(count[h.ID()])/float64(n)))
	}
	return shares
}

func wantPicked(t *testing.T, b *balancer.Balancer, what string, want ...string) {
	t.Helper()
	if got := picks(t, b, 20_000); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("%s: the shares are %v, want %v", what, got, want)
	}
}

func TestWeightedRoundRobinFollowsReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBalancer(t, balancer.Config{Algorithm: balancer.WeightedRoundRobin})
		b.Update(endpoints(4))
		half := func(i int) float64 { return []float64{0.2, 0.5, 0.5, 0}[i] }
		reporting(b, 9*time.Second, half)
		wantPicked(t, b, "the first reports do not count", "0.25", "0.25", "0.25", "0.25")
		reporting(b, 3*time.Second, half)
		// 500, 200, 200, and the mean of these: 2.5, 1, 1 and 1.5 times the median.
		wantPicked(t, b, "reports", "0.42", "0.17", "0.17", "0.25")

		b.Hosts()[0].SetEjected(true)
		wantPicked(t, b, "one is ejected", "0.00", "0.33", "0.33", "0.33")
		b.Hosts()[0].SetEjected(false)
		wantPicked(t, b, "it is back", "0.42", "0.17", "0.17", "0.25")

		time.Sleep(4 * time.Minute)
		picks(t, b, 1)
		wantPicked(t, b, "reports have expired", "0.25", "0.25", "0.25", "0.25")
		reporting(b, 9*time.Second, half)
		wantPicked(t, b, "they begin again", "0.25", "0.25", "0.25", "0.25")
	})
}

func TestWeightedRoundRobinCountsErrorsAndWeights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBalancer(t, balancer.Config{Algorithm: balancer.WeightedRoundRobin})
		b.Update(weighted(1, 1, 2, 0))
		for range 12 {
			for i, h := range b.Hosts() {
				h.Report(0.5, 100, float64(i%2)*50) // half of the requests of the second fail
			}
			time.Sleep(time.Second)
		}
		wantPicked(t, b, "errors and weights", "0.29", "0.14", "0.57", "0.00")
	})
}

// An endpoint that fails at once has few requests in flight. It once got four times as many calls as the others for that, if they report
// requests in flight as their utilization.
func TestFailingAtOnceDoesNotLookIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBalancer(t, balancer.Config{Algorithm: balancer.WeightedRoundRobin})
		b.Update(endpoints(4))
		for range 12 {
			for i, h := range b.Hosts() {
				if i == 0 {
					h.Report(0.1, 100, 100)
				} else {
					h.Report(8, 100, 0)
				}
			}
			time.Sleep(time.Second)
		}
		wantPicked(t, b, "one fails at once", "0.25", "0.25", "0.25", "0.25")
	})
}

// TestReportsAreBounded: an endpoint that says that it is idle does not get all calls, and one that says that it is full gets some.
func TestReportsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBalancer(t, balancer.Config{Algorithm: balancer.WeightedRoundRobin})
		b.Update(endpoints(5))
		reporting(b, 12*time.Second, func(i int) float64 { return []float64{1e-9, 1e9, 0.5, 0.5, 0.5}[i] })
		// 4, 1/20, 1, 1, 1
		wantPicked(t, b, "lies", "0.57", "0.01", "0.14", "0.14", "0.14")

		b.Update(endpoints(2))
		reporting(b, 12*time.Second, func(i int) float64 { return []float64{1e-9, 0.5}[i] })
		wantPicked(t, b, "a lie to the only other one", "0.80", "0.20")

		for _, v := range []float64{math.NaN(), math.Inf(1), math.Inf(-1), -1, 0, math.MaxFloat64, math.SmallestNonzeroFloat64} {
			for _, h := range b.Hosts() {
				h.Report(v, 100, 0)
				h.Report(0.5, v, 0)
				h.Report(0.5, 100, v)
				h.Report(v, v, v)
			}
			time.Sleep(2 * time.Second)
			for _, h := range b.Hosts() {
				h.Report(0.5, 100, 0)
			}
			picks(t, b, 100)
		}
		time.Sleep(2 * time.Second)
		for _, h := range b.Hosts() {
			h.Report(0.5, 100, 0)
		}
		time.Sleep(2 * time.Second)
		picks(t, b, 1)
		wantPicked(t, b, "what is no number changes nothing", "0.50", "0.50")
	})
}

func TestReportsDoNotAllocate(t *testing.T) {
	b := newBalancer(t, balancer.Config{Algorithm: balancer.WeightedRoundRobin})
	b.Update(endpoints(3))
	for _, h := range b.Hosts() {
		h.Report(0.5, 100, 0)
	}
	if n := testing.AllocsPerRun(1000, func() { pick(t, b, balancer.PickInfo{}).Release(time.Millisecond, false) }); n > 0 {
		t.Errorf("%v allocations a pick", n)
	}
}

// TestTransportReadsReports: a Transport takes reports from the answers, and keeps them from its caller; with another algorithm it leaves the
// header alone.
func TestTransportReadsReports(t *testing.T) {
	for _, algorithm := range []balancer.Algorithm{balancer.WeightedRoundRobin, balancer.RoundRobin} {
		answer := func(utilization string) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("endpoint-load-metrics", "TEXT cpu_utilization="+utilization+",rps_fractional=100")
			}
		}
		tr := &balancer.Transport{Config: balancer.Config{Algorithm: algorithm}}
		newTransport(t, tr, newBackend(t, answer("0.2"), (*httptest.Server).Start), newBackend(t, answer("0.4"), (*httptest.Server).Start))
		for range 4 {
			resp := do(t, tr, get(t, "http://svc/"))
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			kept := resp.Header.Get("endpoint-load-metrics") != ""
			if kept != (algorithm == balancer.RoundRobin) {
				t.Errorf("%v: the header of the answer is %v", algorithm, resp.Header)
			}
		}
		for _, h := range balancer.TransportHosts(tr, "svc") {
			if got, want := balancer.Reported(h) > 0, algorithm == balancer.WeightedRoundRobin; got != want {
				t.Errorf("%v: %v has reported: %v", algorithm, h.ID(), got)
			}
		}
	}
}

func ExampleHost_Report() {
	b, err := balancer.New(balancer.Config{Algorithm: balancer.WeightedRoundRobin}, balancer.Hooks{})
	if err != nil {
		fmt.Println(err)
		return
	}
	b.Update([]discovery.Endpoint{{Address: "10.0.0.1", Port: 80}, {Address: "10.0.0.2", Port: 80}})
	for range 3 {
		host, err := b.Pick(balancer.PickInfo{})
		if err != nil {
			fmt.Println(err)
			return
		}
		host.Report(0.4, 120, 0) // as the answer says: at 40%, with 120 requests a second
		host.Release(time.Millisecond, false)
	}
	fmt.Println(len(b.Hosts()), "endpoints")
	// Output: 2 endpoints
}
