package response

import (
	"bufio"
	"io"
	"net"
	"net/http"
)

// The types below are used only with a ResponseWriter that has the same method.

type flusher struct{ plain }

func (f flusher) Flush() { _ = f.FlushError() }

// FlushError implements the method that http.ResponseController calls instead of unwrapping the writer.
func (f flusher) FlushError() error {
	f.r.begin(http.StatusOK)
	return http.NewResponseController(f.r.w).Flush()
}

// CloseNotify implements http.CloseNotifier, as all writers of net/http that flush do.
func (f flusher) CloseNotify() <-chan bool { return closeNotify(f.r.w) }

// closeNotify is CloseNotify for old handlers. As in net/http, the channel never reports the end of a handler.
func closeNotify(w http.ResponseWriter) <-chan bool {
	//lint:ignore SA1019 old handlers still use it
	if notifier, ok := w.(http.CloseNotifier); ok {
		return notifier.CloseNotify()
	}
	return make(chan bool)
}

type pusher struct{ flusher }

// Push implements http.Pusher. http.ResponseController has no such method, so handlers ask for the interface.
func (p pusher) Push(target string, opts *http.PushOptions) error {
	return p.r.w.(http.Pusher).Push(target, opts)
}

type hijacker struct{ flusher }

func (h hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := h.r.w.(http.Hijacker).Hijack()
	if err == nil {
		h.r.begin(http.StatusSwitchingProtocols)
	}
	return conn, rw, err
}

type readerFrom struct{ hijacker }

// ReadFrom implements io.ReaderFrom. As in net/http, a response begins with the first byte: after an empty src, or one that fails at once,
// the handler can still choose the status.
func (f readerFrom) ReadFrom(src io.Reader) (int64, error) {
	f.r.edit() // in case src has something
	n, err := f.r.w.(io.ReaderFrom).ReadFrom(src)
	if n > 0 {
		f.r.begin(http.StatusOK)
	}
	f.r.Bytes += n
	return n, err
}
