package incoming

import (
	"io"
	"net/http"
)

// Setter knows the headers that only the process itself may set.
type Setter interface {
	// Output reports whether name is such a header, in any spelling.
	Output(name string) bool
}

// MayHaveTrailers reports whether a request may have trailers: HTTP/2 takes only announced ones, HTTP/1 takes any.
func MayHaveTrailers(r *http.Request) bool {
	return len(r.Trailer) > 0 || r.ProtoMajor == 1 && r.ContentLength < 0
}

// CleanTrailers copies the trailers of the request that arrived, which net/http sets, to seen, a copy of that request, when the body of seen has
// been read. It leaves out those that set knows and those for which hidden returns true. Both may be nil.
func CleanTrailers(arrived, seen *http.Request, hidden func(name string) bool, set Setter) {
	b := &body{ReadCloser: seen.Body, arrived: arrived, seen: seen, hidden: hidden, set: set}
	seen.Trailer = nil
	b.take(false)
	seen.Body = b
}

// body copies the trailers when it has been read to its end: only then has net/http set them.
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

// take copies the names of trailers, and their values if the body has been read.
func (b *body) take(read bool) {
	for name, values := range b.arrived.Trailer {
		if b.hidden != nil && b.hidden(name) || b.set != nil && b.set.Output(name) {
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
