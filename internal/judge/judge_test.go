package judge_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/nosidecar/mesh/internal/judge"
	"github.com/nosidecar/mesh/internal/jwttest"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/authz"
)

func rules(t *testing.T, documents string) *policy.Inbound {
	t.Helper()
	plan, findings := policy.Compile([]policy.Source{{Name: "test.yaml", Data: []byte(documents)}}, policy.Workload{Namespace: "default"})
	if err := findings.Err(); err != nil {
		t.Fatal(err)
	}
	return plan.Inbound()
}

func tokens(rule string) string {
	return "---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: users}\nspec: {jwtRules: [{" + rule + "}]}\n"
}

const strict = "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict}\nspec: {mtls: {mode: STRICT}}\n"

// Peers that are denied in any case cannot make this process verify signatures.
func TestTokensOfPeersThatAreDeniedAnyway(t *testing.T) {
	users := tokens("issuer: i, jwks: '" + jwttest.KeySet(jwttest.New("a")) + "'")
	for _, test := range []struct {
		name, documents, principal string
		verified                   bool
	}{
		{"a peer without an identity", users, "", true},
		{"one where all need an identity", users + strict, "", false},
		{"a peer with an identity where all need one", users + strict, "cluster.local/ns/default/sa/web", true},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Authorization", "Bearer forged")
		view := authz.NewRequest(r, test.principal, 0)
		result, _ := judge.Authenticate(t.Context(), rules(t, test.documents), r, &view, time.Now())
		if verified := result.Err != nil; verified != test.verified {
			t.Errorf("%s: its forged token was verified: %v, want %v", test.name, verified, test.verified)
		}
	}
}

// Under other documents a claim may become a header, which the policies see. A claim that cannot be one is refused then, too.
func TestClaimsUnderOtherDocuments(t *testing.T) {
	issuer := jwttest.New("a")
	rule := "issuer: i, jwks: '" + jwttest.KeySet(issuer) + "'"
	toHeader := ", outputClaimToHeaders: [{header: x-name, claim: name}]"
	onlyBob := "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: bob}\n" +
		"spec: {action: ALLOW, rules: [{when: [{key: 'request.headers[x-name]', values: [bob]}]}]}\n"
	for _, test := range []struct {
		name, claim, sent string
		allowed, badToken bool
	}{
		{"a claim", "bob", "", true, false},
		{"another claim", "eve", "bob", false, false},
		{"no value of a header", `bob\n`, "bob", false, true},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header = http.Header{"Authorization": {"Bearer " + issuer.Token(`{"iss":"i","sub":"s","name":"`+test.claim+`"}`)}}
		if test.sent != "" {
			r.Header.Set("X-Name", test.sent)
		}
		view := authz.NewRequest(r, "", 0)
		before := rules(t, tokens(rule))
		if result, _ := judge.Authenticate(t.Context(), before, r, &view, time.Now()); result.Err != nil || result.Claims == nil {
			t.Fatalf("%s: %v", test.name, result.Err)
		}
		if d := judge.Again(before, &view); !d.Allowed {
			t.Errorf("%s: denied under the same documents: %s", test.name, d.Reason)
		}
		d := judge.Again(rules(t, tokens(rule+toHeader)+onlyBob), &view)
		if d.Allowed != test.allowed || d.BadToken != test.badToken {
			t.Errorf("%s: allowed %v, for a bad token %v (%s); want %v, %v", test.name, d.Allowed, d.BadToken, d.Reason, test.allowed, test.badToken)
		}
	}
}
