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

// Feed follows Consul's config entries: service-router, service-splitter, service-resolver, service-defaults,
// proxy-defaults and mesh, for mesh.WithPolicyFeed. The zero value follows those of the agent that the environment names. Its
// fields must not be changed after the first use. It is safe for concurrent use.
//
// The token of the client must allow reading all services (service_prefix "" { policy = "read" }), as that of a service identity
// does, because Consul leaves out what a token may not read. A token that has lost rights, or is missing where one is needed, is reported
// as an error, and the entries stay as they were. If Consul has no entries, mesh.WithEmptyPolicy is needed.
type Feed struct {
	// Client asks the agent. nil means one for the environment (CONSUL_HTTP_ADDR and so on), as discovery/consul makes it. NewClient there
	// says what any other client does not bound.
	Client *api.Client

	// Alone judges each entry by itself, also when the mesh starts: see [policy.Source]. By default one bad entry, of whatever
	// service, keeps all of them from taking effect.
	Alone bool
}

// String names the feed in errors.
func (*Feed) String() string { return "the config entries of Consul" }

// Watch yields the entries now and after every change, until ctx ends, each as a source "config/KIND/NAME.json". First it waits
// until all kinds have been read. While Consul does not answer, or does not let them be read, it yields errors; what it
// yielded before goes on to hold. Entries older than those are taken from the leader only. The kinds are read one by one: entries of several
// kinds that change together may come up to a second apart. Everything that it starts has ended when the loop over it ends.
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
			watches.Go(func() { f.follow(ctx, client, i, kind, news) })
		}
		merge(ctx, news, yield)
	}
}

// answer is the result of reading a kind.
type answer struct {
	kind    int // its place among kinds
	sources []policy.Source
	err     error
}

// follow sends the entries of a kind, or the error of reading them, whenever they change.
func (f *Feed) follow(ctx context.Context, client *api.Client, i int, kind string, news chan<- answer) {
	watch := consul.Watch[[]json.RawMessage]{
		What:   "config entries of the kind " + kind,
		Newest: true,
		Read: func(options *api.QueryOptions) (entries []json.RawMessage, meta *api.QueryMeta, err error) {
			if meta, err = client.Raw().Query("/v1/config/"+kind, &entries, options); err == nil {
				err = checkEntries(kind, entries)
			}
			return entries, meta, err
		},
		Size:    func(entries []json.RawMessage) int { return len(entries) },
		Allowed: func(options *api.QueryOptions) error { return allowed(client, options) },
		Equal: func(a, b []json.RawMessage) bool {
			return slices.EqualFunc(a, b, func(a, b json.RawMessage) bool { return bytes.Equal(a, b) })
		},
	}
	for entries, err := range watch.All(ctx) {
		select {
		case news <- answer{kind: i, sources: f.sourcesOf(kind, entries), err: err}:
		case <-ctx.Done():
			return
		}
	}
}

// allowed asks whether a client may read all services. Consul answers that for the discovery chain of any name, even of no service.
func allowed(client *api.Client, options *api.QueryOptions) error {
	var chain json.RawMessage
	_, err := client.Raw().Query("/v1/discovery-chain/any-service", &chain, options)
	if consul.Status(err) == http.StatusForbidden {
		return fmt.Errorf("the token must allow service:read of all services: %w", err)
	}
	return err
}

// entryHeader identifies an entry.
type entryHeader struct{ Kind, Name string }

// checkEntries returns an error unless an answer is a list of different entries of a kind.
func checkEntries(kind string, entries []json.RawMessage) error {
	if entries == nil {
		return errors.New("the answer is null")
	}
	names := make(map[string]bool, len(entries))
	for _, entry := range entries {
		var h entryHeader
		switch err := json.Unmarshal(entry, &h); {
		case err != nil:
			return err
		case h.Kind != kind:
			return fmt.Errorf("the answer has an entry of the kind %q", h.Kind)
		case names[h.Name]:
			return fmt.Errorf("the answer has the entry %q twice", h.Name)
		}
		names[h.Name] = true
	}
	return nil
}

// sourcesOf returns entries as documents, by name. Each value has a line, for findings, but no indentation: that of an entry that is nested
// deeply would take thousands of times the memory of the entry.
func (f *Feed) sourcesOf(kind string, entries []json.RawMessage) []policy.Source {
	sources := make([]policy.Source, len(entries))
	for i, entry := range entries {
		var h entryHeader
		var text bytes.Buffer
		if err := errors.Join(json.Unmarshal(entry, &h), json.Indent(&text, entry, "", "")); err != nil {
			panic("an entry that was read before cannot be read: " + err.Error())
		}
		if h.Name == "" {
			h.Name = kind
		}
		sources[i] = policy.Source{Name: "config/" + kind + "/" + url.PathEscape(h.Name) + ".json", Data: text.Bytes(), Alone: f.Alone}
	}
	slices.SortFunc(sources, func(a, b policy.Source) int { return strings.Compare(a.Name, b.Name) })
	return sources
}

// mostTold bounds what is remembered of an agent that is away: the text of an error may have the port of a connection.
const mostTold = 100

// merge yields what the watches send, all kinds together. The entries of kinds that cannot be read now are those from before, and what
// is wrong with them is yielded again after each set: it is not over. An agent that is away fails all kinds, and is one error.
func merge(ctx context.Context, news <-chan answer, yield func([]policy.Source, error) bool) {
	last := make([][]policy.Source, len(kinds))
	missing, waits, changed := len(kinds), false, false
	known, failed := make([]bool, len(kinds)), make([]error, len(kinds))
	told := make(map[string]bool) // what is wrong, if it was yielded after the last set
	fail := func(kind int) bool {
		cause := strings.ReplaceAll(failed[kind].Error(), kinds[kind], "")
		if told[cause] {
			return true
		}
		if len(told) == mostTold {
			clear(told)
		}
		told[cause] = true
		return yield(nil, failed[kind])
	}
	quiet := time.NewTimer(0)
	quiet.Stop()
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-quiet.C:
			waits = false
			over := !slices.ContainsFunc(failed, func(err error) bool { return err != nil })
			if !changed && !(over && len(told) > 0) {
				continue
			}
			changed = false
			clear(told)
			if !yield(slices.Concat(last...), nil) {
				return
			}
			for kind, err := range failed {
				if err != nil && !fail(kind) {
					return
				}
			}
		case now := <-news:
			if failed[now.kind] = now.err; now.err != nil {
				if !fail(now.kind) {
					return
				}
				continue
			}
			if !known[now.kind] {
				known[now.kind] = true
				missing--
				changed = true
			}
			changed = changed || !slices.EqualFunc(last[now.kind], now.sources, same)
			last[now.kind] = now.sources
			if missing == 0 && !waits {
				waits = true
				quiet.Reset(settle)
			}
		}
	}
}

func same(a, b policy.Source) bool { return a.Name == b.Name && bytes.Equal(a.Data, b.Data) }
