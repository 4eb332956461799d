package consul

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/consul/api"
)

const secret = "2f1c9d7e-0000-4000-8000-5ec2e75ec2e7"

// serve returns a client, with a token, of an agent with this handler.
func serve(t *testing.T, handler http.HandlerFunc) *api.Client {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	client, err := NewClient(&api.Config{Address: server.URL, Token: secret})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// The client of net/http keeps the header with the token when it is sent elsewhere.
func TestRedirectsAreNotFollowed(t *testing.T) {
	var asked atomic.Int32
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer elsewhere.Close()
	for _, status := range []int{301, 302, 303, 307, 308} {
		client := serve(t, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL+"/v1/catalog/nodes", status)
		})
		if _, _, err := client.Catalog().Nodes(nil); err == nil || !strings.Contains(err.Error(), "redirects to "+strings.TrimPrefix(elsewhere.URL, "http://")) {
			t.Errorf("%d: %v, want an error that names the host", status, err)
		}
		err := client.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: "web"})
		if err == nil || !strings.Contains(err.Error(), "redirects to") {
			t.Errorf("%d, a registration: %v, want an error", status, err)
		}
	}
	if n := asked.Load(); n > 0 {
		t.Errorf("%d requests went elsewhere", n)
	}
}

// What stands in front of an agent may show what it was asked.
func TestErrorsTellNoTokenAndAreShort(t *testing.T) {
	for name, text := range map[string]string{
		"short":     "bad gateway\n\x1b[31mX-Consul-Token: " + secret,
		"long":      strings.Repeat("bad gateway\n", 100_000) + secret,
		"cut in it": strings.Repeat("x", mostMessage-10) + secret,
		"cut later": secret + strings.Repeat("x", mostMessage-20) + secret,
		"in parts":  secret[:4] + "\x00" + secret[4:],
	} {
		client := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusBadGateway)
			io.WriteString(w, text)
		})
		_, _, err := client.Catalog().Nodes(nil)
		switch {
		case Status(err) != http.StatusBadGateway:
			t.Errorf("%s: %v, want 502", name, err)
		case len(err.Error()) > mostMessage+100:
			t.Errorf("%s: the error has %d bytes", name, len(err.Error()))
		case strings.Contains(err.Error(), secret[:8]) || strings.ContainsAny(err.Error(), "\n\x1b"):
			t.Errorf("%s: %q, want one line without the token", name, err.Error())
		}
	}
}

// A connection may end within the token.
func TestErrorsThatBreakOffTellNoToken(t *testing.T) {
	client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusBadGateway)
		io.WriteString(w, "the proxy got "+secret[:30])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	if _, _, err := client.Catalog().Nodes(nil); Status(err) != http.StatusBadGateway || strings.Contains(err.Error(), secret[:8]) {
		t.Errorf("%v, want 502 without a part of the token", err)
	}
}

// The official client makes an error of an answer with any status that it does not know, and of its body.
func TestAnswersThatAreNoneAreErrors(t *testing.T) {
	for _, status := range []int{http.StatusAccepted, http.StatusMultipleChoices, http.StatusConflict} {
		client := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(status)
			io.WriteString(w, "asked with "+secret+strings.Repeat("x", 10_000))
		})
		_, _, err := client.Catalog().Nodes(nil)
		if Status(err) != status || len(err.Error()) > mostMessage+100 || strings.Contains(err.Error(), secret[:8]) {
			t.Errorf("%d: %.200v, want a short error without the token", status, err)
		}
	}
}

// endless is a body that does not end.
type endless struct{ read int64 }

func (e *endless) Read(p []byte) (int, error) {
	e.read += int64(len(p))
	return len(p), nil
}

func (e *endless) Close() error { return nil }

func TestAnswersAreBounded(t *testing.T) {
	for _, test := range []struct {
		status int
		path   string
		most   int64
		want   string // of the error
	}{
		{http.StatusOK, "/v1/kv/mesh/v/1/?recurse=", 128 << 20, "the answer is too long: it has more than 128 MiB"},
		{http.StatusOK, "/v1/kv/mesh/current", 32 << 20, "more than 32 MiB"},
		{http.StatusOK, "/v1/health/service/web", 64 << 20, "more than 64 MiB"},
		{http.StatusOK, "/v1/catalog/nodes", 64 << 20, "more than 64 MiB"},
		{http.StatusOK, "/v1/config/service-router", 32 << 20, "more than 32 MiB"},
		{http.StatusOK, "/v1/agent/connect/ca/leaf/web", 4 << 20, "more than 4 MiB"},
		{http.StatusOK, "/agent/v1/agent/connect/ca/roots", 4 << 20, "more than 4 MiB"},
		{http.StatusConflict, "/v1/txn", mostRefusal, "more than 256 KiB"},
		{http.StatusNotFound, "/v1/txn", mostMessage, ""},
		{http.StatusInternalServerError, "/v1/txn", mostMessage, ""},
	} {
		e := &endless{}
		resp := &http.Response{StatusCode: test.status, Header: http.Header{}, Body: e}
		check(httptest.NewRequest(http.MethodGet, test.path, nil), resp)
		n, err := io.Copy(io.Discard, resp.Body)
		if n > test.most+1 || e.read > test.most+1 || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%d, %s: %d bytes, %v, want at most %d and %q", test.status, test.path, n, err, test.most, test.want)
		}
		if n, err := resp.Body.Read(make([]byte, 1)); n > 0 || err == nil {
			t.Errorf("%d, %s: the body goes on", test.status, test.path)
		}
	}
	client := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "["+strings.Repeat("{},", mostObjects)+"{}]")
	})
	if _, _, err := client.KV().List("mesh", nil); err == nil || !strings.Contains(err.Error(), "more than 524288 objects") {
		t.Errorf("many objects: %v", err)
	}
	// One of just the length is whole.
	resp := &http.Response{StatusCode: http.StatusConflict, Header: http.Header{}, Body: io.NopCloser(io.LimitReader(&endless{}, mostRefusal))}
	check(httptest.NewRequest(http.MethodGet, "/v1/txn", nil), resp)
	if n, err := io.Copy(io.Discard, resp.Body); n != mostRefusal || err != nil {
		t.Errorf("%d bytes, %v, want all", n, err)
	}
}

// The official client reads no header of an answer in which one is missing or wrong, such as the one that tells a denial.
func TestHeadersAreReadAllTheSame(t *testing.T) {
	for name, header := range map[string]http.Header{
		"no contact":        {},
		"a strange contact": {"X-Consul-Lastcontact": {"soon"}},
		"a late contact":    {"X-Consul-Lastcontact": {"9223372036854775809"}},
		"a strange index":   {"X-Consul-Index": {"-3"}, "X-Consul-Lastcontact": {"0"}},
	} {
		client := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Consul-Results-Filtered-By-ACLs", "true")
			w.Header().Set("X-Consul-Default-ACL-Policy", "deny")
			for key, values := range header {
				w.Header()[key] = values
			}
			fmt.Fprint(w, "[]")
		})
		_, meta, err := client.Catalog().Nodes(nil)
		if err != nil || !meta.ResultsFilteredByACLs || meta.DefaultACLPolicy != "deny" || meta.LastIndex != 0 {
			t.Errorf("%s: %+v, %v, want what the other headers say", name, meta, err)
		}
	}
}

func TestNoProxySeesSecretsInPlainText(t *testing.T) {
	var asked atomic.Int32
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		fmt.Fprint(w, "[]")
	}))
	defer proxy.Close()
	by, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	client := func(config api.Config) *api.Client {
		config.Address = "http://agent.invalid:8500"
		config.Transport = &http.Transport{Proxy: http.ProxyURL(by)}
		client, err := NewClient(&config)
		if err != nil {
			t.Fatal(err)
		}
		return client
	}
	refused := func(what string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), "NO_PROXY") {
			t.Errorf("%s: %v, want an error that says what to do", what, err)
		}
	}
	_, _, err = client(api.Config{Token: secret}).Catalog().Nodes(nil)
	refused("a token", err)
	_, _, err = client(api.Config{HttpAuth: &api.HttpBasicAuth{Username: "u", Password: secret}}).Catalog().Nodes(nil)
	refused("a password", err)
	_, _, err = client(api.Config{}).Agent().ConnectCALeaf("web", nil)
	refused("the key of a certificate", err)
	if n := asked.Load(); n > 0 {
		t.Errorf("the proxy got %d requests", n)
	}
	if _, _, err := client(api.Config{}).Catalog().Nodes(nil); err != nil || asked.Load() != 1 {
		t.Errorf("a request without secrets: %v, want the answer by the proxy", err)
	}
}
