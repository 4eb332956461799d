package consulkv_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/consul/kvtest"
	"github.com/nosidecar/mesh/policy/consulkv"
)

const (
	a1    = "consul:mesh/shop/a.yaml=1"
	a2    = "consul:mesh/shop/a.yaml=2"
	b1    = "consul:mesh/shop/b.yaml=1"
	soon  = 2 * time.Second
	later = 5 * time.Minute
)

// bubble runs a test with an agent, a store and whoever watches it.
func bubble(t *testing.T, before func(t *testing.T, f *fake, s *consulkv.Store), test func(t *testing.T, f *fake, s *consulkv.Store, w *follower)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		s := f.store(t)
		before(t, f, s)
		w, stop := follow(t, &consulkv.Store{Prefix: s.Prefix, Client: f.client(t, "reader")})
		defer stop()
		test(t, f, s, w)
	})
}

func published(t *testing.T, f *fake, s *consulkv.Store) { push(t, s, "a.yaml", "1", "b.yaml", "1") }

func TestWatchFollowsPushes(t *testing.T) {
	bubble(t, published, func(t *testing.T, f *fake, s *consulkv.Store, w *follower) {
		w.want(t, soon, a1+" "+b1)
		push(t, s, "a.yaml", "2")
		w.want(t, soon, a2)
		if changed, err := s.Push(t.Context(), files("a.yaml", "2")); changed || err != nil {
			t.Errorf("the same again: %v, %v, want no change", changed, err)
		}
		before := f.Reads()
		w.want(t, later)
		if reads := f.Reads() - before; reads > 6 {
			t.Errorf("%d reads in five quiet minutes, want one per minute", reads)
		}
		push(t, s, "a.yaml", "1", "b.yaml", "1")
		w.want(t, soon, a1+" "+b1)
	})
}

// The documents stand alone if the store says so, and not otherwise.
func TestWatchAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		s := f.store(t)
		push(t, s, "a.yaml", "1")
		for _, alone := range []bool{false, true} {
			s.Alone = alone
			for sources, err := range s.Watch(t.Context()) {
				if err != nil || len(sources) != 1 || sources[0].Alone != alone {
					t.Errorf("with Alone %v, Watch yields %v, %v", alone, sources, err)
				}
				break
			}
		}
	})
}

// The order of a folder decides which of two documents that claim a host wins.
func TestOrderIsThatOfAFolder(t *testing.T) {
	f := newFake(t)
	s := f.store(t)
	push(t, s, "a.yaml", "1", "a/z.yaml", "", "a-b.yaml", "3", "B.yml", "4", "a/b/c.yaml", "5")
	got, err := s.Pull(t.Context())
	if want := "B.yml=4 a/b/c.yaml=5 a/z.yaml= a-b.yaml=3 a.yaml=1"; err != nil || show(got) != want {
		t.Errorf("Pull = %q, %v, want %q", show(got), err, want)
	}
}

// What is not whole never takes the place of what is.
func TestWatchKeepsTheLastDocuments(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(keys kvtest.Keys, folder string) // of the new version, before it is pointed to
		want   string
	}{
		{"a key is missing", func(keys kvtest.Keys, folder string) {
			delete(keys.All, folder+"b.yaml")
		}, `error: 1 keys below "mesh/shop/v/|want 2|mesh push`},
		{"all keys are missing", func(keys kvtest.Keys, folder string) {
			delete(keys.All, folder+"a.yaml")
			delete(keys.All, folder+"b.yaml")
		}, `error: 0 keys below "mesh/shop/v/|want 2`},
		{"a key too many", func(keys kvtest.Keys, folder string) {
			keys.Put(folder+"c.yaml", "3")
		}, `error: 3 keys below "mesh/shop/v/|want 2`},
		{"another value", func(keys kvtest.Keys, folder string) {
			keys.Put(folder+"a.yaml", "3")
		}, `error: hash|mesh/shop/v/`},
		{"another name", func(keys kvtest.Keys, folder string) {
			delete(keys.All, folder+"b.yaml")
			keys.Put(folder+"c.yaml", "2")
		}, `error: hash|mesh/shop/v/`},
		{"a name that leads elsewhere", func(keys kvtest.Keys, folder string) {
			delete(keys.All, folder+"b.yaml")
			keys.Put(folder+"../../b.yaml", "2")
		}, `error: /../../b.yaml"|not the path of a file`},
		{"a folder", func(keys kvtest.Keys, folder string) {
			keys.Put(folder+"sub/", "")
		}, `error: /sub/"|not the path of a file`},
		{"a pointer to another place", func(keys kvtest.Keys, folder string) {
			p := strings.Replace(string(keys.All["mesh/shop/current"].Value), `"version":"`, `"version":"../../other/`, 1)
			keys.Put("mesh/shop/current", p)
		}, `error: key "mesh/shop/current"|does not name a version`},
		{"a pointer that is none", func(keys kvtest.Keys, folder string) {
			keys.Put("mesh/shop/current", "v2")
		}, `error: key "mesh/shop/current"|does not name a version|mesh push`},
		{"an empty pointer", func(keys kvtest.Keys, folder string) {
			keys.Put("mesh/shop/current", "")
		}, `error: key "mesh/shop/current"|does not name a version`},
		{"no pointer", func(keys kvtest.Keys, folder string) {
			delete(keys.All, "mesh/shop/current")
		}, `error: no key "mesh/shop/current"|mesh push -prefix mesh/shop`},
		{"nothing at all", func(keys kvtest.Keys, folder string) {
			clear(keys.All)
		}, `error: no key "mesh/shop/current"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, published, func(t *testing.T, f *fake, s *consulkv.Store, w *follower) {
				w.want(t, soon, a1+" "+b1)
				// The watch cannot read before the new version is what it is to be.
				f.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
					return r.Header.Get("X-Consul-Token") == "reader" && hangUp(w)
				})
				push(t, s, "a.yaml", "2", "b.yaml", "2")
				f.Change(func(keys kvtest.Keys) { test.change(keys, folder(keys)) })
				synctest.Wait()
				f.Intercept(nil)
				before := f.Reads()
				time.Sleep(later)
				w.wantLast(t, test.want)
				if reads := f.Reads() - before; reads > 300 { // up to four every five to ten seconds
					t.Errorf("%d reads in five minutes, want that it is not asked for all the time", reads)
				}
				f.Change(func(keys kvtest.Keys) { clear(keys.All) })
				push(t, s, "a.yaml", "2")
				time.Sleep(later)
				w.wantLast(t, a2)
			})
		})
	}
}

// An answer that no agent gives changes nothing.
func TestWatchKeepsTheLastDocumentsIfAnswersMakeNoSense(t *testing.T) {
	for name, test := range map[string]struct{ answer, want string }{
		"a key is null":    {"[null]", `error: a key below "mesh/shop/v/|is null`},
		"another document": {`{"Key": "x"}`, "error: keys below"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, published, func(t *testing.T, f *fake, s *consulkv.Store, w *follower) {
				w.want(t, soon, a1+" "+b1)
				f.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
					if r.Header.Get("X-Consul-Token") != "reader" || !r.URL.Query().Has("recurse") {
						return false
					}
					_, _ = io.WriteString(w, test.answer)
					return true
				})
				push(t, s, "a.yaml", "2")
				time.Sleep(soon)
				w.wantLast(t, test.want)
				f.Intercept(nil)
				time.Sleep(later)
				w.wantLast(t, a2)
			})
		})
	}
}

// A server that lags behind the leader knows the key current, but not yet or no longer what it names, or an older one.
func TestLaggingServer(t *testing.T) {
	for _, test := range []struct {
		name string
		lags func(r *http.Request) bool
	}{
		{"with everything", func(r *http.Request) bool { return true }},
		{"with the files", func(r *http.Request) bool { return r.URL.Query().Has("recurse") }},
		{"with the key current", func(r *http.Request) bool { return !r.URL.Query().Has("recurse") }},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, published, func(t *testing.T, f *fake, s *consulkv.Store, w *follower) {
				w.want(t, soon, a1+" "+b1)
				lagging := f.Below("")
				push(t, s, "a.yaml", "2")
				w.want(t, soon, a2)
				// From now on, stale reads may come to a server that knows only the first set.
				f.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
					if !r.URL.Query().Has("stale") || !test.lags(r) {
						return false
					}
					key := strings.TrimPrefix(r.URL.Path, "/v1/kv/")
					var found []*kvtest.Pair
					for _, pair := range lagging {
						if pair.Key == key || r.URL.Query().Has("recurse") && strings.HasPrefix(pair.Key, key) {
							found = append(found, pair)
						}
					}
					w.Header().Set("X-Consul-Index", "12")
					if found == nil {
						w.WriteHeader(http.StatusNotFound)
						return true
					}
					json.NewEncoder(w).Encode(found)
					return true
				})
				push(t, s, "a.yaml", "1")
				w.want(t, 2*time.Minute, a1)
			})
		})
	}
}

func TestDenialIsReported(t *testing.T) {
	status := func(code int, header string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("X-Consul-Index", "1")
			if header != "" {
				name, value, _ := strings.Cut(header, ": ")
				w.Header().Set(name, value)
			}
			http.Error(w, "Permission denied", code)
			return true
		}
	}
	files := func(deny func(http.ResponseWriter, *http.Request) bool) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool { return r.URL.Query().Has("recurse") && deny(w, r) }
	}
	for _, test := range []struct {
		name string
		deny func(http.ResponseWriter, *http.Request) bool
	}{
		{"the key current", status(403, "")},
		{"the files, and the list policy is set", files(status(403, ""))},
		{"the files, with a token", files(status(404, "X-Consul-Results-Filtered-By-ACLs: true"))},
		{"the files, without a token", files(status(404, "X-Consul-Default-ACL-Policy: deny"))},
		{"some of the files", files(func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("X-Consul-Results-Filtered-By-ACLs", "true")
			w.Header().Set("X-Consul-Index", "9")
			fmt.Fprintf(w, `[{"Key": %q, "Value": "MQ=="}]`, strings.TrimPrefix(r.URL.Path, "/v1/kv/")+"a.yaml")
			return true
		})},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, published, func(t *testing.T, f *fake, s *consulkv.Store, w *follower) {
				w.want(t, soon, a1+" "+b1)
				f.Intercept(test.deny)
				f.Change(func(keys kvtest.Keys) {
					keys.Put("mesh/shop/current", strings.Replace(string(keys.All["mesh/shop/current"].Value), "-0", "-7", 1))
				})
				w.want(t, later, `error: denied|mesh/shop/`)
				f.Change(func(keys kvtest.Keys) { clear(keys.All) })
				f.Intercept(nil)
				push(t, s, "a.yaml", "2")
				w.want(t, soon+10*time.Second, a2)
			})
		})
	}
}

// Keys that nobody published are no set.
func TestPlainKeysAreNotRead(t *testing.T) {
	bubble(t, func(t *testing.T, f *fake, s *consulkv.Store) {
		f.Change(func(keys kvtest.Keys) { keys.Put("mesh/shop/a.yaml", "1") })
	}, func(t *testing.T, f *fake, s *consulkv.Store, w *follower) {
		w.want(t, later, `error: no key "mesh/shop/current"|mesh push -prefix mesh/shop`)
		if _, err := s.Pull(t.Context()); err == nil || !strings.Contains(err.Error(), "mesh push -prefix mesh/shop") {
			t.Errorf("Pull: %v, want that nothing is published", err)
		}
		push(t, s, "a.yaml", "2")
		w.want(t, soon, a2)
	})
}

func TestConsulIsGone(t *testing.T) {
	bubble(t, published, func(t *testing.T, f *fake, s *consulkv.Store, w *follower) {
		w.want(t, soon, a1+" "+b1)
		gone := func(w http.ResponseWriter, r *http.Request) bool { return hangUp(w) }
		f.Intercept(gone)
		f.Change(func(keys kvtest.Keys) { keys.Put("mesh/shop/current", "never seen") })
		time.Sleep(later)
		w.wantLast(t, "error: mesh/shop/current|EOF")
		f.Change(func(keys kvtest.Keys) { clear(keys.All) })
		f.Intercept(nil)
		push(t, s, "a.yaml", "1", "b.yaml", "1")
		w.want(t, soon, a1+" "+b1)
	})
}

func TestPrefix(t *testing.T) {
	f := newFake(t)
	push(t, &consulkv.Store{Prefix: "/mesh/shop/", Client: f.client(t, "")}, "a.yaml", "1")
	if got, err := f.store(t).Pull(t.Context()); err != nil || show(got) != "a.yaml=1" {
		t.Errorf("Pull without the slashes = %q, %v", show(got), err)
	}
	for _, prefix := range []string{"", "/", "a//b", "..", "a/../b", ".", "a\nb", "\xff", strings.Repeat("x", 600)} {
		s := &consulkv.Store{Prefix: prefix, Client: f.client(t, "")}
		_, err := s.Push(t.Context(), files("a.yaml", "1"))
		_, pulled := s.Pull(t.Context())
		ended := false
		for _, watched := range s.Watch(t.Context()) {
			ended = watched != nil && strings.Contains(watched.Error(), "Prefix")
		}
		if err == nil || pulled == nil || !ended || !strings.Contains(err.Error(), "Prefix") {
			t.Errorf("prefix %q: Push %v, Pull %v, Watch %v, want errors about it", prefix, err, pulled, ended)
		}
	}
}

// The caller may change what it was given.
func TestSourcesAreTheCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		s := f.store(t)
		push(t, s, "a.yaml", "1")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		seen, current := 0, ""
		for sources, err := range s.Watch(ctx) {
			switch seen++; {
			case err != nil: // the key current is gone
				f.Change(func(keys kvtest.Keys) {
					keys.Put("mesh/shop/current", current)
				})
				continue
			case show(sources) != a1:
				t.Errorf("yielded %q, want %q", show(sources), a1)
			}
			if seen > 1 {
				break
			}
			sources[0].Data[0] = 'x'
			current = f.Value("mesh/shop/current")
			f.Change(func(keys kvtest.Keys) { delete(keys.All, "mesh/shop/current") })
		}
		if seen != 3 {
			t.Errorf("yielded %d times, want the documents, an error, and the documents", seen)
		}
	})
}
