package kubernetes_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
	memory "github.com/nosidecar/mesh/discovery"
	discovery "github.com/nosidecar/mesh/discovery/kubernetes"
	"github.com/nosidecar/mesh/internal/kubernetes/kubetest"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/kubernetes"
)

// shop is a mesh of the namespace shop that follows an API server.
type shop struct {
	*mesh.Mesh
	t      *testing.T
	server *kubetest.Server
}

// newShop returns a shop whose client has the server's token of now, once prepare has returned.
func newShop(ctx context.Context, t *testing.T, server *kubetest.Server, prepare func()) (*shop, error) {
	server.Namespace = "shop"
	client := (*discovery.Client)(server.Memory(t))
	prepare()
	m, err := mesh.New(ctx, mesh.WithPolicyFeed(&kubernetes.Feed{Client: client}), mesh.WithEmptyPolicy(),
		mesh.WithWorkload(policy.Workload{Namespace: "shop", Labels: map[string]string{"app": "web"}}), mesh.WithDiscovery(new(memory.Memory)), mesh.WithRegistryOnly(),
		mesh.WithLogger(slog.New(slog.DiscardHandler)))
	return &shop{m, t, server}, err
}

// apply applies an object of the namespace shop.
func (s *shop) apply(kind, name, spec string) {
	api := "networking.istio.io/v1"
	if kind == "AuthorizationPolicy" {
		api = "security.istio.io/v1"
	}
	s.server.Apply(fmt.Sprintf("{apiVersion: %s, kind: %s, metadata: {namespace: shop, name: %s}, spec: %s}", api, kind, name, spec))
}

// wants checks, once everything has arrived, how the host a answers calls, how this workload answers requests for /admin and for /, and what
// is refused.
func (s *shop) wants(after string, call, admin, other int, refused ...string) {
	s.t.Helper()
	time.Sleep(time.Second)
	synctest.Wait()
	got := http.StatusServiceUnavailable
	if resp, err := s.Client().Get("http://a/"); err == nil {
		resp.Body.Close()
		got = resp.StatusCode
	}
	if got != call {
		s.t.Errorf("%s: a call is answered with %d, want %d", after, got, call)
	}
	for path, want := range map[string]int{"/admin": admin, "/": other} {
		w := httptest.NewRecorder()
		s.Handler(http.NotFoundHandler()).ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != want {
			s.t.Errorf("%s: a request for %s is answered with %d, want %d", after, path, w.Code, want)
		}
	}
	var all []string
	for _, d := range s.Status().Documents.Alone {
		all = append(all, d.Document+": "+d.InForce)
	}
	slices.Sort(all)
	if fmt.Sprint(all) != fmt.Sprint(refused) {
		s.t.Errorf("%s: refused are %q, want %q", after, all, refused)
	}
}

const (
	answers     = "{hosts: [a], http: [{directResponse: {status: %d}}]}"
	badRoute    = "{hosts: [a], http: [{rout: []}]}"
	deniesAdmin = "{action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}"
	badPolicy   = "{action: DENY, rules: [{form: []}]}"
)

// An API server tells objects of one name apart: the last good version of an object counts until the object is deleted.
func TestSituation_ObjectsOfOneName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := newShop(t.Context(), t, kubetest.New(routes, policies, services), func() {})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		s.wants("the start", 503, 404, 404)
		s.apply("VirtualService", "a", fmt.Sprintf(answers, 201))
		s.apply("AuthorizationPolicy", "x", deniesAdmin)
		s.wants("good documents", 201, 403, 404)
		s.apply("VirtualService", "a", badRoute)
		s.apply("AuthorizationPolicy", "x", badPolicy)
		s.wants("refused versions", 201, 403, 404, "AuthorizationPolicy shop/x: last good", "VirtualService shop/a: last good")
		s.server.Delete("VirtualService", "shop", "a")
		s.server.Delete("AuthorizationPolicy", "shop", "x")
		s.wants("their end", 503, 404, 404)
		s.apply("VirtualService", "a", badRoute)
		s.apply("AuthorizationPolicy", "x", badPolicy)
		s.wants("other objects of these names", 503, 403, 403, "AuthorizationPolicy shop/x: denial", "VirtualService shop/a: nothing")
		s.apply("VirtualService", "a", fmt.Sprintf(answers, 202))
		s.apply("AuthorizationPolicy", "x", deniesAdmin)
		s.wants("mended", 202, 403, 404)
		// Deleted and made again between two looks of the watch.
		s.server.Delete("AuthorizationPolicy", "shop", "x")
		s.apply("AuthorizationPolicy", "x", badPolicy)
		s.wants("replaced at once", 202, 403, 403, "AuthorizationPolicy shop/x: denial")
	})
}

// While a namespace is deleted, its policies go one by one, and each counts until it is gone.
func TestSituation_NamespaceThatIsDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := newShop(t.Context(), t, kubetest.New(routes, policies, services), func() {})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		s.apply("AuthorizationPolicy", "x", deniesAdmin)
		s.apply("AuthorizationPolicy", "y", "{action: DENY, rules: [{}]}")
		s.wants("the start", 503, 403, 403)
		s.server.Delete("AuthorizationPolicy", "shop", "y")
		s.wants("one policy less", 503, 403, 404)
		s.server.Delete("AuthorizationPolicy", "shop", "x")
		s.wants("no policy", 503, 404, 404)
	})
}

// A process that starts while the API server does not answer, or does not take its token, waits. It never starts without what protects it.
func TestSituation_ServerAtTheStart(t *testing.T) {
	for _, test := range []struct {
		name, says    string
		breaks, mends func(s *kubetest.Server)
	}{
		{"a token that has expired", "not authorized", func(s *kubetest.Server) { s.SetToken("new") }, func(s *kubetest.Server) { s.SetToken("secret") }},
		{"away", "503", func(s *kubetest.Server) {
			s.Intercept(func(w http.ResponseWriter, _ *http.Request) bool {
				kubetest.Fail(w, http.StatusServiceUnavailable, "ServiceUnavailable", "starting")
				return true
			})
		}, func(s *kubetest.Server) { s.Intercept(nil) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := kubetest.New(routes, policies, services)
				server.Token = "secret"
				server.Apply("{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: x}, spec: " + deniesAdmin + "}")
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				began := time.Now()
				if _, err := newShop(ctx, t, server, func() { test.breaks(server) }); err == nil || !strings.Contains(err.Error(), test.says) || time.Since(began) != time.Minute {
					t.Fatalf("New after %v: %v, want an error that says %q after a minute", time.Since(began), err, test.says)
				}
				test.mends(server)
				s, err := newShop(t.Context(), t, server, func() {
					test.breaks(server)
					time.AfterFunc(time.Minute, func() { test.mends(server) })
				})
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				s.wants("the end of it", 503, 403, 404)
			})
		})
	}
}

// An API server that has just started denies what this process may read. A denial that does not pass ends New.
func TestSituation_ServerThatDoesNotKnowTheRightsYet(t *testing.T) {
	for _, test := range []struct {
		passes time.Duration
		says   string // of the error of New
	}{{5 * time.Second, ""}, {time.Hour, "cannot read AuthorizationPolicy in shop: denied; what protects somebody must be readable"}} {
		synctest.Test(t, func(t *testing.T) {
			server := kubetest.New(routes, policies, services)
			server.Apply("{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: x}, spec: " + deniesAdmin + "}")
			server.Deny("authorizationpolicies", "shop")
			ends := time.AfterFunc(test.passes, func() { server.Allow("authorizationpolicies", "shop") })
			defer ends.Stop()
			s, err := newShop(t.Context(), t, server, func() {})
			if test.says != "" {
				if err == nil || !strings.Contains(err.Error(), test.says) {
					t.Errorf("New with a denial of %v: %v, want %q", test.passes, err, test.says)
				}
				return
			}
			if err != nil {
				t.Fatalf("New with a denial of %v: %v", test.passes, err)
			}
			defer s.Close()
			s.wants("the end of it", 503, 403, 404)
		})
	}
}

// A token that expires later takes nothing away.
func TestSituation_TokenThatExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := kubetest.New(routes, policies, services)
		server.Token = "secret"
		s, err := newShop(t.Context(), t, server, func() {})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		s.apply("AuthorizationPolicy", "x", deniesAdmin)
		s.wants("the start", 503, 403, 404)
		server.SetToken("new")
		server.EndWatches()
		time.Sleep(time.Hour)
		s.wants("an hour without rights", 503, 403, 404)
		if text := s.Status().Documents.Refused.Error; !strings.Contains(text, "stays in force") {
			t.Errorf("the status has the error %q, want one that says what is in force", text)
		}
		s.apply("AuthorizationPolicy", "y", "{action: DENY, rules: [{}]}")
		server.SetToken("secret")
		time.Sleep(time.Minute)
		s.wants("the end of it", 503, 403, 403)
	})
}

// Each situation of the table in the documentation names tests that there are.
func TestSituation_RowsNameTests(t *testing.T) {
	rows := meshtest.RowsNameTests(t, "../../docs/kubernetes.md", "## Situations", "*_test.go", "../*_test.go", "../../*_test.go",
		"../../internal/kubernetes/*_test.go", "../../discovery/kubernetes/*_test.go", "../../kubernetes/*_test.go", "../../realservers/*_test.go")
	if rows != 15 {
		t.Errorf("the table has %d rows, want 15", rows)
	}
}
