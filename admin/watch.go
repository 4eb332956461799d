package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	mostWatchers = 16 // open pages
	tick         = time.Second
	atMostEvery  = 200 * time.Millisecond // the shortest time between two reports
	largePage    = 128 << 10              // each such number of bytes adds a tick between two reports,
	mostTicks    = 4                      // up to this many: after five seconds page.js says that there is no news
	writeWithin  = 10 * time.Second
)

// watch sends changes to open pages. While there are any, one goroutine makes a report every second, and immediately after an event.
// Each page has a goroutine of its own, that of its request, which sends the latest report when it has sent the previous one. So a slow
// client delays nobody else, and nothing piles up for it.
type watch struct {
	page    *Page
	ended   context.Context // ends with close
	end     context.CancelFunc
	running sync.WaitGroup
	kicked  chan struct{}

	latest atomic.Pointer[frame]

	mu       sync.Mutex
	closed   bool
	watchers map[chan struct{}]struct{} // each gets an element when there is a new frame
	stop     context.CancelFunc         // ends the goroutine that makes frames; nil if it is not running
}

// frame is the page at one time, split into its parts.
type frame struct {
	time  string
	parts []part
}

type part struct {
	id   string
	html string
	sum  uint64
}

func (f *frame) size() (n int) {
	for i := range f.parts {
		n += len(f.parts[i].html)
	}
	return n
}

func (w *watch) init(p *Page) {
	w.page = p
	w.ended, w.end = context.WithCancel(context.Background())
	w.kicked = make(chan struct{}, 1)
	w.watchers = make(map[chan struct{}]struct{})
}

// kick requests a report immediately. It never blocks.
func (w *watch) kick() {
	select {
	case w.kicked <- struct{}{}:
	default:
	}
}

// close waits for the streams no longer than a write may take: where the writer has no deadlines, a client that does not read holds
// its stream until its server closes the connection.
func (w *watch) close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.end()
	left := make(chan struct{})
	go func() {
		w.running.Wait()
		close(left)
	}()
	limit := time.NewTimer(writeWithin)
	defer limit.Stop()
	select {
	case <-left:
	case <-limit.C:
	}
}

// join adds a page. It returns nil if there are too many, or after close.
func (w *watch) join() chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || len(w.watchers) >= mostWatchers {
		return nil
	}
	told := make(chan struct{}, 1)
	w.watchers[told] = struct{}{}
	w.running.Add(1)
	if w.stop == nil {
		ctx, cancel := context.WithCancel(w.ended)
		w.stop = cancel
		w.running.Go(func() { w.run(ctx) })
	}
	w.kick() // the new page should not have to wait
	return told
}

func (w *watch) leave(told chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.watchers, told)
	if len(w.watchers) == 0 && w.stop != nil {
		w.stop()
		w.stop = nil
	}
	w.running.Done()
}

// run makes frames until ctx ends.
func (w *watch) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-w.kicked:
		case <-ctx.Done():
			return
		}
		size := 0
		if f, err := w.frame(); err == nil {
			size = f.size()
			w.latest.Store(f)
			w.tell()
		}
		timer.Reset(atMostEvery) // events in the meantime are in the next report
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		timer.Reset(tick*time.Duration(min(1+size/largePage, mostTicks)) - atMostEvery)
	}
}

func (w *watch) tell() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for told := range w.watchers {
		select {
		case told <- struct{}{}:
		default: // it has not yet taken the previous one, and will get this one
		}
	}
}

var seed = maphash.MakeSeed()

func (w *watch) frame() (*frame, error) {
	w.page.rendering.Lock()
	defer w.page.rendering.Unlock()
	report, err := w.page.report()
	if err != nil {
		return nil, err
	}
	v := newView(report)
	f := &frame{time: clock(report.Time)}
	var text bytes.Buffer
	for _, id := range sections {
		text.Reset()
		if err := page.ExecuteTemplate(&text, id, v); err != nil {
			return nil, err
		}
		f.parts = append(f.parts, part{id, text.String(), maphash.Bytes(seed, text.Bytes())})
	}
	return f, nil
}

// serve sends changes as server-sent events, until the client disconnects or the page is closed.
func (w *watch) serve(rw http.ResponseWriter, r *http.Request) {
	if w.page.mesh.Load() == nil {
		http.Error(rw, errNoMesh.Error(), http.StatusServiceUnavailable)
		return
	}
	told := w.join()
	if told == nil {
		rw.Header().Set("Retry-After", "5")
		http.Error(rw, "admin: too many pages are open, or the page is closed", http.StatusServiceUnavailable)
		return
	}
	defer w.leave(told)
	rc := http.NewResponseController(rw)
	// A client that does not read must not block close.
	stop := context.AfterFunc(w.ended, func() { _ = rc.SetWriteDeadline(time.Now()) })
	defer stop()
	h := rw.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no")
	if r.Method == http.MethodHead {
		return
	}
	if err := w.send(rc, rw, []byte("retry: 1000\n\n")); err != nil {
		return
	}
	seen := make(map[string]uint64, len(sections))
	for {
		select {
		case <-told:
		case <-r.Context().Done():
			return
		case <-w.ended.Done():
			return
		}
		if err := w.send(rc, rw, w.latest.Load().since(seen)); err != nil {
			return
		}
	}
}

// since returns an event with the parts that differ from those in seen, and updates seen.
func (f *frame) since(seen map[string]uint64) []byte {
	changed := make(map[string]string)
	for _, p := range f.parts {
		if seen[p.id] != p.sum {
			changed[p.id], seen[p.id] = p.html, p.sum
		}
	}
	data, err := json.Marshal(struct {
		Time  string            `json:"time"`
		Parts map[string]string `json:"parts"`
	}{f.time, changed})
	if err != nil {
		return []byte(": " + err.Error() + "\n\n") // strings can always be marshalled
	}
	return fmt.Appendf(nil, "data: %s\n\n", data)
}

func (w *watch) send(rc *http.ResponseController, rw http.ResponseWriter, data []byte) error {
	// Not every writer supports deadlines. If not, those of the server apply.
	_ = rc.SetWriteDeadline(time.Now().Add(writeWithin))
	if err := w.ended.Err(); err != nil {
		return err
	}
	if _, err := rw.Write(data); err != nil {
		return err
	}
	return rc.Flush()
}
