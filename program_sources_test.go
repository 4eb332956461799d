package mesh_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/tlsid"
)

// Feeds, resolvers and identities of the program that do not keep to their contract.

// restless is a feed that never waits. It counts what it yields, and stops after far too much.
type restless struct {
	next   func(i int64) ([]policy.Source, error)
	yields atomic.Int64
}

func (f *restless) Watch(ctx context.Context) iter.Seq2[[]policy.Source, error] {
	return func(yield func([]policy.Source, error) bool) {
		for yield(f.next(f.yields.Load())) {
			if f.yields.Add(1) > 10_000 {
				<-ctx.Done()
				return
			}
		}
	}
}

// A feed that never waits is slowed down.
func TestFeedThatNeverWaits(t *testing.T) {
	sets := func(i int64) ([]policy.Source, error) {
		return []policy.Source{{Name: "retries.yaml", Data: fmt.Appendf(nil, retriesTo, i%5)}}, nil
	}
	for name, test := range map[string]struct {
		next func(i int64) ([]policy.Source, error)
		most int64 // in a minute
	}{
		"sets": {sets, 100 + 60*10 + 1},
		"errors": {func(i int64) ([]policy.Source, error) {
			if i == 0 {
				return sets(i)
			}
			return nil, errors.New("away")
		}, 10 + 60 + 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &restless{next: test.next}
				m, err := mesh.New(t.Context(), mesh.WithPolicyFeed(f), mesh.WithLogger(slog.New(slog.DiscardHandler)))
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				if n := f.yields.Load(); n > test.most || n < test.most/2 {
					t.Errorf("it yielded %d times in a minute, want up to %d", n, test.most)
				}
				if err := m.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

const retriesTo = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: api}
spec:
  hosts: [api]
  http: [{retries: {attempts: %d}, route: [{destination: {host: api}}]}]
`

// oneSet is a feed that yields a set, another each time, and returns.
type oneSet struct{ begun atomic.Int64 }

func (f *oneSet) Watch(context.Context) iter.Seq2[[]policy.Source, error] {
	return func(yield func([]policy.Source, error) bool) {
		yield([]policy.Source{{Name: "retries.yaml", Data: fmt.Appendf(nil, retriesTo, f.begun.Add(1))}}, nil)
	}
}

// String implements fmt.Stringer.
func (f *oneSet) String() string { return "the hasty feed" }

// A feed that ends is begun again, and observers are told.
func TestFeedThatEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(oneSet)
		var ended atomic.Int64
		m, err := mesh.New(t.Context(), mesh.WithPolicyFeed(f), mesh.WithLogger(slog.New(slog.DiscardHandler)), mesh.WithObserver(mesh.Observer{
			PolicyLoad: func(load mesh.PolicyLoad) {
				if load.Err != nil && strings.Contains(load.Err.Error(), "the hasty feed ended") {
					ended.Add(1)
				}
			},
		}))
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n, told := f.begun.Load(), ended.Load(); n < 4 || n > 8 || told != n {
			t.Errorf("it was begun %d times in a minute, and observers were told %d times that it ended", n, told)
		}
		if documents := m.Status().Documents; documents.Count != 1 || !strings.Contains(documents.Refused.Error, "it is begun again") {
			t.Errorf("in force are %d documents, refused is %q", documents.Count, documents.Refused.Error)
		}
	})
}

// deaf is a resolver, a feed or a source of identities that does not notice the end of its context.
type deaf struct{ let chan struct{} }

type (
	deafResolver struct {
		deaf
		at discovery.Endpoint
	}
	deafFeed   struct{ deaf }
	deafSource struct {
		deaf
		id *tlsid.Identity
	}
)

func (r deafResolver) Watch(context.Context, discovery.Service) iter.Seq2[[]discovery.Endpoint, error] {
	return func(yield func([]discovery.Endpoint, error) bool) {
		yield([]discovery.Endpoint{r.at}, nil)
		<-r.let
	}
}

func (f deafFeed) Watch(context.Context) iter.Seq2[[]policy.Source, error] {
	return func(yield func([]policy.Source, error) bool) {
		yield([]policy.Source{source(fmt.Sprintf(retriesTo, 1))}, nil)
		<-f.let
	}
}

func (s deafSource) Watch(context.Context) iter.Seq2[*tlsid.Identity, error] {
	return func(yield func(*tlsid.Identity, error) bool) {
		yield(s.id, nil)
		<-s.let
	}
}

// noticed is a connection whose end is noticed.
type noticed struct {
	net.Conn
	once  sync.Once
	close func()
}

func (c *noticed) Close() error {
	c.once.Do(c.close)
	return c.Conn.Close()
}

// noting notes that the watches of an identity, a feed and a resolver have ended.
type noting struct{ identity, feed, resolver atomic.Bool }

type (
	notedSource struct {
		tlsid.Source
		ended *atomic.Bool
	}
	notedFeed struct {
		mesh.Feed
		ended *atomic.Bool
	}
	notedResolver struct {
		discovery.Resolver
		ended *atomic.Bool
	}
)

func (s notedSource) Watch(ctx context.Context) iter.Seq2[*tlsid.Identity, error] {
	return noted(ctx, s.Source.Watch(ctx), s.ended)
}

func (f notedFeed) Watch(ctx context.Context) iter.Seq2[[]policy.Source, error] {
	return noted(ctx, f.Feed.Watch(ctx), f.ended)
}

func (r notedResolver) Watch(ctx context.Context, service discovery.Service) iter.Seq2[[]discovery.Endpoint, error] {
	return noted(ctx, r.Resolver.Watch(ctx, service), r.ended)
}

func noted[T any](ctx context.Context, watch iter.Seq2[T, error], ended *atomic.Bool) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		defer func() { ended.Store(ctx.Err() != nil) }()
		watch(yield)
	}
}

// One resolver, feed or source that ignores its context makes Close wait for 30 seconds, and return an error. The others end at once, and
// so do the connections.
func TestSourcesThatIgnoreTheirContext(t *testing.T) {
	for _, stuck := range []string{"resolver", "feed", "identity"} {
		t.Run(stuck, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := new(meshtest.Fleet)
				a := f.Add(t, says("ok"))
				ca, err := tlsid.NewDevCA("cluster.local")
				if err != nil {
					t.Fatal(err)
				}
				id, err := ca.Identity("default", "orders")
				if err != nil {
					t.Fatal(err)
				}
				f.Registry.Set("api", a)
				let := deaf{make(chan struct{})}
				var ended noting
				var open atomic.Int64
				dial := func(ctx context.Context, network, address string) (net.Conn, error) {
					conn, err := f.Network.DialContext(ctx, network, address)
					if err != nil {
						return nil, err
					}
					open.Add(1)
					return &noticed{Conn: conn, close: func() { open.Add(-1) }}, nil
				}
				sets := make(handFeed, 1)
				sets <- []policy.Source{source(fmt.Sprintf(retriesTo, 1))}
				var (
					feed     mesh.Feed          = notedFeed{sets, &ended.feed}
					identity tlsid.Source       = notedSource{once{ca}, &ended.identity}
					resolver discovery.Resolver = notedResolver{&f.Registry, &ended.resolver}
				)
				switch stuck {
				case "resolver":
					resolver = deafResolver{let, a}
				case "feed":
					feed = deafFeed{let}
				case "identity":
					identity = deafSource{let, id}
				}
				m, err := mesh.New(t.Context(), mesh.WithPolicyFeed(feed), mesh.WithIdentity(identity), mesh.WithDiscovery(resolver),
					mesh.WithTransport(&http.Transport{DialContext: dial}), mesh.WithLogger(slog.New(slog.DiscardHandler)))
				if err != nil {
					t.Fatal(err)
				}
				get(t, m.Client(), "http://api/")
				if open.Load() == 0 {
					t.Error("no connection is kept")
				}
				closed := make(chan error)
				go func() { closed <- m.Close() }()
				synctest.Wait() // no time passes
				if !ended.identity.Load() && stuck != "identity" || !ended.feed.Load() && stuck != "feed" ||
					!ended.resolver.Load() && stuck != "resolver" {
					t.Errorf("ended: identity %v, feed %v, resolver %v", ended.identity.Load(), ended.feed.Load(), ended.resolver.Load())
				}
				if n := open.Load(); n != 0 {
					t.Errorf("%d connections are open", n)
				}
				if err := <-closed; err == nil {
					t.Error("Close did not say that something is left running")
				}
				close(let.let)
				if err := m.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A source that yields neither an identity nor an error has failed.
func TestIdentityThatIsNil(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, err := mesh.New(t.Context(), mesh.WithIdentity(nilSource{}), mesh.WithLogger(slog.New(slog.DiscardHandler)))
		if err == nil || !strings.Contains(err.Error(), "neither an identity nor an error") {
			t.Errorf("New = %v", err)
		}
	})
}

type nilSource struct{}

func (nilSource) Watch(ctx context.Context) iter.Seq2[*tlsid.Identity, error] {
	return func(yield func(*tlsid.Identity, error) bool) {
		yield(nil, nil)
		<-ctx.Done()
	}
}
