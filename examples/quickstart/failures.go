package main

import (
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

func retries(s *scene) {
	bad := failing("v1")
	endpoints := []*server{serving("v1"), serving("v1"), bad}
	s.service("user-service", endpoints...)
	client := s.mesh().Client()

	calls := times(300, 8, func(int) answer { return s.get(client, "http://user-service/users/42") })
	requests, failed := total(endpoints), int(bad.requests.Load())

	s.row("", "in all", "failed")
	s.row("what callers saw: calls", len(calls), len(calls)-calls.ok())
	s.row("what servers saw: requests", requests, failed)
	s.expect(calls.ok() == len(calls), "no failure that a caller sees")
	s.expect(failed > 0 && calls.tries() >= len(calls)+failed, "another try for every request that failed")
	s.expect(requests == calls.tries(), "%d requests, one for each try", calls.tries())
}

func retryBudget(s *scene) {
	endpoints := []*server{failing("v1"), failing("v1")}
	s.service("order-service", endpoints...)

	const calls = 100
	budget := retry.BudgetConfig{Ratio: 0.2, MinPerSecond: -1, Window: time.Minute}
	s.row("", "calls", "requests to servers", "load")
	load := func(what string, options ...mesh.Option) int {
		client := s.mesh(options...).Client()
		before := total(endpoints)
		times(calls, 8, func(int) answer { return s.get(client, "http://order-service/") })
		requests := total(endpoints) - before
		s.row(what, calls, requests, fmt.Sprintf("%.1fx", float64(requests)/calls))
		return requests
	}
	without := load("as documented")
	s.expect(without == 4*calls, "%d requests: each call and its 3 retries", 4*calls)

	// No document can ask for this, so the program does.
	with := load("with a budget", mesh.WithProtection(mesh.Protection{RetryBudget: &budget}, "order-service"))
	s.expect(with > calls && with <= calls*120/100, "more than %d requests, and at most %d", calls, calls*120/100)
}

func ejection(s *scene) {
	bad := failing("v1")
	s.service("payment-service", serving("v1"), serving("v1"), bad)
	client := s.mesh().Client()

	s.row("calls", "failed", "requests to the bad endpoint")
	for range 3 {
		before := bad.requests.Load()
		calls := times(100, 1, func(int) answer { return s.get(client, "http://payment-service/") })
		s.row(len(calls), len(calls)-calls.ok(), bad.requests.Load()-before)
	}
	s.expect(bad.requests.Load() == 5, "5 requests to the bad endpoint; it got %d", bad.requests.Load())
}

func readmission(s *scene) {
	var (
		broken     atomic.Bool
		failedLast atomic.Int64 // when the endpoint last failed, on the way to be ejected
		start      = time.Now()
		ejected    = make(chan event, 10) // more than there will be: an observer must not block
		readmitted = make(chan event, 10)
	)
	broken.Store(true)
	ill := handling("v1", func(w http.ResponseWriter, r *http.Request) {
		if broken.Load() {
			failedLast.Store(int64(time.Since(start)))
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		io.WriteString(w, "recovered")
	})
	s.service("payment-service", serving("v1"), serving("v1"), ill)

	// An observer is told of everything the mesh does: here, of changes in the state of a destination.
	watch := mesh.WithObserver(mesh.Observer{Ejection: func(_ route.Target, e breaker.Event) {
		now := event{time.Since(start), ill.requests.Load(), string(e.Reason)}
		if e.Ejected {
			ejected <- now
		} else {
			readmitted <- now
		}
	}})
	client := s.mesh(watch).Client()

	// callUntil makes calls, one after the other, until it is told of an event, or for as long as a scene may last.
	callUntil := func(events <-chan event) event {
		for s.ctx.Err() == nil {
			s.get(client, "http://payment-service/")
			select {
			case e := <-events:
				return e
			case <-time.After(10 * time.Millisecond):
			}
		}
		return event{}
	}
	begun := time.Since(start)
	out := callUntil(ejected)
	broken.Store(false)
	back := callUntil(readmitted)
	after := times(100, 1, func(int) answer { return s.get(client, "http://payment-service/") })
	away := back.at - time.Duration(failedLast.Load()) // a little more than the ejection lasted

	s.row("time", "what happened", "requests to the endpoint")
	s.row(seconds(begun), "first call", 0)
	s.row(seconds(out.at), "ejected: "+out.why, out.requests)
	s.row(seconds(back.at), "readmitted", back.requests)
	s.row("", "100 calls later", ill.requests.Load())
	s.expect(out.requests == 5, "an ejection after 5 failures; it was after %d", out.requests)
	s.expect(back.requests == 5, "no request while the endpoint is ejected; there were %d", back.requests-5)
	s.expect(away >= time.Second, "an ejection of 1s at least; it was %v", away)
	s.expect(after.ok() == len(after), "no failure after the endpoint has recovered")
	s.expect(ill.requests.Load() > 5, "requests to the endpoint when it is back")
}

// event is something that happened at a time, when an endpoint had got so many requests.
type event struct {
	at       time.Duration
	requests int64
	why      string
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2fs", d.Seconds()) }

// total returns how many requests some servers got.
func total(servers []*server) int {
	n := int64(0)
	for _, s := range servers {
		n += s.requests.Load()
	}
	return int(n)
}
