package consul_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	discovered "github.com/nosidecar/mesh/discovery/consul"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/memnet"
	"github.com/nosidecar/mesh/policy/consul"
)

func TestMain(m *testing.M) { os.Exit(leak.Run(m)) }

// fake answers reads of config entries. Real agents are in realservers.
type fake struct {
	network memnet.Network

	mu      sync.Mutex
	index   uint64
	changed chan struct{}                // closed at the next change
	entries map[string]map[string]string // by kind and name
	status  int                          // of every answer; 0: as it should be
	narrow  bool                         // the token may read nothing
	denies  bool                         // by default
	reads   int
}

func newFake(t *testing.T) (*fake, *consul.Feed) {
	t.Helper()
	f := &fake{index: 10, changed: make(chan struct{}), entries: map[string]map[string]string{}}
	f.network.Serve(t, "agent:8500", f)
	client, err := discovered.NewClient(&api.Config{Address: "agent:8500", Transport: &http.Transport{DialContext: f.network.DialContext}})
	if err != nil {
		t.Fatal(err)
	}
	return f, &consul.Feed{Client: client}
}

// change changes the state, and wakes the queries that block.
func (f *fake) change(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	f.index++
	close(f.changed)
	f.changed = make(chan struct{})
}

// set stores an entry, or removes it if it is empty.
func (f *fake) set(kind, name, fields string) {
	f.change(func() { f.store(kind, name, fields) })
}

func (f *fake) store(kind, name, fields string) {
	if f.entries[kind] == nil {
		f.entries[kind] = map[string]string{}
	}
	f.entries[kind][name] = fmt.Sprintf(`{"Kind": %q, "Name": %q%s}`, kind, name, fields)
	if fields == "" {
		delete(f.entries[kind], name)
	}
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	index, _ := strconv.ParseUint(query.Get("index"), 10, 64)
	wait, _ := time.ParseDuration(query.Get("wait"))
	timeout := time.After(wait)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads++
	for over := false; index > 0 && index >= f.index && !over; {
		changed := f.changed
		f.mu.Unlock()
		select {
		case <-changed:
		case <-timeout:
			over = true
		case <-r.Context().Done():
			over = true
		}
		f.mu.Lock()
	}
	if f.status != 0 {
		http.Error(w, "text", f.status)
		return
	}
	w.Header().Set("X-Consul-Index", fmt.Sprint(f.index))
	w.Header().Set("X-Consul-LastContact", "0")
	if f.denies {
		w.Header().Set("X-Consul-Default-ACL-Policy", "deny")
	}
	kind, ok := strings.CutPrefix(r.URL.Path, "/v1/config/")
	switch {
	case !ok && f.narrow:
		http.Error(w, "Permission denied", http.StatusForbidden)
	case !ok:
		fmt.Fprint(w, "{}")
	case f.narrow:
		fmt.Fprint(w, "[]")
	default:
		all := []json.RawMessage{}
		for _, name := range slices.Sorted(maps.Keys(f.entries[kind])) {
			all = append(all, json.RawMessage(f.entries[kind][name]))
		}
		json.NewEncoder(w).Encode(all)
	}
}

// noted is what a feed yields: names of sources, or the word error or denied.
type noted struct {
	mu   sync.Mutex
	list []string
}

// watch follows a feed until the returned function is called.
func watch(t *testing.T, feed *consul.Feed) (n *noted, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	n = &noted{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for sources, err := range feed.Watch(ctx) {
			text := "error"
			if err == nil {
				var names []string
				for _, s := range sources {
					names = append(names, s.Name)
				}
				text = strings.Join(names, " ")
			} else if strings.Contains(err.Error(), "denied") {
				text = "denied"
			}
			n.mu.Lock()
			n.list = append(n.list, text)
			n.mu.Unlock()
		}
	}()
	return n, func() {
		cancel()
		<-done
	}
}

func (n *noted) want(t *testing.T, want ...string) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if got := slices.Compact(n.list); !slices.Equal(got, want) {
		t.Errorf("the feed yielded %q, want %q", got, want)
	}
	n.list = nil
}

// recovered checks that nothing but errors came before the last set.
func (n *noted) recovered(t *testing.T, want string) {
	t.Helper()
	n.mu.Lock()
	n.list = slices.DeleteFunc(n.list, func(s string) bool { return s == "error" || s == "denied" })
	n.mu.Unlock()
	n.want(t, want)
}

func TestFeed_FollowsEntriesOfAllKinds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, feed := newFake(t)
		f.set("service-router", "web", `, "Routes": []`)
		f.set("proxy-defaults", "global", `, "Config": {}`)
		f.set("service-intentions", "web", `, "Sources": []`) // not followed
		n, stop := watch(t, feed)
		defer stop()
		time.Sleep(10 * time.Second)
		n.want(t, "config/proxy-defaults/global.json config/service-router/web.json")
		// What belongs together comes together.
		f.change(func() {
			f.store("service-resolver", "web", `, "Subsets": {"v1": {}}`)
			f.store("service-router", "api", `, "Routes": []`)
		})
		time.Sleep(1100 * time.Millisecond)
		n.want(t, "config/proxy-defaults/global.json config/service-resolver/web.json config/service-router/api.json config/service-router/web.json")
		f.set("service-router", "web", "")
		time.Sleep(1100 * time.Millisecond)
		n.want(t, "config/proxy-defaults/global.json config/service-resolver/web.json config/service-router/api.json")
		f.set("service-defaults", "web", "") // nothing changes
		time.Sleep(10 * time.Minute)
		n.want(t)
	})
}

// A Consul that fails, or does not let entries be read, must not empty a policy.
func TestFeed_DenialsAndFailuresEmptyNothing(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*fake)
		want   string
	}{
		{"narrowed token", func(f *fake) { f.narrow, f.denies = true, true }, "denied"},
		{"forbidden", func(f *fake) { f.status = http.StatusForbidden }, "denied"},
		{"failure", func(f *fake) { f.status = http.StatusInternalServerError }, "error"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, feed := newFake(t)
				f.set("service-router", "web", `, "Routes": []`)
				n, stop := watch(t, feed)
				defer stop()
				time.Sleep(10 * time.Second)
				n.want(t, "config/service-router/web.json")
				f.change(func() { test.change(f) })
				time.Sleep(5 * time.Minute)
				n.want(t, test.want)
				f.change(func() { f.narrow, f.denies, f.status = false, false, 0 })
				time.Sleep(time.Minute)
				n.recovered(t, "config/service-router/web.json")
			})
		})
	}
}

// Without a token that may read services, nothing looks like everything.
func TestFeed_DeniedFromTheBeginning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, feed := newFake(t)
		f.set("service-router", "web", `, "Routes": []`)
		f.change(func() { f.narrow, f.denies = true, true })
		n, stop := watch(t, feed)
		defer stop()
		time.Sleep(time.Minute)
		n.want(t, "denied")
	})
}
