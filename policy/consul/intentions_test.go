package consul_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/consul/consultest"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/consul"
)

// matcher answers reads of the intentions for the service web. Real agents are in realservers.
type matcher struct {
	*consultest.Agent

	entries map[string]string // the sources of the entries, by name
	at      map[string]uint64 // when they were changed
	status  int
	behind  map[string]string // what a server that is cut off knows, at index 11; nil: there is none
	lags    int               // reads of entries that come from a server that lags behind
	reads   int
}

func newMatcher(t *testing.T) (*matcher, *consul.Intentions) {
	t.Helper()
	m := &matcher{entries: map[string]string{}, at: map[string]uint64{}}
	m.Agent = consultest.New(t, m.answer)
	return m, &consul.Intentions{Service: "web", Client: m.Client(t)}
}

// set stores an entry by its sources, or removes it if they are empty.
func (m *matcher) set(name, sources string) {
	m.Change(func() {
		m.entries[name], m.at[name] = sources, m.Index
		if sources == "" {
			delete(m.entries, name)
		}
	})
}

func (m *matcher) answer(w http.ResponseWriter, r *http.Request) {
	m.reads++
	m.Await(w, r)
	if m.status != 0 {
		http.Error(w, "text", m.status)
		return
	}
	entries, changed := m.entries, m.at
	if m.behind != nil && r.URL.Query().Has("stale") {
		entries, changed = m.behind, map[string]uint64{"web": 11}
		w.Header().Set("X-Consul-Index", "11")
	}
	if name, ok := strings.CutPrefix(r.URL.Path, "/v1/config/service-intentions/"); ok {
		sources, found := entries[name]
		at := changed[name]
		if m.lags > 0 {
			m.lags--
			at--
		}
		if !found {
			http.NotFound(w, r)
			return
		}
		fmt.Fprintf(w, `{"Kind": "service-intentions", "Name": %q, "Sources": [%s], "ModifyIndex": %d}`, name, sources, at)
		return
	}
	list := []map[string]any{}
	for _, name := range []string{"web", "*"} {
		if _, ok := entries[name]; ok {
			list = append(list, map[string]any{"SourceName": "api", "DestinationName": name, "Action": "allow", "ModifyIndex": changed[name]})
		}
	}
	json.NewEncoder(w).Encode(map[string]any{r.URL.Query().Get("name"): list})
}

// seen is what the feed yielded: "web: SOURCES *: SOURCES", or the word error or denied.
type seen struct {
	mu   sync.Mutex
	list []string
}

func (s *seen) want(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if fmt.Sprint(s.list) != fmt.Sprint(want) {
		t.Errorf("the feed yielded %q, want %q", s.list, want)
	}
	s.list = nil
}

func see(t *testing.T, feed *consul.Intentions) (s *seen, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s = &seen{}
	var watching sync.WaitGroup
	watching.Go(func() {
		for sources, err := range feed.Watch(ctx) {
			text := "error"
			if err == nil {
				text = shown(t, sources)
			} else if strings.Contains(err.Error(), "denied") {
				text = "denied"
			}
			s.mu.Lock()
			s.list = append(s.list, text)
			s.mu.Unlock()
		}
	})
	return s, func() {
		cancel()
		watching.Wait()
	}
}

func shown(t *testing.T, sources []policy.Source) string {
	var all []string
	for _, s := range sources {
		var entry struct {
			Kind, Name string
			Sources    []struct{ Name string }
		}
		if err := json.Unmarshal(s.Data, &entry); err != nil || s.Name != "config/"+entry.Kind+"/"+entry.Name+".json" {
			t.Errorf("%s: %v: %s", s.Name, err, s.Data)
		}
		text := entry.Name + ":"
		for _, from := range entry.Sources {
			text += " " + from.Name
		}
		all = append(all, text)
	}
	return strings.Join(all, "; ")
}

const named = `{"Name": %q, "Action": "allow"}`

// seeing calls then when a feed has yielded that api may call web.
func seeing(t *testing.T, then func(t *testing.T, m *matcher, s *seen)) {
	synctest.Test(t, func(t *testing.T) {
		m, feed := newMatcher(t)
		m.set("web", fmt.Sprintf(named, "api"))
		s, stop := see(t, feed)
		defer stop()
		s.want(t, "web: api")
		then(t, m, s)
	})
}

func TestIntentions_FollowsThoseOfTheServiceAndOfAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, feed := newMatcher(t)
		m.set("db", fmt.Sprintf(named, "x")) // of another service
		s, stop := see(t, feed)
		defer stop()
		s.want(t, "web:") // nobody is named
		m.set("web", fmt.Sprintf(named, "api"))
		time.Sleep(2 * time.Second)
		m.set("*", fmt.Sprintf(named, "*"))
		time.Sleep(2 * time.Second)
		m.set("web", "")
		time.Sleep(2 * time.Second)
		s.want(t, "web: api", "web: api; *: *", "web:; *: *")
		time.Sleep(10 * time.Minute)
		s.want(t)
		if m.reads > 80 { // over plain HTTP a query waits for ten seconds
			t.Errorf("%d reads", m.reads)
		}
	})
}

func TestIntentions_DenialsAndFailuresEmptyNothing(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*matcher)
		want   []string
	}{
		"denied":   {func(m *matcher) { m.status = http.StatusForbidden }, []string{"denied"}},
		"failing":  {func(m *matcher) { m.status = http.StatusInternalServerError }, []string{"error"}},
		"too busy": {func(m *matcher) { m.status = http.StatusTooManyRequests }, []string{"error"}},
		"reborn":   {func(m *matcher) { m.Index = 3; m.entries = map[string]string{} }, []string{"error"}},
	} {
		t.Run(name, func(t *testing.T) {
			seeing(t, func(t *testing.T, m *matcher, s *seen) {
				m.Change(func() { tt.change(m) })
				time.Sleep(50 * time.Second)
				s.want(t, tt.want...)
				m.Change(func() { m.status = 0 })
				m.set("web", fmt.Sprintf(named, "other"))
				time.Sleep(time.Minute)
				s.want(t, "web: other")
			})
		})
	}
}

func TestIntentions_EntriesOfAServerThatLagsBehind(t *testing.T) {
	seeing(t, func(t *testing.T, m *matcher, s *seen) {
		m.Change(func() { m.lags = 2 })
		m.set("web", fmt.Sprintf(named, "other"))
		time.Sleep(10 * time.Second)
		s.want(t, "error", "web: other")
	})
}

// A server that is cut off from the others does not bring back what was revoked, whoever is asked next.
func TestIntentions_OfAServerThatIsCutOff(t *testing.T) {
	seeing(t, func(t *testing.T, m *matcher, s *seen) {
		m.set("web", fmt.Sprintf(named, "other"))
		time.Sleep(2 * time.Second)
		s.want(t, "web: other")
		m.Change(func() { m.behind = map[string]string{"web": fmt.Sprintf(named, "api")} })
		time.Sleep(10 * time.Minute)
		s.want(t)
		m.set("web", fmt.Sprintf(named, "third"))
		time.Sleep(time.Minute)
		s.want(t, "web: third")
	})
}

// A server that has lost its state and was filled again may have other intentions, although they were changed last at the same index.
func TestIntentions_OfAServerThatWasFilledAgain(t *testing.T) {
	seeing(t, func(t *testing.T, m *matcher, s *seen) {
		m.Change(func() { m.Index = 100 })
		time.Sleep(2 * time.Second)
		m.Change(func() { m.Index, m.entries["web"] = 20, fmt.Sprintf(named, "other") })
		time.Sleep(2 * time.Minute)
		s.want(t, "web: other")
	})
}

func TestIntentions_OfAServiceThatCannotBe(t *testing.T) {
	for _, name := range []string{"", "a/b", "*"} {
		for sources, err := range (&consul.Intentions{Service: name}).Watch(t.Context()) {
			if err == nil || !strings.Contains(err.Error(), "Intentions.Service") {
				t.Errorf("%q: %v, %v", name, sources, err)
			}
		}
	}
}
