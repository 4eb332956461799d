// Package consulkv keeps policy documents in the KV store of HashiCorp Consul, and yields them whenever they change.
//
// A [Store] is all documents below one prefix. Publish them with Store.Push or with the command, and follow them in each process:
//
//	mesh push -prefix mesh/shop mesh.d
//
//	store := &consulkv.Store{Prefix: "mesh/shop"}
//	m, err := mesh.New(ctx, mesh.WithPolicyFeed(store), ...)
//
// # A set is in force as a whole
//
// Consul writes at most 64 to 128 keys and half a megabyte at once, so a set of documents is written first, and then one key is made
// to point to it:
//
//	mesh/shop/v/VERSION/FILE   each document file of a version, one key per file
//	mesh/shop/current          {"version": VERSION, "keys": 3, "sha256": "...", "previous": [...]}
//
// Readers follow the one key current. When it changes they read the version that it names, and compare the number of the keys and
// the hash of their names and values. What does not agree is read again from the leader, and if it still does not, it is an
// error: the last good documents stay in force. The same holds if the key current is deleted, if Consul cannot be reached or has
// lost its data, and if the token may no longer read: none of this empties a policy.
//
// A prefix without the key current is an error, too, whatever else is below it: keys that were put there one by one have no moment
// at which they are a set, and a token that may read only some of them sees a smaller set instead of an error. Publish them with
// mesh push.
//
// # Rights
//
// Readers need key_prefix "mesh/shop/" { policy = "read" }, or "list" where acl.enable_key_list_policy is set. Whoever publishes
// needs "write".
package consulkv

import (
	"context"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/internal/consul"
	"github.com/nosidecar/mesh/policy"
)

// Store is a set of policy documents below a prefix of Consul's KV store. It is a mesh.Feed. Its fields must not be changed after the first
// use. It is safe for concurrent use.
type Store struct {
	// Prefix is where the documents are, as "mesh/shop". Slashes at its ends do not matter. No other store may be below it.
	Prefix string

	// Client is how Consul is reached; nil means the agent that the environment names (CONSUL_HTTP_ADDR and so on), as
	// discovery/consul.NewClient(nil). NewClient says what any other client does not bound.
	Client *api.Client

	// Alone judges each document by itself, also when the mesh starts: see [policy.Source]. By default one bad document keeps all of them
	// from taking effect.
	Alone bool
}

// String returns where the documents are, for errors.
func (s *Store) String() string { return "consul:" + trim(s.Prefix) }

// Watch yields the documents now and after every change, until ctx ends. Sources are named "consul:" and the prefix, followed by
// the name of the file, as consul:mesh/shop/retries.yaml. They are in the order of a folder with these files.
//
// An error means that the last documents hold, and that Watch goes on: it says what is wrong, with the key, and says "denied"
// if that is the reason. The same error is not yielded twice in a row; documents are yielded again after an error, the same as before or
// not. Only a Store that makes no sense, and an environment from which no client can be made, end the sequence.
//
// A change is followed at once, but no more than once a second. Reads are stale at first: any server answers, also while there
// is no leader.
func (s *Store) Watch(ctx context.Context) iter.Seq2[[]policy.Source, error] {
	return func(yield func([]policy.Source, error) bool) {
		r, err := s.open()
		if err != nil {
			yield(nil, err)
			return
		}
		watch := consul.Watch[*version]{
			What:  fmt.Sprintf("key %q", r.current()),
			Read:  r.read,
			Equal: func(a, b *version) bool { return a == b },
		}
		for v, err := range watch.All(ctx) {
			var sources []policy.Source
			switch {
			case err != nil:
			case v == absent:
				err = absentError{r}
			default:
				for _, f := range v.files {
					sources = append(sources, policy.Source{Name: s.String() + "/" + f.Name, Data: slices.Clone(f.Data), Alone: s.Alone})
				}
			}
			if !yield(sources, err) {
				return
			}
		}
	}
}

// Pull returns the documents that are in force, confirmed by the leader. Sources are named as the files are, relative to the
// prefix. If nothing is published, the error is fs.ErrNotExist.
func (s *Store) Pull(ctx context.Context) ([]policy.Source, error) {
	r, err := s.open()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	v, _, err := r.read((&api.QueryOptions{}).WithContext(ctx))
	switch {
	case err != nil:
		return nil, fmt.Errorf("consulkv: %s: %w", r.prefix, err)
	case v == absent:
		return nil, absentError{r}
	}
	return v.files, nil
}

// patience is how long a single request to Consul may take. Without a leader it answers after up to 20 s that it has none.
const patience = 30 * time.Second

// reader reads what is below a prefix. It is for one goroutine.
type reader struct {
	prefix string // without slashes at its ends
	client *api.Client
	last   *version // that was good; nil if there was none
}

func (s *Store) open() (*reader, error) {
	r := &reader{prefix: trim(s.Prefix), client: s.Client}
	if err := checkPrefix(r.prefix); err != nil {
		return nil, err
	}
	if r.client == nil {
		var err error
		if r.client, err = consul.NewClient(nil); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (r *reader) current() string            { return r.prefix + "/current" }
func (r *reader) versions() string           { return r.prefix + "/v/" }
func (r *reader) folder(id string) string    { return r.versions() + id + "/" }
func (r *reader) key(id, file string) string { return r.folder(id) + file }

// version is a set of documents that the key current named.
type version struct {
	pointer
	index uint64          // of the key
	files []policy.Source // named by file, in the order of a folder
}

// absent stands for the version of a store whose key current is not there.
var absent = &version{}

// absentError says of a reader that nothing is published.
type absentError struct{ *reader }

func (e absentError) Error() string {
	return fmt.Sprintf("consulkv: there is no key %q: publish documents with mesh push -prefix %s PATH; keys that were put there by other means are not read",
		e.current(), e.prefix)
}

func (e absentError) Is(target error) bool { return target == fs.ErrNotExist }

// read returns the version that is in force. Its options say how to read the key current, and may block on it. What a server
// that lags behind the leader says is not believed if it makes no sense.
func (r *reader) read(options *api.QueryOptions) (*version, *api.QueryMeta, error) {
	v, meta, sure, err := r.readOnce(options)
	if options.AllowStale && !sure && options.Context().Err() == nil {
		leader := *options
		leader.AllowStale, leader.WaitIndex, leader.WaitTime = false, 0, 0
		v, meta, _, err = r.readOnce(&leader)
	}
	if err != nil {
		return nil, nil, err
	}
	if v != absent {
		r.last = v
	}
	return v, meta, nil
}

// readOnce reports, too, whether the leader would say the same.
func (r *reader) readOnce(options *api.QueryOptions) (v *version, meta *api.QueryMeta, sure bool, err error) {
	kv := r.client.KV()
	pair, meta, err := kv.Get(r.current(), options)
	switch {
	case err != nil:
		return nil, nil, true, err // it did not answer, or denies
	case pair == nil:
		return absent, meta, false, nil
	}
	p, err := parse(pair.Value)
	switch {
	case err != nil:
		return nil, nil, false, unusable{err}
	case r.last != nil && pair.ModifyIndex < r.last.index && options.AllowStale:
		return nil, nil, false, fmt.Errorf("it went back from index %d to %d", r.last.index, pair.ModifyIndex)
	case r.last != nil && p.same(r.last.pointer):
		r.last.index = pair.ModifyIndex
		return r.last, meta, true, nil
	}
	now := *options
	now.WaitIndex, now.WaitTime = 0, 0
	pairs, listed, err := kv.List(r.folder(p.Version), &now)
	if err != nil {
		return nil, nil, false, fmt.Errorf("keys below %q: %w", r.folder(p.Version), err)
	}
	files, err := r.files(p, pairs)
	if err != nil {
		return nil, nil, false, unusable{r.explain(err, p, pairs, listed)}
	}
	return &version{p, pair.ModifyIndex, files}, meta, true, nil
}

// unusable is an error that stays until somebody publishes.
type unusable struct{ error }

func (e unusable) Unwrap() []error { return []error{e.error, consul.ErrUnusable} }

// explain says of a set that is not whole whether that is a denial.
func (r *reader) explain(err error, p pointer, pairs api.KVPairs, meta *api.QueryMeta) error {
	if len(pairs) < p.Keys && (meta.ResultsFilteredByACLs || len(pairs) == 0 && meta.DefaultACLPolicy == "deny") {
		return fmt.Errorf("%w: the token may not read all of it: %w", consul.ErrDenied, err)
	}
	return err
}
