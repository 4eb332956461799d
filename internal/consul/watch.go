// Package consul reads from a Consul agent: the client that the packages of Consul make when they are given none, and the one
// loop of blocking queries that they share.
package consul

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/internal/pause"
)

const (
	defaultWait = time.Minute // of blocking queries: a query is not over on the server when its caller hangs up

	// reads of one watch come at this interval, two at once at most.
	interval = time.Second
	burst    = 2

	grace     = 10 * time.Second // beyond the wait, for an answer to come
	rebirth   = time.Minute      // how long the answer of a server that lost its state is not believed
	firstWait = 500 * time.Millisecond
)

// ErrDenied is wrapped by errors that say that Consul does not let this client read something.
var ErrDenied = errors.New("denied")

// ErrUnusable is wrapped by errors of Watch.Read that say that what there is makes no sense. It will not soon: it is not read
// again at the pace of an agent that is gone.
var ErrUnusable = errors.New("unusable")

// Watch is a read that is made again and again, as a blocking query or, with Poll, after some time. It must not be changed
// while in use; then it is safe for concurrent use.
type Watch[T any] struct {
	// What names what is read, for errors: `service "web"`.
	What string

	// Options are handed to Read, with the context, the index and the wait set. Reads are stale unless RequireConsistent is set:
	// they are answered even when there is no leader.
	Options api.QueryOptions

	// Read reads once. It hands the options to the client as they are.
	Read func(options *api.QueryOptions) (T, *api.QueryMeta, error)

	// Size returns how many things an answer holds. Consul leaves out what a client may not read, so an answer that is empty or
	// shorter than the last may be a denial; it is believed only once that is ruled out. nil is for reads whose denial is an
	// error: their answers are taken as they are.
	Size func(T) int

	// Allowed returns an error if this client may not read what Size counts. It is called before an empty answer is believed
	// of a Consul that denies by default, since an answer to a client without token does not tell; what is read after it counts.
	// nil: nothing is asked.
	Allowed func(options *api.QueryOptions) error

	// Newest says that an answer older than the last, as the index tells, is believed only from the leader: that of a server which is cut
	// off would bring back what was revoked. Endpoints are better old than unknown; rules are not.
	Newest bool

	// Equal reports whether two answers mean the same, which is then not yielded again. nil: every answer is yielded.
	Equal func(a, b T) bool

	// Wait is how long Consul holds a query back while nothing changes. 0 means a minute.
	Wait time.Duration

	// Poll, if not 0, is the time between reads that do not block, plus or minus up to a tenth at random.
	Poll time.Duration
}

// All yields the answer now and after every change, until ctx ends or the caller stops.
//
// An error does not end it: the last answer holds, and reads go on, less and less often. The same error is yielded once in a row;
// the first good answer after an error is yielded even if it is the same as before. It reads once a second at most, twice at the
// beginning of a quiet time, and starts no goroutine.
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

	index uint64 // to block on; 0: do not block

	last     T      // the last answer that was believed
	known    bool   // whether there was one
	size     int    // its size
	at       uint64 // its index
	filtered bool   // whether something was left out of it

	told     string        // the text of the error that was yielded last, "" after an answer
	failures int           // in a row, of the same kind
	limit    time.Duration // of the wait after a failure, which tells the kinds apart
	reborn   time.Time     // since when the answer of a server without state is not believed

	due time.Time // when the next read would be due if they came evenly
}

// step reads once, hands on what came of it, and reports whether to go on.
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

// explain puts the reason why ctx has ended in the place of what the client says about it.
func explain(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// doubt returns the answer if it may be believed, or another one that came of reading once more.
func (r *run[T]) doubt(answer T, meta *api.QueryMeta) (T, *api.QueryMeta, error) {
	again, older := r.size > 0, r.Newest && r.known && meta.LastIndex < r.at
	if r.mayBeDenied(answer, meta) {
		if err := r.allowed(); err != nil {
			return answer, meta, err
		}
		again = true // the answer may be from before this client was allowed to read
	}
	if older || again && r.doubtful(answer, meta) {
		// The leader knows best, and only an answer to a query that does not block says whether something was left out.
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

// Whatever stands in for an agent, or in front of it, may answer with nothing and 200.
var errNoIndex = errors.New("it is empty and has no X-Consul-Index, so it is not what an agent answers")

var errReborn = fmt.Errorf("it is empty, and its index went back: Consul lost its state; the last answer holds for %v", rebirth)

// mayBeDenied reports whether an answer looks like what a client without a token gets of a Consul that denies by default.
func (r *run[T]) mayBeDenied(answer T, meta *api.QueryMeta) bool {
	return r.Allowed != nil && r.doubtful(answer, meta) && r.Size(answer) == 0 && !meta.ResultsFilteredByACLs && meta.DefaultACLPolicy == "deny"
}

// allowed asks whether this client may read.
func (r *run[T]) allowed() error {
	options, done, err := r.options(0)
	if err != nil {
		return err
	}
	defer done()
	return explain(options.Context(), r.Allowed(options))
}

// doubtful reports whether an answer may be what is left of a longer one. An answer that was known to be partial may shrink.
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

// take hands on an answer that is believed.
func (r *run[T]) take(answer T, meta *api.QueryMeta) bool {
	asked := r.index
	r.index = max(meta.LastIndex, 1) // 0 would not block
	if r.index < asked {
		r.index = 0 // the server is another one, or has begun anew
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

// fail hands on an error and waits before the next read, which does not block: the server may be another one by then.
func (r *run[T]) fail(err error) bool {
	limit := 2 * time.Second // the agent or a leader is not there, and is soon to be followed when it is
	switch status := Status(err); {
	case status == http.StatusForbidden && !errors.Is(err, ErrDenied):
		err = fmt.Errorf("%w: %w", ErrDenied, err)
		limit = 10 * time.Second
	case errors.Is(err, ErrDenied) || errors.Is(err, ErrUnusable) || limited(err):
		limit = 10 * time.Second
	case status >= 500:
	case status != 0:
		limit = 30 * time.Second // 429, and what no repetition mends
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

	err = fmt.Errorf("consul: %s: %w", r.What, err)
	if text := err.Error(); text != r.told {
		r.told = text
		var none T
		if !r.yield(none, err) {
			return false
		}
	}
	return pause.For(r.ctx, wait/2+rand.N(wait/2+1)) == nil
}

// limited reports whether a leader answers no more because it was told to limit reads. That has no status of its own.
func limited(err error) bool {
	e, ok := errors.AsType[api.StatusError](err)
	return ok && e.Code == http.StatusServiceUnavailable && strings.Contains(e.Body, "rate limit")
}

// Status returns the HTTP status that err tells of, or 0 if there was no answer.
func Status(err error) int {
	if e, ok := errors.AsType[api.StatusError](err); ok {
		return e.Code
	}
	return 0
}
