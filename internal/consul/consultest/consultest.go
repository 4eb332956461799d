// Package consultest is what agents of Consul for tests have in common: an index that grows with each change, and queries that wait
// for it. What they know is up to each test. Real agents are in realservers.
package consultest

import (
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/internal/consul"
	"github.com/nosidecar/mesh/internal/memnet"
)

// Agent is an agent on a network in memory. Its mutex guards its fields, and those of the test that Change changes.
type Agent struct {
	sync.Mutex
	Index uint64
	Down  bool // it does not answer

	network memnet.Network
	changed chan struct{} // closed at the next change
	answer  http.HandlerFunc
}

// New returns an agent. answer is called with the mutex locked; it calls Await first where a query may block. The headers of an answer
// are there by then.
func New(t testing.TB, answer http.HandlerFunc) *Agent {
	a := &Agent{Index: 10, changed: make(chan struct{}), answer: answer}
	a.network.Serve(t, "agent:8500", a)
	return a
}

// Client returns a client of the agent.
func (a *Agent) Client(t testing.TB) *api.Client {
	t.Helper()
	client, err := consul.NewClient(&api.Config{Address: "agent:8500", Transport: &http.Transport{DialContext: a.network.DialContext}})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// Change changes something, and wakes the queries that block.
func (a *Agent) Change(change func()) {
	a.Lock()
	defer a.Unlock()
	a.Index++
	change()
	a.wakeLocked()
}

func (a *Agent) wakeLocked() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// ChangedLocked wakes the queries that block, after a change that was made with the mutex locked.
func (a *Agent) ChangedLocked() {
	a.Index++
	a.wakeLocked()
}

// ServeHTTP implements http.Handler.
func (a *Agent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.Lock()
	defer a.Unlock()
	if a.Down {
		panic(http.ErrAbortHandler)
	}
	a.answer(w, r)
}

// Await returns once there is something new for a query that blocks, or its wait is over, with the mutex locked as before. It sets
// the headers of the answer.
func (a *Agent) Await(w http.ResponseWriter, r *http.Request) {
	index, _ := strconv.ParseUint(r.URL.Query().Get("index"), 10, 64)
	wait, _ := time.ParseDuration(r.URL.Query().Get("wait"))
	end := time.NewTimer(wait)
	defer end.Stop()
	for over := false; index > 0 && index >= a.Index && !over; {
		changed := a.changed
		a.Unlock()
		select {
		case <-changed:
		case <-end.C:
			over = true
		case <-r.Context().Done():
			over = true
		}
		a.Lock()
	}
	if a.Down {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("X-Consul-Index", fmt.Sprint(a.Index))
	w.Header().Set("X-Consul-LastContact", "0")
}
