package consul

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/internal/consul"
	"github.com/nosidecar/mesh/policy"
)

// kinds are the kinds of entries that are followed.
var kinds = []string{"proxy-defaults", "service-defaults", "service-resolver", "service-splitter", "service-router", "mesh"}

// settle is how long a change waits for others that belong to it: the kinds come one by one.
const settle = 100 * time.Millisecond

// Feed follows the config entries of a Consul: service-router, service-splitter, service-resolver, service-defaults,
// proxy-defaults and mesh, for mesh.WithPolicyFeed. The zero value follows those of the agent that the environment names. Its
// fields must not change once it is used; then it is safe for concurrent use.
//
// The token of the client must allow reading all services (service_prefix "" { policy = "read" }), as that of a service identity
// does: Consul leaves out what a token may not read. That a token has been narrowed, or that none is sent where one is needed, is
// reported as an error, and the entries stay as they were. Where a Consul has no entries, say mesh.WithEmptyPolicy.
type Feed struct {
	// Client asks the agent. nil means one for the environment (CONSUL_HTTP_ADDR and so on), as discovery/consul makes it.
	Client *api.Client
}

// String names the feed in errors.
func (*Feed) String() string { return "the config entries of Consul" }

// Watch yields the entries now and after every change, until ctx ends, each as a source "config/KIND/NAME.json". First it waits
// until all kinds have been read. While Consul does not answer, or does not let them be read, it yields errors; what it
// yielded before goes on to hold. Everything that it starts has ended when the loop over it ends.
func (f *Feed) Watch(ctx context.Context) iter.Seq2[[]policy.Source, error] {
	return func(yield func([]policy.Source, error) bool) {
		client := f.Client
		if client == nil {
			var err error
			if client, err = consul.NewClient(nil); err != nil {
				yield(nil, fmt.Errorf("consul: %w", err))
				return
			}
		}
		ctx, cancel := context.WithCancel(ctx)
		var watches sync.WaitGroup
		defer watches.Wait()
		defer cancel()
		news := make(chan answer)
		for i, kind := range kinds {
			watches.Go(func() { follow(ctx, client, i, kind, news) })
		}
		merge(ctx, news, yield)
	}
}

// answer is what came of reading a kind.
type answer struct {
	kind    int // its place among kinds
	sources []policy.Source
	err     error
}

// follow sends what comes of reading a kind.
func follow(ctx context.Context, client *api.Client, i int, kind string, news chan<- answer) {
	watch := consul.Watch[[]json.RawMessage]{
		What: "config entries of the kind " + kind,
		Read: func(options *api.QueryOptions) (entries []json.RawMessage, meta *api.QueryMeta, err error) {
			meta, err = client.Raw().Query("/v1/config/"+kind, &entries, options)
			return entries, meta, err
		},
		Size:    func(entries []json.RawMessage) int { return len(entries) },
		Allowed: func(options *api.QueryOptions) error { return allowed(client, options) },
		Equal: func(a, b []json.RawMessage) bool {
			return slices.EqualFunc(a, b, func(a, b json.RawMessage) bool { return bytes.Equal(a, b) })
		},
	}
	for entries, err := range watch.All(ctx) {
		next := answer{kind: i, err: err}
		if err == nil {
			next.sources, next.err = sourcesOf(kind, entries)
		}
		select {
		case news <- next:
		case <-ctx.Done():
			return
		}
	}
}

// allowed asks whether a client may read what is about any service: the chain of one tells it, whether it is there or not.
func allowed(client *api.Client, options *api.QueryOptions) error {
	var chain json.RawMessage
	_, err := client.Raw().Query("/v1/discovery-chain/any-service", &chain, options)
	if consul.Status(err) == http.StatusForbidden {
		return fmt.Errorf("the token must allow service:read of all services: %w", err)
	}
	return err
}

// sourcesOf returns entries as documents, by name.
func sourcesOf(kind string, entries []json.RawMessage) ([]policy.Source, error) {
	sources := make([]policy.Source, len(entries))
	for i, entry := range entries {
		var header struct{ Name string }
		var text bytes.Buffer
		if err := errors.Join(json.Unmarshal(entry, &header), json.Indent(&text, entry, "", "  ")); err != nil {
			return nil, fmt.Errorf("consul: config entries of the kind %s: %w", kind, err)
		}
		if header.Name == "" {
			header.Name = kind
		}
		sources[i] = policy.Source{Name: "config/" + kind + "/" + url.PathEscape(header.Name) + ".json", Data: text.Bytes()}
	}
	slices.SortFunc(sources, func(a, b policy.Source) int { return strings.Compare(a.Name, b.Name) })
	return sources, nil
}

// merge yields what the watches send, all kinds together.
func merge(ctx context.Context, news <-chan answer, yield func([]policy.Source, error) bool) {
	last := make([][]policy.Source, len(kinds))
	missing, waits := len(kinds), false
	known := make([]bool, len(kinds))
	quiet := time.NewTimer(0)
	quiet.Stop()
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-quiet.C:
			waits = false
			if !yield(slices.Concat(last...), nil) {
				return
			}
		case now := <-news:
			if now.err != nil {
				if !yield(nil, now.err) {
					return
				}
				continue
			}
			if last[now.kind] = now.sources; !known[now.kind] {
				known[now.kind] = true
				missing--
			}
			if missing == 0 && !waits {
				waits = true
				quiet.Reset(settle)
			}
		}
	}
}
