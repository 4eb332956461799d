package main

import (
	"fmt"
	"log"
	"net/http"
	"sync"
	"time"
)

func trafficSplit(s *scene) {
	s.service("user-service", serving("v1"), serving("v1"), serving("v2"))
	client := s.mesh().Client() // an ordinary *http.Client

	plain := times(2000, 8, func(int) answer {
		return s.get(client, "http://user-service/users/42")
	})
	toV2 := times(200, 8, func(int) answer {
		return s.get(client, "http://user-service/users/42", "version", "v2")
	})

	s.row("calls", "made", "specified", "measured")
	s.share("to v1", len(plain), 90, plain.from("v1"))
	s.share("to v2", len(plain), 10, plain.from("v2"))
	s.expect(plain.ok() == len(plain), "an answer to every call")
	s.share("\"version: v2\" to v2", len(toV2), 100, toV2.from("v2"))
}

func canary(s *scene) {
	s.service("myapp", serving("v1"), serving("v1"), serving("v2"))
	m := s.mesh()
	client := m.Client()
	call := func(int) answer { return s.get(client, "http://myapp/") }

	before := times(2000, 8, call)

	// The last stage is applied in the middle of further calls. None of them may fail.
	halfway := make(chan struct{})
	var change sync.WaitGroup
	change.Go(func() {
		<-halfway
		if err := m.Apply(sources("21-canary-finished.yaml", "20-versions-of-myapp.yaml")...); err != nil {
			log.Fatal(err)
		}
	})
	during := times(600, 8, func(i int) answer {
		if i == 300 {
			close(halfway)
		}
		return call(i)
	})
	change.Wait()
	after := times(300, 8, call)

	s.row("calls", "made", "specified", "measured")
	s.share("at first, to v2", len(before), 5, before.from("v2"))
	s.share("while changing, answered", len(during), 100, during.ok())
	s.share("afterwards, to v2", len(after), 100, after.from("v2"))
}

func abTesting(s *scene) {
	s.service("myapp", serving("v1"), serving("v2"))
	client := s.mesh().Client()
	tier := func(name string) answers {
		return times(100, 8, func(int) answer { return s.get(client, "http://myapp/", "user-tier", name) })
	}
	nobody := times(100, 8, func(int) answer { return s.get(client, "http://myapp/") })

	s.row("calls", "made", "specified", "measured")
	s.share("user-tier: premium, to v2", 100, 100, tier("premium").from("v2"))
	s.share("user-tier: free, to v1", 100, 100, tier("free").from("v1"))
	s.share("no user-tier, to v1", 100, 100, nobody.from("v1"))
}

func mirroring(s *scene) {
	const calls = 50 // fewer than may be under way at once (64): beyond that, copies are dropped rather than queued
	copies := make(chan string, calls)
	v1 := serving("v1")
	v2 := handling("v2", func(w http.ResponseWriter, r *http.Request) {
		copies <- r.Host
		w.WriteHeader(http.StatusInternalServerError)
	})
	s.service("myapp", v1, v2)
	client := s.mesh().Client()

	made := times(calls, 4, func(int) answer { return s.call(client, http.MethodPost, "http://myapp/orders") })
	// A copy may arrive later than the answer to the original.
	hosts := map[string]int{}
	for arrived := 0; arrived < calls && s.ctx.Err() == nil; {
		select {
		case host := <-copies:
			hosts[host]++
			arrived++
		case <-s.ctx.Done():
		}
	}

	s.row("calls", "made", "specified", "measured")
	s.share("answered by v1", calls, 100, made.from("v1"))
	s.share("copied to v2 as myapp-shadow", calls, 100, hosts["myapp-shadow"])
}

func stickySessions(s *scene) {
	const users = 50
	// The documents are those of the namespace myapp. They want mTLS between services, and order-service as the caller.
	ca := authority()
	endpoints := []*server{serving("endpoint 1"), serving("endpoint 2"), serving("endpoint 3")}
	for _, e := range endpoints {
		e.mesh, e.account = s.member(ca, "user-service"), "user-service"
	}
	s.service("user-service", endpoints...)
	client := s.member(ca, "order-service").Client()

	round := func() answers {
		return times(users, 5, func(user int) answer {
			return s.get(client, "http://user-service:3000/api/profile", "x-user-id", fmt.Sprint("user-", user))
		})
	}
	first, second := round(), round()
	// The document also injects faults: it delays 1 call in 1,000 by 5s, and answers 1 in 10,000 with 503.
	aborted := first.with(http.StatusServiceUnavailable) + second.with(http.StatusServiceUnavailable)
	delayed := func(a answer) bool { return a.took >= 5*time.Second }
	moved := 0
	for user := range users {
		if first[user].ok() && second[user].ok() && first[user].from != second[user].from {
			moved++
		}
	}
	elsewhere := s.get(client, "http://user-service:3000/other")

	s.row("users", "first round", "second round")
	for _, e := range endpoints {
		s.row("on "+e.version, first.from(e.version), second.from(e.version))
		// That none of 50 users is at home on an endpoint is a chance of one in ten million.
		s.expect(first.from(e.version) > 0, "users on %s", e.version)
	}
	s.row("who moved", "", moved)
	s.row("delayed by the fault", len(first.where(delayed)), len(second.where(delayed)))
	s.row("aborted by the fault", first.with(http.StatusServiceUnavailable), second.with(http.StatusServiceUnavailable))
	s.expect(moved == 0, "every user on one endpoint; %d moved", moved)
	s.expect(first.ok()+second.ok()+aborted == 2*users && aborted < 5, "an answer to all calls but one in 10,000")
	s.expect(elsewhere.status == http.StatusNotFound, "404 for a path that no route matches; got %d", elsewhere.status)
}
