package realservers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/consulkv"
	"github.com/nosidecar/mesh/realservers/servers"
)

// reader writes down what a store yields.
type reader struct {
	mu    sync.Mutex
	sets  int    // that were yielded
	last  string // the content of the last one
	mixed string // a set that was none
	err   string // the last error, "" after a set
	errs  int
}

// read follows a store until the test is over. All files of a set have the same content.
func read(t *testing.T, store *consulkv.Store) *reader {
	r := &reader{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for sources, err := range store.Watch(ctx) {
			r.take(sources, err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return r
}

func (r *reader) take(sources []policy.Source, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.err = err.Error()
		r.errs++
		return
	}
	r.err = ""
	r.sets++
	if len(sources) == 0 {
		r.mixed = "nothing"
		return
	}
	r.last = fmt.Sprintf("%d files of %.20s", len(sources), sources[0].Data)
	for _, s := range sources {
		if string(s.Data) != string(sources[0].Data) {
			r.mixed = fmt.Sprintf("%s has %.20s, %s has %.20s", s.Name, s.Data, sources[0].Name, sources[0].Data)
		}
	}
}

func (r *reader) get() (last, err string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last, r.err
}

// has waits for a set, and returns how long that took.
func (r *reader) has(t *testing.T, want string) time.Duration {
	t.Helper()
	began := time.Now()
	await.True(t, "documents: "+want, func() bool { last, err := r.get(); return last == want && err == "" })
	return time.Since(began)
}

// fails waits for an error that has all this in it. The last set holds.
func (r *reader) fails(t *testing.T, what, holds string, want ...string) {
	t.Helper()
	await.True(t, fmt.Sprintf("%s: an error with %q", what, want), func() bool {
		_, err := r.get()
		return !slices.ContainsFunc(want, func(part string) bool { return !strings.Contains(err, part) })
	})
	if last, _ := r.get(); last != holds {
		t.Errorf("%s: the documents are %q, want still %q", what, last, holds)
	}
}

// whole checks that no set was ever mixed or empty.
func (r *reader) whole(t *testing.T) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mixed != "" {
		t.Errorf("a set was yielded that nobody published: %s", r.mixed)
	}
}

// set makes n files of the same content.
func set(n int, content string) (sources []policy.Source) {
	for i := range n {
		sources = append(sources, policy.Source{Name: fmt.Sprintf("%04d.yaml", i), Data: []byte(content)})
	}
	return sources
}

func publish(t *testing.T, store *consulkv.Store, sources []policy.Source) {
	t.Helper()
	if changed, err := store.Push(t.Context(), sources); err != nil || !changed {
		t.Fatalf("Push = %v, %v", changed, err)
	}
}

// A set of any size appears at once.
func TestConsulKVSetsAreWhole(t *testing.T) {
	leak.Check(t)
	agent := servers.StartConsul(t, servers.ConsulConfig{})
	store := &consulkv.Store{Prefix: "mesh/shop", Client: agent.Client()}
	if _, err := store.Pull(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Pull of nothing: %v, want fs.ErrNotExist", err)
	}
	publish(t, store, set(1, "first"))
	r := read(t, store)
	r.has(t, "1 files of first")
	// Somebody reads all the time, and not only when the watch wakes.
	ctx, cancel := context.WithCancel(t.Context())
	var reading sync.WaitGroup
	polls := &reader{}
	reading.Go(func() {
		for ctx.Err() == nil {
			sources, err := store.Pull(ctx)
			if ctx.Err() == nil {
				polls.take(sources, err)
			}
		}
	})
	for _, content := range []string{"second", "third", "fourth"} {
		began := time.Now()
		publish(t, store, set(1000, content))
		took := time.Since(began)
		t.Logf("1,000 files published in %v, and followed %v later", took.Round(time.Millisecond), r.has(t, "1000 files of "+content).Round(time.Millisecond))
	}
	publish(t, store, set(3, strings.Repeat("x", 380<<10))) // of the greatest size
	r.has(t, "3 files of "+strings.Repeat("x", 20))
	publish(t, store, set(100, strings.Repeat("y", 30_000)))
	r.has(t, "100 files of "+strings.Repeat("y", 20))
	long := set(64, "z")
	for i := range long {
		long[i].Name = strings.Repeat("é\"", 280) + long[i].Name
	}
	publish(t, store, long)
	r.has(t, "64 files of z")
	await.True(t, "the last set to be read again", func() bool { last, _ := polls.get(); return last == "64 files of z" })
	cancel()
	reading.Wait()
	r.whole(t)
	polls.whole(t)
	// Consul may now and then be too busy to answer the other reader, but it never answers half.
	t.Logf("%d sets read meanwhile, %d errors, the last: %q", polls.sets, polls.errs, polls.err)
	if strings.Contains(polls.err, "keys below") {
		t.Errorf("a set that was not whole was read: %s", polls.err)
	}
	keys, _, err := agent.Client().KV().Keys("mesh/shop/v/", "/", nil)
	if err != nil || len(keys) != 3 {
		t.Errorf("versions %q, %v, want the last three", keys, err)
	}
}

// What Consul takes at once is what push reckons with.
func TestConsulKVTransactions(t *testing.T) {
	agent := servers.StartConsul(t, servers.ConsulConfig{})
	txn := func(n, size int) error {
		var ops api.TxnOps
		for i := range n {
			ops = append(ops, &api.TxnOp{KV: &api.KVTxnOp{Verb: api.KVSet, Key: fmt.Sprintf("k/%03d", i), Value: make([]byte, size)}})
		}
		_, _, _, err := agent.Client().Txn().Txn(ops, nil)
		return err
	}
	for _, test := range []struct {
		n, size int
		taken   bool
	}{{128, 1, true}, {129, 1, false}, {64, 5_900, true}, {1, 390_000, true}, {1, 400_000, false}} {
		if err := txn(test.n, test.size); (err == nil) != test.taken {
			t.Errorf("a transaction of %d values of %d bytes: %v, want taken: %v", test.n, test.size, err, test.taken)
		}
	}
}

// Of many that publish at once, one succeeds, and the others are told so. What is published is whole.
func TestConsulKVPushesAtOnce(t *testing.T) {
	leak.Check(t)
	agent := servers.StartConsul(t, servers.ConsulConfig{})
	store := &consulkv.Store{Prefix: "mesh/shop", Client: agent.Client()}
	publish(t, store, set(1, "first"))
	r := read(t, store)
	succeeded := 0
	for round := range 5 {
		var mu sync.Mutex
		var pushing sync.WaitGroup
		for i := range 4 {
			pushing.Go(func() {
				_, err := store.Push(t.Context(), set(70, fmt.Sprintf("of %d in round %d", i%3, round))) // two of them push the same
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					succeeded++
				} else if !errors.Is(err, consulkv.ErrConflict) {
					t.Errorf("Push: %v, want nil or ErrConflict", err)
				}
			})
		}
		pushing.Wait()
		sources, err := store.Pull(t.Context())
		if err != nil || len(sources) != 70 {
			t.Fatalf("Pull has %d files, %v", len(sources), err)
		}
		r.has(t, fmt.Sprintf("70 files of %.20s", sources[0].Data))
	}
	r.whole(t)
	t.Logf("%d of 20 succeeded", succeeded)
	if succeeded < 5 {
		t.Errorf("%d pushes succeeded, want one of each round at least", succeeded)
	}
}

// Documents stay while Consul is gone, and when it comes back with nothing.
func TestConsulKVWithoutConsul(t *testing.T) {
	for _, dev := range []bool{false, true} {
		t.Run(fmt.Sprintf("loses its data: %v", dev), func(t *testing.T) {
			leak.Check(t)
			agent := servers.StartConsul(t, servers.ConsulConfig{Dev: dev})
			store := &consulkv.Store{Prefix: "mesh/shop", Client: agent.Client()}
			publish(t, store, set(2, "first"))
			r := read(t, store)
			r.has(t, "2 files of first")
			agent.Kill()
			r.fails(t, "killed", "2 files of first", "mesh/shop/current")
			agent.Restart(t)
			if dev {
				r.fails(t, "its data lost", "2 files of first", `no key "mesh/shop/current"`, "mesh push")
			} else {
				r.has(t, "2 files of first")
			}
			publish(t, store, set(2, "second"))
			t.Logf("followed after %v", r.has(t, "2 files of second").Round(time.Millisecond))
			r.whole(t)
		})
	}
}

// Three servers, of which the leader dies: documents stay, and can be published again as soon as there is a leader.
func TestConsulKVWhenTheLeaderDies(t *testing.T) {
	leak.Check(t)
	agents := servers.StartConsulCluster(t, 3, servers.ConsulConfig{})
	edge := servers.StartConsulClient(t, "edge", agents, servers.ConsulConfig{})
	store := &consulkv.Store{Prefix: "mesh/shop", Client: edge.Client()}
	await.True(t, "a push to succeed", func() bool {
		_, err := store.Push(t.Context(), set(100, "first"))
		return err == nil
	})
	r := read(t, store)
	r.has(t, "100 files of first")
	for _, a := range agents {
		if self, err := a.Client().Agent().Self(); err != nil {
			t.Fatal(err)
		} else if self["Stats"]["consul"].(map[string]any)["leader"] == "true" {
			a.Kill()
			break
		}
	}
	began := time.Now()
	await.True(t, "a push to succeed after the leader died", func() bool {
		_, err := store.Push(t.Context(), set(100, "second"))
		return err == nil
	})
	t.Logf("published %v after the leader died", time.Since(began).Round(time.Millisecond))
	t.Logf("followed after %v", r.has(t, "100 files of second").Round(time.Millisecond))
	r.whole(t)
}

// A Consul that talks nonsense changes no document, and is not asked more often for that.
func TestConsulKVWithFaults(t *testing.T) {
	leak.Check(t)
	agent := servers.StartConsul(t, servers.ConsulConfig{})
	f, url := newFaults(t, agent, "/v1/kv/")
	client, err := api.NewClient(&api.Config{Address: url})
	if err != nil {
		t.Fatal(err)
	}
	direct := &consulkv.Store{Prefix: "mesh/shop", Client: agent.Client()}
	publish(t, direct, set(2, "first"))
	r := read(t, &consulkv.Store{Prefix: "mesh/shop", Client: client})
	r.has(t, "2 files of first")
	for i, mode := range []string{"empty", "reset", "429", "500", "torn", "hang"} {
		was := fmt.Sprintf("2 files of %s", []string{"first", "empty", "reset", "429", "500", "torn"}[i])
		began := time.Now()
		f.spoil(mode)
		publish(t, direct, set(2, mode))
		want := 3
		if mode == "hang" {
			want = 1
		}
		await.True(t, fmt.Sprintf("%d answers that are spoilt (%s)", want, mode), func() bool { return f.count() >= want })
		if n, took := f.count(), time.Since(began); float64(n) > 6+3*took.Seconds() {
			t.Errorf("%s: %d queries in %v", mode, n, took) // a read of a set that is doubted is three or four of them
		} else {
			t.Logf("%s: %d queries in %v", mode, n, took.Round(time.Millisecond))
		}
		if last, _ := r.get(); last != was && mode != "reset" { // a wrong index is no reason to doubt the documents
			t.Errorf("%s: the documents are %q, want still %q", mode, last, was)
		}
		f.spoil("")
		r.has(t, "2 files of "+mode)
	}
	r.whole(t)
}

// Denied and narrowed tokens leave the documents as they are, and are told so.
func TestConsulKVDenied(t *testing.T) {
	leak.Check(t)
	agent := servers.StartConsul(t, servers.ConsulConfig{ACL: "deny"})
	acl := agent.Client().ACL()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	client := func(token string) *api.Client {
		t.Helper()
		config := api.DefaultConfig()
		config.Address, config.Token = agent.HTTP, token
		config.Transport.DisableKeepAlives = true
		client, err := api.NewClient(config)
		must(err)
		return client
	}
	token := func(name, rules string) (*api.ACLToken, *api.ACLPolicy) {
		t.Helper()
		policy, _, err := acl.PolicyCreate(&api.ACLPolicy{Name: name, Rules: rules}, nil)
		must(err)
		token, _, err := acl.TokenCreate(&api.ACLToken{Policies: []*api.ACLTokenPolicyLink{{Name: name}}}, nil)
		must(err)
		return token, policy
	}
	const reads = `key_prefix "mesh/shop/" { policy = "read" }`
	allowed, _ := token("allowed", reads)
	narrowed, policy := token("narrowed", reads)
	partly, partial := token("partly", reads)
	deleted, _ := token("deleted", reads)
	nothing, _ := token("nothing", "")
	pointer, _ := token("pointer", `key "mesh/shop/current" { policy = "read" }`)
	writer, _ := token("writer", `key_prefix "mesh/shop/" { policy = "write" }`)
	half, _ := token("half", `key_prefix "mesh/shop/v/" { policy = "write" } key "mesh/shop/current" { policy = "read" }`)

	store := func(token string) *consulkv.Store { return &consulkv.Store{Prefix: "mesh/shop", Client: client(token)} }
	publish(t, store(writer.SecretID), set(3, "first"))
	denied := map[string]string{
		"no token": "", "token without rights": nothing.SecretID, "unknown token": "6e9b3a31-0000-4000-8000-000000000000",
		"only the key current": pointer.SecretID,
	}
	readers := map[string]*reader{}
	for name, id := range denied {
		readers[name] = read(t, store(id))
		readers[name].fails(t, name, "", "denied", "mesh/shop/current")
	}
	denied["may only read"], denied["may not point"] = allowed.SecretID, half.SecretID
	for name, id := range denied {
		if changed, err := store(id).Push(t.Context(), set(1, "not allowed")); changed || err == nil || !strings.Contains(err.Error(), "denied") {
			t.Errorf("%s: Push = %v, %v, want denied", name, changed, err)
		} else {
			t.Logf("%s: Push: %v", name, err)
		}
	}
	all := map[string]*reader{}
	for name, token := range map[string]*api.ACLToken{"allowed": allowed, "narrowed": narrowed, "partly": partly, "deleted": deleted} {
		all[name] = read(t, store(token.SecretID))
		all[name].has(t, "3 files of first")
	}
	policy.Rules = ""
	_, _, err := acl.PolicyUpdate(policy, nil)
	must(err)
	partial.Rules = `key "mesh/shop/current" { policy = "read" } key_prefix "mesh/shop/v/" { policy = "deny" }`
	_, _, err = acl.PolicyUpdate(partial, nil)
	must(err)
	_, err = acl.TokenDelete(deleted.AccessorID, nil)
	must(err)
	publish(t, store(writer.SecretID), set(3, "second"))
	all["allowed"].has(t, "3 files of second")
	for _, name := range []string{"narrowed", "partly", "deleted"} {
		all[name].fails(t, name, "3 files of first", "denied", "mesh/shop/")
	}
	policy.Rules = reads
	_, _, err = acl.PolicyUpdate(policy, nil)
	must(err)
	partial.Rules = reads
	_, _, err = acl.PolicyUpdate(partial, nil)
	must(err)
	all["narrowed"].has(t, "3 files of second")
	all["partly"].has(t, "3 files of second")
	for name, r := range readers {
		if last, err := r.get(); last != "" || err == "" {
			t.Errorf("%s: documents %q, want only the denial", name, last)
		}
	}
}
