package mesh_test

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Where a server permits few streams to a connection, and a document few connections, calls wait for their turn. Those beyond
// the queue are refused.
func TestCallsWaitForAStream(t *testing.T) {
	for _, test := range []struct {
		name, pool      string
		served, refused int
		took            time.Duration
	}{
		{"one connection", "{tcp: {maxConnections: 1}, http: {h2UpgradePolicy: UPGRADE}}", 40, 0, 20 * time.Second},
		{"queue", "{tcp: {maxConnections: 1}, http: {h2UpgradePolicy: UPGRADE, http1MaxPendingRequests: 4}}", 6, 34, 3 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := servedBy(t, destinationRule("connectionPool: "+test.pool), &http.Server{
					HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 2},
					Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						time.Sleep(time.Second)
						io.Copy(w, r.Body)
					}),
				})
				call := func() int {
					resp, err := c.Post("http://api/", "", strings.NewReader("said"))
					if err != nil {
						t.Error(err)
						return 0
					}
					defer resp.Body.Close()
					said, err := io.ReadAll(resp.Body)
					if resp.StatusCode == http.StatusOK && (err != nil || string(said) != "said") {
						t.Errorf("answered %q, %v", said, err)
					}
					return resp.StatusCode
				}
				call() // then it is known how many streams there may be
				var mu sync.Mutex
				var callers sync.WaitGroup
				answers := make(map[int]int)
				began := time.Now()
				for range test.served + test.refused {
					callers.Go(func() {
						status := call()
						mu.Lock()
						defer mu.Unlock()
						answers[status]++
					})
				}
				callers.Wait()
				if answers[http.StatusOK] != test.served || answers[http.StatusServiceUnavailable] != test.refused {
					t.Errorf("answers %v, want %d and %d refusals", answers, test.served, test.refused)
				}
				if took := time.Since(began).Truncate(time.Second); took != test.took {
					t.Errorf("took %v, want %v", took, test.took)
				}
			})
		})
	}
}
