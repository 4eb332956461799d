// Package response watches the responses of handlers, for the layers on the server side.
package response

import (
	"io"
	"net/http"
)

// Recorder records a response while its handler runs.
type Recorder struct {
	w http.ResponseWriter

	// Status is the status that was sent. It is 101 if the connection was taken over, and 0 if nothing was sent yet.
	Status int

	// Bytes is the number of bytes of the body that were written.
	Bytes int64

	// Editor edits the header when the response begins, and possibly more than once. It is set before the handler is called. nil leaves the
	// header as it is.
	Editor interface{ Edit(http.Header) }
}

// Watch returns a writer for the handler, which passes everything on to w and records the status. It implements the optional interfaces
// that handlers use (http.Flusher, http.CloseNotifier, http.Hijacker, http.Pusher, io.ReaderFrom) in the combinations in which the writers
// of net/http do. http.ResponseController finds other methods through Unwrap.
func (r *Recorder) Watch(w http.ResponseWriter) http.ResponseWriter {
	r.w = w
	p := plain{r}
	_, flushes := w.(http.Flusher)
	_, hijacks := w.(http.Hijacker)
	_, reads := w.(io.ReaderFrom)
	_, pushes := w.(http.Pusher)
	switch {
	case flushes && hijacks && reads: // HTTP/1
		return readerFrom{hijacker{flusher{p}}}
	case flushes && hijacks:
		return hijacker{flusher{p}}
	case flushes && pushes: // HTTP/2
		return pusher{flusher{p}}
	case flushes:
		return flusher{p}
	}
	return p
}

// Code returns the status of a response whose handler has returned: 200 if the handler has not sent any.
func (r *Recorder) Code() int {
	if r.Status == 0 {
		return http.StatusOK
	}
	return r.Status
}

func (r *Recorder) begin(status int) {
	// Statuses 1xx precede the response, except for 101.
	if r.Status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) {
		r.edit()
		r.Status = status
	}
}

// End is called when the handler has returned. If it has not begun the response, net/http does.
func (r *Recorder) End() { r.edit() }

func (r *Recorder) edit() {
	if r.Status == 0 && r.Editor != nil {
		r.Editor.Edit(r.w.Header())
	}
}

// plain and the types that embed it are single pointers, so converting them to an interface does not allocate.
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

// WriteString implements io.StringWriter.
func (p plain) WriteString(s string) (int, error) {
	p.r.begin(http.StatusOK)
	n, err := io.WriteString(p.r.w, s)
	p.r.Bytes += int64(n)
	return n, err
}

// Unwrap implements the method that http.ResponseController calls.
func (p plain) Unwrap() http.ResponseWriter { return p.r.w }
