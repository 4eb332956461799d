package kubernetes

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	cluster "github.com/nosidecar/mesh/discovery/kubernetes"
	kube "github.com/nosidecar/mesh/internal/kubernetes"
	"github.com/nosidecar/mesh/internal/kubernetes/kubetest"
	"github.com/nosidecar/mesh/policy"
	documents "github.com/nosidecar/mesh/policy/kubernetes"
)

// written is the Events that a server was sent.
type written struct {
	mu   sync.Mutex
	all  []event
	when []time.Time
}

func (w *written) intercept(rw http.ResponseWriter, r *http.Request) bool {
	if r.Method != http.MethodPost {
		return false
	}
	var e event
	if err := json.NewDecoder(r.Body).Decode(&e); err != nil || r.URL.Path != "/api/v1/namespaces/shop/events" {
		kubetest.Fail(rw, http.StatusBadRequest, "BadRequest", "what is it?")
		return true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all, w.when = append(w.all, e), append(w.when, time.Now())
	kubetest.Fail(rw, http.StatusConflict, "AlreadyExists", "it is there already") // as from another process
	return true
}

// take returns the Events since the last time.
func (w *written) take() (all []event) {
	time.Sleep(time.Minute)
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	all, w.all = w.all, nil
	return all
}

// One Event per generation of a document that is refused, and no more than one a second.
func TestEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := kubetest.New(
			kube.Resource{Group: "networking.istio.io", Version: "v1", Plural: "virtualservices", Kind: "VirtualService"},
			kube.Resource{Version: "v1", Plural: "services", Kind: "Service"})
		server.Namespace = "shop"
		w := &written{}
		server.Intercept(w.intercept)
		apply := func(name, host, generation string) {
			server.Apply(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ` + name + `, namespace: shop, uid: ` + name + `-uid, generation: ` + generation + `}
spec: {hosts: ["` + host + `"], http: [{directResponse: {status: 200}}]}
`)
		}
		apply("good", "good", "1")
		apply("bad", "bad:80", "1")
		apply("worse", "worse:80", "1")
		client := server.Memory(t)
		e := newEvents(&documents.Feed{Client: (*cluster.Client)(client)}, client)
		m, err := mesh.New(t.Context(), mesh.WithPolicyFeed(e), mesh.WithObserver(mesh.Observer{PolicyLoad: e.loaded}), mesh.WithEmptyPolicy(),
			mesh.WithDiscovery(&discovery.Memory{}), mesh.WithWorkload(policy.Workload{Namespace: "shop"}))
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		all := w.take()
		if len(all) != 2 {
			t.Fatalf("%d Events, want 2: %v", len(all), all)
		}
		for _, ev := range all {
			if o := ev.InvolvedObject; o.Namespace != "shop" || o.Kind != "VirtualService" || o.APIVersion != "networking.istio.io/v1" || o.UID != o.Name+"-uid" ||
				ev.Reason != "Refused" || ev.Type != "Warning" || !strings.Contains(ev.Message, "spec.hosts[0]: ") {
				t.Errorf("an Event is %+v", ev)
			}
		}
		if apart := w.when[1].Sub(w.when[0]); apart < time.Second {
			t.Errorf("two Events within %v", apart)
		}
		first := all[0].Metadata.Name
		apply("good", "better", "2") // the others are refused as before
		if all := w.take(); len(all) != 0 {
			t.Errorf("Events about a generation that has one: %v", all)
		}
		apply(all[0].InvolvedObject.Name, "other:80", "2")
		if again := w.take(); len(again) != 1 || again[0].Metadata.Name == first {
			t.Errorf("Events about another generation: %v, want one of another name", again)
		}
		apply("bad", "bad", "3")
		apply("worse", "worse", "3")
		if all := w.take(); len(all) != 0 {
			t.Errorf("Events about documents that are good: %v", all)
		}
	})
}

// A pod whose labels are unknown would not be protected by policies with a selector.
func TestLabelled(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "labels")
	t.Setenv("ISTIO_METAJSON_LABELS", "")
	if err := labelled(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("without labels: %v, want an error that names the file", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := labelled(path); err != nil {
		t.Errorf("a pod that has no labels: %v", err)
	}
	t.Setenv("ISTIO_METAJSON_LABELS", `{"app":"web"}`)
	if err := labelled(filepath.Join(dir, "other")); err != nil {
		t.Errorf("with labels in the environment: %v", err)
	}
}
