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
	// copied is what is sent, if it is not the caller's. Its fields are used before: Header is what will be sent so far, and Trailer the
	// header before any change. So the memory of a call is 16 bytes less, which is another size class.
	copied http.Request

	own   bool  // nobody else has the header
	made  bool  // here
	trace trace // whether the header carries one
	plain bool  // see Unsampled

	used   uint8     // of values
	room   int16     // for what is added to the header
	values [4]string // of what is set: as many as traces set with every call, by default, without what they share
}

const maxRoom = 1 << 10

// trace says whether a header has a field that carries a trace.
type trace uint8

const (
	unknown trace = iota
	untraced
	traced
)

// Begin says which header the request has so far, whether nobody else has it, and about how many fields will be added to it.
func (r *Request) Begin(h http.Header, own bool, room int) {
	r.copied.Header, r.copied.Trailer, r.own, r.room = h, h, own && h != nil, int16(min(room, maxRoom))
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

// AddTrace is SetTrace for a key that the header does not have, with a value that is not empty.
func (r *Request) AddTrace(key, value string) {
	if !r.own {
		r.copyHeader()
	}
	r.copied.Header[key] = r.valuesOf(value)
	r.trace = traced
}

// AddSharedTrace is AddTrace for values that other requests may have, too: nobody changes them.
func (r *Request) AddSharedTrace(key string, values []string) {
	r.SetShared(key, values)
	r.trace = traced
}

// SetShared sets a header that carries no trace, by its key in an http.Header. Other requests may have the same values: nobody changes
// them.
func (r *Request) SetShared(key string, values []string) {
	if !r.own {
		r.copyHeader()
	}
	r.copied.Header[key] = values
}

func (r *Request) set(key, value string) {
	if !r.own {
		r.copyHeader()
	}
	if value == "" {
		delete(r.copied.Header, key)
	} else {
		r.copied.Header[key] = r.valuesOf(value)
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
	h := r.copied.Header
	r.own, r.made = true, true
	if fewFields(h, int(r.room)) {
		r.copied.Header = maps.Clone(h)
		return
	}
	r.copied.Header = make(http.Header, len(h)+int(r.room))
	r.trace = untraced
	for key, values := range h {
		r.copied.Header[key] = values
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
	if !r.own && !fewFields(r.copied.Header, int(r.room)) {
		r.copyHeader() // which looks at each field
		return r.trace == untraced
	}
	r.trace = untraced
	for key := range r.copied.Trailer {
		if field.CarriesTrace(key) {
			r.trace = traced
		}
	}
	return r.trace == untraced
}

// SetUnsampled says that nobody records the call, and that there is no sampled span in its context, which is the caller's.
func (r *Request) SetUnsampled() { r.plain = true }

// Unsampled reports whether [Request.SetUnsampled] was called. Then no span has to be looked up when the call ends.
func (r *Request) Unsampled() bool { return r.plain }

// Header returns the header as it will be sent.
func (r *Request) Header() map[string][]string { return r.copied.Header }

// Added returns how many more fields the header has than h, which it began with, unless it is the same one.
func (r *Request) Added(h http.Header) int { return len(r.copied.Header) - len(h) }

// Of returns what to send with ctx in place of req: req itself if nothing is to be changed about it.
func (r *Request) Of(req *http.Request, ctx context.Context) *http.Request {
	header := r.copied.Header
	switch {
	case !caller.SameContext(ctx, req.Context()):
		req = req.WithContext(ctx)
	case !r.made:
		return req
	default:
		r.copied = *req
		req = &r.copied
	}
	req.Header = header
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
