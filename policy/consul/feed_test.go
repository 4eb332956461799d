package consul_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/consul/consultest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/policy/consul"
)

func TestMain(m *testing.M) { os.Exit(leak.Run(m)) }

// fake answers reads of config entries. Real agents are in realservers.
type fake struct {
	*consultest.Agent

	entries map[string]map[string]string // by kind and name
	status  map[string]int               // of the answers about a kind, or about all ("")
	answers map[string]string            // in place of the entries of a kind
	behind  bool                         // whoever reads stale asks a server that is cut off from the others
	narrow  bool                         // the token may read nothing
	denies  bool                         // by default
	reads   int
}

func newFake(t *testing.T) (*fake, *consul.Feed) {
	t.Helper()
	f := &fake{entries: map[string]map[string]string{}, status: map[string]int{}, answers: map[string]string{}}
	f.Agent = consultest.New(t, f.answer)
	return f, &consul.Feed{Client: f.Client(t)}
}

// set stores an entry, or removes it if it is empty.
func (f *fake) set(kind, name, fields string) {
	f.Change(func() { f.store(kind, name, fields) })
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

func (f *fake) answer(w http.ResponseWriter, r *http.Request) {
	f.reads++
	f.Await(w, r)
	kind, ok := strings.CutPrefix(r.URL.Path, "/v1/config/")
	if status := cmp.Or(f.status[""], f.status[kind]); status != 0 {
		http.Error(w, "text", status)
		return
	}
	if f.denies {
		w.Header().Set("X-Consul-Default-ACL-Policy", "deny")
	}
	old := f.behind && r.URL.Query().Has("stale")
	if old {
		w.Header().Set("X-Consul-Index", "9")
	}
	switch {
	case !ok && f.narrow:
		http.Error(w, "Permission denied", http.StatusForbidden)
	case !ok:
		fmt.Fprint(w, "{}")
	case f.narrow:
		fmt.Fprint(w, "[]")
	case f.answers[kind] != "":
		fmt.Fprint(w, f.answers[kind])
	case old:
		fmt.Fprintf(w, `[{"Kind": %q, "Name": "old"}]`, kind)
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

// following calls then when a feed of a Consul with one service-router has yielded it.
func following(t *testing.T, then func(t *testing.T, f *fake, n *noted)) {
	synctest.Test(t, func(t *testing.T) {
		f, feed := newFake(t)
		f.set("service-router", "web", `, "Routes": []`)
		n, stop := watch(t, feed)
		defer stop()
		time.Sleep(10 * time.Second)
		n.want(t, "config/service-router/web.json")
		then(t, f, n)
	})
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
		f.Change(func() {
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
		{"forbidden", func(f *fake) { f.status[""] = http.StatusForbidden }, "denied"},
		{"failure", func(f *fake) { f.status[""] = http.StatusInternalServerError }, "error"},
	} {
		t.Run(test.name, func(t *testing.T) {
			following(t, func(t *testing.T, f *fake, n *noted) {
				f.Change(func() { test.change(f) })
				time.Sleep(5 * time.Minute)
				n.want(t, test.want)
				f.Change(func() { f.narrow, f.denies, f.status[""] = false, false, 0 })
				time.Sleep(time.Minute)
				n.recovered(t, "config/service-router/web.json")
			})
		})
	}
}

// What an agent answers must be about what it was asked for.
func TestFeed_AnswersThatMakeNoSense(t *testing.T) {
	for name, answer := range map[string]string{
		"null":          `null`,
		"a null in it":  `[null]`,
		"another kind":  `[{"Kind": "service-intentions", "Name": "web", "Sources": [{"Name": "*", "Action": "allow"}]}]`,
		"no kind":       `[{"Name": "web"}]`,
		"twice":         `[{"Kind": "service-router", "Name": "web"}, {"Kind": "service-router", "Name": "web"}]`,
		"an object":     `{}`,
		"numbers":       `[1]`,
		"a name of 7":   `[{"Kind": "service-router", "Name": 7}]`,
		"a half answer": `[{"Kind": "service-router", "Name": "web"}`,
	} {
		t.Run(name, func(t *testing.T) {
			following(t, func(t *testing.T, f *fake, n *noted) {
				f.Change(func() { f.answers["service-router"] = answer })
				time.Sleep(5 * time.Minute)
				n.want(t, "error")
				f.Change(func() { f.answers["service-router"] = "" })
				time.Sleep(time.Minute)
				n.recovered(t, "config/service-router/web.json")
			})
		})
	}
}

// An entry that is nested deeply takes about as much memory as its text.
func TestFeed_DeepEntry(t *testing.T) {
	const depth = 2000
	synctest.Test(t, func(t *testing.T) {
		f, feed := newFake(t)
		f.set("proxy-defaults", "global", `, "Config": {"a": `+strings.Repeat("[", depth)+strings.Repeat("]", depth)+`}`)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for sources, err := range feed.Watch(ctx) {
			if err != nil || len(sources) != 1 || len(sources[0].Data) > 3*2*depth+1000 {
				t.Fatalf("%d sources, the first of %d bytes, %v; want one of about %d", len(sources), len(sources[0].Data), err, 2*depth)
			}
			cancel()
		}
	})
}

// That one kind cannot be read is not over because another one can.
func TestFeed_ErrorsLast(t *testing.T) {
	following(t, func(t *testing.T, f *fake, n *noted) {
		f.Change(func() { f.status["service-router"] = http.StatusForbidden })
		time.Sleep(time.Minute)
		n.want(t, "denied")
		f.set("service-defaults", "web", `, "Protocol": "http"`)
		time.Sleep(time.Minute)
		n.want(t, "config/service-defaults/web.json config/service-router/web.json", "denied")
		f.Change(func() { f.status["service-router"] = 0 })
		time.Sleep(time.Minute)
		n.want(t, "config/service-defaults/web.json config/service-router/web.json")
	})
}

// A server that is cut off from the others does not bring back entries of the past.
func TestFeed_OfAServerThatIsCutOff(t *testing.T) {
	following(t, func(t *testing.T, f *fake, n *noted) {
		f.Change(func() { f.behind = true })
		time.Sleep(10 * time.Minute)
		n.want(t)
	})
}

// Without a token that may read services, nothing looks like everything.
func TestFeed_DeniedFromTheBeginning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, feed := newFake(t)
		f.set("service-router", "web", `, "Routes": []`)
		f.Change(func() { f.narrow, f.denies = true, true })
		n, stop := watch(t, feed)
		defer stop()
		time.Sleep(time.Minute)
		n.want(t, "denied")
	})
}

// An agent that is away fails the reads of all kinds. That is one error, and over when all can be read again.
func TestFeed_AgentThatIsAway(t *testing.T) {
	following(t, func(t *testing.T, f *fake, n *noted) {
		once := func(want ...string) {
			t.Helper()
			n.mu.Lock()
			if !slices.Equal(n.list, want) {
				t.Errorf("the feed yielded %q, want %q", n.list, want)
			}
			n.mu.Unlock()
			n.want(t, want...)
		}
		f.Change(func() { f.status[""] = http.StatusInternalServerError })
		time.Sleep(5 * time.Minute)
		once("error")
		f.Change(func() { f.status[""], f.status["service-router"] = 0, http.StatusInternalServerError })
		time.Sleep(time.Minute)
		once()
		f.Change(func() { f.status["service-router"] = 0 })
		time.Sleep(time.Minute)
		once("config/service-router/web.json")
	})
}

func TestFeed_Alone(t *testing.T) {
	for _, alone := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f, feed := newFake(t)
			f.set("service-router", "web", `, "Routes": []`)
			feed.Alone = alone
			for sources, err := range feed.Watch(t.Context()) {
				if err != nil || len(sources) != 1 || sources[0].Alone != alone {
					t.Errorf("with Alone %v, Watch yields %v, %v", alone, sources, err)
				}
				break
			}
		})
	}
}
