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
	grace             = 30 * time.Second // how much later the server must have ended a watch
	headersWithin     = time.Minute      // the timeout for the response to a watch; the server gives up about then
	pageWithin        = 30 * time.Second // the timeout for a page of a list
	newestWithin      = 12 * time.Second // what is newest, while nothing is known, before the server is asked in another way
	stuckFor          = time.Minute      // for which others are asked for their cache at once
	pageSize          = 500
	mostPages         = 2 * maxObjects / pageSize // of a list
	maxContinue       = 64 << 10                  // bytes of the token for the next page
	quiet             = 10 * time.Second          // without an event before the initial events have ended
	trusted           = time.Second               // how long a watch must be open before an error counts as over
	lived             = 30 * time.Second          // a watch that was open this long may end without counting as a failure
	calm              = 2 * time.Minute           // after this time without a failure the next one counts as the first
	mostSilent        = 2                         // how many passing failures are not yielded
	unheard           = shortest * time.Second    // without an event or a bookmark, which comes every minute, before everything is read again
	spread            = 2 * time.Second           // the period over which processes reconnect that were all disconnected at once
)

// Watch follows the objects of a kind. It is safe for concurrent use, but must not be changed while in use.
type Watch[T any] struct {
	Client    *Client
	Resource  Resource
	Namespace string // empty means all namespaces

	// Labels and Fields select objects, as in "app=web,!old". Empty means all of them.
	Labels, Fields string

	// Decode converts an object to what is kept of it. The goroutine that iterates calls it once for each state of an object, except for
	// states that newer ones have replaced. It should not keep Object.Raw unless it needs most of that memory.
	Decode func(Object) T

	// Coalesce is how long changes are collected before they are yielded together. 0 means 50 to 100 ms at random.
	Coalesce time.Duration
}

// State holds all objects of a watch at one time.
type State[T any] struct {
	// Objects has all objects. It is the map of the watch itself: it is valid until yield returns, and must not be changed.
	Objects map[Key]T

	// Changed has the keys that were added, changed or removed since the previous state, in order.
	Changed []Key
}

// All yields the state at the start and after changes, until ctx ends or the caller stops. Every state is complete: the first one, and one
// after a gap, is yielded only when everything has been read.
//
// An error, which is an *Error, does not end the iteration: the last state stays valid, and All retries with growing delays. An error that
// repeats is yielded once. The first answer after an error is yielded even if nothing has changed. When All returns, it has left no
// goroutine behind.
//
// An expired version and a stream that ends early usually pass, so All first retries without an error and yields one only if they
// recur several times.
func (w Watch[T]) All(ctx context.Context) iter.Seq2[State[T], error] {
	return func(yield func(State[T], error) bool) {
		r := run[T]{Watch: w, ctx: ctx, yield: yield, collection: newCollection[T](), changed: make(map[Key]struct{})}
		r.what = w.name()
		for r.step() {
		}
	}
}

// name returns the name of the watch in errors.
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
	known   bool             // a complete state has been yielded
	at      version          // the version of the state; its zero value means that everything must be read again
	changed map[Key]struct{} // since the last yield

	list    bool // use a list the next time, since the initial events did not end
	ignored bool // some initial events came: if the list succeeds, the server does not mark their end
	cached  bool // let the server answer from its cache, since consistent reads time out

	told    string    // the text of the last error that was yielded; "" after an answer
	silent  int       // failures since the last answer that were not yielded
	heard   time.Time // when the server last sent an event, a bookmark or a list
	expired time.Time // when the server last no longer knew the version of the state
	backoff backoff
}

// errStopped ends an iteration.
var errStopped = errors.New("stopped")

// step lists everything or follows changes until that ends. It reports whether to go on.
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

// next handles the end of a step: it yields an error if there is one to report, and waits before the next step.
func (r *run[T]) next(err error, lasted time.Duration) bool {
	switch {
	case err == nil || errors.Is(err, errUnmarked): // at once
		return true
	case errors.Is(err, ErrExpired):
		// Every process that follows this kind gets this error now, so they should not all return at once.
		r.at = version{}
		again := !r.expired.IsZero() && time.Since(r.expired) < calm
		if r.expired = time.Now(); !again {
			return r.wait(rand.N(spread))
		}
		r.silent++
	case errors.Is(err, errCut):
		if lasted >= lived {
			return r.wait(rand.N(spread / 2)) // resume it; if that fails, there is an error
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

// query returns the selectors of the watch as a query, with further parameters.
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

// readAll lists everything page by page.
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

// decode calls Decode, unless this state of the object has been decoded already.
func (r *run[T]) decode(o Object) T {
	if have, ok := r.versions[o.Key]; ok && have == newVersion(o.UID, o.ResourceVersion) {
		return r.objects[o.Key]
	}
	return r.Decode(o)
}

// replace replaces the state by a list and yields it.
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
	r.collection, r.at, r.silent, r.heard = fresh, at, 0, time.Now()
	return r.publish()
}

// publish yields the state if it has changed.
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

// follow opens a watch and applies its events until it ends. If everything must be read again, the watch begins with initial events.
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
			r.list = true // the server waits for a consistent read, perhaps in vain
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
	if !initial && (err == io.EOF || errors.Is(err, errCut)) && ctx.Err() == nil && time.Since(r.heard) >= unheard {
		// The version may be one of the future, since the server was restored from a backup: then it says nothing about what is older.
		r.at = version{}
	}
	switch {
	case err == io.EOF && time.Since(opened) >= limit-5*time.Second:
		return nil // a regular end
	case err == io.EOF:
		return errCut
	case errors.Is(err, errCut) && ctx.Err() != nil:
		return fmt.Errorf("%w: %w", errCut, context.Cause(ctx))
	}
	return err
}

// backoff returns the waits between failed attempts: 0.8 s, then twice as long each time, up to 30 s, plus up to as much again at random.
// After two minutes without a failure it starts over. The zero value is ready to use.
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
