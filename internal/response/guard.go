package response

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Guard is the ResponseWriter of a handler of HTTP/1 that may be cut off while it runs. It knows when the handler takes the
// connection over.
type Guard struct {
	w     http.ResponseWriter
	owner Owner
	cut   atomic.Pointer[error]

	mu sync.Mutex // held while deadlines are set, and while the connection is taken over
}

// Owner is told when the connection is taken over.
type Owner interface {
	// TakeOver returns the connection for the handler.
	TakeOver(net.Conn) net.Conn
}

// NewGuard returns a writer for a handler that passes everything on to w, an http.Hijacker, and what cuts the handler off.
// It flushes if w does; http.ResponseController finds the rest through Unwrap.
func NewGuard(w http.ResponseWriter, owner Owner) (http.ResponseWriter, *Guard) {
	if _, flushes := w.(http.Flusher); flushes {
		g := &flushingGuard{Guard{w: w, owner: owner}}
		return g, &g.Guard
	}
	g := &Guard{w: w, owner: owner}
	return g, g
}

// Cut has everything fail with err that the handler asks of the writer from now on. What it already waits for, the caller ends:
// by deadlines in the past, which the handler cannot change any more.
func (g *Guard) Cut(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cut.CompareAndSwap(nil, &err)
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

// Hijack implements http.Hijacker.
func (g *Guard) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.err(); err != nil {
		return nil, nil, err
	}
	conn, rw, err := g.w.(http.Hijacker).Hijack()
	if err != nil {
		return nil, nil, err
	}
	return g.owner.TakeOver(conn), rw, nil
}

// SetReadDeadline is for http.ResponseController.
func (g *Guard) SetReadDeadline(at time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.err(); err != nil {
		return err
	}
	return http.NewResponseController(g.w).SetReadDeadline(at)
}

// SetWriteDeadline is for http.ResponseController.
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

// flushingGuard is the Guard of a writer that flushes.
type flushingGuard struct{ Guard }

// Flush implements http.Flusher.
func (g *flushingGuard) Flush() { _ = g.FlushError() }

// FlushError is what http.ResponseController asks for, rather than unwrap the writer.
func (g *flushingGuard) FlushError() error {
	if err := g.err(); err != nil {
		return err
	}
	return http.NewResponseController(g.w).Flush()
}

// CloseNotify implements http.CloseNotifier, which handlers of old ask for. Like net/http's it never tells of the end of a handler.
func (g *flushingGuard) CloseNotify() <-chan bool {
	//lint:ignore SA1019 the same
	if notifier, ok := g.w.(http.CloseNotifier); ok {
		return notifier.CloseNotify()
	}
	return make(chan bool)
}
