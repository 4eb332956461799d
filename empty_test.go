package mesh_test

import (
	"context"
	"fmt"
	"iter"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/file"
)

const denyAll = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-all, namespace: default}
spec: {}
`

// handFeed yields what it is sent.
type handFeed chan []policy.Source

func (f handFeed) Watch(ctx context.Context) iter.Seq2[[]policy.Source, error] {
	return func(yield func([]policy.Source, error) bool) {
		for {
			select {
			case sources := <-f:
				if !yield(sources, nil) {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}
}

func (f handFeed) String() string { return "the hand" }

func yaml(text string) []policy.Source {
	return []policy.Source{{Name: "test.yaml", Data: []byte(text)}}
}

// withoutDocuments are sets that hold none.
var withoutDocuments = map[string][]policy.Source{
	"no source":         {},
	"truncated":         yaml(""),
	"commented out":     yaml("# kind: AuthorizationPolicy\n"),
	"separators":        yaml("---\n# nothing\n---\n...\n"),
	"List without item": yaml("apiVersion: v1\nkind: List\nitems: []\n"),
}

// TestNoDocuments_New: a folder or feed that holds nothing is a mistake unless the program says that it is meant.
func TestNoDocuments_New(t *testing.T) {
	try := func(t *testing.T, what string, option func() mesh.Option) {
		t.Helper()
		m, err := mesh.New(t.Context(), option())
		if err == nil {
			m.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "no document in "+what) || !strings.Contains(err.Error(), "WithEmptyPolicy") {
			t.Errorf("New: %v, want that there is no document in %s", err, what)
		}
		m, err = mesh.New(t.Context(), option(), mesh.WithEmptyPolicy())
		if err != nil {
			t.Errorf("New with WithEmptyPolicy: %v", err)
			return
		}
		m.Close()
	}
	for name, sources := range withoutDocuments {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, source := range sources {
				if err := os.WriteFile(filepath.Join(dir, source.Name), source.Data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(dir, "policy.txt"), []byte(denyAll), 0o600); err != nil {
				t.Fatal(err)
			}
			try(t, dir, func() mesh.Option { return mesh.WithPolicyDir(dir) })
			try(t, "the hand", func() mesh.Option {
				feed := make(handFeed, 1)
				feed <- sources
				return mesh.WithPolicyFeed(feed)
			})
			if len(sources) > 0 {
				try(t, "the sources of WithPolicy", func() mesh.Option { return mesh.WithPolicy(sources...) })
			}
		})
	}
	for name, opts := range map[string][]mesh.Option{"no option": nil, "WithPolicy of nothing": {mesh.WithPolicy()}} {
		m, err := mesh.New(t.Context(), opts...)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		m.Close()
	}
}

// TestNoDocuments_Reload: the last good set stays when a feed turns empty, and the observer hears of it.
func TestNoDocuments_Reload(t *testing.T) {
	for name, sources := range withoutDocuments {
		t.Run(name, func(t *testing.T) {
			feed := make(handFeed, 1)
			feed <- yaml(denyAll)
			loads := make(chan error, 4)
			m := newMesh(t, "", mesh.WithPolicyFeed(feed), mesh.WithObserver(mesh.Observer{PolicyLoad: func(p mesh.PolicyLoad) { loads <- p.Err }}))
			if err := next(t, loads); err != nil {
				t.Fatal(err)
			}
			feed <- sources
			if err := next(t, loads); err == nil || !strings.Contains(err.Error(), "no document in the hand") {
				t.Errorf("the load: %v, want an error", err)
			}
			if got := inboundStatus(t, m); got != http.StatusForbidden {
				t.Errorf("a request is answered %d, want 403: the documents that were in force", got)
			}
			if len(sources) > 0 {
				if err := m.Apply(sources...); err == nil || !strings.Contains(err.Error(), "no document in the sources of Apply") {
					t.Errorf("Apply: %v, want an error", err)
				}
			}
			if err := m.Apply(); err != nil {
				t.Errorf("Apply of nothing: %v", err)
			}
		})
	}
}

// TestNoDocuments_Meant: a program that says so gets it.
func TestNoDocuments_Meant(t *testing.T) {
	feed := make(handFeed, 1)
	feed <- yaml(denyAll)
	loads := make(chan error, 4)
	m := newMesh(t, "", mesh.WithEmptyPolicy(), mesh.WithPolicyFeed(feed), mesh.WithObserver(mesh.Observer{PolicyLoad: func(p mesh.PolicyLoad) { loads <- p.Err }}))
	next(t, loads)
	feed <- nil
	if err := next(t, loads); err != nil {
		t.Fatal(err)
	}
	if got := inboundStatus(t, m); got != http.StatusOK {
		t.Errorf("a request is answered %d, want 200", got)
	}
}

// TestNoDocuments_OnePathOfSeveral: the documents of one folder of a feed do not hide that another one has lost its own.
func TestNoDocuments_OnePathOfSeveral(t *testing.T) {
	put := func(folder, text string) string {
		path := filepath.Join(folder, "test.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, alone := range []bool{false, true} {
		routes, policies := t.TempDir(), t.TempDir()
		put(routes, yamlOf("shop"))
		denial := put(policies, denyAll)
		watcher := func() *file.Watcher {
			return &file.Watcher{Paths: []string{routes, policies}, Alone: alone, Debounce: 10 * time.Millisecond}
		}
		loads := make(chan error, 4)
		m := newMesh(t, "", mesh.WithPolicyFeed(watcher()), mesh.WithObserver(mesh.Observer{PolicyLoad: func(p mesh.PolicyLoad) { loads <- p.Err }}))
		if err := next(t, loads); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(denial); err != nil {
			t.Fatal(err)
		}
		if err := next(t, loads); err == nil || !strings.Contains(err.Error(), "no document in "+policies) || !strings.Contains(err.Error(), "WithEmptyPolicy") {
			t.Errorf("the load: %v, want that there is no document in %s", err, policies)
		}
		if got := inboundStatus(t, m); got != http.StatusForbidden {
			t.Errorf("a request is answered %d, want 403: the documents that were in force", got)
		}
		if _, err := mesh.New(t.Context(), mesh.WithPolicyFeed(watcher())); err == nil || !strings.Contains(err.Error(), "no document in "+policies) {
			t.Errorf("New: %v, want that there is no document in %s", err, policies)
		}
		newMesh(t, "", mesh.WithEmptyPolicy(), mesh.WithPolicyFeed(watcher()))
	}
}

// skipped are sets of documents none of which is about a workload app=web of the namespace default.
var skipped = map[string]string{
	"a kind without meaning": "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: edge}\nspec:\n" +
		"  selector: {app: edge}\n  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]\n",
	"a foreign kind":     "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n",
	"routes of gateways": strings.Replace(yamlOf("shop.example"), "spec: {", "spec: {gateways: [edge], ", 1),
	"not exported":       strings.NewReplacer("name: shop", "name: shop, namespace: elsewhere", "spec: {", "spec: {exportTo: [.], ").Replace(yamlOf("shop")),
	"a rule for others": "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: shop}\n" +
		"spec: {host: shop, workloadSelector: {matchLabels: {app: other}}, trafficPolicy: {tls: {mode: DISABLE}}}\n",
	"a policy for others": strings.NewReplacer("deny-all", "deny-others", "spec: {}", "spec: {selector: {matchLabels: {app: other}}}").Replace(denyAll),
	"a List of them":      "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: apps/v1, kind: Deployment, metadata: {name: web}}\n",
}

// TestSkippedDocuments: documents that are all skipped are as good as none, whatever there is elsewhere.
func TestSkippedDocuments(t *testing.T) {
	web := mesh.WithWorkload(policy.Workload{Labels: map[string]string{"app": "web"}})
	for name, text := range skipped {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "test.yaml"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			refused := func(what string, err error, origin string) {
				t.Helper()
				if err == nil || !strings.Contains(err.Error(), "no document in "+origin+" that is about this process") || !strings.Contains(err.Error(), "WithEmptyPolicy") {
					t.Errorf("%s: %v, want that there is no document in %s", what, err, origin)
				}
			}
			fail := func(what, origin string, opts ...mesh.Option) {
				t.Helper()
				m, err := mesh.New(t.Context(), append(opts, web)...)
				if err == nil {
					m.Close()
				}
				refused(what, err, origin)
			}
			fail("New", dir, mesh.WithPolicyDir(dir))
			fail("New beside others", dir, mesh.WithPolicy(yaml(denyAll)...), mesh.WithPolicyDir(dir))
			fail("New", "the sources of WithPolicy", mesh.WithPolicy(yaml(text)...))

			feed := make(handFeed, 1)
			feed <- yaml(denyAll)
			loads := make(chan error, 4)
			m := newMesh(t, "", web, mesh.WithPolicyFeed(feed), mesh.WithObserver(mesh.Observer{PolicyLoad: func(p mesh.PolicyLoad) { loads <- p.Err }}))
			if err := next(t, loads); err != nil {
				t.Fatal(err)
			}
			feed <- yaml(text)
			refused("a feed", next(t, loads), "the hand")
			if got := inboundStatus(t, m); got != http.StatusForbidden {
				t.Errorf("a request is answered %d, want 403: the documents that were in force", got)
			}
			refused("Apply", m.Apply(yaml(text)...), "the sources of Apply")
			if err := m.Apply(yaml(yamlOf("orders"))...); err != nil {
				t.Errorf("Apply of another document: %v", err)
			}

			m = newMesh(t, text, web, mesh.WithEmptyPolicy())
			if d := m.Status().Documents; d.Count != 0 {
				t.Errorf("%d documents are in force, want none", d.Count)
			}
		})
	}
}

// inboundStatus sends a request to the handler of m.
func inboundStatus(t *testing.T, m *mesh.Mesh) int {
	t.Helper()
	e := serveMesh(t, m, func(http.ResponseWriter, *http.Request) {})
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(fmt.Sprintf("http://%s:%d/", e.Address, e.Port))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// next waits for what an observer is told.
func next[T any](t *testing.T, from <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-from:
	case <-time.After(time.Minute):
		t.Fatal("the observer was not told")
	}
	return v
}
