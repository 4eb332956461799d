// Package trailer gives a handler the trailers of its request without those that the client may not send.
package trailer

import (
	"io"
	"net/http"
)

// Setter knows the headers that are not the client's to set.
type Setter interface {
	// Output reports whether name is such a header, in any spelling.
	Output(name string) bool
}

// May reports whether a request may have trailers: HTTP/2 takes only announced ones, HTTP/1 takes any.
func May(r *http.Request) bool {
	return len(r.Trailer) > 0 || r.ProtoMajor == 1 && r.ContentLength < 0
}

// Clean gives seen, a copy of the request that arrived, the trailers of that request, without those for which hidden, if it is not nil, is
// true, and without those that set has.
func Clean(arrived, seen *http.Request, hidden func(name string) bool, set Setter) {
	b := &body{ReadCloser: arrived.Body, arrived: arrived, seen: seen, hidden: hidden, set: set}
	seen.Trailer = nil
	b.take(false)
	seen.Body = b
}

// body copies trailers once it has been read, when net/http has set them.
type body struct {
	io.ReadCloser
	arrived, seen *http.Request
	hidden        func(name string) bool
	set           Setter
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.take(true)
	}
	return n, err
}

// take copies the names of trailers, and their values if they have come.
func (b *body) take(read bool) {
	for name, values := range b.arrived.Trailer {
		if b.hidden != nil && b.hidden(name) || b.set.Output(name) {
			continue
		}
		if b.seen.Trailer == nil {
			b.seen.Trailer = make(http.Header)
		}
		if !read {
			values = nil
		}
		b.seen.Trailer[name] = values
	}
}
