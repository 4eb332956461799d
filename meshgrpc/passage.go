package meshgrpc

import (
	"net/http"
	"net/url"
	"sync"

	"github.com/nosidecar/mesh/internal/admission"
)

// passage is an inbound call as the inbound side sees it: as an HTTP request.
type passage struct {
	request http.Request
	url     url.URL
	fields  http.Header
	facts   admission.Facts
	again   bool // it may be used again for another call
}

var passages = sync.Pool{New: func() any { return &passage{fields: make(http.Header), again: true} }}

// mostFields is the size up to which a header is kept for other calls.
const mostFields = 64

// blank is what the requests of calls are copied from. It is never changed.
var blank = http.Request{Method: http.MethodPost, Proto: "HTTP/2.0", ProtoMajor: 2}

// describe returns the request of a call.
func (p *passage) describe(in *inbound, method string, from origin) *http.Request {
	r := &p.request
	*r = *blank.WithContext(in)
	p.url.Path = method
	r.URL, r.RequestURI = &p.url, method
	r.Header, r.Body = p.fields, http.NoBody
	r.Host, p.facts.Plain = receive(p.fields, in.arrived)
	p.facts.Origin = from.kept
	r.RemoteAddr, r.TLS = from.address, from.state
	return r
}

// recycle gives p back. Nobody may have its request any more.
func (p *passage) recycle() {
	if len(p.fields) > mostFields {
		return
	}
	clear(p.fields)
	p.request, p.url, p.facts = blank, url.URL{}, admission.Facts{}
	passages.Put(p)
}
