// Package kvtest is an agent of Consul for tests, with the part of its API that documents in the KV store need, as it was measured on
// real agents. Those are in realservers.
package kvtest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Pair is a key with its value.
type Pair struct {
	Key         string
	Value       []byte
	ModifyIndex uint64
}

// Transaction is what is done as a whole.
type Transaction []struct {
	KV struct {
		Verb, Key string
		Value     []byte
		Index     uint64
	}
}

type answer struct {
	Errors []failure
}

type failure struct {
	OpIndex int
	What    string
}

// Server is the handler of an agent. New makes one.
type Server struct {
	mu      sync.Mutex
	index   uint64
	keys    map[string]*Pair
	changed chan struct{} // closed at the next change
	reads   int
	txns    []Transaction
	before  func(w http.ResponseWriter, r *http.Request) bool
}

// New returns a server without keys.
func New() *Server {
	return &Server{index: 10, keys: map[string]*Pair{}, changed: make(chan struct{})}
}

// Intercept has before see each request first. It answers itself if it returns true. nil ends that.
func (f *Server) Intercept(before func(w http.ResponseWriter, r *http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.before = before
}

// ServeHTTP implements http.Handler.
func (f *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Consul-LastContact", "0") // without it the client reads none of the others
	w.Header().Set("X-Consul-KnownLeader", "true")
	f.mu.Lock()
	before := f.before
	f.mu.Unlock()
	if before != nil && before(w, r) {
		return
	}
	if r.URL.Path == "/v1/txn" {
		f.txn(w, r)
		return
	}
	key, ok := strings.CutPrefix(r.URL.Path, "/v1/kv/")
	if !ok || r.Method != http.MethodGet {
		http.Error(w, "the fake does not know "+r.Method+" "+r.URL.Path, http.StatusBadRequest)
		return
	}
	f.get(w, r, key)
}

func (f *Server) get(w http.ResponseWriter, r *http.Request, key string) {
	query := r.URL.Query()
	after, _ := strconv.ParseUint(query.Get("index"), 10, 64)
	wait, err := time.ParseDuration(query.Get("wait"))
	if after > 0 && err != nil {
		http.Error(w, "a query that blocks needs a wait", http.StatusBadRequest)
		return
	}
	end := time.NewTimer(wait)
	defer end.Stop()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads++
	for {
		found, index := f.findLocked(query, key)
		if index <= after {
			changed := f.changed
			f.mu.Unlock()
			more := false
			select {
			case <-changed:
				more = true
			case <-end.C:
			case <-r.Context().Done():
			}
			f.mu.Lock()
			if more {
				continue
			}
		}
		w.Header().Set("X-Consul-Index", strconv.FormatUint(index, 10))
		if len(found) == 0 {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		if query.Has("keys") {
			var names []string
			for _, pair := range found {
				name := pair.Key
				if separator := query.Get("separator"); separator != "" {
					if i := strings.Index(name[len(key):], separator); i >= 0 {
						name = name[:len(key)+i+1]
					}
				}
				names = append(names, name)
			}
			json.NewEncoder(w).Encode(slices.Compact(names))
			return
		}
		json.NewEncoder(w).Encode(found)
		return
	}
}

// findLocked returns the pairs that a query asks for, by key, and its index.
func (f *Server) findLocked(query map[string][]string, key string) (found []*Pair, index uint64) {
	_, recurse := query["recurse"]
	_, list := query["keys"]
	for name, pair := range f.keys {
		if name == key || (recurse || list) && strings.HasPrefix(name, key) {
			found = append(found, pair)
			index = max(index, pair.ModifyIndex)
		}
	}
	slices.SortFunc(found, func(a, b *Pair) int { return strings.Compare(a.Key, b.Key) })
	if len(found) == 0 {
		index = f.index
	}
	return found, index
}

// txn does what the server does, within its bounds.
func (f *Server) txn(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	var ops Transaction
	if err := json.Unmarshal(body, &ops); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	values := 0
	for _, op := range ops {
		values += len(op.KV.Value)
	}
	if len(ops) > 64 || len(body) > 512<<10 || values > 390_000 {
		http.Error(w, fmt.Sprintf("%d operations, %d bytes, %d bytes of values", len(ops), len(body), values), http.StatusRequestEntityTooLarge)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.txns = append(f.txns, ops)
	for i, op := range ops {
		pair, what := f.keys[op.KV.Key], ""
		switch op.KV.Verb {
		case "check-index":
			if pair == nil {
				what = fmt.Sprintf("key %q doesn't exist", op.KV.Key)
			} else if pair.ModifyIndex != op.KV.Index {
				what = fmt.Sprintf("current modify index %d != %d for key %q", pair.ModifyIndex, op.KV.Index, op.KV.Key)
			}
		case "check-not-exists":
			if pair != nil {
				what = fmt.Sprintf("key %q exists", op.KV.Key)
			}
		case "cas":
			if pair == nil && op.KV.Index != 0 || pair != nil && pair.ModifyIndex != op.KV.Index {
				what = fmt.Sprintf("failed to set key %q, index is stale", op.KV.Key)
			}
		}
		if what != "" {
			w.WriteHeader(http.StatusConflict)
			json.NewEncoder(w).Encode(answer{Errors: []failure{{i, what}}})
			return
		}
	}
	f.index++
	for _, op := range ops {
		switch op.KV.Verb {
		case "set", "cas":
			f.putLocked(op.KV.Key, string(op.KV.Value))
		case "delete-tree":
			for key := range f.keys {
				if strings.HasPrefix(key, op.KV.Key) {
					delete(f.keys, key)
				}
			}
		}
	}
	f.wakeLocked()
	json.NewEncoder(w).Encode(answer{})
}

func (f *Server) putLocked(key, value string) {
	if before := f.keys[key]; before != nil && string(before.Value) == value {
		return // the same again changes nothing
	}
	f.keys[key] = &Pair{Key: key, Value: []byte(value), ModifyIndex: f.index}
}

func (f *Server) wakeLocked() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// Keys are the keys that there are, while they are changed.
type Keys struct {
	All    map[string]*Pair
	server *Server
}

// Put sets a key.
func (k Keys) Put(key, value string) { k.server.putLocked(key, value) }

// Change changes keys, all at once.
func (f *Server) Change(change func(keys Keys)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.index++
	change(Keys{f.keys, f})
	f.wakeLocked()
}

// Value returns the value of a key, "" if there is none.
func (f *Server) Value(key string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if pair := f.keys[key]; pair != nil {
		return string(pair.Value)
	}
	return ""
}

// Below returns the keys below a prefix, by name.
func (f *Server) Below(prefix string) (pairs []*Pair) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, pair := range f.keys {
		if strings.HasPrefix(key, prefix) {
			pairs = append(pairs, pair)
		}
	}
	slices.SortFunc(pairs, func(a, b *Pair) int { return strings.Compare(a.Key, b.Key) })
	return pairs
}

// Transactions returns those that came so far, done or not.
func (f *Server) Transactions() []Transaction {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.txns)
}

// Reads returns how many there were so far.
func (f *Server) Reads() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reads
}
