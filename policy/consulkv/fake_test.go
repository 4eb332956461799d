package consulkv_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/internal/consul/kvtest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/memnet"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/consulkv"
)

func TestMain(m *testing.M) { os.Exit(leak.Run(m)) }

// fake is an agent on a network in memory.
type fake struct {
	*kvtest.Server
	network memnet.Network
}

func newFake(t *testing.T) *fake {
	f := &fake{Server: kvtest.New()}
	f.network.Serve(t, "agent:8500", f)
	return f
}

func (f *fake) client(t *testing.T, token string) *api.Client {
	transport := &http.Transport{DialContext: f.network.DialContext}
	t.Cleanup(transport.CloseIdleConnections)
	client, err := api.NewClient(&api.Config{Address: "agent:8500", Token: token, Transport: transport})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func (f *fake) store(t *testing.T) *consulkv.Store {
	return &consulkv.Store{Prefix: "mesh/shop", Client: f.client(t, "")}
}

// folder returns where the files of the version in force are.
func folder(keys kvtest.Keys) string {
	var p struct{ Version string }
	json.Unmarshal(keys.All["mesh/shop/current"].Value, &p)
	return "mesh/shop/v/" + p.Version + "/"
}

// files makes sources: a name, its content, and so on.
func files(pairs ...string) (sources []policy.Source) {
	for i := 0; i < len(pairs); i += 2 {
		sources = append(sources, policy.Source{Name: pairs[i], Data: []byte(pairs[i+1])})
	}
	return sources
}

func push(t *testing.T, s *consulkv.Store, pairs ...string) {
	t.Helper()
	if changed, err := s.Push(t.Context(), files(pairs...)); err != nil || !changed {
		t.Fatalf("Push = %v, %v", changed, err)
	}
}

func show(sources []policy.Source) string {
	var b strings.Builder
	for _, source := range sources {
		fmt.Fprintf(&b, "%s=%s ", source.Name, source.Data)
	}
	return strings.TrimSpace(b.String())
}

// follower writes down what a store yields.
type follower struct {
	mu   sync.Mutex
	list []string
}

// follow starts a watch in a bubble, until stop is called or the test ends.
func follow(t *testing.T, s *consulkv.Store) (f *follower, stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	f = &follower{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for sources, err := range s.Watch(ctx) {
			text := show(sources)
			if err != nil {
				text = "error: " + err.Error()
			}
			f.mu.Lock()
			f.list = append(f.list, text)
			f.mu.Unlock()
		}
	}()
	return f, func() {
		cancel()
		<-done
	}
}

// want compares what was yielded since the last call, after so long. What is wanted of an error is in it, "|" between its parts.
func (f *follower) want(t *testing.T, after time.Duration, want ...string) {
	t.Helper()
	time.Sleep(after)
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.EqualFunc(f.list, want, alike) {
		t.Errorf("yielded %q, want %q", f.list, want)
	}
	f.list = nil
}

// wantLast compares what was yielded last. Whatever came before it were errors.
func (f *follower) wantLast(t *testing.T, want string) {
	t.Helper()
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, got := range f.list {
		if last := i == len(f.list)-1; last && !alike(got, want) || !last && !alike(got, "error: ") {
			t.Errorf("yielded %q, want errors and %q", f.list, want)
		}
	}
	if len(f.list) == 0 || len(f.list) > 3 {
		t.Errorf("yielded %q, want %q", f.list, want)
	}
	f.list = nil
}

// alike compares something that was yielded with what is wanted of it.
func alike(got, want string) bool {
	wanted, isError := strings.CutPrefix(want, "error: ")
	if !isError {
		return got == want
	}
	for part := range strings.SplitSeq(wanted, "|") {
		if !strings.HasPrefix(got, "error: ") || !strings.Contains(got, part) {
			return false
		}
	}
	return true
}

// hangUp ends a connection without an answer.
func hangUp(w http.ResponseWriter) bool {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err == nil {
		conn.Close()
	}
	return true
}
