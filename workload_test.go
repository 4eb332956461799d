package mesh_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/tlsid"
)

const denyAllInShop = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-all, namespace: shop}
spec: {}
`

// TestWorkloadIsInTheNamespaceOfItsIdentity: a process that says nothing of its namespace is where its identity is.
func TestWorkloadIsInTheNamespaceOfItsIdentity(t *testing.T) {
	t.Setenv("POD_NAMESPACE", "")
	w := newTown(t)
	m := newMesh(t, denyAllInShop, mesh.WithIdentity(w.Source("shop", "web")))
	if got := inboundStatus(t, m); got != http.StatusForbidden {
		t.Errorf("a request is answered %d, want 403: the policy of the namespace shop", got)
	}
}

// TestIdentityOfAnotherNamespace: the documents about one namespace would be enforced for the identity of another.
func TestIdentityOfAnotherNamespace(t *testing.T) {
	w := newTown(t)
	_, err := mesh.New(t.Context(), mesh.WithIdentity(w.Source("shop", "web")), mesh.WithWorkload(policy.Workload{Namespace: "default"}))
	if err == nil || !strings.Contains(err.Error(), "is of the namespace shop, and the workload is of default: correct Namespace in WithWorkload") {
		t.Errorf("New = %v, want an error that names the namespaces and the remedy", err)
	}
}

// TestIdentityOfAnotherNamespaceIsRefused: neither a late identity nor a later one may be of another namespace.
func TestIdentityOfAnotherNamespaceIsRefused(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	identity := func(namespace string) *tlsid.Identity {
		id, err := w.Identity(namespace, "web")
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	const why = "is of the namespace shop, and the workload is of default"
	for _, late := range []bool{true, false} {
		t.Run(fmt.Sprintf("late %v", late), func(t *testing.T) {
			told := make(chan error, 10)
			observer := mesh.WithObserver(mesh.Observer{Identity: func(_ *tlsid.Identity, err error) { told <- err }})
			source, with := make(lateSource, 1), mesh.WithLateIdentity
			if !late {
				with = mesh.WithIdentity
				source <- identity("default")
			}
			m := newMesh(t, "", with(source), observer)
			if !late {
				next(t, told) // that the first is there
			}
			source <- identity("shop")
			if err := next(t, told); err == nil || !strings.Contains(err.Error(), why) {
				t.Errorf("the observers are told %v", err)
			}
			if _, err := m.Identity(); late && !errors.Is(err, tlsid.ErrNoIdentity) || !late && err != nil {
				t.Errorf("Identity() = %v, want what it was", err)
			}
		})
	}
}

// TestSecurityDocumentWithoutNamespace: it is about default, so a workload elsewhere does not start with it, nor take it.
func TestSecurityDocumentWithoutNamespace(t *testing.T) {
	unplaced := strings.Replace(denyAll, ", namespace: default", "", 1)
	shop := mesh.WithWorkload(policy.Workload{Namespace: "shop"})
	_, err := mesh.New(t.Context(), mesh.WithPolicy(yaml(unplaced)...), shop)
	if err == nil || !strings.Contains(err.Error(), "metadata.namespace: error: missing") {
		t.Errorf("New = %v, want an error about the namespace", err)
	}
	m := newMesh(t, denyAllInShop, shop)
	if err := m.Apply(yaml(unplaced)...); err == nil || !strings.Contains(err.Error(), "metadata.namespace: error: missing") {
		t.Errorf("Apply = %v, want an error about the namespace", err)
	}
	if got := inboundStatus(t, m); got != http.StatusForbidden {
		t.Errorf("a request is answered %d, want 403: the documents that were in force", got)
	}
}

// TestNoSecurityDocumentApplies: a process is warned if the documents know it under another name.
func TestNoSecurityDocumentApplies(t *testing.T) {
	loads := make(chan mesh.PolicyLoad, 1)
	newMesh(t, denyAllInShop, mesh.WithWorkload(policy.Workload{Namespace: "shopp", Labels: map[string]string{"app": "web"}}),
		mesh.WithObserver(mesh.Observer{PolicyLoad: func(p mesh.PolicyLoad) { loads <- p }}))
	const want = "neither this security document nor any other is about this workload, in the namespace shopp with the labels app=web"
	if load := next(t, loads); !strings.Contains(load.Findings.Error(), want) {
		t.Errorf("findings %v, want %q", load.Findings, want)
	}
}
