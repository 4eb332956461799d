package kubernetes

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	kube "github.com/nosidecar/mesh/internal/kubernetes"
	"github.com/nosidecar/mesh/policy"
)

const (
	settle   = 100 * time.Millisecond // how long a change waits for related ones, since the kinds arrive one by one
	gather   = 2 * time.Second        // how long a failure waits for others that have the same cause
	patience = 5 * time.Second        // how long a call waits for the documents of a namespace
	startup  = 15 * time.Second       // how long a denial may pass: an API server that has just started does not know all rights yet; it is asked three times
)

// loop is one run of Feed.Watch. Only its own goroutine uses the fields, except news and those below mu.
type loop struct {
	feed  *Feed
	ctx   context.Context
	start func(*loop, *watch) // starts a goroutine that follows the objects of a kind in a namespace
	kinds map[string][]kind   // by group
	news  chan func()         // updates from the other goroutines, run by the loop's own
	tasks sync.WaitGroup      // the other goroutines

	groups     map[string]*group // by name
	namespaces map[string]*namespace
	watches    map[key]*watch

	ready   bool            // everything was read once
	dirty   bool            // something changed since the last set
	failed  bool            // an error was yielded since the last set
	last    []policy.Source // the last set
	told    map[string]bool // which failures were yielded
	settles *time.Timer
	tells   *time.Timer
	pending struct{ settle, tell bool }

	wanting chan struct{} // receives when wanted has grown

	root string // the root namespace, if it is not the own one

	mu        sync.Mutex
	wanted    []string                 // further namespaces to follow
	needsRoot bool                     // calls wait for Services of the root namespace
	inForce   map[string]chan struct{} // by namespace; closed when the consumer has taken its documents
}

// group is an API group.
type group struct {
	served map[string]kube.Resource // by kind
	known  bool                     // served has been read
	failure
	again chan struct{} // takes hints that the server should be asked again soon
}

// failure is why something cannot be read now.
type failure struct {
	err    error     // nil if it can be read
	since  time.Time // since when it cannot
	denied time.Time // since when it is denied
}

// final reports whether the failure is a denial that does not pass.
func (f *failure) final() bool { return denied(f.err) && time.Since(f.denied) >= startup }

// fail records why something cannot be read. It is yielded by its name once more when that has become final, unless it is known by then.
func (l *loop) fail(f *failure, err error, name string, known func() bool) {
	if f.err == nil {
		f.since = time.Now()
	}
	if denied(err) && !denied(f.err) && !known() {
		f.denied = time.Now()
		l.after(startup, func() {
			if !known() && f.final() {
				delete(l.told, name)
			}
		})
	}
	f.err = err
}

// namespace is a namespace that is followed.
type namespace struct {
	own, root bool
	first     bool // mesh.New waits for it
	expired   bool // calls no longer wait for it
	complete  bool // all of it has been read once
	called    bool // calls go to its services, which matters only for the root namespace: all others are followed for such calls, or are the own one
}

// key names what one watch follows.
type key struct{ namespace, group, kind string }

// watch follows the objects of a kind in a namespace.
type watch struct {
	key
	kind     kind
	resource kube.Resource // how it is served
	cancel   context.CancelFunc

	documents []document
	read      time.Time // when documents were read, zero if never
	failure
}

func newLoop(ctx context.Context, feed *Feed, own, root string) *loop {
	l := &loop{
		feed: feed, ctx: ctx, kinds: kinds(), news: make(chan func()),
		groups: make(map[string]*group), namespaces: make(map[string]*namespace), watches: make(map[key]*watch),
		told: make(map[string]bool), settles: time.NewTimer(0), tells: time.NewTimer(0), inForce: make(map[string]chan struct{}),
		wanting: make(chan struct{}, 1),
	}
	l.settles.Stop()
	l.tells.Stop()
	if root != own {
		l.root = root
	}
	for name := range l.kinds {
		l.groups[name] = &group{again: make(chan struct{}, 1)}
	}
	for _, name := range append([]string{own, root}, feed.Namespaces...) {
		l.namespaces[name] = &namespace{own: name == own, root: name == root, first: true}
	}
	return l
}

// post passes an update to the loop. It reports false if the loop has ended.
func (l *loop) post(news func()) bool {
	select {
	case l.news <- news:
		return true
	case <-l.ctx.Done():
		return false
	}
}

// run yields what there is until the context ends or yield returns false.
func (l *loop) run(yield func([]policy.Source, error) bool) {
	defer l.settles.Stop()
	defer l.tells.Stop()
	for {
		select {
		case <-l.ctx.Done():
			return
		case news := <-l.news:
			news()
		case <-l.wanting:
			l.mu.Lock()
			wanted := l.wanted
			l.wanted = nil
			l.mu.Unlock()
			for _, name := range wanted {
				l.need(name)
			}
		case <-l.settles.C:
			l.pending.settle = false
			if !l.publish(yield) {
				return
			}
		case <-l.tells.C:
			l.pending.tell = false
			if !l.tell(yield) {
				return
			}
		}
		l.schedule()
	}
}

// schedule sets the timers after which changes and failures are yielded.
func (l *loop) schedule() {
	if l.dirty && !l.pending.settle && (l.ready || l.complete()) {
		l.pending.settle = true
		l.settles.Reset(settle)
	}
	if wait := gather; !l.pending.tell && len(l.untold()) > 0 {
		if !l.ready {
			wait = settle // mesh.New waits for it
		}
		l.pending.tell = true
		l.tells.Reset(wait)
	}
}

// want asks the loop to follow a namespace. It does not wait for the loop, which may be busy yielding for any length of time.
func (l *loop) want(name string) {
	l.mu.Lock()
	l.wanted = append(l.wanted, name)
	if name == l.root {
		l.needsRoot = true
		delete(l.inForce, name) // all but its Services may be in force
	}
	l.mu.Unlock()
	select {
	case l.wanting <- struct{}{}:
	default: // the loop has not looked yet
	}
}

// need begins to follow a namespace.
func (l *loop) need(name string) {
	n := l.namespaces[name]
	switch {
	case n == nil:
		n = new(namespace)
		l.namespaces[name] = n
	case n.root && !n.own && !n.called:
		n.called = true
	default:
		return
	}
	l.reconcile()
	l.after(patience, func() { n.expired, l.dirty = true, true })
	l.dirty = true
}

// after runs news after some time.
func (l *loop) after(wait time.Duration, news func()) {
	l.tasks.Go(func() {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
			l.post(news)
		case <-l.ctx.Done():
		}
	})
}

// serves sets the resources that a group serves, by kind.
func (l *loop) serves(name string, kinds map[string]kube.Resource, err error) {
	g := l.groups[name]
	if err != nil {
		l.fail(&g.failure, err, groupName(name), func() bool { return g.known })
		return
	}
	g.err, g.known, g.served, l.dirty = nil, true, kinds, true
	l.reconcile()
}

// reconcile starts and ends watches, so that every served kind is followed in every namespace where it matters.
func (l *loop) reconcile() {
	for name, n := range l.namespaces {
		for group, kinds := range l.kinds {
			g := l.groups[group]
			if !g.known {
				continue
			}
			for _, kind := range kinds {
				if !kind.concerns(n.own, n.root, n.called) {
					continue
				}
				k := key{name, group, kind.Name}
				w, now := l.watches[k], g.served[kind.Name]
				switch {
				case now.Version == "" && w == nil:
				case now.Version == "":
					l.gone(w)
				case w == nil || w.resource != now:
					l.follow(k, kind, now, w)
				}
			}
		}
	}
}

// follow starts a watch. before is the watch that it replaces, or nil; its documents stay in force until the new watch has some.
func (l *loop) follow(k key, kind kind, how kube.Resource, before *watch) {
	w := &watch{key: k, kind: kind, resource: how}
	if before != nil {
		before.cancel()
		w.documents, w.read = before.documents, before.read
	}
	l.watches[k] = w
	l.start(l, w)
}

// gone ends the watch of a kind that is no longer served, and removes its documents.
func (l *loop) gone(w *watch) {
	w.cancel()
	delete(l.watches, w.key)
	l.removed(w, len(w.documents), "a kind is not served any more, and its documents are gone")
	l.dirty = true
}

// take takes what a watch has read.
func (l *loop) take(w *watch, documents []document, err error) {
	if l.watches[w.key] != w {
		return // another watch has replaced it
	}
	if err != nil {
		l.fail(&w.failure, err, w.name(), w.known)
		n := l.namespaces[w.namespace]
		l.dirty = l.dirty || !l.ready || !n.complete || n.called
		return
	}
	if !w.read.IsZero() && len(documents) == 0 {
		l.removed(w, len(w.documents), "all documents of a kind were removed")
	}
	w.documents, w.read, w.err, l.dirty = documents, time.Now(), nil, true
}

// removed logs that all documents of a kind are gone.
func (l *loop) removed(w *watch, n int, why string) {
	if n > 0 {
		l.feed.log().Warn("policy/kubernetes: "+why, "kind", w.kind.title, "namespace", w.namespace, "documents", n)
	}
}

// name names what is followed, for errors.
func (w *watch) name() string { return w.kind.title + " in " + w.namespace }

// known reports whether the documents have been read, or may not be read and protect nobody.
func (w *watch) known() bool {
	return !w.read.IsZero() || !w.kind.Protects && denied(w.err)
}

// complete reports whether everything is known about the namespaces that New waits for.
func (l *loop) complete() bool {
	for name, n := range l.namespaces {
		if n.first && !l.read(name, n) {
			return false
		}
	}
	return true
}

// read reports whether all documents of a namespace are known.
func (l *loop) read(name string, n *namespace) bool {
	for group, kinds := range l.kinds {
		g := l.groups[group]
		if !g.known {
			return false
		}
		for _, kind := range kinds {
			if g.served[kind.Name].Version == "" || !kind.concerns(n.own, n.root, n.called) {
				continue
			}
			if w := l.watches[key{name, group, kind.Name}]; w == nil || !w.known() && (n.first || !denied(w.err)) {
				return false
			}
		}
	}
	return true
}

// publish yields the documents if they changed.
func (l *loop) publish(yield func([]policy.Source, error) bool) bool {
	if !l.ready && !l.complete() {
		return true
	}
	l.ready, l.dirty = true, false
	l.mu.Lock()
	needsRoot := l.needsRoot
	l.mu.Unlock()
	var all []document
	var taken []string
	for name, n := range l.namespaces {
		if n.complete = n.complete || n.expired || l.read(name, n); !n.complete {
			continue // a namespace is yielded as a whole
		}
		if name != l.root || !needsRoot || n.called && (n.expired || l.read(name, n)) {
			taken = append(taken, name)
		}
		for k, w := range l.watches {
			if k.namespace == name {
				all = append(all, w.documents...)
			}
		}
	}
	slices.SortFunc(all, byAge)
	sources := make([]policy.Source, len(all))
	for i, d := range all {
		sources[i] = d.source
	}
	healed := l.failed && len(l.failures()) == 0
	if l.last == nil || healed || !slices.EqualFunc(sources, l.last, equal) {
		if !yield(slices.Clone(sources), nil) {
			return false
		}
		l.last, l.failed = sources, l.failed && !healed
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, name := range taken {
		l.enters(name)
	}
	return true
}

func equal(a, b policy.Source) bool { return a.Name == b.Name && string(a.Data) == string(b.Data) }

// enters records that the documents of a namespace are in force. mu is held.
func (l *loop) enters(name string) {
	switch c := l.inForce[name]; {
	case c == nil:
		l.inForce[name] = closed
	case c != closed:
		close(c)
		l.inForce[name] = closed
	}
}

// closed is a closed channel.
var closed = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// awaits returns a channel that is closed when the documents of a namespace are in force.
func (l *loop) awaits(name string) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.inForce[name] == nil {
		l.inForce[name] = make(chan struct{})
	}
	return l.inForce[name]
}

// groupName names a group, for errors.
func groupName(name string) string { return "API group " + name }

// failures returns the errors of everything that cannot be read now, by name.
func (l *loop) failures() map[string]error {
	all := make(map[string]error)
	for name, g := range l.groups {
		if g.err != nil {
			all[groupName(name)] = g.err
		}
	}
	for _, w := range l.watches {
		if w.err != nil && (l.ready || !w.known()) {
			all[w.name()] = w.err
		}
	}
	return all
}

// untold returns the names of the failures that have not been yielded.
func (l *loop) untold() []string {
	var names []string
	failures := l.failures()
	maps.DeleteFunc(l.told, func(name string, _ bool) bool { return failures[name] == nil }) // if it fails again, that is news
	for name := range failures {
		if !l.told[name] {
			names = append(names, name)
		}
	}
	return names
}

// tell yields all failures as one error.
func (l *loop) tell(yield func([]policy.Source, error) bool) bool {
	if len(l.untold()) == 0 {
		return true
	}
	failures := l.failures()
	trouble := &unread{temporary: true, kept: l.ready}
	for _, name := range slices.Sorted(maps.Keys(failures)) {
		l.told[name] = true
		trouble.names, trouble.errs = append(trouble.names, name), append(trouble.errs, failures[name])
	}
	for _, g := range l.groups {
		trouble.add(&g.failure, g.known)
	}
	for _, w := range l.watches {
		trouble.add(&w.failure, w.known())
	}
	l.failed = true
	return yield(nil, trouble)
}
