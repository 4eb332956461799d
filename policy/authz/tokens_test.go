package authz_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/nosidecar/mesh/internal/jwttest"
	"github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/policy/jwt"
)

// The two layers need nobody to connect them: a rule that denies a user would deny nobody if it did not see the token.
func TestHandlerInsideOneForTokens(t *testing.T) {
	issuer := jwttest.New("k")
	keys, _, err := jwt.ParseKeys(jwttest.KeySet(issuer))
	if err != nil {
		t.Fatal(err)
	}
	tokens, err := jwt.New([]jwt.Rule{{Issuer: "i", Keys: keys}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	deny := authz.Policy{Name: "deny", Action: authz.Deny, Rules: []authz.Rule{{From: []authz.Source{{RequestPrincipals: []string{"i/mallory"}}}}}}
	allow := authz.Policy{Name: "allow", Rules: []authz.Rule{{When: []authz.Condition{{Key: "request.auth.claims[group]", Values: []string{"staff"}}}}}}
	const alice, mallory = `{"iss":"i","sub":"alice","group":"staff"}`, `{"iss":"i","sub":"mallory","group":"staff"}`
	for _, tt := range []struct {
		name, claims string
		policies     []authz.Policy
		want         int
	}{
		{"denied by name", mallory, []authz.Policy{deny}, 403},
		{"another user", alice, []authz.Policy{deny}, 200},
		{"nobody, with nobody allowed by name", "", []authz.Policy{deny}, 200},
		{"allowed by a claim", alice, []authz.Policy{allow}, 200},
		{"without the claim", `{"iss":"i","sub":"bob"}`, []authz.Policy{allow}, 403},
		{"nobody", "", []authz.Policy{allow}, 403},
		{"allowed, and denied by name", mallory, []authz.Policy{allow, deny}, 403},
	} {
		authorizer, err := authz.Compile(tt.policies, authz.Config{})
		if err != nil {
			t.Fatal(err)
		}
		h := &jwt.Handler{Authenticator: tokens, Next: &authz.Handler{
			Authorizer: authorizer, Next: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}),
		}}
		r := httptest.NewRequest("GET", "/", nil)
		if tt.claims != "" {
			r.Header.Set("Authorization", "Bearer "+issuer.Token(tt.claims))
		}
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, r); w.Code != tt.want {
			t.Errorf("%s: status %d, want %d", tt.name, w.Code, tt.want)
		}
	}
}
