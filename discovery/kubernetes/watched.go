package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/kubernetes"
)

// errUnknown stands for discovery.ErrUnknownService, whose text depends on the name that was asked for.
var errUnknown = errors.New("unknown")

// watched is a service that is watched, for as long as anybody listens.
type watched struct {
	namespace *namespace
	name      string
	asked     discovery.Service // as who came first asked for it
	ctx       context.Context
	cancel    context.CancelFunc
	running   sync.WaitGroup

	listeners map[chan struct{}]struct{} // guarded by Resolver.mu

	mu     sync.Mutex
	closed bool

	alone  input // the Service
	joined input // its EndpointSlices
	chosen input // its Pods
	named  input // the name that it stands for

	wide        bool // the first two are those of the namespace
	serviceRead bool
	service     *service // nil: there is none
	slicesRead  bool
	slices      []*slice
	podsAsked   bool
	podsDecided bool
	podsWanted  bool
	podsRead    bool
	pods        map[string]*pod // by uid, with those that are gone while slices refer to them
	gone        map[string]bool // the uids of these
	namesRead   bool
	names       []discovery.Endpoint

	known bool   // whether there ever was a Service
	count uint64 // of what was told
	set   news   // the last answer: endpoints, or errUnknown
	err   news   // the last error
	bad   string // what was last told about addresses
}

// input is something that is read for a service.
type input struct {
	what    string // "" for nothing
	cancel  context.CancelFunc
	failing bool
}

// news is something that listeners are told. They are told in the order of the numbers, and only the latest of each kind.
type news struct {
	number    uint64
	endpoints []discovery.Endpoint
	err       error
}

func newWatched(n *namespace, name string, asked discovery.Service) *watched {
	w := &watched{namespace: n, name: name, asked: asked, listeners: make(map[chan struct{}]struct{}), gone: make(map[string]bool)}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	return w
}

// begin begins to read the Service, unless all of the namespace is.
func (w *watched) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pullLocked(); w.wide {
		w.decideLocked(false)
		return
	}
	w.readLocked(&w.alone, w.name, func(ctx context.Context) {
		watch := kubernetes.Watch[*service]{Client: w.namespace.resolver.client, Resource: services, Namespace: w.namespace.name,
			Fields: "metadata.name=" + w.name, Decode: decodeService}
		read(w, ctx, &w.alone, watch, func(kept good[*service], unread error) {
			w.service = kept[kubernetes.Key{Namespace: w.namespace.name, Name: w.name}]
			w.serviceRead = w.service != nil || unread == nil
		})
	})
}

// end waits until nothing runs any more. The context has ended.
func (w *watched) end() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.running.Wait()
}

// readLocked has an input read something, unless it does; "" means nothing.
func (w *watched) readLocked(in *input, what string, run func(ctx context.Context)) {
	if in.what == what || w.closed {
		return
	}
	if in.cancel != nil {
		in.cancel()
	}
	*in = input{what: what}
	if what != "" {
		var ctx context.Context
		ctx, in.cancel = context.WithCancel(w.ctx)
		w.running.Go(func() { run(ctx) })
	}
}

// read follows a watch. took is called with w.mu held, after everything that makes a difference.
func read[T object[T]](w *watched, ctx context.Context, in *input, watch kubernetes.Watch[T], took func(kept good[T], unread error)) {
	kept, first := make(good[T]), true
	for state, err := range watch.All(ctx) {
		if err != nil {
			if w.isUnknown(ctx, err) {
				err = errUnknown
			}
			w.update(ctx, func() bool { in.failing = true; return false })
			if watch.Resource == podsOf {
				err = fmt.Errorf("%w (which have the labels and service accounts: see Resolver.Pods)", err)
			}
			w.fail(ctx, err)
			continue
		}
		var unread error
		w.update(ctx, func() bool {
			changed := first
			unread = kept.take(state, func(kubernetes.Key, T, T) { changed = true })
			if changed {
				took(kept, unread)
			}
			recovered := in.failing
			first, in.failing = false, unread != nil
			return recovered
		})
		if unread != nil {
			w.fail(ctx, unread)
		}
	}
}

// isUnknown reports whether a denial is about something that does not exist. A server does not say so to who has no rights: a call to
// example.com may be one to the service example in a namespace com. The cluster's DNS tells.
func (w *watched) isUnknown(ctx context.Context, err error) bool {
	if !errors.Is(err, kubernetes.ErrDenied) || w.asked.Name == "" {
		return false
	}
	w.mu.Lock()
	known := w.known || w.serviceRead
	w.mu.Unlock()
	if known {
		return false
	}
	var lookup discovery.Lookup = net.DefaultResolver
	if own := w.namespace.resolver.DNS.Resolver; own != nil {
		lookup = own
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err = lookup.LookupNetIP(ctx, "ip", w.asked.Host+".")
	var missing *net.DNSError
	return errors.As(err, &missing) && missing.IsNotFound
}

// update makes a change, unless ctx has ended, and tells what follows from it. change reports whether that is to be told even if it is
// the same.
func (w *watched) update(ctx context.Context, change func() (again bool)) {
	w.mu.Lock()
	if ctx.Err() != nil {
		w.mu.Unlock()
		return
	}
	again := change()
	w.pullLocked()
	told := w.count
	w.decideLocked(again)
	told -= w.count
	w.mu.Unlock()
	if told != 0 {
		w.wake()
	}
}

// fail tells an error, unless ctx has ended.
func (w *watched) fail(ctx context.Context, err error) {
	w.mu.Lock()
	if ctx.Err() != nil {
		w.mu.Unlock()
		return
	}
	if err == errUnknown {
		w.tellLocked(news{err: err})
	} else {
		w.count++
		w.err = news{number: w.count, err: err}
	}
	w.mu.Unlock()
	w.wake()
}

// pullLocked takes what was read of the namespace, if all of it was.
func (w *watched) pullLocked() {
	s, of, ok := w.namespace.lookUp(w.name)
	if !ok {
		return
	}
	w.wide = true
	w.readLocked(&w.alone, "", nil)
	w.readLocked(&w.joined, "", nil)
	w.service, w.slices, w.serviceRead, w.slicesRead = s, of, true, true
}

// followLocked reads what the Service asks for.
func (w *watched) followLocked() {
	s := w.service
	r := w.namespace.resolver
	if !w.wide {
		what := ""
		if s != nil && s.externalName == "" {
			what = w.name
		}
		if what == "" {
			w.slicesRead, w.slices = false, nil
		}
		w.readLocked(&w.joined, what, func(ctx context.Context) {
			watch := kubernetes.Watch[*slice]{Client: r.client, Resource: slicesOf, Namespace: w.namespace.name,
				Labels: serviceName + "=" + w.name, Decode: decodeSlice}
			read(w, ctx, &w.joined, watch, func(kept good[*slice], _ error) { w.slicesRead, w.slices = true, sorted(kept) })
		})
	}
	name, selector := "", ""
	switch {
	case s == nil:
	case s.externalName != "":
		name = s.externalName
	case w.podsWanted:
		selector = s.selector
	}
	if name != w.named.what {
		w.namesRead = false
	}
	w.readLocked(&w.named, name, func(ctx context.Context) { w.resolve(ctx, name) })
	if selector == "" {
		w.podsRead, w.pods = false, nil
	}
	w.readLocked(&w.chosen, selector, func(ctx context.Context) {
		watch := kubernetes.Watch[*pod]{Client: r.client, Resource: podsOf, Namespace: w.namespace.name, Labels: selector, Decode: decodePod}
		read(w, ctx, &w.chosen, watch, w.takePods)
	})
}

// takePods takes the pods that the Service selects. Those of them that are gone are remembered for slices that have yet to hear of it.
func (w *watched) takePods(kept good[*pod], _ error) {
	old := w.pods
	w.podsRead, w.pods = true, make(map[string]*pod, len(kept))
	clear(w.gone)
	for _, p := range kept {
		w.pods[p.uid] = p
	}
	for uid, p := range old {
		if w.pods[uid] == nil {
			w.pods[uid], w.gone[uid] = p, true
		}
	}
}

// forgetLocked forgets pods that are gone, and that no slice refers to.
func (w *watched) forgetLocked() {
	if len(w.gone) == 0 {
		return
	}
	referred := make(map[string]bool)
	for _, s := range w.slices {
		for i := range s.backends {
			referred[s.backends[i].pod] = true
		}
	}
	for uid := range w.gone {
		if !referred[uid] {
			delete(w.gone, uid)
			delete(w.pods, uid)
		}
	}
}

// resolve follows the name that the Service stands for.
func (w *watched) resolve(ctx context.Context, name string) {
	for endpoints, err := range w.namespace.resolver.DNS.Watch(ctx, discovery.Service{Host: name}) {
		missing := errors.Is(err, discovery.ErrUnknownService)
		w.update(ctx, func() bool {
			if err == nil || missing {
				w.namesRead, w.names = true, endpoints
			}
			again := w.named.failing && err == nil
			w.named.failing = err != nil
			return again
		})
		if err != nil {
			if missing {
				err = errors.New("it does not exist") // and yet the service does
			}
			w.fail(ctx, fmt.Errorf("kubernetes: Service %s/%s: externalName %q: %w", w.namespace.name, w.name, name, err))
		}
	}
}

// decideLocked tells the endpoints, or that the service is unknown, as soon as everything is known that they are made of.
func (w *watched) decideLocked(again bool) {
	if !w.serviceRead {
		return
	}
	w.followLocked()
	switch s := w.service; {
	case s == nil && !w.known:
		if w.set.err != errUnknown || again {
			w.tellLocked(news{err: errUnknown})
		}
		return
	case s == nil: // it was deleted
		w.offerLocked([]discovery.Endpoint{}, again)
		return
	}
	w.known = true
	if w.namespace.need(); !w.namespace.isReady() {
		return
	}
	if !w.podsDecidedLocked() {
		return
	}
	switch {
	case w.service.externalName != "":
		if w.namesRead {
			w.offerLocked(w.names, again)
		}
	case w.slicesRead && (w.podsRead || w.chosen.what == ""):
		w.forgetLocked()
		from := set{service: w.service, slices: w.slices, pods: w.pods, own: w.namespace.resolver.place, region: w.namespace.resolver.Region}
		w.offerLocked(from.endpoints(), again)
		w.reportLocked()
	}
}

// podsDecidedLocked finds out whether the pods are needed, and reports whether that is known.
func (w *watched) podsDecidedLocked() bool {
	switch ask := w.namespace.resolver.Pods; {
	case w.podsDecided:
	case ask == nil:
		w.podsDecided, w.podsWanted = true, true
		w.followLocked()
	case !w.podsAsked && !w.closed:
		w.podsAsked = true
		w.running.Go(func() { // without the lock
			wanted := ask(w.asked)
			w.update(w.ctx, func() bool { w.podsDecided, w.podsWanted = true, wanted; return false })
		})
	}
	return w.podsDecided
}

// offerLocked tells endpoints, if they are news.
func (w *watched) offerLocked(endpoints []discovery.Endpoint, again bool) {
	if again || w.set.number == 0 || w.set.err != nil || !equal(w.set.endpoints, endpoints) {
		w.tellLocked(news{endpoints: endpoints})
	}
}

// tellLocked tells endpoints, or that the service is unknown.
func (w *watched) tellLocked(n news) {
	w.count++
	n.number = w.count
	w.set = n
}

// reportLocked tells about addresses that are none, once.
func (w *watched) reportLocked() {
	text, left := "", 0
	for _, s := range w.slices {
		if left += s.left; s.left > 0 {
			text = s.bad
		}
	}
	if left > 0 {
		text = fmt.Sprintf("kubernetes: Service %s/%s: %d addresses, %q among them, are no IP addresses: these endpoints are left out",
			w.namespace.name, w.name, left, text)
	}
	if text != "" && text != w.bad {
		w.count++
		w.err = news{number: w.count, err: errors.New(text)}
	}
	w.bad = text
}

// since returns what listeners have not been told yet.
func (w *watched) since(seen uint64) (untold []news) {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := []news{w.set, w.err}
	slices.SortFunc(all, func(a, b news) int { return int(int64(a.number) - int64(b.number)) })
	for _, n := range all {
		if n.number > seen && n.number >= w.set.number { // an error before an answer is over
			untold = append(untold, n)
		}
	}
	return untold
}

func (w *watched) wake() {
	w.namespace.resolver.mu.Lock()
	defer w.namespace.resolver.mu.Unlock()
	for wake := range w.listeners {
		select {
		case wake <- struct{}{}:
		default: // it has yet to look
		}
	}
}
