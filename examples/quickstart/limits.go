package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh"
)

func timeouts(s *scene) {
	stuck := hanging("v1")
	s.service("order-service", serving("v1"), serving("v1"), hanging("v1"))
	s.service("payment-service", stuck)
	client := s.mesh().Client()

	orders := times(60, 60, func(int) answer { return s.get(client, "http://order-service/") })
	payments := times(10, 10, func(int) answer { return s.get(client, "http://payment-service/") })

	again := orders.where(func(a answer) bool { return a.tries > 1 })

	s.row("service", "calls", "answered", "first try hung", "and took at least")
	s.row("order-service", len(orders), orders.ok(), len(again), seconds(again.quickest()))
	s.row("payment-service", len(payments), payments.ok(), stuck.requests.Load(), seconds(payments.quickest()))
	s.expect(orders.ok() == len(orders), "an answer to every call of order-service, from another endpoint if need be")
	s.expect(len(again) > 0 && again.quickest() >= time.Second, "1s before another endpoint is tried")
	s.expect(payments.quickest() >= 300*time.Millisecond, "300ms before a call of payment-service ends")
	for _, a := range payments {
		// The error says which part of the mesh ended the call and why, with Envoy's response flags.
		var failure *mesh.Error
		s.expect(errors.As(a.err, &failure) && failure.Layer == "timeout" && failure.Flags == mesh.FlagUpstreamTimeout,
			"a timeout with flag UT; got %v", a.err)
	}
}

func connectionPool(s *scene) {
	gate := make(chan struct{})
	s.service("report-service", handling("v1", func(w http.ResponseWriter, r *http.Request) {
		<-gate // a long report
		io.WriteString(w, "v1")
	}))
	client := s.mesh().Client()

	const calls, room = 10, 2
	refused := func(a answer) bool {
		return a.status == http.StatusServiceUnavailable && a.header.Get("x-envoy-overloaded") == "true"
	}
	var refusals atomic.Int32
	all := times(calls, calls, func(int) answer {
		a := s.get(client, "http://report-service/")
		if refused(a) && refusals.Add(1) == calls-room {
			close(gate) // those were refused while the others were at it; now the report is ready
		}
		return a
	})

	overloaded := len(all.where(refused))
	s.row("calls at once", "answered", "refused with 503, x-envoy-overloaded")
	s.row(calls, all.ok(), overloaded)
	s.expect(all.ok() == room, "%d calls answered: one served, one waiting", room)
	s.expect(overloaded == calls-room, "%d calls refused", calls-room)
}

func faults(s *scene) {
	server := serving("v1")
	s.service("search-service", server)
	// The end of each call carries its response flags, which metrics, logs and errors share.
	var delayed, aborted atomic.Int64
	client := s.mesh(mesh.WithObserver(mesh.Observer{CallEnd: func(_ context.Context, c *mesh.Call) {
		if c.Flags&mesh.FlagDelayInjected != 0 {
			delayed.Add(1)
		}
		if c.Flags&mesh.FlagFaultInjected != 0 {
			aborted.Add(1)
		}
	}})).Client()

	calls := times(1000, 8, func(int) answer { return s.get(client, "http://search-service/") })
	unavailable := calls.with(http.StatusServiceUnavailable)

	s.row("calls", "made", "specified", "measured")
	s.share("delayed (flag DI)", len(calls), 10, int(delayed.Load()))
	s.share("aborted (flag FI)", len(calls), 20, int(aborted.Load()))
	s.expect(unavailable == int(aborted.Load()), "503 for every call that was aborted")
	s.expect(int(server.requests.Load()) == len(calls)-unavailable, "no request for a call that was aborted")
}
