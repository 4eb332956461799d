// Package response watches what a handler answers, for the layers on the server side.
package response

import (
	"io"
	"net/http"
)

// Recorder is what is known of a response while its handler runs.
type Recorder struct {
	w http.ResponseWriter

	// Status is the status that was sent, 101 if the connection was taken over, and 0 while nothing was sent. A handler
	// that returns without a word answers 200.
	Status int

	// Bytes is how much was written of the body.
	Bytes int64
}

// Watch returns a writer for the handler, which passes everything on to w and notes the status. It has the optional
// methods of w that handlers ask for by assertion (http.Flusher, http.Hijacker, io.ReaderFrom), and no others;
// http.ResponseController finds the rest through Unwrap.
func (r *Recorder) Watch(w http.ResponseWriter) http.ResponseWriter {
	r.w = w
	p := plain{r}
	_, flushes := w.(http.Flusher)
	_, hijacks := w.(http.Hijacker)
	_, reads := w.(io.ReaderFrom)
	switch {
	case flushes && hijacks && reads: // HTTP/1
		return readerFrom{hijacker{flusher{p}}}
	case flushes && hijacks:
		return hijacker{flusher{p}}
	case flushes: // HTTP/2
		return flusher{p}
	}
	return p
}

// Code returns the status of a response whose handler has returned.
func (r *Recorder) Code() int {
	if r.Status == 0 {
		return http.StatusOK
	}
	return r.Status
}

func (r *Recorder) begin(status int) {
	// 1xx come before the response; 101 is one.
	if r.Status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) {
		r.Status = status
	}
}

// plain and the types that embed it are single pointers, which need no allocation to be an interface.
type plain struct{ r *Recorder }

func (p plain) Header() http.Header { return p.r.w.Header() }

func (p plain) WriteHeader(status int) {
	p.r.begin(status)
	p.r.w.WriteHeader(status)
}

func (p plain) Write(b []byte) (int, error) {
	p.r.begin(http.StatusOK)
	n, err := p.r.w.Write(b)
	p.r.Bytes += int64(n)
	return n, err
}

// Unwrap is for http.ResponseController.
func (p plain) Unwrap() http.ResponseWriter { return p.r.w }
