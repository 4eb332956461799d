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

type hijacker struct{ flusher }

func (h hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := h.r.w.(http.Hijacker).Hijack()
	if err == nil {
		h.r.begin(http.StatusSwitchingProtocols)
	}
	return conn, rw, err
}

type readerFrom struct{ hijacker }

func (f readerFrom) ReadFrom(src io.Reader) (int64, error) {
	f.r.begin(http.StatusOK)
	n, err := f.r.w.(io.ReaderFrom).ReadFrom(src)
	f.r.Bytes += n
	return n, err
}
