package servers

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// KubernetesConfig says how an API server runs. The zero value is one with RBAC.
type KubernetesConfig struct {
	Extra []string // more flags of kube-apiserver
}

// Kubernetes is an API server with its etcd. No controllers run: whoever wants EndpointSlices writes them.
type Kubernetes struct {
	URL    string // https://127.0.0.1:PORT
	CACert string // the file that verifies the server
	Token  string // of an administrator, who is exempt from the limits of the server

	dir      string
	client   *http.Client
	etcdArgs []string
	args     []string
	etcd     process
	process  // the API server

	mu      sync.Mutex
	plurals map[string]plural // by apiVersion and kind
}

type plural struct {
	Name, Kind string
	Namespaced bool
}

// StartKubernetes starts an API server and waits until it is ready. Both programs are built if this machine has not built them before.
func StartKubernetes(t testing.TB, cfg KubernetesConfig) *Kubernetes {
	t.Helper()
	etcd, server, err := kubernetesPaths()
	if err != nil {
		t.Fatal(err)
	}
	dir, at := t.TempDir(), free(t, 3)
	_, port, _ := net.SplitHostPort(at[2])
	k := &Kubernetes{URL: "https://" + at[2], Token: "administrator", dir: dir, CACert: filepath.Join(dir, "certs", "apiserver.crt"),
		plurals: make(map[string]plural)}
	in := func(name string) string { return filepath.Join(dir, name) }
	k.etcdArgs = []string{etcd, "--name=one", "--data-dir=" + in("etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls=http://" + at[0], "--advertise-client-urls=http://" + at[0],
		"--listen-peer-urls=http://" + at[1], "--initial-advertise-peer-urls=http://" + at[1], "--initial-cluster=one=http://" + at[1]}
	k.args = append([]string{server, "--etcd-servers=http://" + at[0], "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1",
		"--secure-port=" + port, "--cert-dir=" + in("certs"), "--service-cluster-ip-range=10.96.0.0/16",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + in("sa.key"), "--service-account-signing-key-file=" + in("sa.key"),
		"--token-auth-file=" + in("tokens.csv"), "--authorization-mode=RBAC",
		"--disable-admission-plugins=ServiceAccount", // no controller makes the accounts that it wants
		"--endpoint-reconciler-type=none", "--audit-policy-file=" + in("audit.yaml"), "--audit-log-path=" + in("audit.log")}, cfg.Extra...)
	k.write(t, "tokens.csv", []byte(k.Token+",admin,admin,system:masters\n"))
	k.write(t, "audit.yaml", []byte(auditPolicy))
	k.write(t, "sa.key", serviceAccountKey(t))
	t.Cleanup(func() {
		k.Kill()
		k.KillEtcd()
		if t.Failed() {
			t.Logf("etcd said:\n%s\nkube-apiserver said:\n%s", tail(k.etcd.output.String()), tail(k.output.String()))
		}
	})
	k.RestartEtcd(t)
	k.Restart(t)
	return k
}

// auditPolicy has the server write down what everybody but the administrator and the server itself asks for.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [ResponseStarted, ResponseComplete, Panic]
rules:
- {level: None, users: [admin, "system:apiserver", "system:anonymous"]}
- {level: Metadata}
`

var kubernetesPaths = func() func() (etcd, server string, err error) {
	var etcd, server string
	once := sync.OnceValue(func() (err error) {
		_, file, _, _ := runtime.Caller(0)
		module := filepath.Join(filepath.Dir(file), "..", "kubernetes")
		if etcd, err = build(module, "go.etcd.io/etcd/server/v3", "etcd"); err == nil {
			server, err = build(module, "k8s.io/kubernetes/cmd/kube-apiserver", "kube-apiserver")
		}
		return err
	})
	return func() (string, string, error) { err := once(); return etcd, server, err }
}()

func serviceAccountKey(t testing.TB) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
}

func (k *Kubernetes) write(t testing.TB, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(k.dir, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// tail returns the end of what a program said.
func tail(output string) string { return output[max(0, len(output)-8<<10):] }

// Restart starts the API server after Kill or Stop, on its address and with its data, and waits until it is ready.
func (k *Kubernetes) Restart(t testing.TB) {
	t.Helper()
	if err := k.launch(exec.Command(k.args[0], k.args[1:]...)); err != nil {
		t.Fatal(err)
	}
	k.awaitThat(t, &k.process, "kube-apiserver", func(ctx context.Context) error {
		if k.client == nil {
			// The server writes its certificate when it first starts.
			data, err := os.ReadFile(k.CACert)
			pool := x509.NewCertPool()
			if err != nil || !pool.AppendCertsFromPEM(data) {
				return fmt.Errorf("no certificate: %w", err)
			}
			k.client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
				TLSClientConfig: &tls.Config{RootCAs: pool}}}
		}
		for _, path := range []string{"/readyz", "/api/v1/namespaces/default"} {
			if status, data, err := k.Do(ctx, http.MethodGet, path, "", nil); err != nil || status != http.StatusOK {
				return fmt.Errorf("%s: %d: %s: %w", path, status, data, err)
			}
		}
		return nil
	})
}

// Kill ends the API server at once, as a crash does. A server that does not run stays so.
func (k *Kubernetes) Kill() { k.process.stop(syscall.SIGKILL) }

// Stop begins to shut the API server down: it refuses connections at once, and goes on with the watches that it has.
// It returns at once; Kill ends what is left.
func (k *Kubernetes) Stop(t testing.TB) { k.signal(t, syscall.SIGTERM) }

// Suspend has the API server stand still, with its connections open, until Resume.
func (k *Kubernetes) Suspend(t testing.TB) { k.signal(t, syscall.SIGSTOP) }

// Resume ends Suspend.
func (k *Kubernetes) Resume(t testing.TB) { k.signal(t, syscall.SIGCONT) }

// KillEtcd ends etcd at once.
func (k *Kubernetes) KillEtcd() { k.etcd.stop(syscall.SIGKILL) }

// RestartEtcd starts etcd after KillEtcd, with its data, and waits until it answers.
func (k *Kubernetes) RestartEtcd(t testing.TB) {
	t.Helper()
	if err := k.etcd.launch(exec.Command(k.etcdArgs[0], k.etcdArgs[1:]...)); err != nil {
		t.Fatal(err)
	}
	health := strings.TrimPrefix(k.args[1], "--etcd-servers=") + "/health"
	k.awaitThat(t, &k.etcd, "etcd", func(ctx context.Context) error {
		_, err := get(ctx, health)
		return err
	})
}

// PID returns the process of the API server.
func (k *Kubernetes) PID() int { return k.cmd.Process.Pid }

func (k *Kubernetes) signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	if err := k.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

func (k *Kubernetes) awaitThat(t testing.TB, p *process, name string, ready func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready(ctx)
		if err == nil {
			return
		}
		select {
		case <-p.exited:
			t.Fatalf("%s: %v: it said:\n%s", name, errExited, tail(p.output.String()))
		case <-ctx.Done():
			t.Fatalf("%s is not ready: %v; it said:\n%s", name, err, tail(p.output.String()))
		case <-tick.C:
		}
	}
}

// Do asks the API server for something, as the administrator. contentType is that of body; "" means JSON.
func (k *Kubernetes) Do(ctx context.Context, method, path, contentType string, body []byte) (status int, answer []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, method, k.URL+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+k.Token)
	if body != nil {
		if contentType == "" {
			contentType = "application/json"
		}
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := k.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	return resp.StatusCode, answer, err
}

// must is Do, which must succeed.
func (k *Kubernetes) must(t testing.TB, method, path, contentType string, body []byte) []byte {
	t.Helper()
	status, answer, err := k.Do(context.Background(), method, path, contentType, body)
	if err != nil || status >= 300 {
		t.Fatalf("%s %s: %d: %s: %v", method, path, status, answer, err)
	}
	return answer
}

// head is what every object has.
type head struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string
	Metadata   struct{ Namespace, Name string }
}

// Apply creates or changes objects, which are YAML or JSON, several in one text with --- between them. It is server-side apply without
// validation of fields: unknown ones are dropped, with a warning that nobody reads, as for most clients.
func (k *Kubernetes) Apply(t testing.TB, texts ...string) {
	t.Helper()
	for _, text := range texts {
		for document := range strings.SplitSeq("\n"+text, "\n---") {
			var h head
			if err := yaml.Unmarshal([]byte(document), &h); err != nil {
				t.Fatalf("%v in:\n%s", err, document)
			}
			if h.Kind == "" {
				continue // comments
			}
			k.must(t, http.MethodPatch, k.path(t, h)+"?fieldManager=test&force=true&fieldValidation=Ignore", "application/apply-patch+yaml", []byte(document))
		}
	}
}

// Delete deletes an object.
func (k *Kubernetes) Delete(t testing.TB, apiVersion, kind, namespace, name string) {
	t.Helper()
	h := head{APIVersion: apiVersion, Kind: kind}
	h.Metadata.Namespace, h.Metadata.Name = namespace, name
	k.must(t, http.MethodDelete, k.path(t, h), "", nil)
}

// InstallCRDs applies definitions of kinds and waits until the server serves them.
func (k *Kubernetes) InstallCRDs(t testing.TB, text string) {
	t.Helper()
	k.Apply(t, text)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		var list struct {
			Items []struct {
				Metadata struct{ Name string }
				Status   struct {
					Conditions []struct{ Type, Status string }
				}
			}
		}
		if err := json.Unmarshal(k.must(t, http.MethodGet, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", "", nil), &list); err != nil {
			t.Fatal(err)
		}
		missing := ""
		for _, item := range list.Items {
			established := false
			for _, c := range item.Status.Conditions {
				established = established || c.Type == "Established" && c.Status == "True"
			}
			if !established {
				missing = item.Metadata.Name
			}
		}
		if missing == "" {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s is not served", missing)
		case <-tick.C:
		}
	}
}

// path returns the path of an object.
func (k *Kubernetes) path(t testing.TB, h head) string {
	t.Helper()
	base := "/apis/" + h.APIVersion
	if !strings.Contains(h.APIVersion, "/") {
		base = "/api/" + h.APIVersion
	}
	p, ok := k.plural(t, base, h)
	if !ok {
		t.Fatalf("the API server has no %s of %s", h.Kind, h.APIVersion)
	}
	if p.Namespaced {
		if h.Metadata.Namespace == "" {
			h.Metadata.Namespace = "default"
		}
		base += "/namespaces/" + h.Metadata.Namespace
	}
	return base + "/" + p.Name + "/" + h.Metadata.Name
}

func (k *Kubernetes) plural(t testing.TB, base string, h head) (plural, bool) {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	id := h.APIVersion + " " + h.Kind
	if p, ok := k.plurals[id]; ok {
		return p, true
	}
	var list struct{ Resources []plural }
	if err := json.Unmarshal(k.must(t, http.MethodGet, base, "", nil), &list); err != nil {
		t.Fatal(err)
	}
	for _, p := range list.Resources {
		if !strings.Contains(p.Name, "/") {
			k.plurals[h.APIVersion+" "+p.Kind] = p
		}
	}
	p, ok := k.plurals[id]
	return p, ok
}

// ServiceAccount creates a service account, with its namespace, and returns a token of it, which is valid for an hour. It has no rights but
// those of every user: Apply a Role and a RoleBinding, or see Grant.
func (k *Kubernetes) ServiceAccount(t testing.TB, namespace, name string) (token string) {
	t.Helper()
	k.Apply(t, fmt.Sprintf("{apiVersion: v1, kind: Namespace, metadata: {name: %s}}", namespace),
		fmt.Sprintf("{apiVersion: v1, kind: ServiceAccount, metadata: {namespace: %s, name: %s}}", namespace, name))
	answer := k.must(t, http.MethodPost, fmt.Sprintf("/api/v1/namespaces/%s/serviceaccounts/%s/token", namespace, name), "",
		[]byte(`{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","spec":{"expirationSeconds":3600}}`))
	var request struct{ Status struct{ Token string } }
	if err := json.Unmarshal(answer, &request); err != nil || request.Status.Token == "" {
		t.Fatalf("no token in %s: %v", answer, err)
	}
	return request.Status.Token
}

// Grant allows a service account, "namespace/name", to list and watch resources of a namespace, each "plural" or "plural.group".
func (k *Kubernetes) Grant(t testing.TB, account, namespace string, resources ...string) {
	t.Helper()
	from, name, _ := strings.Cut(account, "/")
	var rules []string
	for _, resource := range resources {
		resource, group, _ := strings.Cut(resource, ".")
		rules = append(rules, fmt.Sprintf("{apiGroups: [%q], resources: [%q], verbs: [list, watch]}", group, resource))
	}
	k.Apply(t, fmt.Sprintf(`{apiVersion: v1, kind: Namespace, metadata: {name: %[1]s}}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {namespace: %[1]s, name: %[2]s-%[3]s}, rules: [%[4]s]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {namespace: %[1]s, name: %[2]s-%[3]s},
 roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: %[2]s-%[3]s},
 subjects: [{kind: ServiceAccount, namespace: %[2]s, name: %[3]s}]}
`, namespace, from, name, strings.Join(rules, ", ")))
}

// Kubeconfig writes a file with which a client is the owner of the token, in a namespace, and returns its path.
func (k *Kubernetes) Kubeconfig(t testing.TB, token, namespace string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: test
clusters: [{name: test, cluster: {server: %q, certificate-authority: %q}}]
users: [{name: test, user: {token: %q}}]
contexts: [{name: test, context: {cluster: test, user: test, namespace: %q}}]
`, k.URL, k.CACert, token, namespace)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// KubernetesRequest is something that somebody asked the API server for.
type KubernetesRequest struct {
	User string // system:serviceaccount:NAMESPACE:NAME
	Verb string // get, list, watch ...
	URI  string `json:"requestURI"`
}

// Requests returns what a user asked for, in order.
func (k *Kubernetes) Requests(t testing.TB, user string) []KubernetesRequest {
	t.Helper()
	f, err := os.Open(filepath.Join(k.dir, "audit.log"))
	if errors.Is(err, os.ErrNotExist) {
		return nil // nobody has asked for anything
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []KubernetesRequest
	for lines := bufio.NewReader(f); ; {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return all // the last line may not be whole yet
		}
		var entry struct {
			KubernetesRequest
			User struct{ Username string }
		}
		if err := json.Unmarshal(line, &entry); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		if entry.User.Username == user {
			entry.KubernetesRequest.User = user
			all = append(all, entry.KubernetesRequest)
		}
	}
}
