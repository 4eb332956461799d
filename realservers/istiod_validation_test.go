package realservers

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/realservers/servers"
)

// stricter are the errors that only mesh check reports, which docs/kubernetes.md lists.
var stricter = []string{
	"selecting pods and WorkloadEntries needs an API server and is not enforced",
	"only one star is special, at the beginning or at the end",
	"is empty: name a source or remove it",
	"is empty: name an operation or remove it",
}

// TestIstiod_RefusesWhatMeshCheckRefuses applies a hundred sets of documents to a real API server, and has istiod validate what it
// stores, as its webhook does. Each document must have the verdict of mesh check, unless the difference is listed.
func TestIstiod_RefusesWhatMeshCheckRefuses(t *testing.T) {
	leak.Check(t)
	cluster := servers.StartKubernetes(t, servers.KubernetesConfig{})
	cluster.InstallCRDs(t, string(servers.IstioCRDs(t)))
	cluster.Apply(t, "{apiVersion: v1, kind: Namespace, metadata: {name: istio-system}}")
	istiod := servers.StartIstiod(t, cluster.Kubeconfig(t, cluster.Token, "istio-system"))
	create := creator(t, cluster)

	counts := map[string]int{}
	unseen := slices.Clone(stricter)
	for set := range 100 {
		namespace := fmt.Sprintf("set-%d", set)
		cluster.Apply(t, "{apiVersion: v1, kind: Namespace, metadata: {name: "+namespace+"}}")
		g := maker{rand.New(rand.NewPCG(1, uint64(set)))}
		var written, stored []policy.Source
		var theirs []string
		for i := range 8 {
			kind := istioKinds[g.IntN(len(istioKinds))]
			name := fmt.Sprintf("d%d", i)
			document, err := json.Marshal(object{"apiVersion": kind.api, "kind": kind.kind, "metadata": object{"name": name, "namespace": namespace}, "spec": kind.spec(g)})
			if err != nil {
				t.Fatal(err)
			}
			written = append(written, policy.Source{Name: name, Data: document})
			answer, reason := create("/apis/"+kind.api+"/namespaces/"+namespace+"/"+kind.plural, document)
			if reason == "" {
				stored = append(stored, policy.Source{Name: name, Data: answer})
				reason = istiod.Validate(t, answer)
			}
			theirs = append(theirs, reason)
		}
		workload := policy.Workload{Namespace: namespace}
		ours := errorsByFile(policy.Check(written, workload))
		asStored := errorsByFile(policy.Check(stored, workload))
		for i, source := range written {
			mine := ours[source.Name]
			switch {
			case len(mine) == 0 && theirs[i] == "":
				counts["both accept"]++
			case len(mine) > 0 && theirs[i] != "":
				counts["both refuse"]++
			case len(mine) == 0:
				t.Errorf("only Istio refuses:\n%s\n%s", source.Data, theirs[i])
			case !slices.ContainsFunc(mine, func(message string) bool { return !listed(message, &unseen) }):
				counts["only mesh check refuses"]++
			default:
				t.Errorf("only mesh check refuses:\n%s\n%s", source.Data, strings.Join(mine, "\n"))
			}
			if slices.ContainsFunc(stored, func(s policy.Source) bool { return s.Name == source.Name }) && len(asStored[source.Name]) == 0 != (len(mine) == 0) {
				t.Errorf("as it was written, mesh check says %q, and as it is stored, %q:\n%s", mine, asStored[source.Name], source.Data)
			}
		}
	}
	t.Log(counts)
	if counts["both accept"] < 300 || counts["both refuse"] < 150 {
		t.Errorf("the documents are too much alike: %v", counts)
	}
	for _, message := range unseen {
		t.Errorf("no document is refused since it %q: take it off the list", message)
	}
}

// listed reports whether a difference is listed, and takes it off those that were not seen.
func listed(message string, unseen *[]string) bool {
	for _, known := range stricter {
		if strings.Contains(message, known) {
			*unseen = slices.DeleteFunc(*unseen, func(s string) bool { return s == known })
			return true
		}
	}
	return false
}

func errorsByFile(report policy.Report) map[string][]string {
	all := make(map[string][]string)
	for _, f := range report.Findings {
		if f.Severity == policy.Error {
			all[f.File] = append(all[f.File], f.Field+": "+f.Message)
		}
	}
	return all
}

// creator returns a function that creates an object as kubectl does, and returns it as it is stored, or why it is refused.
func creator(t *testing.T, cluster *servers.Kubernetes) func(path string, data []byte) (stored []byte, refused string) {
	t.Helper()
	ca, err := os.ReadFile(cluster.CACert)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	t.Cleanup(client.CloseIdleConnections)
	return func(path string, data []byte) ([]byte, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, cluster.URL+path+"?fieldValidation=Strict", bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer "+cluster.Token)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		answer, err := io.ReadAll(resp.Body)
		switch {
		case err != nil:
			t.Fatal(err)
		case resp.StatusCode == http.StatusCreated:
			return answer, ""
		case resp.StatusCode != http.StatusUnprocessableEntity && resp.StatusCode != http.StatusBadRequest:
			t.Fatalf("%s: %s: %s", path, resp.Status, answer)
		}
		return nil, string(answer)
	}
}
