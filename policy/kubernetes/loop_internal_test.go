package kubernetes

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	kube "github.com/nosidecar/mesh/internal/kubernetes"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/policy"
)

// errDenied is what a watch yields that may not read.
var errDenied = &kube.Error{What: "watch", Code: 403, Err: kube.ErrDenied}

func TestMain(m *testing.M) { os.Exit(leak.Run(m)) }

// driven is a loop whose watches the test answers for.
type driven struct {
	*loop
	t *testing.T

	taking func() // called with each set; of the loop's goroutine

	mu   sync.Mutex
	sets []string // what was yielded: names of sources, or "error: " and its text
	errs []error
}

// drive runs a loop in a bubble of synctest, until the test is over.
func drive(t *testing.T, feed *Feed) *driven {
	ctx, cancel := context.WithCancel(t.Context())
	d := &driven{loop: newLoop(ctx, feed, "shop", "istio-system"), t: t}
	d.start = func(_ *loop, w *watch) { w.cancel = func() {} }
	feed.enter(d.loop)
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.run(func(sources []policy.Source, err error) bool {
			if d.taking != nil {
				d.taking()
			}
			d.mu.Lock()
			defer d.mu.Unlock()
			text := ""
			for _, s := range sources {
				text += s.Name + " "
			}
			if err != nil {
				text = "error: " + err.Error()
				d.errs = append(d.errs, err)
			}
			d.sets = append(d.sets, strings.TrimSpace(text))
			return true
		})
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		d.tasks.Wait()
	})
	return d
}

// answered runs a loop whose watches have all been answered, without documents.
func answered(t *testing.T, feed *Feed) *driven {
	d := drive(t, feed)
	d.serve()
	d.all()
	return d
}

// started runs a loop that has yielded an empty set.
func started(t *testing.T, feed *Feed) *driven {
	t.Helper()
	d := answered(t, feed)
	d.want(time.Second, "")
	return d
}

// serve says what is installed: some kinds of two groups, and nothing of the others.
func (d *driven) serve() {
	for name := range d.kinds {
		served := map[string]kube.Resource{}
		switch name {
		case "networking.istio.io":
			served["VirtualService"] = how("v1", "virtualservices")
		case "security.istio.io":
			served["AuthorizationPolicy"] = how("v1", "authorizationpolicies")
		}
		d.post(func() { d.serves(name, served, nil) })
	}
}

func how(version, plural string) kube.Resource {
	return kube.Resource{Version: version, Plural: plural}
}

// answer answers for a watch: with documents of these names, or with an error.
func (d *driven) answer(kind, namespace string, err error, names ...string) {
	d.t.Helper()
	d.post(func() {
		for _, w := range d.watches {
			if w.kind.Name != kind || w.namespace != namespace {
				continue
			}
			var documents []document
			for _, name := range names {
				documents = append(documents, document{namespace: namespace, name: name, source: policy.Source{Name: namespace + "/" + kind + "/" + name}})
			}
			d.take(w, documents, err)
			return
		}
		d.t.Errorf("%s in %s is not followed", kind, namespace)
	})
}

// all answers for all watches without documents.
func (d *driven) all() {
	d.answer("VirtualService", "shop", nil)
	d.answer("VirtualService", "istio-system", nil)
	d.answer("AuthorizationPolicy", "shop", nil)
	d.answer("AuthorizationPolicy", "istio-system", nil)
}

// want waits, and compares what was yielded since the last time. Errors are compared by how they begin.
func (d *driven) want(wait time.Duration, want ...string) {
	d.t.Helper()
	time.Sleep(wait)
	synctest.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	same := func(got, want string) bool {
		return got == want || strings.HasPrefix(want, "error: ") && strings.HasPrefix(got, want)
	}
	if !slices.EqualFunc(d.sets, want, same) {
		d.t.Errorf("yielded %q, want %q", d.sets, want)
	}
	d.sets = nil
}

func TestLoop_FirstSetWaitsForEveryKindAndNamespace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := drive(t, new(Feed))
		d.serve()
		d.answer("VirtualService", "shop", nil, "a")
		d.answer("VirtualService", "istio-system", nil)
		d.answer("AuthorizationPolicy", "shop", nil, "b")
		d.want(time.Hour)
		d.answer("AuthorizationPolicy", "istio-system", nil, "c")
		d.want(time.Second, "istio-system/AuthorizationPolicy/c shop/VirtualService/a shop/AuthorizationPolicy/b")
		d.answer("AuthorizationPolicy", "istio-system", nil, "c") // nothing changed
		d.want(time.Hour)
		// What belongs together comes together.
		d.answer("VirtualService", "shop", nil, "a", "e")
		d.answer("AuthorizationPolicy", "shop", nil)
		d.want(time.Second, "istio-system/AuthorizationPolicy/c shop/VirtualService/a shop/VirtualService/e")
		// A whole answer that is empty is one.
		d.answer("VirtualService", "shop", nil)
		d.answer("AuthorizationPolicy", "istio-system", nil)
		d.want(time.Second, "")
	})
}

func TestLoop_KindThatMayNotBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// Nobody knows what a policy that may not be read forbids.
		d := answered(t, new(Feed))
		d.answer("AuthorizationPolicy", "istio-system", errDenied)
		synctest.Wait()
		d.want(time.Second, "")
		d.want(3*time.Second, "error: kubernetes: cannot read AuthorizationPolicy in istio-system"+": "+"denied"+"; what was read until ")

		d = drive(t, new(Feed))
		d.serve()
		d.answer("AuthorizationPolicy", "istio-system", errDenied)
		d.answer("VirtualService", "shop", nil, "a")
		d.answer("VirtualService", "istio-system", nil)
		d.answer("AuthorizationPolicy", "shop", nil, "b")
		d.want(9*time.Second, "error: kubernetes: cannot read AuthorizationPolicy in istio-system: denied")
		d.want(time.Hour, "error: kubernetes: cannot read AuthorizationPolicy in istio-system"+": "+"denied"+"; what protects somebody must be readable")
		if !temporary(d.errs[0]) {
			t.Error("an error of a server that may just have started is not temporary")
		}
		if temporary(d.errs[1]) {
			t.Error("an error that does not pass by itself is temporary")
		}
		if !errors.Is(d.errs[1], errDenied) {
			t.Error("the error does not wrap its cause")
		}

		// Others are left out, and told of once the set is there.
		d = answered(t, new(Feed))
		d.answer("VirtualService", "istio-system", errDenied)
		d.answer("AuthorizationPolicy", "shop", nil, "b")
		d.want(time.Minute, "shop/AuthorizationPolicy/b", "error: kubernetes: cannot read VirtualService in istio-system: "+"denied")
	})
}

func TestLoop_LeftOutBeforeTheFirstSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := drive(t, new(Feed))
		d.serve()
		d.answer("VirtualService", "istio-system", errDenied)
		d.answer("VirtualService", "shop", nil, "a")
		d.answer("AuthorizationPolicy", "istio-system", nil)
		d.answer("AuthorizationPolicy", "shop", nil)
		d.want(time.Minute, "shop/VirtualService/a", "error: kubernetes: cannot read VirtualService in istio-system: "+"denied")
		d.answer("VirtualService", "istio-system", nil, "b") // the right was given
		d.want(time.Second, "istio-system/VirtualService/b shop/VirtualService/a")
	})
}

func TestLoop_FailuresKeepWhatWasRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := answered(t, new(Feed))
		d.answer("AuthorizationPolicy", "shop", nil, "a")
		d.want(time.Second, "shop/AuthorizationPolicy/a")
		for _, err := range []error{errDenied, errors.New("connection refused")} {
			d.answer("AuthorizationPolicy", "shop", err)
			d.answer("VirtualService", "shop", err)
			d.want(time.Hour, "error: kubernetes: cannot read AuthorizationPolicy in shop, VirtualService in shop: "+causeOf(err)+"; what was read until ")
			d.answer("AuthorizationPolicy", "shop", err) // the same again
			d.answer("VirtualService", "istio-system", nil, "b")
			d.want(time.Hour, "istio-system/VirtualService/b shop/AuthorizationPolicy/a")
			d.answer("VirtualService", "istio-system", nil)
			d.answer("AuthorizationPolicy", "shop", nil, "a")
			d.answer("VirtualService", "shop", nil)
			d.want(time.Hour, "shop/AuthorizationPolicy/a")
		}
		// That all is well again is told by a set, even if it is the same.
		d.answer("VirtualService", "shop", errDenied)
		d.want(time.Minute, "error: kubernetes: cannot read VirtualService in shop: "+"denied")
		d.answer("VirtualService", "shop", nil)
		d.want(time.Minute, "shop/AuthorizationPolicy/a")
	})
}

func TestLoop_ServerThatIsAwayAtTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := drive(t, new(Feed))
		for name := range d.kinds {
			d.post(func() { d.serves(name, nil, errors.New("connection refused")) })
		}
		d.want(time.Second, "error: kubernetes: cannot read API group ")
		if !temporary(d.errs[0]) {
			t.Error("the error does not pass")
		}
		d.serve()
		d.all()
		d.want(time.Second, "")
	})
}

// That a group may not be read does not pass by itself: nobody knows whether it has a kind that protects somebody.
func TestLoop_GroupThatMayNotBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := drive(t, new(Feed))
		d.serve()
		d.all()
		d.post(func() {
			d.groups["security.istio.io"].known = false
			d.serves("security.istio.io", nil, errors.New("connection refused"))
		})
		d.want(time.Minute, "error: kubernetes: cannot read API group security.istio.io: connection refused")
		d.errs = nil
		d.post(func() { d.serves("security.istio.io", nil, nil); d.groups["security.istio.io"].known = false })
		d.want(time.Second)
		d.post(func() { d.serves("security.istio.io", nil, errDenied) })
		d.want(9*time.Second, "error: kubernetes: cannot read API group security.istio.io: denied")
		d.want(time.Minute, "error: kubernetes: cannot read API group security.istio.io: denied; what protects somebody must be readable")
		if !temporary(d.errs[0]) {
			t.Error("an error of a server that may just have started is not temporary")
		}
		if temporary(d.errs[1]) {
			t.Error("an error that does not pass by itself is temporary")
		}
		// Once it was read, what was read stays.
		d = started(t, new(Feed))
		d.post(func() { d.serves("security.istio.io", nil, errDenied) })
		d.want(time.Minute, "error: kubernetes: cannot read API group security.istio.io: denied; what was read until 2000-01-01T00:02:11Z stays in force")
		if !temporary(d.errs[0]) {
			t.Error("an error that changes nothing is not temporary")
		}
	})
}

// A group that cannot be read is told of each time that happens.
func TestLoop_GroupThatFailsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := started(t, new(Feed))
		for range 2 {
			d.post(func() { d.serves("linkerd.io", nil, errors.New("connection refused")) })
			d.want(time.Minute, "error: kubernetes: cannot read API group linkerd.io: connection refused")
			d.post(func() { d.serves("linkerd.io", nil, nil) })
			d.want(time.Minute, "")
		}
	})
}

func TestLoop_DefinitionsThatComeChangeAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := answered(t, new(Feed))
		d.answer("VirtualService", "shop", nil, "a")
		d.want(time.Second, "shop/VirtualService/a")
		serve := func(kinds map[string]kube.Resource) {
			d.post(func() { d.serves("networking.istio.io", kinds, nil) })
		}
		// Another version: what was read of the one before holds until it is read in this one.
		serve(map[string]kube.Resource{"VirtualService": how("v1beta1", "virtualservices")})
		d.want(time.Minute)
		d.answer("VirtualService", "shop", nil, "a", "b")
		d.want(time.Second, "shop/VirtualService/a shop/VirtualService/b")
		d.answer("VirtualService", "istio-system", nil)
		serve(nil)
		d.want(time.Minute, "")
		// And back, with another kind.
		serve(map[string]kube.Resource{"VirtualService": how("v1", "virtualservices"), "Sidecar": how("v1", "sidecars")})
		d.answer("VirtualService", "shop", nil, "c")
		d.answer("VirtualService", "istio-system", nil)
		d.answer("Sidecar", "istio-system", nil)
		d.want(time.Second, "shop/VirtualService/c")
		d.answer("Sidecar", "shop", nil, "d")
		d.want(time.Second, "shop/VirtualService/c shop/Sidecar/d")
	})
}

// That all documents of a kind are gone is an answer, and is logged with their number.
func TestLoop_AllDocumentsAreRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		d := answered(t, &Feed{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		d.answer("AuthorizationPolicy", "shop", nil, "a", "b", "c")
		d.want(time.Second, "shop/AuthorizationPolicy/a shop/AuthorizationPolicy/b shop/AuthorizationPolicy/c")
		d.answer("AuthorizationPolicy", "shop", errDenied) // is no answer
		d.want(time.Second)
		if log.Len() > 0 {
			t.Errorf("a denial is logged: %s", log.String())
		}
		d.answer("AuthorizationPolicy", "shop", nil)
		d.want(time.Second, "")
		if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "all documents of a kind were removed") || !strings.Contains(text, "kind=AuthorizationPolicy namespace=shop documents=3") {
			t.Errorf("logged is %q, want one line with the kind, the namespace and the number", text)
		}
	})
}

func TestFeed_NeedWaitsForTheDocumentsOfANamespace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := new(Feed)
		d := started(t, feed)
		need := func(namespace string) (returned func() bool) {
			var done atomic.Bool
			go func() {
				feed.Need(t.Context(), namespace)
				done.Store(true)
			}()
			synctest.Wait()
			return func() bool {
				synctest.Wait()
				return done.Load()
			}
		}
		root := need("istio-system") // whose Services have not been followed
		d.want(time.Second)
		if !need("shop")() || !need("istio-system")() || !root() {
			t.Error("Need waits for a namespace whose documents are in force")
		}
		billing := need("billing")
		d.want(time.Second)
		if billing() {
			t.Error("Need does not wait for documents")
		}
		if _, followed := d.watches[key{"billing", "security.istio.io", "AuthorizationPolicy"}]; followed {
			t.Error("who may call others is followed")
		}
		d.answer("VirtualService", "shop", nil, "a")
		d.want(time.Second, "shop/VirtualService/a") // others do not wait for it
		d.answer("VirtualService", "billing", nil, "b")
		d.want(time.Second, "billing/VirtualService/b shop/VirtualService/a")
		if !billing() {
			t.Error("Need goes on waiting after the documents are in force")
		}
		// One of which a kind cannot be read: the call goes on without that kind.
		d.post(func() {
			d.serves("networking.istio.io", map[string]kube.Resource{
				"VirtualService": how("v1", "virtualservices"), "DestinationRule": how("v1", "destinationrules"),
			}, nil)
		})
		slow := need("slow")
		d.answer("DestinationRule", "slow", nil, "d")
		d.answer("VirtualService", "slow", errors.New("connection refused"))
		d.want(4*time.Second, "error: kubernetes: cannot read VirtualService in slow: connection refused")
		if slow() {
			t.Error("Need does not wait")
		}
		d.want(2*time.Second, "billing/VirtualService/b shop/VirtualService/a slow/DestinationRule/d")
		if !slow() {
			t.Error("Need waits longer than it should")
		}
		d.answer("VirtualService", "slow", nil, "c")
		d.want(time.Second, "billing/VirtualService/b shop/VirtualService/a slow/VirtualService/c slow/DestinationRule/d")
		// One that may not be read.
		denied := need("denied")
		d.answer("DestinationRule", "denied", nil)
		d.answer("VirtualService", "denied", errDenied)
		d.want(time.Second)
		if !denied() {
			t.Error("Need waits for what may not be read")
		}
		d.want(time.Minute, "error: kubernetes: cannot read VirtualService in denied: "+"denied")
		// One of which that is the last answer.
		late := need("late")
		d.answer("DestinationRule", "late", nil)
		d.want(time.Second)
		d.answer("VirtualService", "late", errDenied)
		d.want(time.Second)
		if !late() {
			t.Error("Need waits for what may not be read, if everything else was read before")
		}
		d.want(time.Minute, "error: kubernetes: cannot read VirtualService in denied, VirtualService in late: denied; what was read until 2000-01-01T00:00:12Z stays in force")
	})
}

// Whoever ranges over a feed may take long, and may even wait for a call that waits for Need.
func TestFeed_NeedEndsWhileDocumentsAreTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := new(Feed)
		d := started(t, feed)
		taken := make(chan struct{})
		d.post(func() { d.taking = func() { <-taken } })
		d.answer("VirtualService", "shop", nil, "a")
		time.Sleep(time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			feed.Need(ctx, "billing")
		}()
		synctest.Wait()
		cancel()
		synctest.Wait()
		select {
		case <-ended:
		default:
			t.Error("Need goes on although its context has ended")
		}
		began := time.Now()
		other := make(chan time.Duration, 1)
		go func() {
			feed.Need(t.Context(), "other")
			other <- time.Since(began)
		}()
		time.Sleep(time.Minute)
		synctest.Wait()
		select {
		case took := <-other:
			if took > patience+settle {
				t.Errorf("Need returned after %v", took)
			}
		default:
			t.Error("Need does not return")
		}
		close(taken)
		synctest.Wait()
		// Both are followed all the same.
		d.answer("VirtualService", "billing", nil, "b")
		d.answer("VirtualService", "other", nil, "c")
		d.want(time.Minute, "shop/VirtualService/a", "billing/VirtualService/b other/VirtualService/c shop/VirtualService/a")
	})
}

func temporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary()
}
