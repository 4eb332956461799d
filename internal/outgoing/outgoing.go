// Package outgoing makes the request that is sent from the caller's request, which it never changes: as late as possible, and with one
// copy of the header.
package outgoing

import (
	"context"
	"maps"
	"net/http"

	"github.com/nosidecar/mesh/internal/caller"
	"github.com/nosidecar/mesh/internal/field"
)

// Request is a request whose header and context may change before it is sent. It is meant to be part of what a layer allocates for a
// call, so that it costs no allocation of its own. The zero value is ready for Begin.
type Request struct {
	copied http.Request
	header http.Header
	began  http.Header // the header before any change
	own    bool        // nobody else has the header
	made   bool        // here
	trace  trace       // whether the header carries one

	used   uint8     // of values
	room   int32     // for what is added to the header
	values [5]string // of what is set: as many as traces set with every call, by default
}

// trace says whether a header has a field that carries a trace.
type trace uint8

const (
	unknown trace = iota
	untraced
	traced
)

// Begin says which header the request has so far, whether nobody else has it, and about how many fields will be added to it.
func (r *Request) Begin(h http.Header, own bool, room int) {
	r.header, r.began, r.own, r.room = h, h, own && h != nil, int32(room)
}

// SetHeader sets a header. An empty value removes it.
func (r *Request) SetHeader(name, value string) {
	name = field.Key(name)
	r.set(name, value)
	if field.CarriesTrace(name) {
		r.trace = traced
	}
}

// SetTrace is SetHeader for a header that carries a trace, by its key in an http.Header.
func (r *Request) SetTrace(key, value string) {
	r.set(key, value)
	r.trace = traced
}

// SetShared sets a header that carries no trace, by its key in an http.Header. Other requests may have the same values: nobody changes
// them.
func (r *Request) SetShared(key string, values []string) {
	if !r.own {
		r.copyHeader()
	}
	r.header[key] = values
}

func (r *Request) set(key, value string) {
	if !r.own {
		r.copyHeader()
	}
	if value == "" {
		delete(r.header, key)
	} else {
		r.header[key] = r.valuesOf(value)
	}
}

// valuesOf returns value as the values of a header. It allocates only if there is no room left.
func (r *Request) valuesOf(value string) []string {
	i := int(r.used)
	if i >= len(r.values) {
		return []string{value}
	}
	r.used++
	r.values[i] = value
	return r.values[i : i+1 : i+1]
}

func (r *Request) copyHeader() {
	h := r.header
	r.own, r.made = true, true
	if fewFields(h, int(r.room)) {
		r.header = maps.Clone(h)
		return
	}
	r.header = make(http.Header, len(h)+int(r.room))
	r.trace = untraced
	for key, values := range h {
		r.header[key] = values
		if field.CarriesTrace(key) {
			r.trace = traced
		}
	}
}

// Untraced reports whether the header has no field that carries a trace, so that none has to be looked up. It is for a caller that will set
// some: it may copy the header.
func (r *Request) Untraced() bool {
	if r.trace != unknown {
		return r.trace == untraced
	}
	if !r.own && !fewFields(r.header, int(r.room)) {
		r.copyHeader() // which looks at each field
		return r.trace == untraced
	}
	r.trace = untraced
	for key := range r.began {
		if field.CarriesTrace(key) {
			r.trace = traced
		}
	}
	return r.trace == untraced
}

// Header returns the header as it will be sent.
func (r *Request) Header() map[string][]string { return r.header }

// Added returns how many more fields the header has than h, which it began with, unless it is the same one.
func (r *Request) Added(h http.Header) int { return len(r.header) - len(h) }

// Of returns what to send with ctx in place of req: req itself if nothing is to be changed about it.
func (r *Request) Of(req *http.Request, ctx context.Context) *http.Request {
	switch {
	case !caller.SameContext(ctx, req.Context()):
		req = req.WithContext(ctx)
	case !r.made:
		return req
	default:
		r.copied = *req
		req = &r.copied
	}
	req.Header = r.header
	return req
}

// fewFields reports whether a header fits into a map that never grows, with room for more fields: cloning such a map is cheaper than making
// a new one.
func fewFields(h http.Header, room int) bool { return h != nil && len(h)+room <= 8 }

// CopyHeader returns a copy of a header with room for more fields: growing a map costs more than making it large enough. Values are
// only ever replaced as a whole, so they are shared.
func CopyHeader(h http.Header, room int) http.Header {
	if fewFields(h, room) {
		return maps.Clone(h)
	}
	copied := make(http.Header, len(h)+room)
	maps.Copy(copied, h)
	return copied
}
