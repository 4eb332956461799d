package kubernetes_test

import (
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/kubernetes"
	"github.com/nosidecar/mesh/internal/kubernetes/kubetest"
)

func TestErrorsOfRequests(t *testing.T) {
	status := func(code int, reason string) answer {
		return raw(code, "application/json", string(kubetest.Status(code, reason, "the message")))
	}
	for _, test := range []struct {
		name      string
		answer    answer
		is        error
		code      int
		reason    string
		message   string
		temporary bool
		after     time.Duration
	}{
		{"denied", status(403, "Forbidden"), kubernetes.ErrDenied, 403, "Forbidden", "the message", false, 0},
		{"unauthorized", status(401, "Unauthorized"), kubernetes.ErrUnauthorized, 401, "Unauthorized", "the message", true, 0},
		{"not found", status(404, "NotFound"), kubernetes.ErrNotFound, 404, "NotFound", "the message", false, 0},
		{"not installed", raw(404, "text/plain; charset=utf-8", "404 page not found\n"), kubernetes.ErrNotFound, 404, "", "404 page not found", false, 0},
		{"expired", status(410, "Expired"), kubernetes.ErrExpired, 410, "Expired", "the message", true, 0},
		{"gone, by the reason alone", status(500, "Gone"), kubernetes.ErrExpired, 410, "Gone", "the message", true, 0},
		{"a version of the future", raw(504, "application/json", `{"kind":"Status","code":504,"reason":"Timeout","message":"Too large resource version",
			"details":{"causes":[{"reason":"ResourceVersionTooLarge","message":"Too large resource version"}],"retryAfterSeconds":1}}`), nil, 504, "ResourceVersionTooLarge", "Too large resource version", true, time.Second},
		{"busy, in plain text", raw(429, "text/plain", "Too many requests, please try again later.", "Retry-After", "1"), nil, 429, "", "Too many requests, please try again later.", true, time.Second},
		{"invalid", status(422, "Invalid"), nil, 422, "Invalid", "the message", false, 0},
		{"bad", status(400, "BadRequest"), nil, 400, "BadRequest", "the message", false, 0},
		{"a Status that says something else than HTTP", raw(403, "application/json", `{"kind":"Status","code":200}`), kubernetes.ErrDenied, 403, "", "", false, 0},
		{"an error in HTML", raw(502, "text/html", "<html>\n<b>bad\x00 gateway"), nil, 502, "", "<html> <b>bad gateway", true, 0},
		{"an error that directs a terminal", raw(502, "text/plain", "a\u009b2Jb\u202ec\u2028d"), nil, 502, "", "a 2Jb c d", true, 0},
		{"HTML", raw(200, "text/html", "<html>"), nil, 0, "", "text/html: <html>", true, 0},
		{"without a type", raw(200, "", "{}"), nil, 0, "", "text/plain; charset=utf-8: {}", true, 0},
		{"garbage", raw(200, "application/json", "{"), nil, 0, "", "", true, 0},
		{"a redirection", raw(307, "text/plain", "", "Location", "http://elsewhere.example/"), nil, 307, "", "", true, 0},
		{"a long message", raw(500, "text/plain", strings.Repeat("x", 1<<20)), nil, 500, "", strings.Repeat("x", 1024) + "...", true, 0},
		{"a long answer", raw(200, "application/json", `"`+strings.Repeat("x", 5<<20)+`"`), nil, 0, "", "", true, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := kubetest.New(things)
			if test.name == "without a type" {
				test.answer = func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("{}")) }
			}
			play(s, test.answer)
			var into any
			err := s.Memory(t).Do(t.Context(), "GET", "/apis/example.com/v1", nil, &into)
			e, ok := err.(*kubernetes.Error)
			if !ok {
				t.Fatalf("got %T %v", err, err)
			}
			if e.Code != test.code || e.Reason != test.reason || e.Message != test.message || e.Temporary() != test.temporary || e.RetryAfter != test.after {
				t.Errorf("got %d %q %q, temporary %v, after %v: %v", e.Code, e.Reason, e.Message, e.Temporary(), e.RetryAfter, err)
			}
			for _, sentinel := range []error{kubernetes.ErrDenied, kubernetes.ErrUnauthorized, kubernetes.ErrNotFound, kubernetes.ErrExpired} {
				if errors.Is(err, sentinel) != (sentinel == test.is) {
					t.Errorf("errors.Is(%v, %v) = %v", err, sentinel, sentinel != test.is)
				}
			}
		})
	}
}

// TestTokensAreNotInErrors: a server that repeats a request does not get its token into the log.
func TestTokensAreNotInErrors(t *testing.T) {
	const token = "header.payload.signature"
	for _, status := range []int{200, 403} {
		s := kubetest.New(things)
		s.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Type", "text/plain")
			w.WriteHeader(status)
			fmt.Fprintf(w, "%s%s", strings.Repeat("x", 1000), r.Header.Get("Authorization"))
			return true
		})
		c, err := kubernetes.New(kubernetes.Config{Server: "http://localhost", Token: token, Transport: s.Transport(t)})
		if err != nil {
			t.Fatal(err)
		}
		err = c.Do(t.Context(), "GET", "/apis/example.com/v1", nil, nil)
		if err == nil || !strings.Contains(err.Error(), "xBearer TOKEN") || strings.Contains(err.Error(), "head") {
			t.Errorf("%d: got %v, want an error without the token", status, err)
		}
	}
}

func TestARequestEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := kubetest.New(things)
		play(s, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		began := time.Now()
		err := s.Memory(t).Do(t.Context(), "GET", "/version", nil, nil)
		if err == nil || !strings.Contains(err.Error(), "no answer within 30s") || time.Since(began) != 30*time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
}

func TestABodyIsSent(t *testing.T) {
	s := kubetest.New(kubernetes.Resource{Version: "v1", Plural: "events", Kind: "Event"})
	s.Token = "secret"
	event := map[string]any{"apiVersion": "v1", "kind": "Event", "metadata": map[string]any{"namespace": "a", "generateName": "refused."}}
	var made struct{ Metadata struct{ Name string } }
	if err := s.Start(t).Do(t.Context(), "POST", "/api/v1/namespaces/a/events", event, &made); err != nil || !strings.HasPrefix(made.Metadata.Name, "refused.") {
		t.Errorf("got %+v, %v", made, err)
	}
}

// TestATokenThatIsRenewed is read again: at most once a second, and the last one counts while the file is empty or gone.
func TestATokenThatIsRenewed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	write := func(token string) {
		if err := os.WriteFile(path, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		s := kubetest.New(things)
		s.Token = "one"
		write(" one\n")
		c := tokenClient(t, s, kubernetes.Config{TokenFile: path})
		ask := func() error { return c.Do(t.Context(), "GET", "/apis/example.com/v1", nil, nil) }
		if err := ask(); err != nil {
			t.Fatal(err)
		}
		s.SetToken("two")
		write("two\n")
		if err := ask(); !errors.Is(err, kubernetes.ErrUnauthorized) {
			t.Errorf("within a second: %v", err)
		}
		time.Sleep(time.Second)
		if err := ask(); err != nil {
			t.Errorf("a second later: %v", err)
		}
		for _, bad := range []string{"", "  \n", "two lines\nof text"} {
			write(bad)
			time.Sleep(time.Second)
			if err := ask(); err != nil {
				t.Errorf("%q in the file: %v", bad, err)
			}
		}
		os.Remove(path)
		time.Sleep(time.Second)
		if err := ask(); err != nil {
			t.Errorf("without the file: %v", err)
		}
		s.SetToken("three")
		if err := ask(); !errors.Is(err, kubernetes.ErrUnauthorized) || !errors.Is(err, os.ErrNotExist) {
			t.Errorf("with an old token, without the file: %v", err)
		}
	})
}

// TestATokenThatExpiresUnderAWatch is noticed by the next request, which is made with the new one.
func TestATokenThatExpiresUnderAWatch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	os.WriteFile(path, []byte("one"), 0o600)
	synctest.Test(t, func(t *testing.T) {
		s := kubetest.New(things)
		s.Token = "one"
		w := watch(t, tokenClient(t, s, kubernetes.Config{TokenFile: path}))
		w.want(" []")
		s.SetToken("two")
		s.Apply(thing("x", "1"))
		w.want("x=1 [x]") // the open watch goes on
		time.Sleep(time.Minute)
		s.EndWatches()
		w.want("(not authorized (401 Unauthorized))")
		os.WriteFile(path, []byte("two"), 0o600)
		w.want("x=1 []")
		s.SetToken("three")
		os.WriteFile(path, []byte("three"), 0o600)
		time.Sleep(time.Minute)
		s.EndWatches()
		s.Apply(thing("x", "2"))
		w.want("x=2 [x]") // without an error
	})
}

// tokenClient is a client with a configuration of its own.
func tokenClient(t *testing.T, s *kubetest.Server, config kubernetes.Config) *kubernetes.Client {
	t.Helper()
	config.Server, config.Transport = "https://kubernetes.default.svc", s.Transport(t)
	c, err := kubernetes.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

// jwt makes a token of claims.
func jwt(claims string) string {
	return "eyJhbGciOiJub25lIn0." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2lnbmF0dXJl"
}

func TestIdentityOfTheOwnToken(t *testing.T) {
	of := kubernetes.Identity{Namespace: "a", ServiceAccount: "web"}
	pod := kubernetes.Identity{Namespace: "a", ServiceAccount: "web", Pod: "web-1", Node: "n1"}
	for _, test := range []struct {
		name, token string
		want        kubernetes.Identity
	}{
		{"of a pod", jwt(`{"sub":"system:serviceaccount:a:web","kubernetes.io":{"namespace":"a","serviceaccount":{"name":"web","uid":"u"},"pod":{"name":"web-1"},"node":{"name":"n1"}}}`), pod},
		{"of a service account", jwt(`{"sub":"system:serviceaccount:a:web"}`), of},
		{"contradicts itself", jwt(`{"sub":"system:serviceaccount:a:web","kubernetes.io":{"namespace":"b","serviceaccount":{"name":"web"}}}`), kubernetes.Identity{}},
		{"of somebody else", jwt(`{"sub":"alice","kubernetes.io":{"namespace":"b","serviceaccount":{"name":"web"}}}`), kubernetes.Identity{}},
		{"of a user", jwt(`{"sub":"system:admin"}`), kubernetes.Identity{}},
		{"no claims", jwt(`[]`), kubernetes.Identity{}},
		{"no base64", "a.%.b", kubernetes.Identity{}},
		{"no JWT", "secret", kubernetes.Identity{}},
		{"none", "", kubernetes.Identity{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, err := kubernetes.New(kubernetes.Config{Server: "https://10.0.0.1", Token: test.token})
			if err != nil {
				t.Fatal(err)
			}
			if got := c.Identity(); got != test.want || c.Namespace() != test.want.Namespace {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

// account makes the folder of a service account.
func account(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestInCluster(t *testing.T) {
	s := kubetest.New(things)
	s.Token = "secret"
	config := s.Serve(t)
	server, _ := url.Parse(config.Server)
	host, port, _ := net.SplitHostPort(server.Host)
	whole := map[string]string{"token": "secret\n", "ca.crt": string(config.CA), "namespace": "a\n"}
	for _, test := range []struct {
		name, host, port string
		lacks, empty     string
		want             string // error
	}{
		{"a pod", host, port, "", "", ""},
		{"without namespace", host, port, "namespace", "", ""},
		{"not a pod", "", port, "", "", "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set"},
		{"without port", host, "", "", "", "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set"},
		{"without authority", host, port, "ca.crt", "", "ca.crt: no such file"},
		{"with an empty authority", host, port, "", "ca.crt", "ca.crt is empty"},
		{"without token", host, port, "token", "", "token: no such file"},
		{"with an empty token", host, port, "", "token", "token is empty"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("KUBERNETES_SERVICE_HOST", test.host)
			t.Setenv("KUBERNETES_SERVICE_PORT", test.port)
			files := map[string]string{}
			for name, content := range whole {
				if name != test.lacks {
					files[name] = content
				}
				if name == test.empty {
					files[name] = ""
				}
			}
			c, err := kubernetes.InClusterAt(account(t, files))
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("got %v, want %s", err, test.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(c.CloseIdleConnections)
			if err := c.Do(t.Context(), "GET", "/apis/example.com/v1", nil, nil); err != nil {
				t.Error(err)
			}
			if want := map[bool]string{true: "a"}[test.lacks == ""]; c.Namespace() != want {
				t.Errorf("namespace %q, want %q", c.Namespace(), want)
			}
		})
	}
}

func TestServersThatAreRefused(t *testing.T) {
	for _, test := range []struct {
		name   string
		config kubernetes.Config
		want   string
	}{
		{"no server", kubernetes.Config{}, "must be a URL"},
		{"no scheme", kubernetes.Config{Server: "10.0.0.1:6443"}, "server"},
		{"another scheme", kubernetes.Config{Server: "ftp://10.0.0.1"}, "must be a URL"},
		{"a password", kubernetes.Config{Server: "https://a:secret@10.0.0.1"}, "must be a URL"},
		{"a query", kubernetes.Config{Server: "https://10.0.0.1?a=b"}, "must be a URL"},
		{"a token in plain text", kubernetes.Config{Server: "http://10.0.0.1", Token: "secret"}, "a token is not sent in plain text"},
		{"a token in plain text to a proxy", kubernetes.Config{Server: "http://127.0.0.1", Token: "secret", Proxy: &url.URL{Scheme: "http", Host: "10.0.0.2"}}, "a token is not sent in plain text"},
		{"a token of two lines", kubernetes.Config{Server: "https://10.0.0.1", Token: "a\nb"}, "not one line of text"},
		{"an authority that is none", kubernetes.Config{Server: "https://10.0.0.1", CA: []byte("x")}, "no certificate"},
		{"an authority that is not asked", kubernetes.Config{Server: "https://10.0.0.1", CA: []byte("x"), Insecure: true}, "set one of the two"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := kubernetes.New(test.config)
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "secret") {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
	if _, err := kubernetes.New(kubernetes.Config{Server: "http://127.0.0.1:8001"}); err != nil {
		t.Errorf("without a token: %v", err)
	}
}

// TestAServerThatIsSomebodyElse is one whose certificate another authority has signed.
func TestAServerThatIsSomebodyElse(t *testing.T) {
	s := kubetest.New(things)
	config := s.Serve(t)
	config.ServerName = "elsewhere.example"
	c, err := kubernetes.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdleConnections)
	err = c.Do(t.Context(), "GET", "/apis/example.com/v1", nil, nil)
	if err == nil || !strings.Contains(err.Error(), "certificate") || len(s.Requests()) != 0 {
		t.Errorf("got %v, %d requests", err, len(s.Requests()))
	}
}

// kubeconfigOf is a file with one cluster, user and context of a name.
func kubeconfigOf(name, cluster, user string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: %[1]s
preferences: {colors: true}
clusters: [{name: %[1]s, cluster: {%[2]s}}]
users: [{name: %[1]s, user: {%[3]s}}]
contexts: [{name: %[1]s, context: {cluster: %[1]s, user: %[1]s, namespace: ns-%[1]s, extensions: []}}]
`, name, cluster, user)
}

func TestKubeconfigsThatAreRefused(t *testing.T) {
	const server = "server: https://10.0.0.1"
	for _, test := range []struct{ name, text, context, want string }{
		{"exec", kubeconfigOf("x", server, `exec: {command: aws}`), "", `user "x": exec: commands are not run`},
		{"auth-provider", kubeconfigOf("x", server, `auth-provider: {name: gcp}`), "", `user "x": auth-provider: providers are not called`},
		{"username", kubeconfigOf("x", server, `username: alice, password: hush`), "", `user "x": username: passwords are not sent`},
		{"password", kubeconfigOf("x", server, `password: hush`), "", `user "x": password: passwords are not sent`},
		{"as", kubeconfigOf("x", server, `as: alice, token: t`), "", `user "x": as: nobody is impersonated`},
		{"as-uid", kubeconfigOf("x", server, `as-uid: "1"`), "", `user "x": as-uid: nobody is impersonated`},
		{"as-groups", kubeconfigOf("x", server, `as-groups: [a]`), "", `user "x": as-groups: nobody is impersonated`},
		{"as-user-extra", kubeconfigOf("x", server, `as-user-extra: {a: [b]}`), "", `user "x": as-user-extra: nobody is impersonated`},
		{"no current context", "kind: Config", "", "no current-context"},
		{"no such context", kubeconfigOf("x", server, ""), "y", `there is no context "y"`},
		{"no such cluster", "contexts: [{name: x, context: {cluster: c}}]", "x", `context "x": there is no cluster "c"`},
		{"no such user", "clusters: [{name: c, cluster: {" + server + "}}]\ncontexts: [{name: x, context: {cluster: c, user: u}}]", "x", `context "x": there is no user "u"`},
		{"no server", kubeconfigOf("x", "", ""), "", `cluster "x": server is not set`},
		{"another kind", "kind: Pod", "x", `kind is "Pod", not Config`},
		{"not YAML", "a: [", "x", "yaml"},
		{"no file of the authority", kubeconfigOf("x", server+", certificate-authority: none.crt", ""), "", `cluster "x": certificate-authority: `},
		{"no base64", kubeconfigOf("x", server+", certificate-authority-data: '%'", ""), "", `certificate-authority-data: illegal base64`},
		{"a certificate without key", kubeconfigOf("x", server, "client-certificate-data: eA=="), "", "client-certificate is set, client-key is not"},
		{"a key without certificate", kubeconfigOf("x", server, "client-key-data: eA=="), "", "client-key is set, client-certificate is not"},
		{"a certificate that is none", kubeconfigOf("x", server, "client-key-data: eA==, client-certificate-data: eA=="), "", "client-certificate: "},
		{"another proxy", kubeconfigOf("x", server+", proxy-url: 'ftp://p'", ""), "", `proxy-url: the scheme is "ftp"`},
		{"authority and none", kubeconfigOf("x", server+", insecure-skip-tls-verify: true, certificate-authority-data: eA==", ""), "", "set one of the two"},
		{"a token file without end", kubeconfigOf("x", server, "tokenFile: /dev/zero"), "", "/dev/zero is not a regular file"},
		{"a token file without a writer", kubeconfigOf("x", server, "tokenFile: pipe"), "", "pipe is not a regular file"},
		{"an authority without a writer", kubeconfigOf("x", server+", certificate-authority: pipe", ""), "", "pipe is not a regular file"},
		{"a file without end", kubeconfigOf("x", server, "") + strings.Repeat("#\n", 3<<20), "", "more than 4 MiB"},
		{"no token file", kubeconfigOf("x", server, "tokenFile: none"), "", "token: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config")
			os.WriteFile(path, []byte(test.text), 0o600)
			if err := syscall.Mkfifo(filepath.Join(filepath.Dir(path), "pipe"), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := kubernetes.Kubeconfig(path, test.context)
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "hush") {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
	if _, err := kubernetes.Kubeconfig(filepath.Join(t.TempDir(), "none"), ""); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a file: %v", err)
	}
}

// TestKubeconfigsAreMerged: what the first file names counts, and paths are relative to their file.
func TestKubeconfigsAreMerged(t *testing.T) {
	s := kubetest.New(things)
	s.Token = "of-b"
	config := s.Serve(t)
	one, two := t.TempDir(), t.TempDir()
	os.WriteFile(filepath.Join(one, "ca.crt"), config.CA, 0o600)
	os.WriteFile(filepath.Join(two, "tok"), []byte("of-b\n"), 0o600)
	cluster := fmt.Sprintf("server: %s, certificate-authority: ca.crt, tls-server-name: example.com", config.Server)
	first := kubeconfigOf("a", cluster, "token: of-a")
	second := kubeconfigOf("b", "server: 'https://10.0.0.1'", "tokenFile: tok")
	// In the second, context c joins the cluster of the first with its own user; a is named again, and does not count.
	second = strings.Replace(second, "contexts: [", "contexts: [{name: c, context: {cluster: a, user: b, namespace: nc}}, {name: a, context: {cluster: b, user: b}}, ", 1)
	os.WriteFile(filepath.Join(one, "config"), []byte(first), 0o600)
	os.WriteFile(filepath.Join(two, "config"), []byte(second), 0o600)
	t.Setenv("KUBECONFIG", strings.Join([]string{filepath.Join(t.TempDir(), "none"), filepath.Join(one, "config"), "", filepath.Join(two, "config")}, string(filepath.ListSeparator)))
	c, err := kubernetes.Kubeconfig("", "")
	if err != nil || c.Namespace() != "ns-a" {
		t.Fatalf("got %v, want context a", err)
	}
	t.Cleanup(c.CloseIdleConnections)
	if err := c.Do(t.Context(), "GET", "/apis/example.com/v1", nil, nil); !errors.Is(err, kubernetes.ErrUnauthorized) {
		t.Errorf("with the token of a: %v", err)
	}
	if c, err = kubernetes.Kubeconfig("", "c"); err != nil || c.Namespace() != "nc" {
		t.Fatalf("got %v, want context c", err)
	}
	t.Cleanup(c.CloseIdleConnections)
	if err := c.Do(t.Context(), "GET", "/apis/example.com/v1", nil, nil); err != nil {
		t.Error(err)
	}
}

func TestKubeconfigAtHome(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("KUBECONFIG", "")
	os.Mkdir(filepath.Join(home, ".kube"), 0o700)
	os.WriteFile(filepath.Join(home, ".kube", "config"), []byte(kubeconfigOf("h", "server: https://10.0.0.1", "")), 0o600)
	if c, err := kubernetes.Kubeconfig("", ""); err != nil || c.Namespace() != "ns-h" {
		t.Errorf("got %v", err)
	}
}

func TestAClientCertificate(t *testing.T) {
	s := kubetest.New(things)
	config := s.Serve(t)
	certificate, key := selfSigned(t)
	data := base64.StdEncoding.EncodeToString
	text := kubeconfigOf("x", "server: "+config.Server+", certificate-authority-data: "+data(config.CA),
		"client-certificate-data: "+data(certificate)+", client-key-data: "+data(key))
	got, err := kubernetes.ReadKubeconfig([]byte(text), "", "")
	if err != nil || got.Certificate == nil {
		t.Fatalf("got %v", err)
	}
	block, _ := pem.Decode(certificate)
	if !slices.Equal(got.Certificate.Certificate[0], block.Bytes) {
		t.Error("another certificate")
	}
}
