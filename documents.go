package mesh

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/nosidecar/mesh/internal/empties"
	"github.com/nosidecar/mesh/internal/namespaces"
	"github.com/nosidecar/mesh/internal/pause"
	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy"
)

// Feed is a source of documents that change while the mesh runs. policy/file has one for folders.
type Feed interface {
	// Watch yields all documents of the source now, and again after every change, until ctx ends or the caller stops. An
	// error is reported and otherwise changes nothing; Watch keeps trying. New fails if an error comes before the first
	// documents, unless the error has a method Temporary that returns true: then New keeps waiting. Errors name a feed by
	// its String method, if it has one.
	//
	// The mesh runs Watch on a goroutine of its own and does not recover from a panic there. If Watch does not block, the mesh
	// takes 100 sets at once and then 10 a second, 10 errors at once and then one a second. A Watch that ends before ctx does is
	// an error, and is begun again, at most every 10 seconds.
	Watch(ctx context.Context) iter.Seq2[[]policy.Source, error]
}

// documents holds the documents that the program gave and those that each feed yielded last. They are compiled together, in
// this order: where two of them claim a host, the earlier one wins.
type documents struct {
	mu     sync.Mutex // held while documents are compiled and put into force, so that the latest ones win
	static []set
	fed    []set        // by feed
	valid  []set        // by feed, what is in force of it
	waits  []error      // by feed: why its first set has not arrived yet
	plan   *policy.Plan // in force; nil before the first load

	mayBeEmpty bool // set before the first load

	loads loads
}

// set is the documents of one origin.
type set struct {
	origin  string // for errors
	sources []policy.Source
}

// holdsNothing reports whether none of the sources has a document.
func holdsNothing(sources []policy.Source) bool {
	for _, source := range sources {
		if !yamldoc.Empty(source.Data) {
			return false
		}
	}
	return true
}

func errEmpty(origin string) error {
	return fmt.Errorf("mesh: there is no document in %s: correct the path, put documents there (in files named .yaml, .yml or .json), %s", origin, empties.Remedy)
}

// checkInForce returns an error if a set has sources, but plan puts none of their documents into force.
func checkInForce(sets []set, plan *policy.Plan, findings policy.Findings) error {
	inForce := plan.InForce()
	for _, s := range sets {
		own := inForce[:len(s.sources)]
		inForce = inForce[len(own):]
		if len(own) == 0 || slices.ContainsFunc(own, func(n int) bool { return n > 0 }) ||
			slices.ContainsFunc(s.sources, func(source policy.Source) bool { return source.Alone }) {
			continue
		}
		why := "their kinds, exportTo and selectors are about others"
		for _, f := range findings {
			if slices.ContainsFunc(s.sources, func(source policy.Source) bool { return source.Name == f.File }) {
				why = f.String()
				break
			}
		}
		return fmt.Errorf("mesh: there is no document in %s that is about this process, all are skipped (%s): correct the path, the documents or WithWorkload, %s",
			s.origin, why, empties.Remedy)
	}
	return nil
}

// feedName names a feed in errors.
func feedName(feed Feed) string {
	if named, ok := feed.(fmt.Stringer); ok {
		return named.String()
	}
	return "a feed of documents"
}

// load applies change to the documents, compiles them, and puts them into force. feed is the index of the feed that they are from, or -1. On an
// error, the documents in force stay, and undo reverts the change; an invalid set of a feed is kept until a later change makes the whole valid.
// Until then, changes of others take effect with what was in force of the invalid set.
func (m *Mesh) load(change, undo func(*documents), feed int) error {
	d := &m.documents
	d.mu.Lock()
	change(d)
	load, plan, settle := m.enforceLocked(d.fed)
	loads := []PolicyLoad{load}
	switch fed := d.validLocked(feed); {
	case load.Err == nil:
		d.ended(load, plan, d.fed)
	case plan == nil && fed != nil:
		partly, plan, settled := m.enforceLocked(fed)
		if partly.Err != nil {
			d.loads.ended(load, nil)
			break
		}
		d.ended(partly, plan, fed)
		load.Number = d.loads.next() // what is invalid is still refused, and the latest load says so
		d.loads.ended(load, nil)
		loads, settle = []PolicyLoad{partly, load}, settled
	default:
		d.loads.ended(load, nil)
	}
	err := loads[0].Err
	if err != nil && (feed < 0 || plan != nil) {
		undo(d)
	}
	d.mu.Unlock()

	if err == nil {
		m.settle(settle)
	}
	for _, load := range loads {
		m.observers.PolicyLoad(load)
	}
	return err
}

// settle ends what documents have replaced, and decides again about what was admitted, even if an observer panics.
func (m *Mesh) settle(replaced func()) {
	defer m.server.recheck()
	replaced()
}

// enforceLocked compiles the static documents and those of feeds, and puts them into force. It returns no plan if they are invalid.
func (m *Mesh) enforceLocked(fed []set) (load PolicyLoad, plan *policy.Plan, settle func()) {
	d := &m.documents
	sets := slices.Concat(d.static, fed)
	var sources []policy.Source
	for _, s := range sets {
		if len(sources) == 0 {
			sources = slices.Clip(s.sources) // usually the only ones, which are not copied
			continue
		}
		sources = append(sources, s.sources...)
	}
	load.Number, load.Version = d.loads.next(), version(sources)
	plan, load.Findings = policy.Recompile(d.plan, sources, m.workload)
	switch {
	case plan == nil:
		load.Err = load.Findings.Err()
	case !d.mayBeEmpty:
		load.Err = checkInForce(sets, plan, load.Findings)
	}
	if load.Err == nil {
		standAlone := slices.ContainsFunc(sources, func(s policy.Source) bool { return s.Alone })
		settle, load.Err = m.engine.Apply(plan, standAlone) // a file that one document names must not stop the others
	}
	if load.Err == nil {
		m.keys.Use(plan.Inbound().Tokens())
	}
	return load, plan, settle
}

// ended records that a load put a plan into force, with these documents of feeds.
func (d *documents) ended(load PolicyLoad, plan *policy.Plan, fed []set) {
	d.plan, d.valid = plan, slices.Clone(fed)
	d.loads.ended(load, plan)
}

// validLocked returns the sets of the feeds in force, with the latest one of the given feed. It returns nil if these are the latest of all feeds,
// or nothing is in force yet.
func (d *documents) validLocked(feed int) []set {
	if d.plan == nil {
		return nil
	}
	same := func(a, b policy.Source) bool {
		return a.Name == b.Name && a.Alone == b.Alone && bytes.Equal(a.Data, b.Data)
	}
	fed, latest := slices.Clone(d.valid), true
	for i := range fed {
		if i == feed {
			fed[i] = d.fed[i]
			continue
		}
		latest = latest && slices.EqualFunc(d.fed[i].sources, fed[i].sources, same)
	}
	if latest {
		return nil
	}
	return fed
}

// Apply replaces the documents that the program gave itself, with [WithPolicy], [WithPolicyDir] or earlier with Apply; those
// of feeds stay. Calls in flight end under the documents they began with; requests to this process are authorized again, see
// [Mesh.Handler]. The state of a destination (ejections, circuits, budgets, connections) is kept where its settings did not
// change.
//
// If any document has an error, nothing changes and the error lists all findings. Sources without any document are an error
// too, see [WithEmptyPolicy]; Apply without a source removes the documents.
func (m *Mesh) Apply(sources ...policy.Source) error {
	const origin = "the sources of Apply"
	if len(sources) > 0 && !m.documents.mayBeEmpty && holdsNothing(sources) {
		return errEmpty(origin)
	}
	var before []set
	return m.load(func(d *documents) {
		before, d.static = d.static, []set{{origin, slices.Clone(sources)}}
	}, func(d *documents) {
		d.static = before
	}, -1)
}

// forFeeds returns a context that tells a feed which namespaces the documents are compiled for, and whether sources without documents are refused.
func (m *Mesh) forFeeds(ctx context.Context) context.Context {
	if !m.documents.mayBeEmpty {
		ctx = empties.Refuse(ctx)
	}
	w := &m.workload
	return namespaces.With(ctx, namespaces.Pair{Own: cmp.Or(w.Namespace, namespaces.DefaultOwn), Root: cmp.Or(w.RootNamespace, namespaces.DefaultRoot)})
}

// take loads what a feed yields, until the mesh closes. It sends the result of the first set to first.
func (m *Mesh) take(i int, feed Feed, first chan<- error) {
	f := fed{Mesh: m, i: i, name: feedName(feed), first: first, sets: pause.Pace{Burst: 100, Each: 100 * time.Millisecond}, errs: pause.Errors()}
	ends := pause.Pace{Burst: 1, Each: 10 * time.Second}
	for {
		for sources, err := range feed.Watch(m.forFeeds(m.closing)) {
			if m.closing.Err() != nil {
				return
			}
			f.next(sources, err)
		}
		if !f.told { // New fails
			first <- errFeedEnded
			return
		}
		if m.closing.Err() != nil {
			return
		}
		f.failed(fmt.Errorf("mesh: %s ended: what it yielded last stays in force, and it is begun again", f.name))
		if ends.Wait(m.closing) != nil {
			return
		}
	}
}

// fed is a feed that a mesh follows.
type fed struct {
	*Mesh
	i          int // among the feeds
	name       string
	first      chan<- error
	told       bool // New has been told of the first set
	sets, errs pause.Pace
}

// next takes what the feed yields.
func (f *fed) next(sources []policy.Source, err error) {
	d := &f.documents
	if err == nil && !d.mayBeEmpty && holdsNothing(sources) {
		err = errEmpty(f.name)
	}
	i := f.i
	var emptied error
	if err == nil && f.told {
		if sources, emptied = d.unemptied(i, sources); sources == nil && emptied != nil {
			err = emptied
		}
	}
	now := set{f.name, sources}
	switch {
	case err != nil:
		f.failed(err)
	case f.told:
		var before set
		f.load(func(d *documents) { before, d.fed[i] = d.fed[i], now }, func(d *documents) { d.fed[i] = before }, i)
		if emptied != nil {
			f.failed(emptied)
		}
	default:
		d.mu.Lock()
		d.fed[i], d.waits[i] = now, nil
		d.mu.Unlock()
	}
	switch {
	case f.told:
	case isTemporary(err):
		d.late(i, err)
	default:
		f.first <- err
		f.told = true
	}
	pace := &f.sets
	if err != nil {
		pace = &f.errs
	}
	_ = pace.Wait(f.closing)
}

// unemptied returns what a feed yielded, unless a source in it that has documents in force has lost all of its text: whoever overwrites a file
// often empties it first. A source that stands alone stays as it is in force, and the error names it. Otherwise there is only the error.
func (d *documents) unemptied(feed int, sources []policy.Source) ([]policy.Source, error) {
	blank := func(s policy.Source) bool { return len(bytes.TrimSpace(s.Data)) == 0 }
	if d.mayBeEmpty || !slices.ContainsFunc(sources, blank) {
		return sources, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.valid) <= feed {
		return sources, nil
	}
	var err error
	sources = slices.Clone(sources)
	for i := range sources {
		s := &sources[i]
		before := slices.IndexFunc(d.valid[feed].sources, func(other policy.Source) bool { return other.Name == s.Name })
		if !blank(*s) || before < 0 || holdsNothing(d.valid[feed].sources[before:before+1]) {
			continue
		}
		err = fmt.Errorf("mesh: %s is empty, but had documents: remove it, leave a comment in it, %s", s.Name, empties.Remedy)
		if !s.Alone {
			return nil, err
		}
		s.Data, s.Err = d.valid[feed].sources[before].Data, d.valid[feed].sources[before].Err
	}
	return sources, err
}

// failed reports an error of the feed.
func (f *fed) failed(err error) {
	load := PolicyLoad{Number: f.documents.loads.next(), Err: err}
	f.documents.loads.ended(load, nil)
	f.observers.PolicyLoad(load)
}

// isTemporary reports whether New waits for a feed to recover from an error.
func isTemporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary()
}

// late records why the first set of a feed has not arrived yet. New keeps waiting.
func (d *documents) late(i int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.waits[i] = err
}

var errFeedEnded = errors.New("mesh: a feed of documents ended without yielding any")

// follow starts the feeds and waits for the first set of each.
func (m *Mesh) follow(ctx context.Context, static []set, feeds []Feed) error {
	m.documents.static, m.documents.fed, m.documents.waits = static, make([]set, len(feeds)), make([]error, len(feeds))
	first := make(chan error, len(feeds))
	for i, feed := range feeds {
		m.running.Go(func() { m.take(i, feed, first) })
	}
	for range feeds {
		select {
		case err := <-first:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			m.documents.mu.Lock()
			defer m.documents.mu.Unlock()
			return errors.Join(append([]error{interrupted(ctx)}, m.documents.waits...)...)
		}
	}
	return nil
}

// version returns the version of the content of documents. Names of sources do not count: they differ from one machine to
// another.
func version(sources []policy.Source) string {
	sum := sha256.New()
	var size [8]byte
	for _, source := range sources {
		binary.BigEndian.PutUint64(size[:], uint64(len(source.Data)))
		sum.Write(size[:])
		sum.Write(source.Data)
	}
	return hex.EncodeToString(sum.Sum(nil)[:8])
}
