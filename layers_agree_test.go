package mesh_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/policy/fault"
	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/retry"
	"github.com/nosidecar/mesh/timeout"
)

// chained is the settings that chain and agreedDocuments both describe, once as layers and once as documents.
const agreedDocuments = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: api}
spec:
  hosts: [api]
  http:
  - match: [{uri: {prefix: /aborted}}]
    route: [{destination: {host: api}}]
    fault: {abort: {httpStatus: 418, percentage: {value: 100}}, delay: {fixedDelay: 2s, percentage: {value: 100}}}
  - route: [{destination: {host: api}}]
    timeout: 5s
    retries: {attempts: 2, perTryTimeout: 1s, retryOn: "gateway-error,connect-failure,refused-stream"}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: api}
spec:
  host: api
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN}
    outlierDetection: {consecutive5xxErrors: 3, interval: 10s, baseEjectionTime: 30s, maxEjectionPercent: 50}
    connectionPool: {http: {http2MaxRequests: 4}}
`

// chain builds by hand, from layers that know nothing of one another, what agreedDocuments describes.
func chain(t *testing.T, f *meshtest.Fleet, aborted bool) http.RoundTripper {
	outlier, err := breaker.NewOutlier(breaker.OutlierConfig{
		Consecutive5xx: 3, Interval: 10 * time.Second, BaseEjection: 30 * time.Second, MaxEjectedFraction: 0.5,
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	on, err := retry.ParseOn("gateway-error,connect-failure,refused-stream")
	if err != nil {
		t.Fatal(err)
	}
	endpoints := &balancer.Transport{
		Base:     &http.Transport{DialContext: f.Network.DialContext},
		Resolver: &f.Registry,
		Config:   balancer.Config{Algorithm: balancer.RoundRobin},
		Outlier:  outlier,
	}
	t.Cleanup(func() { endpoints.Close() })
	var rt http.RoundTripper = &timeout.Transport{
		Config: timeout.Config{Request: 5 * time.Second},
		Base: &retry.Transport{
			Config: retry.Config{Retries: 2, On: on, PerTryTimeout: time.Second, AnyMethod: true, NestedRetries: true, MaxRetryAfter: -1},
			Budget: retry.BudgetConfig{Off: true},
			Base:   &limit.Transport{Config: limit.PoolConfig{MaxRequests: 4}, Base: endpoints},
		},
	}
	rt = remembering{rt}
	if aborted {
		rt = &fault.Transport{Base: rt, Config: fault.Config{
			Delay: fault.Delay{Fraction: 1, Fixed: 2 * time.Second},
			Abort: fault.Abort{Fraction: 1, HTTPStatus: 418},
		}}
	}
	return rt
}

// remembering has the attempts of a call go to different endpoints, as the mesh does by itself.
type remembering struct{ base http.RoundTripper }

func (r remembering) RoundTrip(req *http.Request) (*http.Response, error) {
	return r.base.RoundTrip(req.WithContext(balancer.WithTried(req.Context())))
}

// TestLayersAndPlanAgree runs the same calls against layers chained by hand and against a compiled plan with the same
// settings: callers and servers must see the same.
func TestLayersAndPlanAgree(t *testing.T) {
	for _, test := range []struct {
		name   string
		method string
		path   string
		body   string
		calls  int    // in a row; 0 means 1
		at     int    // at a time; 0 means 1
		script string // what each endpoint does with its n-th request, the last for all further ones
		third  string // what the third endpoint does instead, if it is set
	}{
		{name: "success", script: "200"},
		{name: "retried until it works", script: "503 503 200", calls: 6},
		{name: "retries used up", script: "502"},
		{name: "POST is retried too, with its body", method: http.MethodPost, body: "order", script: "503 200", calls: 3},
		{name: "not retriable", script: "500", calls: 2},
		{name: "connection reset", script: "reset", calls: 1},
		{name: "per-try timeout", script: "hang"},
		{name: "per-try timeout, then success", script: "hang 200", calls: 3},
		{name: "a failing endpoint is ejected", script: "200", third: "500", calls: 60},
		{name: "a slow endpoint is ejected", script: "200", third: "hang", calls: 60},
		{name: "a dead endpoint is ejected", script: "200", third: "reset", calls: 60},
		{name: "overflow", script: "pause", calls: 12, at: 6},
		{name: "delay and abort", path: "/aborted", script: "200"},
		{name: "body cut off", script: "cut", calls: 2},
		{name: "headers and trailers", script: "trailers"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var seen [2]string
			for i, name := range []string{"layers", "plan"} {
				synctest.Test(t, func(t *testing.T) {
					f := new(meshtest.Fleet)
					var log serverLog
					var endpoints []discovery.Endpoint
					for n := range 3 {
						script := test.script
						if n == 2 && test.third != "" {
							script = test.third
						}
						endpoints = append(endpoints, f.Add(t, log.handler(strings.Fields(script))))
					}
					f.Registry.Set("api", endpoints...)
					rt := chain(t, f, test.path == "/aborted")
					if name == "plan" {
						rt = f.Mesh(t, agreedDocuments).Transport()
					}
					seen[i] = drive(rt, test.method, test.path, test.body, max(test.calls, 1), max(test.at, 1)) + log.String()
				})
			}
			if seen[0] != seen[1] {
				t.Errorf("layers:\n%s\nplan:\n%s", seen[0], seen[1])
			}
		})
	}
}

// drive makes calls and tells, in an order that does not depend on chance, what the callers saw.
func drive(rt http.RoundTripper, method, path, body string, calls, at int) string {
	var mu sync.Mutex
	counts := map[string]int{}
	saw := func(s string) {
		mu.Lock()
		defer mu.Unlock()
		counts[s]++
	}
	var callers sync.WaitGroup
	for range at {
		callers.Go(func() {
			for range calls / at {
				var reader io.Reader
				if body != "" {
					reader = strings.NewReader(body)
				}
				req, _ := http.NewRequest(method, "http://api"+path, reader)
				start := time.Now()
				resp, err := rt.RoundTrip(req)
				if err != nil {
					saw(fmt.Sprintf("error: timeout %v, after %v", errors.Is(err, context.DeadlineExceeded), time.Since(start).Round(time.Second)))
					continue
				}
				text, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				saw(fmt.Sprintf("%d %q %v after %d tries and %v, overloaded %q, trailer %q", resp.StatusCode, text, err != nil,
					retry.Attempts(resp), time.Since(start).Round(time.Second), resp.Header.Get("x-envoy-overloaded"), resp.Trailer.Get("X-Sum")))
			}
		})
	}
	callers.Wait()
	return table("callers", counts)
}

// serverLog counts what the servers saw.
type serverLog struct {
	mu     sync.Mutex
	counts map[string]int
}

func (l *serverLog) handler(script []string) http.HandlerFunc {
	n := 0
	return func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		l.mu.Lock()
		step := script[min(n, len(script)-1)]
		n++
		attempt, _ := strconv.Atoi(r.Header.Get("x-envoy-attempt-count"))
		seen := fmt.Sprintf("%s %s %s %q, try %d", r.Method, r.Host, r.URL, body, max(attempt, 1))
		if limit, _ := strconv.Atoi(r.Header.Get("x-envoy-expected-rq-timeout-ms")); attempt == 0 {
			// Later tries differ: the plan tells each the time that is left, a timeout around retries only that of the call.
			seen += fmt.Sprintf(", expected within %v", time.Duration(limit)*time.Millisecond)
		}
		if l.counts == nil {
			l.counts = map[string]int{}
		}
		l.counts[seen]++
		l.mu.Unlock()
		switch step {
		case "hang":
			<-r.Context().Done()
		case "pause":
			advance(500 * time.Millisecond)
		case "reset":
			panic(http.ErrAbortHandler)
		case "cut":
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "half")
		case "trailers":
			w.Header().Set("Trailer", "X-Sum")
			io.WriteString(w, "text")
			w.Header().Set("X-Sum", "42")
		default:
			status, _ := strconv.Atoi(step)
			w.WriteHeader(status)
			io.WriteString(w, "said "+step)
		}
	}
}

func (l *serverLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return table("servers", l.counts)
}

func table(who string, counts map[string]int) string {
	var b strings.Builder
	for _, seen := range slices.Sorted(maps.Keys(counts)) {
		fmt.Fprintf(&b, "%3d %s saw %s\n", counts[seen], who, seen)
	}
	return b.String()
}
