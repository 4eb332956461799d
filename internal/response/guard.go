package response

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Guard is the ResponseWriter of an HTTP/1 handler that may be cut off while it runs. It knows when the handler takes over the
// connection.
type Guard struct {
	w   http.ResponseWriter
	cut atomic.Pointer[error]

	mu    sync.Mutex // held while deadlines are set, and while the connection is taken over
	owner Owner      // nil once the handler has returned
}

// Owner is notified when the handler takes over the connection.
type Owner interface {
	// TakeOver returns the connection for the handler.
	TakeOver(net.Conn) net.Conn
}

// Watch returns a writer for the handler, which passes everything on to w until the handler is cut off. w must be an http.Hijacker. The
// writer is an http.Flusher if w is; http.ResponseController finds other methods through Unwrap. Watch is called once, before Cut.
func (g *Guard) Watch(w http.ResponseWriter, owner Owner) http.ResponseWriter {
	g.w, g.owner = w, owner
	if _, flushes := w.(http.Flusher); flushes {
		return flushingGuard{g}
	}
	return g
}

// Cut makes all further operations of the handler on the writer fail with err. The caller ends operations that are already blocked by
// setting deadlines in the past, which the handler can no longer change.
func (g *Guard) Cut(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cut.CompareAndSwap(nil, &err)
}

// End is called when the handler has returned. A goroutine of it that still has the writer cannot take over the connection any more.
func (g *Guard) End() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.owner = nil
}

func (g *Guard) err() error {
	if err := g.cut.Load(); err != nil {
		return *err
	}
	return nil
}

// Header implements http.ResponseWriter.
func (g *Guard) Header() http.Header { return g.w.Header() }

// WriteHeader implements http.ResponseWriter.
func (g *Guard) WriteHeader(status int) {
	if g.err() == nil {
		g.w.WriteHeader(status)
	}
}

// Write implements http.ResponseWriter.
func (g *Guard) Write(b []byte) (int, error) {
	if err := g.err(); err != nil {
		return 0, err
	}
	return g.w.Write(b)
}

// WriteString implements io.StringWriter.
func (g *Guard) WriteString(s string) (int, error) {
	if err := g.err(); err != nil {
		return 0, err
	}
	return io.WriteString(g.w, s)
}

// ReadFrom implements io.ReaderFrom.
func (g *Guard) ReadFrom(src io.Reader) (int64, error) {
	if err := g.err(); err != nil {
		return 0, err
	}
	return io.Copy(g.w, src)
}

var errReturned = errors.New("mesh: Hijack was called after the handler had returned")

// Hijack implements http.Hijacker.
func (g *Guard) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.err(); err != nil {
		return nil, nil, err
	}
	if g.owner == nil {
		return nil, nil, errReturned
	}
	conn, rw, err := g.w.(http.Hijacker).Hijack()
	if err != nil {
		return nil, nil, err
	}
	return g.owner.TakeOver(conn), rw, nil
}

// SetReadDeadline implements the method that http.ResponseController calls.
func (g *Guard) SetReadDeadline(at time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.err(); err != nil {
		return err
	}
	return http.NewResponseController(g.w).SetReadDeadline(at)
}

// SetWriteDeadline implements the method that http.ResponseController calls.
func (g *Guard) SetWriteDeadline(at time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.err(); err != nil {
		return err
	}
	return http.NewResponseController(g.w).SetWriteDeadline(at)
}

// Unwrap is for http.ResponseController.
func (g *Guard) Unwrap() http.ResponseWriter { return g.w }

// flushingGuard is the Guard of a writer that flushes. It is a single pointer, so converting it to an interface does not allocate.
type flushingGuard struct{ *Guard }

// Flush implements http.Flusher.
func (g flushingGuard) Flush() { _ = g.FlushError() }

// FlushError implements the method that http.ResponseController calls instead of unwrapping the writer.
func (g flushingGuard) FlushError() error {
	if err := g.err(); err != nil {
		return err
	}
	return http.NewResponseController(g.w).Flush()
}

// CloseNotify implements http.CloseNotifier.
func (g flushingGuard) CloseNotify() <-chan bool { return closeNotify(g.w) }
