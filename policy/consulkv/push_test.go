package consulkv_test

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/consul/kvtest"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/consulkv"
)

// What Consul takes at once is bounded, in three ways. The fake refuses what is beyond.
func TestPushKeepsWithinTransactions(t *testing.T) {
	for _, test := range []struct {
		name         string
		files, bytes int
		long         bool // names
	}{
		{"many small ones", 1000, 1, false},
		{"as many as fit", 63, 10, false},
		{"one more", 64, 10, false},
		{"long names", 200, 5000, true},
		{"the largest", 3, 380 << 10, false},
		{"the largest with a long name", 2, 380 << 10, true},
		{"many of some size", 100, 20_000, false},
		{"as much as fits with all operations", 200, 390_000 / 63, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFake(t)
			s := f.store(t)
			var sources []policy.Source
			for i := range test.files {
				name := fmt.Sprintf("%04d.yaml", i)
				if test.long {
					name = strings.Repeat("\"", 900) + name
				}
				sources = append(sources, policy.Source{Name: name, Data: []byte(strings.Repeat("x", test.bytes))})
			}
			if changed, err := s.Push(t.Context(), sources); !changed || err != nil {
				t.Fatalf("Push = %v, %v", changed, err)
			}
			got, err := s.Pull(t.Context())
			if err != nil || !slices.EqualFunc(got, sources, func(a, b policy.Source) bool { return a.Name == b.Name && string(a.Data) == string(b.Data) }) {
				t.Errorf("Pull has %d files, %v, want the %d that were pushed", len(got), err, len(sources))
			}
			for i, txn := range f.Transactions() {
				if first := txn[0].KV; first.Key != "mesh/shop/current" {
					t.Errorf("transaction %d begins with %s %s, want that it asks for the key current", i, first.Verb, first.Key)
				}
			}
		})
	}
}

func TestPushRefuses(t *testing.T) {
	f := newFake(t)
	s := f.store(t)
	big := strings.Repeat("x", 380<<10+1)
	var many, large []policy.Source
	for i := range 10_001 {
		many = append(many, policy.Source{Name: fmt.Sprintf("%d.yaml", i)})
	}
	for i := range 200 {
		large = append(large, policy.Source{Name: fmt.Sprintf("%d.yaml", i), Data: []byte(big[1:])})
	}
	for name, test := range map[string]struct {
		sources []policy.Source
		want    string
	}{
		"nothing":          {nil, "no files"},
		"a large file":     {files("a.yaml", "", "big.yaml", big), `"big.yaml": 389121 bytes`},
		"too many files":   {many, "10001 files"},
		"too many bytes":   {large, "77824000 bytes"},
		"one name twice":   {files("a.yaml", "1", "b.yaml", "", "a.yaml", "2"), `"a.yaml": there are two`},
		"a path upwards":   {files("../a.yaml", "1"), `"../a.yaml": it is not the path`},
		"an absolute path": {files("/a.yaml", "1"), `"/a.yaml": it is not the path`},
		"no name":          {files("", "1"), `"": it is not the path`},
		"a backslash":      {files(`a\b.yaml`, "1"), "it is not the path"},
		"a line break":     {files("a\n.yaml", "1"), "cannot be printed"},
		"a hidden file":    {files(".a/b.yaml", "1"), "hidden"},
		"no document":      {files("README.md", "1"), "not one of a document"},
		"no YAML":          {[]policy.Source{{Name: "a.json", Err: errors.New("3: not valid HCL")}}, `"a.json": 3: not valid HCL`},
		"a long name":      {files(strings.Repeat("x", 1000)+".yaml", "1"), "too long"},
	} {
		if changed, err := s.Push(t.Context(), test.sources); changed || err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: Push = %v, %v, want an error with %q", name, changed, err, test.want)
		}
	}
	if len(f.Transactions()) != 0 {
		t.Errorf("%d transactions, want none", len(f.Transactions()))
	}
}

func TestPushKeepsThreeVersions(t *testing.T) {
	f := newFake(t)
	s := f.store(t)
	f.Change(func(keys kvtest.Keys) { keys.Put("mesh/shop/v/by-hand/x", "not ours") })
	f.Change(func(keys kvtest.Keys) {
		keys.Put("mesh/shop/v/0123456789abcdef-3/a.yaml", "of a push that did not end")
	})
	for i := range 6 {
		push(t, s, "a.yaml", fmt.Sprint(i%5))
	}
	var names, contents []string
	for _, pair := range f.Below("mesh/shop/v/") {
		names, contents = append(names, pair.Key), append(contents, string(pair.Value))
	}
	slices.Sort(contents)
	if want := []string{"0", "3", "4", "not ours"}; !slices.Equal(contents, want) {
		t.Errorf("%q are there, want what is not of the store, and %q", names, want)
	}
}

// A set that was damaged is published again by pushing it.
func TestPushRepairs(t *testing.T) {
	f := newFake(t)
	s := f.store(t)
	push(t, s, "a.yaml", "1", "b.yaml", "1")
	f.Change(func(keys kvtest.Keys) { delete(keys.All, folder(keys)+"a.yaml") })
	if _, err := s.Pull(t.Context()); err == nil || !strings.Contains(err.Error(), "1 keys below") {
		t.Errorf("Pull: %v, want that a key is missing", err)
	}
	push(t, s, "a.yaml", "1", "b.yaml", "1")
	if got, err := s.Pull(t.Context()); err != nil || show(got) != "a.yaml=1 b.yaml=1" {
		t.Errorf("Pull = %q, %v", show(got), err)
	}
}

// during has something done once, before the request that is chosen.
func (f *fake) during(chosen func(r *http.Request) bool, what func()) {
	var once sync.Once
	f.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("X-Consul-Token") == "one" && chosen(r) {
			once.Do(what)
		}
		return false
	})
}

// nth chooses the transaction of this number.
func nth(n int32) func(r *http.Request) bool {
	var count atomic.Int32
	return func(r *http.Request) bool { return r.URL.Path == "/v1/txn" && count.Add(1) == n }
}

// Of two pushes at once, one is told so, whenever the other one comes.
func TestPushesAtOnce(t *testing.T) {
	var hundred []policy.Source
	for i := range 100 {
		hundred = append(hundred, policy.Source{Name: fmt.Sprintf("%03d.yaml", i), Data: []byte("new")})
	}
	for n := int32(1); n <= 3; n++ {
		for _, first := range []bool{false, true} {
			t.Run(fmt.Sprintf("before transaction %d, first=%v", n, first), func(t *testing.T) {
				f := newFake(t)
				one := &consulkv.Store{Prefix: "mesh/shop", Client: f.client(t, "one")}
				other := f.store(t)
				if !first {
					push(t, other, "a.yaml", "1")
				}
				f.during(nth(n), func() { push(t, other, "b.yaml", "2") })
				changed, err := one.Push(t.Context(), hundred)
				if changed || !errors.Is(err, consulkv.ErrConflict) || !strings.Contains(err.Error(), "mesh/shop") {
					t.Errorf("Push = %v, %v, want ErrConflict", changed, err)
				}
				if got, err := one.Pull(t.Context()); err != nil || show(got) != "b.yaml=2" {
					t.Errorf("Pull = %q, %v, want what the other one published", show(got), err)
				}
			})
		}
	}
}

// The same content, pushed twice at once, is whole whoever wins.
func TestSamePushesAtOnce(t *testing.T) {
	for n := int32(1); n <= 2; n++ {
		f := newFake(t)
		one := &consulkv.Store{Prefix: "mesh/shop", Client: f.client(t, "one")}
		f.during(nth(n), func() { push(t, f.store(t), "a.yaml", "1", "b.yaml", "1") })
		if changed, err := one.Push(t.Context(), files("a.yaml", "1", "b.yaml", "1")); changed || !errors.Is(err, consulkv.ErrConflict) {
			t.Errorf("Push = %v, %v, want ErrConflict", changed, err)
		}
		if got, err := one.Pull(t.Context()); err != nil || show(got) != "a.yaml=1 b.yaml=1" {
			t.Errorf("Pull = %q, %v", show(got), err)
		}
	}
}

// What a push removes at its end is never what another one is about to publish, not even if it was published before.
func TestRemovalLeavesOtherPushesAlone(t *testing.T) {
	isRemoval := nth(3)
	for name, to := range map[string]string{"something new": "9", "what is removed": "0"} {
		f := newFake(t)
		one, two := &consulkv.Store{Prefix: "mesh/shop", Client: f.client(t, "one")}, f.store(t)
		for i := range 3 {
			push(t, two, "a.yaml", fmt.Sprint(i))
		}
		removed := make(chan struct{})
		var pushed sync.WaitGroup
		f.during(isRemoval, func() {
			writes := make(chan struct{})
			f.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
				if r.Header.Get("X-Consul-Token") == "" && r.URL.Query().Has("recurse") && strings.Contains(r.URL.Path, "/v/") && f.txnsOf(to) {
					close(writes) // it has written its files and not yet pointed to them
					f.Intercept(nil)
					await.Done(closed(removed))
				}
				return false
			})
			pushed.Go(func() {
				if changed, err := two.Push(t.Context(), files("a.yaml", to)); err != nil || !changed {
					t.Errorf("%s: Push = %v, %v", name, changed, err)
				}
			})
			await.Done(closed(writes))
		})
		if changed, err := one.Push(t.Context(), files("a.yaml", "3")); err != nil || !changed {
			t.Errorf("%s: Push = %v, %v", name, changed, err)
		}
		close(removed)
		pushed.Wait()
		if got, err := one.Pull(t.Context()); err != nil || show(got) != "a.yaml="+to {
			t.Errorf("%s: Pull = %q, %v, want that what was published is whole", name, show(got), err)
		}
		isRemoval = nth(3)
	}
}

func closed(c <-chan struct{}) func() bool {
	return func() bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	}
}

// txnsOf reports whether the last transaction wrote a value.
func (f *fake) txnsOf(value string) bool {
	txns := f.Transactions()
	ops := txns[len(txns)-1]
	return string(ops[len(ops)-1].KV.Value) == value
}

// An answer that is lost does not tell whether what was asked for is done.
func TestLostAnswers(t *testing.T) {
	for _, test := range []struct {
		name string
		done bool // before the answer is lost
		n    int32
		want string // "" means that it is published
	}{
		{"the files, not written", false, 1, "transaction"},
		{"the pointer, not written", false, 2, "transaction"},
		{"the pointer, written", true, 2, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFake(t)
			s := f.store(t)
			push(t, s, "a.yaml", "1")
			lost := nth(test.n)
			f.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
				if !lost(r) {
					return false
				}
				if test.done {
					f.Intercept(nil)
					f.ServeHTTP(discard{http.Header{}}, r)
				}
				return hangUp(w)
			})
			changed, err := s.Push(t.Context(), files("a.yaml", "2"))
			want := "a.yaml=2"
			if test.want != "" {
				want = "a.yaml=1"
				if changed || err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("Push = %v, %v, want an error with %q", changed, err, test.want)
				}
			} else if !changed || err != nil {
				t.Errorf("Push = %v, %v, want that it is published", changed, err)
			}
			if got, err := s.Pull(t.Context()); err != nil || show(got) != want {
				t.Errorf("Pull = %q, %v, want %q", show(got), err, want)
			}
		})
	}
}

type discard struct{ header http.Header }

func (d discard) Header() http.Header            { return d.header }
func (d discard) Write(data []byte) (int, error) { return len(data), nil }
func (d discard) WriteHeader(int)                {}

func TestPushIsDenied(t *testing.T) {
	conflict := `{"Errors": [{"OpIndex": 1, "What": "Permission denied: token lacks permission 'key:write'"}]}`
	for name, deny := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"nothing may be read": func(w http.ResponseWriter, r *http.Request) bool {
			http.Error(w, "Permission denied", http.StatusForbidden)
			return true
		},
		"nothing may be written": func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/v1/txn" {
				return false
			}
			w.WriteHeader(http.StatusConflict)
			w.Write([]byte(conflict))
			return true
		},
		"the token is unknown": func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/v1/txn" {
				http.Error(w, "rpc error making call: ACL not found", http.StatusForbidden)
			}
			return r.URL.Path == "/v1/txn"
		},
	} {
		f := newFake(t)
		s := f.store(t)
		f.Intercept(deny)
		changed, err := s.Push(t.Context(), files("a.yaml", "1"))
		if changed || err == nil || errors.Is(err, consulkv.ErrConflict) || !strings.Contains(err.Error(), "denied") || !strings.Contains(err.Error(), "mesh/shop/") {
			t.Errorf("%s: Push = %v, %v, want that it is denied, and the key", name, changed, err)
		}
	}
}

// A key current that something else wrote is not overwritten.
func TestPushOverSomethingElse(t *testing.T) {
	f := newFake(t)
	f.Change(func(keys kvtest.Keys) { keys.Put("mesh/shop/current", "a value of somebody else") })
	if changed, err := f.store(t).Push(t.Context(), files("a.yaml", "1")); changed || err == nil || !strings.Contains(err.Error(), `"mesh/shop/current"`) {
		t.Errorf("Push = %v, %v, want an error about the key", changed, err)
	}
	if f.Value("mesh/shop/current") != "a value of somebody else" || len(f.Transactions()) > 0 {
		t.Error("it was overwritten")
	}
}
