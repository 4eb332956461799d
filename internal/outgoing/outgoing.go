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
	own    bool         // nobody else has the header
	made   bool         // here
	room   int32        // for what is added to it
	values field.Values // of what is set
}

// Begin says which header the request has so far, whether nobody else has it, and about how many fields will be added to it.
func (r *Request) Begin(h http.Header, own bool, room int) {
	r.header, r.own, r.room = h, own && h != nil, int32(room)
}

// SetHeader sets a header. An empty value removes it.
func (r *Request) SetHeader(name, value string) {
	if !r.own {
		r.header, r.own, r.made = CopyHeader(r.header, int(r.room)), true, true
	}
	if name = field.Key(name); value == "" {
		delete(r.header, name)
	} else {
		r.header[name] = r.values.Of(value)
	}
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

// small is how many fields fit into a map that never grows: cloning such a map is cheaper than making a new one.
const small = 8

// CopyHeader returns a copy of a header with room for more fields: growing a map costs more than making it large enough. Values are
// only ever replaced as a whole, so they are shared.
func CopyHeader(h http.Header, room int) http.Header {
	if len(h)+room <= small && h != nil {
		return maps.Clone(h)
	}
	copied := make(http.Header, len(h)+room)
	maps.Copy(copied, h)
	return copied
}
