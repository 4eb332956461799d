// Package consul reads from a Consul agent. It has the client that the packages for Consul use by default, and their common loop of
// blocking queries.
package consul

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/internal/pause"
)

const (
	defaultWait = time.Minute // of blocking queries; a query goes on in the server even if its caller hangs up

	// The interval between reads of one watch. Two may come at once.
	interval = time.Second
	burst    = 2

	grace     = 10 * time.Second // how long to wait for an answer after the end of a query's wait
	rebirth   = time.Minute      // how long an answer of a server that lost its state is not used
	firstWait = 500 * time.Millisecond
)

// ErrDenied is wrapped by errors of reads that Consul denies to this client.
var ErrDenied = errors.New("denied")

// ErrUnusable is wrapped by errors of Watch.Read about data that cannot be used. Such data is not read again as often as after other
// errors, since it will not change soon.
var ErrUnusable = errors.New("unusable")

// Watch is a read that is repeated, as a blocking query or, with Poll, at an interval. It is safe for concurrent use, but must not be changed
// while in use.
type Watch[T any] struct {
	// What describes the read in errors, such as `service "web"`.
	What string

	// Options are passed to Read with the context, the index and the wait set. Unless RequireConsistent is set, reads are stale: they
	// are answered even if there is no leader.
	Options api.QueryOptions

	// Read reads once. It passes the options to the client unchanged.
	Read func(options *api.QueryOptions) (T, *api.QueryMeta, error)

	// Size returns the number of items in an answer. Consul leaves out items that a client may not read, so an answer that is empty or
	// shorter than the last one may be a denial. It is used only once that is ruled out. nil is for reads whose denial is an error: their
	// answers are always used.
	Size func(T) int

	// Allowed returns an error if this client may not read the items that Size counts. It is called before an empty answer is used, if
	// Consul denies by default, since an answer to a client without token does not show a denial. Then the read is repeated.
	// nil means that nothing is checked.
	Allowed func(options *api.QueryOptions) error

	// Newest means that an answer whose index is lower than the last one is used only if it comes from the leader. A server that is cut off
	// could bring back rules that were revoked. Old endpoints are better than none; old rules are not.
	Newest bool

	// Equal reports whether two answers mean the same. Then the second one is not yielded. nil means that every answer is yielded.
	Equal func(a, b T) bool

	// Wait is how long Consul delays its answer while nothing changes. 0 means a minute.
	Wait time.Duration

	// Poll, if not 0, is the time between reads that do not block, plus or minus up to a tenth at random.
	Poll time.Duration
}

// All yields the answer now and after every change, until ctx ends or the caller stops.
//
// An error does not end the iteration: the last answer stays in use, and reads continue with growing delays. An error that repeats is yielded
// once. The first good answer after an error is yielded even if it is the same as before. All reads at most once per second, except that two
// reads may come at once after a quiet time. It starts no goroutine.
func (w Watch[T]) All(ctx context.Context) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		r := run[T]{Watch: w, ctx: ctx, yield: yield}
		for r.step() {
		}
	}
}

// run is one iteration over a watch.
type run[T any] struct {
	Watch[T]
	ctx   context.Context
	yield func(T, error) bool

	index uint64 // to block on; 0 means not to block

	last     T      // the last answer that was used
	known    bool   // whether there was one
	size     int    // its size
	at       uint64 // its index
	filtered bool   // whether Consul left items out of it

	told     string        // the text of the last error that was yielded; "" after an answer
	failures int           // in a row, of the same kind
	limit    time.Duration // of the wait after a failure; each kind of failure has its own
	reborn   time.Time     // since when the answer of a server without state is not used

	due time.Time // when the next read would be due if they came evenly
}

// step reads once, yields the result, and reports whether to go on.
func (r *run[T]) step() bool {
	answer, meta, err := r.read(r.index, !r.Options.RequireConsistent)
	if err == nil {
		answer, meta, err = r.doubt(answer, meta)
	}
	switch {
	case r.ctx.Err() != nil:
		return false
	case err != nil:
		return r.fail(err)
	}
	return r.take(answer, meta)
}

// read makes one read when it is due.
func (r *run[T]) read(index uint64, stale bool) (answer T, meta *api.QueryMeta, err error) {
	options, done, err := r.options(index)
	if err != nil {
		return answer, nil, err
	}
	defer done()
	options.AllowStale = stale
	answer, meta, err = r.Read(options)
	if err == nil && meta == nil {
		meta = &api.QueryMeta{}
	}
	if err == nil && r.Size != nil && r.Size(answer) == 0 && meta.LastIndex == 0 {
		err = errNoIndex
	}
	return answer, meta, explain(options.Context(), err)
}

// options waits until a read is due and returns its options. done must be called when it is over.
func (r *run[T]) options(index uint64) (options *api.QueryOptions, done func(), err error) {
	now := time.Now()
	if r.due.Before(now) {
		r.due = now
	}
	wait := r.due.Sub(now) - (burst-1)*interval
	r.due = r.due.Add(interval)
	if err := pause.For(r.ctx, wait); err != nil {
		return nil, nil, err
	}
	q := r.Options
	q.WaitIndex, q.WaitTime = index, 0
	if index > 0 {
		q.WaitTime = cmp.Or(r.Wait, defaultWait)
	}
	// Consul adds up to a sixteenth to the wait, so that not all queries end at once.
	limit := q.WaitTime + q.WaitTime/16 + grace
	ctx, cancel := context.WithTimeoutCause(r.ctx, limit, fmt.Errorf("no answer within %v", limit))
	return q.WithContext(ctx), cancel, nil
}

// explain replaces the client's error by the cause of ctx, if ctx has ended.
func explain(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// doubt returns the answer if it can be used, or else the answer of another read.
func (r *run[T]) doubt(answer T, meta *api.QueryMeta) (T, *api.QueryMeta, error) {
	again, older := r.size > 0, r.Newest && r.known && meta.LastIndex < r.at
	if r.mayBeDenied(answer, meta) {
		if err := r.allowed(); err != nil {
			return answer, meta, err
		}
		again = true // the answer may be from before this client was allowed to read
	}
	if older || again && r.doubtful(answer, meta) {
		// The leader has the newest state. Only a query that does not block says whether items were left out.
		var err error
		if answer, meta, err = r.read(0, false); err != nil {
			return answer, meta, err
		}
	}
	switch {
	case !r.doubtful(answer, meta):
		return answer, meta, nil
	case meta.ResultsFilteredByACLs:
		return answer, meta, fmt.Errorf("%w: the token may not read all that there is", ErrDenied)
	}
	empty := r.Size(answer) == 0
	if empty && r.size > 0 && meta.LastIndex < r.at {
		if r.reborn.IsZero() {
			r.reborn = time.Now()
		}
		if left := rebirth - time.Since(r.reborn); left > 0 {
			return answer, meta, errReborn
		}
	}
	return answer, meta, nil
}

// A server or proxy that is not an agent may answer with an empty 200.
var errNoIndex = errors.New("it is empty and has no X-Consul-Index, so it is not what an agent answers")

var errReborn = fmt.Errorf("it is empty, and its index went back: Consul lost its state; the last answer holds for %v", rebirth)

// mayBeDenied reports whether an answer looks like that to a client without a token, from a Consul that denies by default.
func (r *run[T]) mayBeDenied(answer T, meta *api.QueryMeta) bool {
	return r.Allowed != nil && r.doubtful(answer, meta) && r.Size(answer) == 0 && !meta.ResultsFilteredByACLs && meta.DefaultACLPolicy == "deny"
}

// allowed calls Allowed.
func (r *run[T]) allowed() error {
	options, done, err := r.options(0)
	if err != nil {
		return err
	}
	defer done()
	return explain(options.Context(), r.Allowed(options))
}

// doubtful reports whether items may be missing from an answer. An answer that was known to be partial may shrink.
func (r *run[T]) doubtful(answer T, meta *api.QueryMeta) bool {
	if r.Size == nil {
		return false
	}
	size := r.Size(answer)
	if size == 0 {
		return r.size > 0 || !r.known || meta.ResultsFilteredByACLs
	}
	return size < r.size && meta.ResultsFilteredByACLs && !r.filtered
}

// take yields an answer.
func (r *run[T]) take(answer T, meta *api.QueryMeta) bool {
	asked := r.index
	r.index = max(meta.LastIndex, 1) // 0 would not block
	if r.index < asked {
		r.index = 0 // this is another server, or it has lost its state
	}
	if asked == 0 {
		r.filtered = meta.ResultsFilteredByACLs
	}
	changed := !r.known || r.told != "" || r.Equal == nil || !r.Equal(answer, r.last)
	r.last, r.known, r.at, r.told = answer, true, meta.LastIndex, ""
	if r.Size != nil {
		r.size = r.Size(answer)
	}
	r.failures, r.reborn = 0, time.Time{}
	if changed && !r.yield(answer, nil) {
		return false
	}
	if r.Poll > 0 {
		r.index = 0
		return pause.For(r.ctx, r.Poll*9/10+rand.N(r.Poll/5+1)) == nil
	}
	return r.ctx.Err() == nil
}

// fail yields an error and waits before the next read. That read does not block, since it may reach another server.
func (r *run[T]) fail(err error) bool {
	limit := 2 * time.Second // there is no agent or no leader; it is followed soon after it is back
	switch status := Status(err); {
	case status == http.StatusForbidden && !errors.Is(err, ErrDenied):
		err = fmt.Errorf("%w: %w", ErrDenied, err)
		limit = 10 * time.Second
	case errors.Is(err, ErrDenied) || errors.Is(err, ErrUnusable) || limited(err):
		limit = 10 * time.Second
	case status >= 500:
	case status != 0:
		limit = 30 * time.Second // 429, and errors that a repetition does not mend
	}
	if r.limit != limit {
		r.failures, r.limit = 0, limit
	}
	wait := limit
	if r.failures < 20 {
		wait = min(limit, firstWait<<r.failures)
	}
	r.failures++
	r.index = 0

	err = fmt.Errorf("consul: %s: %w", r.What, shortened(err))
	if text := err.Error(); text != r.told {
		r.told = text
		var none T
		if !r.yield(none, err) {
			return false
		}
	}
	return pause.For(r.ctx, wait/2+rand.N(wait/2+1)) == nil
}

// shortened leaves out the parameters of blocking queries, which differ from one attempt to the next.
func shortened(err error) error {
	failed, ok := err.(*url.Error)
	if !ok {
		return err
	}
	target, wrong := url.Parse(failed.URL)
	if wrong != nil {
		return err
	}
	query := target.Query()
	for _, name := range []string{"index", "wait", "stale", "consistent"} {
		query.Del(name)
	}
	target.RawQuery = query.Encode()
	return &url.Error{Op: failed.Op, URL: target.String(), Err: failed.Err}
}

// limited reports whether a leader refuses reads because of its rate limit. Consul has no status code for that.
func limited(err error) bool {
	e, ok := errors.AsType[api.StatusError](err)
	return ok && e.Code == http.StatusServiceUnavailable && strings.Contains(e.Body, "rate limit")
}

// Status returns the HTTP status in err, or 0 if there was no answer.
func Status(err error) int {
	if e, ok := errors.AsType[api.StatusError](err); ok {
		return e.Code
	}
	return 0
}
