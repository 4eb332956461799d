package accesslog

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/policy/telemetry"
)

// Format is the format of the lines for a Writer.
type Format uint8

const (
	// JSON writes each line as an object with the keys of Istio's JSON format. It is the default.
	JSON Format = iota

	// Text writes lines in Istio's default text format.
	Text
)

// Config says what is logged, and where. Exactly one of Handler and Writer must be set.
type Config struct {
	// Handler gets a record for each line, with [slog.LevelInfo], the message "access", and Istio's keys as attributes. The time of the
	// record is the end of the call. If the Handler is not enabled for that level, nothing is logged, and nothing counts as dropped.
	// Only the goroutine of the log calls it. To use a *slog.Logger, set its Handler.
	Handler slog.Handler

	// Writer gets the lines in Format. Each write has whole lines. Only the goroutine of the log calls it.
	Writer io.Writer

	// Format is the format of the lines for Writer. It must not be set for a Handler.
	Format Format

	// Filter says which calls are logged. Its zero value keeps all calls.
	Filter Filter

	// Sampling is the fraction of the lines kept by Filter that are written, above 0 and up to 1. 0 means all.
	Sampling float64

	// Queue is the number of lines that may wait to be written. Further lines are dropped. 0 means 1,024. As many again may be in the
	// hands of the goroutine that writes. A line that waits takes about 1 kB, or up to 40 kB if callers send long paths and
	// headers: with 1,024, a Writer that does not keep up costs 80 MB at most.
	Queue int
}

// Filter keeps the calls that meet any of its conditions, and all calls if it has none.
type Filter struct {
	// Code keeps calls with this status or a higher one. A gRPC status counts as the corresponding HTTP status. A call without a
	// response counts as 500 or higher, unless its caller gave up. 0 means no condition.
	Code int

	// Duration keeps calls that took this long or longer. 0 means no condition.
	Duration time.Duration

	// Flags keeps calls that ended with any of these flags. 0 means no condition; ^mesh.Flags(0) means any flag.
	Flags mesh.Flags
}

const (
	defaultQueue = 1024
	closeLimit   = 10 * time.Second
)

// Log is an access log. It is safe for concurrent use. The caller closes it, after the mesh that it observes.
type Log struct {
	config  Config
	queue   queue
	records sync.Pool
	done    chan struct{} // closed when all lines are written

	lost atomic.Uint64 // lines that were not written because of errors

	mu  sync.Mutex
	err error // the first error
}

// New starts a log. It fails if the Config is invalid.
func New(c Config) (*Log, error) {
	switch {
	case c.Handler == nil && c.Writer == nil:
		return nil, errors.New("accesslog: there is neither a Handler nor a Writer: say where the lines go, such as os.Stdout")
	case c.Handler != nil && c.Writer != nil:
		return nil, errors.New("accesslog: there is a Handler and a Writer: set one of them")
	case c.Format > Text:
		return nil, fmt.Errorf("accesslog: Format %d is unknown: set JSON or Text", c.Format)
	case c.Handler != nil && c.Format != JSON:
		return nil, errors.New("accesslog: Format is for a Writer: a Handler has its own")
	case math.IsNaN(c.Sampling) || c.Sampling < 0 || c.Sampling > 1:
		return nil, fmt.Errorf("accesslog: Sampling is %v: it must be from 0 to 1", c.Sampling)
	case c.Queue < 0:
		return nil, fmt.Errorf("accesslog: Queue is %d: it must not be negative", c.Queue)
	case c.Filter.Code < 0 || c.Filter.Duration < 0:
		return nil, errors.New("accesslog: Filter has a negative Code or Duration")
	}
	if c.Queue == 0 {
		c.Queue = defaultQueue
	}
	l := &Log{config: c, done: make(chan struct{})}
	l.records.New = func() any { return new(record) }
	l.queue.init(c.Queue)
	go l.run()
	return l, nil
}

// Observer returns an observer for [mesh.WithObserver], which logs the calls of a mesh. A log may observe several meshes.
func (l *Log) Observer() mesh.Observer {
	return mesh.Observer{CallEnd: l.callEnd, InboundEnd: l.inboundEnd, ConnEnd: l.connEnd}
}

// Dropped returns how many lines were lost because the queue was full, the log was closed, or the Handler or Writer returned an
// error or panicked. It does not count lines that Filter or Sampling excludes.
func (l *Log) Dropped() uint64 {
	return l.queue.dropped.Load() + l.lost.Load()
}

// Close writes the lines of all calls that have ended, and ends the log. Lines of later calls are dropped. It returns the first
// error of the Handler or Writer, or an error if it takes them more than 10 seconds to write the lines. Close the mesh first. Close
// may be called more than once.
func (l *Log) Close() error {
	l.queue.close()
	limit := time.NewTimer(closeLimit)
	defer limit.Stop()
	select {
	case <-l.done:
	case <-limit.C:
		return fmt.Errorf("accesslog: Close: the Handler or Writer has not taken all lines within %v", closeLimit)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// keeps reports whether Filter and Sampling keep a call.
func (l *Log) keeps(code int, duration time.Duration, flags mesh.Flags) bool {
	f := &l.config.Filter
	if *f != (Filter{}) && (f.Code == 0 || code < f.Code) && (f.Duration == 0 || duration < f.Duration) && flags&f.Flags == 0 {
		return false
	}
	return l.config.Sampling == 0 || rand.Float64() < l.config.Sampling
}

// put queues a record, unless documents exclude it or the queue is full.
func (l *Log) put(r *record, documents *telemetry.AccessLog) {
	keeps := documents.Keeps(r)
	r.headers, r.peer = nil, nil
	r.bound()
	if !keeps || !l.queue.put(r) {
		l.recycle(r)
	}
}

func (l *Log) recycle(r *record) {
	*r = record{}
	l.records.Put(r)
}

// run writes the queued records until the log is closed.
func (l *Log) run() {
	defer close(l.done)
	out := output{log: l}
	var batch []*record
	for {
		var open bool
		batch, open = l.queue.take(batch)
		for _, r := range batch {
			out.add(r)
			l.recycle(r)
		}
		out.flush()
		if !open {
			return
		}
	}
}

func (l *Log) failed(err error, lines int) {
	l.lost.Add(uint64(lines))
	l.mu.Lock()
	if l.err == nil {
		l.err = err
	}
	l.mu.Unlock()
}
