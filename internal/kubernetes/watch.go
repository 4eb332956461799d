package kubernetes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nosidecar/mesh/internal/pause"
)

const (
	shortest, longest = 300, 600         // seconds of a watch, at random
	grace             = 30 * time.Second // beyond them, for the server to end it
	headersWithin     = time.Minute      // of a watch; the server gives up about then
	pageWithin        = 30 * time.Second // a page of a list
	newestWithin      = 12 * time.Second // what is newest, while nothing is known, before the server is asked in another way
	stuckFor          = time.Minute      // for which others are asked for their cache at once
	pageSize          = 500
	mostPages         = 2 * maxObjects / pageSize // of a list
	maxContinue       = 64 << 10                  // bytes of the token for the next one
	quiet             = 10 * time.Second          // without an event before the initial events have ended
	trusted           = time.Second               // for which a watch is open before an error is over
	lived             = 30 * time.Second          // for which a watch was open if its end is not held against the server
	calm              = 2 * time.Minute           // without a failure, after which the next is taken for the first
	mostSilent        = 2                         // failures of a kind that passes
	spread            = 2 * time.Second           // over which processes come back that were all thrown off at once
)

// Watch is the objects of a kind, of which all states are wanted. It must not be changed while in use; then it is safe for concurrent
// use.
type Watch[T any] struct {
	Client    *Client
	Resource  Resource
	Namespace string // empty: all of them

	// Labels and Fields select objects, as in "app=web,!old". Empty: all of them.
	Labels, Fields string

	// Decode makes what is kept of an object. It is called once for each state of an object that is not overtaken by another, by the
	// goroutine that iterates. It must not keep Object.Raw unless that memory is well spent.
	Decode func(Object) T

	// Coalesce is how long changes are collected before they are yielded together. 0 means 50 to 100 ms, at random.
	Coalesce time.Duration
}

// State is all objects of a watch at one time.
type State[T any] struct {
	// Objects is everything that is there. It is the map of the watch itself: it may be read until yield returns, and must not be
	// changed.
	Objects map[Key]T

	// Changed names what was added, changed or removed since the state that was yielded before, in order.
	Changed []Key
}

// All yields the state now and after changes, until ctx ends or the caller stops. Every state is whole: the first is yielded when
// everything there is has been read, and so is one after a gap.
//
// An error, which is an *Error, does not end it: the last state holds, and the watch is resumed, less and less often. The same error is
// yielded once in a row; the first answer after an error is yielded even if nothing has changed. When All returns, nothing of it runs any
// more.
func (w Watch[T]) All(ctx context.Context) iter.Seq2[State[T], error] {
	return func(yield func(State[T], error) bool) {
		r := run[T]{Watch: w, ctx: ctx, yield: yield, collection: newCollection[T](), changed: make(map[Key]struct{})}
		r.what = w.name()
		for r.step() {
		}
	}
}

// name is what the watch is called in errors.
func (w Watch[T]) name() string {
	name := "watch " + w.Resource.String()
	if w.Namespace != "" {
		name += fmt.Sprintf(" in namespace %q", w.Namespace)
	}
	if w.Labels != "" {
		name += fmt.Sprintf(" with labels %q", w.Labels)
	}
	if w.Fields != "" {
		name += fmt.Sprintf(" with fields %q", w.Fields)
	}
	return name
}

// run is one iteration over a watch.
type run[T any] struct {
	Watch[T]
	ctx   context.Context
	yield func(State[T], error) bool
	what  string

	collection[T]
	known   bool             // whether a state was whole
	at      version          // where it stands; its zero value: it must be read anew
	changed map[Key]struct{} // since the last yield

	list    bool // list the next time, since the initial events did not come to an end
	ignored bool // though some came: if the list does, the server does not know about the end
	cached  bool // let the server answer from its cache, since it cannot tell what is newest

	told    string    // the text of the error that was yielded last, "" after an answer
	silent  int       // failures since anything came that were not yielded
	expired time.Time // when the server last did not know where the state stands
	backoff backoff
}

// errStopped ends an iteration.
var errStopped = errors.New("stopped")

// step reads everything, or follows what was read, until that ends. It reports whether to go on.
func (r *run[T]) step() bool {
	var err error
	began := time.Now()
	if at := r.Client.stuck.Load(); at != 0 && !r.known && began.UnixNano()-at < int64(stuckFor) {
		r.list, r.cached = true, true
	}
	if r.at == (version{}) && (r.list || r.Client.lists.Load()) {
		err = r.readAll()
	} else {
		err = r.follow()
	}
	if r.ctx.Err() != nil || errors.Is(err, errStopped) {
		return false
	}
	return r.next(err, time.Since(began))
}

// next decides what comes after an end, and waits for it.
func (r *run[T]) next(err error, lasted time.Duration) bool {
	switch {
	case err == nil || errors.Is(err, errUnmarked): // at once
		return true
	case errors.Is(err, ErrExpired):
		// Whoever follows this kind is told the same at this time.
		r.at = version{}
		again := !r.expired.IsZero() && time.Since(r.expired) < calm
		if r.expired = time.Now(); !again {
			return r.wait(rand.N(spread))
		}
		r.silent++
	case errors.Is(err, errCut):
		if lasted >= lived {
			return r.wait(rand.N(spread / 2)) // it is resumed; if that fails, there is an error
		}
		r.silent++
	default:
		r.silent = mostSilent + 1
	}
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{What: r.what, Err: err}
	}
	if text := e.Error(); r.silent > mostSilent && text != r.told {
		r.told = text
		if !r.yield(State[T]{}, e) {
			return false
		}
	}
	wait := r.backoff.next()
	if e.RetryAfter > 0 {
		wait = max(wait, e.RetryAfter+rand.N(e.RetryAfter/2+1))
	}
	return r.wait(wait)
}

func (r *run[T]) wait(d time.Duration) bool { return pause.For(r.ctx, d) == nil }

var (
	errUnmarked = errors.New("the end of the initial events is not marked")
	errCut      = errors.New("the stream ended early")
)

// query returns what selects the objects, with the given parameters.
func (r *run[T]) query(parameters ...string) url.Values {
	q := url.Values{}
	for i := 0; i < len(parameters); i += 2 {
		q.Set(parameters[i], parameters[i+1])
	}
	if r.Labels != "" {
		q.Set("labelSelector", r.Labels)
	}
	if r.Fields != "" {
		q.Set("fieldSelector", r.Fields)
	}
	return q
}

// readAll reads everything page by page.
func (r *run[T]) readAll() error {
	fresh := newCollection[T]()
	parameters := []string{"limit", strconv.Itoa(pageSize)}
	if r.cached {
		parameters = []string{"resourceVersion", "0"} // with which the server ignores a limit
	}
	at, next, err := r.page(fresh, r.query(parameters...))
	for seen := map[string]bool{}; err == nil && next != ""; {
		if seen[next] || len(seen) == mostPages || len(next) > maxContinue {
			return &Error{What: r.what, Err: fmt.Errorf("%w: a list without end", errNonsense)}
		}
		seen[next] = true
		at, next, err = r.page(fresh, r.query("limit", strconv.Itoa(pageSize), "continue", next))
	}
	if err != nil {
		var e *Error
		slow := errors.Is(err, errSlow) || errors.As(err, &e) && e.Code >= 500
		if r.cached = !r.known && slow && !r.cached; r.cached {
			r.Client.stuck.Store(time.Now().UnixNano())
		} else {
			r.Client.stuck.Store(0)
		}
		return err
	}
	if r.ignored {
		r.Client.lists.Store(true)
	}
	r.list, r.cached, r.ignored = false, false, false
	return r.replace(fresh, newVersion("", at))
}

var errSlow = errors.New("no answer in time")

// page reads one page into a collection.
func (r *run[T]) page(into collection[T], query url.Values) (at, next string, err error) {
	within := pageWithin
	if !r.known && !r.cached {
		within = newestWithin
	}
	ctx, cancel := context.WithTimeoutCause(r.ctx, within, fmt.Errorf("%w (%v)", errSlow, within))
	defer cancel()
	what := strings.Replace(r.what, "watch", "list", 1)
	resp, err := r.Client.send(ctx, what, http.MethodGet, r.Resource.path(r.Namespace)+"?"+query.Encode(), nil)
	if err != nil {
		return "", "", err
	}
	defer resp.Body.Close()
	at, next, err = decodeList(resp.Body, r.Resource, r.Namespace, func(c change) error {
		if len(into.objects) >= maxObjects {
			return errTooMany
		}
		into.apply(c, r.decode)
		return nil
	})
	if err != nil {
		return "", "", &Error{What: what, Err: explain(ctx, err)}
	}
	return at, next, nil
}

// decode makes what is kept of an object, or keeps what there is of the same state of it.
func (r *run[T]) decode(o Object) T {
	if have, ok := r.versions[o.Key]; ok && have == newVersion(o.UID, o.ResourceVersion) {
		return r.objects[o.Key]
	}
	return r.Decode(o)
}

// replace puts everything that was read in the place of what was there, and yields it.
func (r *run[T]) replace(fresh collection[T], at version) error {
	for key, v := range fresh.versions {
		if have, ok := r.versions[key]; !ok || have != v {
			r.changed[key] = struct{}{}
		}
	}
	for key := range r.versions {
		if _, ok := fresh.versions[key]; !ok {
			r.changed[key] = struct{}{}
		}
	}
	clear(fresh.gone)
	r.collection, r.at, r.silent = fresh, at, 0
	return r.publish()
}

// publish yields the state, if it is news.
func (r *run[T]) publish() error {
	if r.known && len(r.changed) == 0 && r.told == "" {
		return nil
	}
	changed := make([]Key, 0, len(r.changed))
	for key := range r.changed {
		changed = append(changed, key)
	}
	slices.SortFunc(changed, func(a, b Key) int { return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name)) })
	clear(r.changed)
	r.known, r.told = true, ""
	if !r.yield(State[T]{r.objects, changed}, nil) {
		return errStopped
	}
	return nil
}

// follow opens a watch, and takes what it says until it ends. If everything must be read anew, that comes first.
func (r *run[T]) follow() error {
	initial := r.at == (version{})
	seconds := shortest + rand.IntN(longest-shortest+1)
	limit := time.Duration(seconds) * time.Second
	query := r.query("watch", "1", "allowWatchBookmarks", "true", "timeoutSeconds", strconv.Itoa(seconds))
	if initial {
		query.Set("sendInitialEvents", "true")
		query.Set("resourceVersionMatch", "NotOlderThan")
	} else {
		query.Set("resourceVersion", r.at.resource)
	}
	ctx, cancel := context.WithCancelCause(r.ctx)
	defer cancel(nil)
	within := headersWithin
	if !r.known {
		within = newestWithin
	}
	headers := time.AfterFunc(within, func() { cancel(fmt.Errorf("%w (%v)", errSlow, within)) })
	resp, err := r.Client.send(ctx, r.what, http.MethodGet, r.Resource.path(r.Namespace)+"?"+query.Encode(), nil)
	headers.Stop()
	if err != nil {
		switch {
		case initial && errors.Is(err, errUnprocessed):
			r.Client.lists.Store(true)
			return nil
		case initial && !r.known && errors.Is(err, errSlow):
			r.list = true // the server waits for what is newest, perhaps in vain
			return nil
		}
		return err
	}
	deadline := time.AfterFunc(limit+grace, func() { cancel(errors.New("the server did not end it")) })
	defer deadline.Stop()
	s, done := newStream(), make(chan struct{})
	go func() {
		defer close(done)
		s.read(ctx, resp.Body, r.what, r.Resource, r.Namespace, r.at)
	}()
	defer func() {
		cancel(nil)
		resp.Body.Close()
		<-done
	}()
	opened := time.Now()
	err = r.consume(s, initial)
	switch {
	case err == io.EOF && time.Since(opened) >= limit-5*time.Second:
		return nil // as it was asked to
	case err == io.EOF:
		return errCut
	case errors.Is(err, errCut) && ctx.Err() != nil:
		return fmt.Errorf("%w: %w", errCut, context.Cause(ctx))
	}
	return err
}

// consume takes what a stream says, until it ends. It returns why that is.
func (r *run[T]) consume(s *stream, initial bool) error {
	var fresh collection[T]
	into := &r.collection
	silence := newTimer()
	defer silence.Stop()
	if initial {
		fresh = newCollection[T]()
		into = &fresh
		silence.Reset(quiet)
	}
	collect, confirm := newTimer(), newTimer()
	defer collect.Stop()
	defer confirm.Stop()
	if r.told != "" {
		confirm.Reset(trusted)
	}
	collecting, some := false, false
	for {
		select {
		case <-r.ctx.Done():
			return errStopped
		case <-silence.C:
			if s.idle() {
				r.list, r.ignored = true, some
				return errUnmarked
			}
		case <-confirm.C:
			if !initial {
				if err := r.publish(); err != nil {
					return err
				}
			}
			continue
		case <-s.wake:
			if !initial && !collecting && s.alive() {
				collect.Reset(cmp.Or(r.Coalesce, 50*time.Millisecond+rand.N(50*time.Millisecond)))
				collecting = true
			}
			if !initial && s.alive() {
				continue
			}
		case <-collect.C:
			collecting = false
		}
		b := s.take()
		some = some || b.some
		for _, c := range b.changes {
			if len(into.objects) >= maxObjects {
				return &Error{What: r.what, Err: errTooMany}
			}
			if into.apply(c, r.decode) && !initial {
				r.changed[c.object.Key] = struct{}{}
			}
		}
		if b.behind {
			return ErrExpired
		}
		if initial {
			switch {
			case b.marker:
				initial, into = false, &r.collection
				silence.Stop()
				if err := r.replace(fresh, b.last); err != nil {
					return err
				}
			case b.unmarked:
				r.Client.lists.Store(true)
				return errUnmarked
			case b.end != nil:
				var e *Error
				r.list = r.list || errors.As(b.end, &e)
			default:
				silence.Reset(quiet)
			}
		} else {
			if b.last != (version{}) {
				r.at = b.last
			}
			if b.bookmark {
				r.settle(b.last)
			}
			if b.some {
				r.silent = 0
				if err := r.publish(); err != nil {
					return err
				}
			}
		}
		if b.end != nil {
			return b.end
		}
	}
}

func newTimer() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// backoff is the time between attempts that fail: 0.8 s, twice that, up to 30 s, and up to as much again at random. After two minutes
// without one it begins anew. Its zero value is ready.
type backoff struct {
	step time.Duration
	last time.Time
}

func (b *backoff) next() time.Duration {
	now := time.Now()
	if b.step == 0 || now.Sub(b.last) > calm {
		b.step = 800 * time.Millisecond
	}
	wait := b.step + rand.N(b.step)
	b.step = min(2*b.step, 30*time.Second)
	b.last = now.Add(wait)
	return wait
}
