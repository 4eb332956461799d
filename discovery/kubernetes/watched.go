package kubernetes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/discovery/internal/shared"
	"github.com/nosidecar/mesh/internal/kubernetes"
)

// watched is a service that is watched, for as long as anybody listens.
type watched struct {
	namespace *namespace
	name      string
	asked     discovery.Service // as the first caller asked for it
	ctx       context.Context
	cancel    context.CancelFunc
	running   sync.WaitGroup

	answers shared.Answers

	mu     sync.Mutex
	closed bool

	alone  input // the Service
	joined input // its EndpointSlices
	chosen input // its Pods
	named  input // the external name

	wide        bool // the first two are those of the namespace
	serviceRead bool
	service     *service // nil: there is none
	slicesRead  bool
	slices      []*slice
	podsAsked   bool
	podsDecided bool
	podsWanted  bool
	podsRead    bool
	pods        map[string]*pod // by uid, including deleted ones that slices still refer to
	gone        map[string]bool // the uids of the deleted ones
	namesRead   bool
	names       []discovery.Endpoint

	known  bool   // whether there ever was a Service
	unread error  // why a part of it could not be read with the namespace
	told   string // the last report about unreadable objects or invalid addresses
}

// input is something that is read for a service.
type input struct {
	what    string // "" for nothing
	cancel  context.CancelFunc
	failing bool
}

func newWatched(n *namespace, name string, asked discovery.Service) *watched {
	w := &watched{namespace: n, name: name, asked: asked, gone: make(map[string]bool)}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	return w
}

// begin begins to read the Service, unless all of the namespace is.
func (w *watched) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pullLocked(); w.wide {
		w.decideLocked(false)
		w.reportLocked(false)
		return
	}
	w.readLocked(&w.alone, w.name, func(ctx context.Context) {
		watch := kubernetes.Watch[*service]{Client: w.namespace.resolver.client, Resource: services, Namespace: w.namespace.name,
			Fields: "metadata.name=" + w.name, Decode: decodeService}
		read(w, ctx, &w.alone, watch, func(kept good[*service]) {
			w.service = kept.objects[kubernetes.Key{Namespace: w.namespace.name, Name: w.name}]
			w.serviceRead = w.service != nil || len(kept.faulty) == 0
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

// readLocked makes an input read something, unless it already does. "" means nothing.
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

// read follows a watch. It calls took with w.mu held after each change that matters.
func read[T object[T]](w *watched, ctx context.Context, in *input, watch kubernetes.Watch[T], took func(kept good[T])) {
	kept, whole := newGood[T](), false
	var unread error
	for state, err := range watch.All(ctx) {
		if err != nil {
			unknown := w.isUnknown(ctx, err)
			if watch.Resource == podsOf {
				err = fmt.Errorf("%w (which have the labels and service accounts: see Resolver.Pods)", err)
			}
			w.update(ctx, func() bool { in.failing = true; return false })
			w.say(ctx, func() {
				if unknown {
					w.answers.SetUnknown()
				} else {
					w.answers.Fail(err)
				}
			})
			unread = nil // to be reported again
			continue
		}
		before := unread
		w.update(ctx, func() bool {
			touched := !whole
			kept.take(state, func(string) { touched = true })
			if touched {
				took(kept)
			}
			unread = first(kept.faulty)
			recovered := in.failing && unread == nil
			whole, in.failing = true, unread != nil
			return recovered
		})
		if unread != nil && (before == nil || unread.Error() != before.Error()) {
			w.say(ctx, func() { w.answers.Fail(unread) })
		}
	}
}

// isUnknown reports whether a denial is about something that does not exist. A server does not tell that to a client without rights: a call
// to example.com could be meant for the service example in the namespace com. The cluster's DNS knows.
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

// update makes a change, unless ctx has ended, and publishes the result. change reports whether to publish even an unchanged result.
func (w *watched) update(ctx context.Context, change func() (again bool)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	again := change()
	again = w.pullLocked() || again
	w.decideLocked(again)
	w.reportLocked(again)
}

// say calls tell with w.mu held, unless ctx has ended.
func (w *watched) say(ctx context.Context, tell func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if ctx.Err() == nil {
		tell()
	}
}

// pullLocked takes what was read with the whole namespace, if that was read. It reports whether an earlier failure is over.
func (w *watched) pullLocked() (recovered bool) {
	f, ok := w.namespace.lookUp(w.name)
	if !ok {
		return false
	}
	w.wide = true
	w.readLocked(&w.alone, "", nil)
	w.readLocked(&w.joined, "", nil)
	// What cannot be read now may have been read before, when the service had watches of its own.
	if f.service == nil && f.fault != nil {
		f.service = w.service
	}
	w.serviceRead = w.serviceRead || f.service != nil || f.fault == nil
	for _, last := range w.slices {
		key := kubernetes.Key{Namespace: w.namespace.name, Name: last.name}
		if f.faulty[key] != nil && f.slices[key] == nil {
			if f.slices == nil {
				f.slices = make(map[kubernetes.Key]*slice)
			}
			f.slices[key] = last
		}
	}
	w.service, w.slices, w.slicesRead = f.service, sorted(f.slices), true
	before := w.unread
	w.unread = both(f.fault, first(f.faulty))
	return before != nil && w.unread == nil
}

// both returns two errors as one; each may be nil.
func both(a, b error) error {
	if a == nil || b == nil {
		return cmp.Or(a, b)
	}
	return fmt.Errorf("%w; %w", a, b)
}

// followLocked reads what the Service refers to.
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
			read(w, ctx, &w.joined, watch, func(kept good[*slice]) { w.slicesRead, w.slices = true, sorted(kept.of[w.name]) })
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

// takePods takes the pods that the Service selects. Deleted pods are kept as long as slices still refer to them.
func (w *watched) takePods(kept good[*pod]) {
	old := w.pods
	w.podsRead, w.pods = true, make(map[string]*pod, len(kept.objects))
	clear(w.gone)
	for _, p := range kept.objects {
		w.pods[p.uid] = p
	}
	for uid, p := range old {
		if w.pods[uid] == nil {
			w.pods[uid], w.gone[uid] = p, true
		}
	}
}

// forgetLocked forgets deleted pods that no slice refers to.
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

// resolve follows the external name of the Service.
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
			w.say(ctx, func() {
				w.answers.Fail(fmt.Errorf("kubernetes: Service %s/%s: externalName %q: %w", w.namespace.name, w.name, name, err))
			})
		}
	}
}

// decideLocked publishes the endpoints, or that the service is unknown, as soon as all inputs are known.
func (w *watched) decideLocked(again bool) {
	if !w.serviceRead {
		return
	}
	w.followLocked()
	switch s := w.service; {
	case s == nil && !w.known:
		if _, unknown, _ := w.answers.Last(); !unknown || again {
			w.answers.SetUnknown()
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

// offerLocked publishes endpoints if they are new.
func (w *watched) offerLocked(endpoints []discovery.Endpoint, again bool) {
	if last, unknown, told := w.answers.Last(); again || unknown || !told || !equal(last, endpoints) {
		w.answers.Set(endpoints)
	}
}

// reportLocked reports, once, what could not be read with the namespace, or else invalid addresses.
func (w *watched) reportLocked(again bool) {
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
	err := errors.New(text)
	if w.unread != nil {
		text, err = w.unread.Error(), w.unread
	}
	if _, _, answered := w.answers.Last(); !answered && w.unread == nil {
		return // the first answer would supersede the error
	}
	if text != "" && (text != w.told || again) {
		w.answers.Fail(err)
	}
	w.told = text
}
