package admin_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/admin"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/jwttest"
	"github.com/nosidecar/mesh/policy"
)

// Keys that tokens are verified with are shown in every form, with what is wrong with the last fetch.
func TestKeysOfTokens(t *testing.T) {
	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, strings.Replace(jwttest.KeySet(jwttest.New("a"), jwttest.New("b")), `"keys":[`, `"keys":[{"kty":"oct","k":"AAAA"},`, 1))
	}))
	page := admin.New(admin.Config{})
	defer page.Close()
	m, err := mesh.New(t.Context(), mesh.WithObserver(page.Observer()), mesh.WithPolicy(policy.Source{Name: "users.yaml", Data: []byte(`
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: users, namespace: default}
spec: {jwtRules: [{issuer: i, jwksUri: "` + keys.URL + `/set<1>"}]}
`)}))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	defer keys.Close()
	await.True(t, "the keys", func() bool { return m.Status().Ready })
	var report struct {
		Keys []struct {
			URI, Fetched string
			Keys         int
			Skipped      int
			SkipReason   string
		}
	}
	if err := json.Unmarshal(ask(t, page, "?format=json").Body.Bytes(), &report); err != nil {
		t.Fatal(err)
	}
	if len(report.Keys) != 1 || report.Keys[0].Keys != 2 || report.Keys[0].URI != keys.URL+"/set<1>" || report.Keys[0].Fetched == "" {
		t.Errorf("JSON: %+v", report.Keys)
	}
	const reason = "keys[0] is left out: it is a private or a symmetric key, which has no place here"
	if len(report.Keys) == 1 && (report.Keys[0].Skipped != 1 || report.Keys[0].SkipReason != reason) {
		t.Errorf("JSON: %+v", report.Keys[0])
	}
	if text := ask(t, page, "?format=text").Body.String(); !strings.Contains(text, "keys "+keys.URL+"/set<1>: 2, fetched at ") || !strings.Contains(text, "and 1 that are not used: "+reason) {
		t.Errorf("text: %s", text)
	}
	if html := ask(t, page, "", "Accept", "text/html").Body.String(); !strings.Contains(html, "<code>"+keys.URL+"/set&lt;1&gt;</code>: 2 keys") || !strings.Contains(html, ", and 1 that is not used: "+reason) {
		t.Errorf("page: %s", html)
	}
}

// Credentials and queries of URLs in documents, and in what becomes of them, are not shown.
func TestKeysBehindCredentials(t *testing.T) {
	document := func(uri string) policy.Source {
		return policy.Source{Name: "users.yaml", Data: []byte(`
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: users, namespace: default}
spec: {jwtRules: [{issuer: i, jwksUri: "` + uri + `"}]}
`)}
	}
	asked := make(chan bool, 1)
	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusTeapot)
		select {
		case asked <- true:
		default:
		}
	}))
	page := admin.New(admin.Config{})
	defer page.Close()
	m, err := mesh.New(t.Context(), mesh.WithObserver(page.Observer()),
		mesh.WithPolicy(document(keys.URL+"/keys?key=query-secret")))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	defer keys.Close()
	<-asked
	await.True(t, "an error of the fetch", func() bool { return m.Status().Keys[0].Error != "" })
	if err := m.Apply(document("ftp://user:pass-secret@a/keys?key=query-secret")); err == nil {
		t.Fatal("keys over FTP are accepted")
	}
	for _, format := range []string{"json", "text", "html"} {
		body := ask(t, page, "?format="+format).Body.String()
		for _, secret := range []string{"pass-secret", "query-secret"} {
			if i := strings.Index(body, secret); i >= 0 {
				t.Errorf("%s: the page shows %q", format, body[max(0, i-100):i+20])
			}
		}
		if !strings.Contains(body, "/keys") {
			t.Errorf("%s: the page does not name the URL:\n%s", format, body)
		}
	}
}
