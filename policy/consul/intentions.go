package consul

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"slices"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/internal/connectid"
	"github.com/nosidecar/mesh/internal/consul"
	"github.com/nosidecar/mesh/policy"
)

// intentionsKind is the kind of the entries that intentions are stored as.
const intentionsKind = "service-intentions"

// Intentions follows the service-intentions of a Consul that are about one service, for mesh.WithPolicyFeed, beside [Feed] or
// alone. Its fields must not change once it is used; then it is safe for concurrent use.
//
// A peer that no intention decides about is denied, also where there are no intentions at all. Consul has a default for this,
// default_intention_policy or else the default of its ACLs, which no API tells: if it is "allow", set AllowByDefault of
// [policy.Workload].
//
// The token needs intention:read for the service, which service:read implies.
type Intentions struct {
	// Service is the name of the service, with its case. It must be set.
	Service string

	// Client asks the agent. nil means one for the environment (CONSUL_HTTP_ADDR and so on), as discovery/consul makes it. NewClient there
	// says what any other client does not bound.
	Client *api.Client
}

// String names the feed in errors.
func (in *Intentions) String() string {
	return fmt.Sprintf("intentions for the service %q", in.Service)
}

// Watch yields the entries for the service and for all services, now and after every change, until ctx ends, each as a source
// "config/service-intentions/NAME.json". If there is none for the service, its source names nobody. While Consul does not
// answer, or does not let them be read, it yields errors; what it yielded before goes on to hold. Intentions older than those are taken
// from the leader only.
func (in *Intentions) Watch(ctx context.Context) iter.Seq2[[]policy.Source, error] {
	return func(yield func([]policy.Source, error) bool) {
		if err := connectid.Check(in.Service); err != nil {
			yield(nil, fmt.Errorf("consul: Intentions.Service: %w", err))
			return
		}
		client := in.Client
		if client == nil {
			var err error
			if client, err = consul.NewClient(nil); err != nil {
				yield(nil, fmt.Errorf("consul: %w", err))
				return
			}
		}
		var last intentions
		watch := consul.Watch[intentions]{
			What:   in.String(),
			Newest: true,
			Read: func(options *api.QueryOptions) (intentions, *api.QueryMeta, error) {
				now, meta, err := in.read(client, options, last)
				if err == nil {
					last = now
				}
				return now, meta, err
			},
			// A denial is an error, but a server that has lost its state knows no intentions.
			Size: func(now intentions) int { return now.count },
			Equal: func(a, b intentions) bool {
				return slices.EqualFunc(a.sources, b.sources, func(a, b policy.Source) bool {
					return a.Name == b.Name && bytes.Equal(a.Data, b.Data)
				})
			},
		}
		for now, err := range watch.All(ctx) {
			if !yield(now.sources, err) {
				return
			}
		}
	}
}

// intentions are those that match the service.
type intentions struct {
	index   uint64 // of the answer
	count   int
	latest  map[string]uint64 // by destination, when its entry was changed last
	sources []policy.Source
}

// read reads the intentions that match the service, which a query can wait for, and then the entries that they are from: the
// client of Consul drops what it does not know of an intention, such as the tokens that requests must have. Entries that last was
// read from, and that have not changed since, are not read again, unless the index went back: then the server may have lost its state, and
// an entry that was changed last at the same index may be another.
func (in *Intentions) read(client *api.Client, options *api.QueryOptions, last intentions) (now intentions, meta *api.QueryMeta, err error) {
	match := &api.IntentionMatch{By: api.IntentionMatchDestination, Names: []string{in.Service}}
	found, meta, err := client.Connect().IntentionMatch(match, options)
	if err != nil {
		return now, nil, err
	}
	list, ok := found[in.Service]
	if !ok || len(found) != 1 {
		return now, nil, fmt.Errorf("the answer is about others: %q", slices.Sorted(maps.Keys(found)))
	}
	now.index, now.latest = meta.LastIndex, make(map[string]uint64)
	for _, one := range list {
		switch {
		case one == nil:
			return now, nil, errors.New("an intention is null")
		case one.DestinationName != in.Service && one.DestinationName != "*":
			return now, nil, fmt.Errorf("an intention is for another service, %q", one.DestinationName)
		}
		now.latest[one.DestinationName] = max(now.latest[one.DestinationName], one.ModifyIndex)
	}
	if now.count = len(list); now.count == last.count && now.index >= last.index && last.sources != nil && maps.Equal(now.latest, last.latest) {
		last.index = now.index
		return last, meta, nil
	}
	for _, name := range []string{in.Service, "*"} {
		if index, ok := now.latest[name]; ok {
			source, err := readEntry(client, name, index, options)
			if err != nil {
				return now, nil, err
			}
			now.sources = append(now.sources, source)
		} else if name == in.Service {
			data, err := json.Marshal(map[string]any{"Kind": intentionsKind, "Name": name, "Sources": []string{}})
			if err != nil {
				return now, nil, err
			}
			now.sources = append(now.sources, intentionsSource(name, data))
		}
	}
	return now, meta, nil
}

// errChanged is over with the next read.
var errChanged = errors.New("an entry changed meanwhile")

// readEntry reads the entry of a destination, which was changed last at index or later.
func readEntry(client *api.Client, name string, index uint64, of *api.QueryOptions) (policy.Source, error) {
	options := (&api.QueryOptions{AllowStale: of.AllowStale, RequireConsistent: of.RequireConsistent}).WithContext(of.Context())
	var raw json.RawMessage
	_, err := client.Raw().Query("/v1/config/"+intentionsKind+"/"+name, &raw, options)
	switch {
	case consul.Status(err) == http.StatusNotFound:
		return policy.Source{}, errChanged
	case err != nil:
		return policy.Source{}, err
	}
	var entry struct {
		Kind, Name  string
		ModifyIndex uint64
	}
	var text bytes.Buffer
	if err := errors.Join(json.Unmarshal(raw, &entry), json.Indent(&text, raw, "", "")); err != nil {
		return policy.Source{}, err
	}
	switch {
	case entry.Kind != intentionsKind || entry.Name != name:
		return policy.Source{}, fmt.Errorf("the answer is another entry: %s %s", entry.Kind, entry.Name)
	case entry.ModifyIndex < index: // of a server that lags behind
		return policy.Source{}, errChanged
	}
	return intentionsSource(name, text.Bytes()), nil
}

func intentionsSource(name string, data []byte) policy.Source {
	return policy.Source{Name: "config/" + intentionsKind + "/" + name + ".json", Data: data}
}
