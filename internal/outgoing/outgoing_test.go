package outgoing_test

import (
	"context"
	"maps"
	"net/http"
	"strconv"
	"testing"

	"github.com/nosidecar/mesh/internal/outgoing"
)

func request(t *testing.T, fields int) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://orders/", nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range fields {
		req.Header["X-"+strconv.Itoa(i)] = []string{"caller's"}
	}
	return req
}

// The caller's request stays as it is, whatever its size and whatever room there is for more.
func TestCallersRequestIsNotChanged(t *testing.T) {
	for _, fields := range []int{0, 1, 4, 8, 20} {
		for _, room := range []int{0, 2, 7} {
			req := request(t, fields)
			before := maps.Clone(req.Header)
			var r outgoing.Request
			r.Begin(req.Header, false, room)
			r.SetHeader("traceparent", "00")
			r.SetHeader("X-Request-Id", "1")
			r.SetHeader("x-0", "ours")
			r.SetHeader("X-3", "")
			r.SetShared("X-Shared", []string{"all"})
			if added := r.Added(req.Header); fields == 8 && added != 2 {
				t.Errorf("%d fields were added, want 2", added)
			}
			sent := r.Of(req, req.Context())
			if !maps.EqualFunc(req.Header, before, func(a, b []string) bool { return len(a) == 1 && a[0] == b[0] }) {
				t.Errorf("%d fields, room for %d: the caller's header is %v", fields, room, req.Header)
			}
			h := sent.Header
			if sent == req || h.Get("Traceparent") != "00" || h.Get("X-Request-Id") != "1" || h.Get("X-0") != "ours" ||
				h.Get("X-Shared") != "all" || h["X-3"] != nil {
				t.Errorf("%d fields, room for %d: sent %v", fields, room, h)
			}
			if fields > 5 && h.Get("X-5") != "caller's" {
				t.Errorf("%d fields, room for %d: the caller's fields are not sent: %v", fields, room, h)
			}
		}
	}
}

func TestRequestIsCopiedOnlyIfItChanges(t *testing.T) {
	req := request(t, 1)
	var r outgoing.Request
	r.Begin(req.Header, false, 2)
	if r.Of(req, req.Context()) != req {
		t.Error("a request that nothing was changed about is copied")
	}
	ctx, cancel := context.WithCancel(req.Context())
	defer cancel()
	sent := r.Of(req, ctx)
	if sent == req || sent.Context() != ctx || sent.Header.Get("X-0") != "caller's" {
		t.Errorf("a request with another context is sent as %v", sent)
	}
	own := http.Header{"X-Own": {"1"}}
	r = outgoing.Request{}
	r.Begin(own, true, 2)
	r.SetHeader("X-Own", "2")
	if own.Get("X-Own") != "2" {
		t.Error("a header that is nobody else's is copied")
	}
	r = outgoing.Request{}
	r.Begin(nil, true, 2)
	r.SetHeader("X-Own", "1") // there is nothing to write to
	req.Header = nil
	if sent := r.Of(req, req.Context()); sent.Header.Get("X-Own") != "1" {
		t.Errorf("sent %v", sent.Header)
	}
}

// Whoever sets trace headers learns of those that the caller set, or that another observer did, whatever the size of the header.
func TestHeaderThatCarriesATraceIsNotUntraced(t *testing.T) {
	for _, fields := range []int{0, 1, 4, 20} {
		for _, room := range []int{0, 2, 7} {
			begin := func(change func(http.Header)) *outgoing.Request {
				req := request(t, fields)
				change(req.Header)
				r := new(outgoing.Request)
				r.Begin(req.Header, false, room)
				return r
			}
			r := begin(func(h http.Header) { h["X-B3-Flags"] = []string{"1"} })
			if r.Untraced() {
				t.Errorf("%d fields, room for %d: a header with X-B3-Flags is said to be untraced", fields, room)
			}
			r = begin(func(http.Header) {})
			r.SetHeader("x-b3-sampled", "1")
			if r.Untraced() {
				t.Errorf("%d fields, room for %d: a header is said to be untraced after x-b3-sampled was set", fields, room)
			}
			r = begin(func(http.Header) {})
			r.SetTrace("Traceparent", "00")
			if r.Untraced() || r.Header()["Traceparent"][0] != "00" {
				t.Errorf("%d fields, room for %d: %v after a traceparent was set", fields, room, r.Header())
			}
			for name, add := range map[string]func(*outgoing.Request, string, string){
				"AddTrace":       (*outgoing.Request).AddTrace,
				"AddSharedTrace": func(r *outgoing.Request, key, value string) { r.AddSharedTrace(key, []string{value}) },
			} {
				req := request(t, fields)
				var r outgoing.Request
				r.Begin(req.Header, false, room)
				add(&r, "Traceparent", "00")
				if h := r.Of(req, req.Context()).Header; r.Untraced() || h["Traceparent"][0] != "00" || len(h) != fields+1 || len(req.Header) != fields {
					t.Errorf("%d fields, room for %d: %v is sent after %s", fields, room, h, name)
				}
			}
			r = begin(func(http.Header) {})
			r.SetHeader("X-Other", "1")
			if !r.Untraced() {
				t.Errorf("%d fields, room for %d: a header without a trace is said to carry one", fields, room)
			}
		}
	}
}

// There is no limit to what can be set, though there is room for few values without another allocation.
func TestManyHeadersAreSet(t *testing.T) {
	var r outgoing.Request
	r.Begin(nil, false, 2)
	for i := range 20 {
		r.SetHeader("X-"+strconv.Itoa(i), strconv.Itoa(i))
	}
	for i := range 20 {
		if got := r.Header()["X-"+strconv.Itoa(i)]; len(got) != 1 || cap(got) != 1 || got[0] != strconv.Itoa(i) {
			t.Errorf("header %d is %q", i, got)
		}
	}
}

// What is sent has the trailer of the caller's request, and no other.
func TestTrailerIsTheCallers(t *testing.T) {
	for _, trailer := range []http.Header{nil, {"X-Sum": nil}} {
		req := request(t, 3)
		req.Trailer = trailer
		var r outgoing.Request
		r.Begin(req.Header, false, 2)
		r.SetHeader("X-Own", "1")
		if sent := r.Of(req, req.Context()); !maps.EqualFunc(sent.Trailer, trailer, func(a, b []string) bool { return len(a) == len(b) }) ||
			(sent.Trailer == nil) != (trailer == nil) {
			t.Errorf("the trailer %v is sent as %v", trailer, sent.Trailer)
		}
	}
}
