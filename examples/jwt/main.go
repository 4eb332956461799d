// Command jwt runs a server that serves users by their JSON Web Tokens, and three callers: one without a token, one with a good one,
// and one that has made its own.
//
// The program makes the keys and serves them, as an identity provider does. Documents say what the server accepts: a
// RequestAuthentication names the issuer and its keys, an AuthorizationPolicy says what users may do.
//
//	go run ./examples/jwt
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/jwt"
)

const documents = `
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: users, namespace: default}
spec:
  jwtRules:
  - issuer: https://id.example.com
    audiences: [shop]
    jwksUri: http://%s/keys
    outputClaimToHeaders: [{header: x-user, claim: sub}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: users, namespace: default}
spec:
  rules:
  - to: [{operation: {paths: [/catalogue]}}] # for everybody
  - from: [{source: {requestPrincipals: ["https://id.example.com/*"]}}]
    to: [{operation: {paths: [/orders]}}]
  - to: [{operation: {paths: [/admin]}}]
    when: [{key: "request.auth.claims[groups]", values: [admin]}]
`

func main() {
	log.SetFlags(0)
	if err := run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	provider, forger := newIssuer(), newIssuer()
	keys, stop, err := serve(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(provider.published) }), nil)
	if err != nil {
		return err
	}
	defer stop()

	ready := make(chan struct{}, 1)
	m, err := mesh.New(ctx, mesh.WithPolicy(policy.Source{Name: "users.yaml", Data: fmt.Appendf(nil, documents, keys)}),
		mesh.WithObserver(mesh.Observer{Keys: func(state jwt.State) {
			if state.Keys > 0 {
				select {
				case ready <- struct{}{}:
				default:
				}
			}
		}}))
	if err != nil {
		return err
	}
	defer m.Close()
	shop, stop, err := serve(m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "for %q", r.Header.Get("X-User")) // only the mesh can have set it
	})), m)
	if err != nil {
		return err
	}
	defer stop()
	<-ready // the keys are fetched in the background; until then, Status says that the mesh is not ready

	claims := fmt.Sprintf(`{"iss":"https://id.example.com","sub":"alice","aud":"shop","groups":["staff"],"exp":%d}`, time.Now().Add(time.Hour).Unix())
	for _, caller := range []struct{ who, token string }{
		{"nobody", ""},
		{"alice", provider.token(claims)},
		{"a forger", forger.token(claims)},
	} {
		for _, path := range []string{"/catalogue", "/orders", "/admin"} {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+shop+path, nil)
			if err != nil {
				return err
			}
			req.Header.Set("X-User", "root") // anybody can send this, but the handler never sees it
			if caller.token != "" {
				req.Header.Set("Authorization", "Bearer "+caller.token)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return err
			}
			text, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil {
				return err
			}
			fmt.Printf("%-9s %-11s %d %s\n", caller.who, path, resp.StatusCode, text)
		}
	}
	return nil
}

// serve serves h on a free port, behind m if there is one.
func serve(h http.Handler, m *mesh.Mesh) (address string, stop func(), err error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	address = ln.Addr().String()
	if m != nil {
		ln = m.Listen(ln)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	go srv.Serve(ln)
	return address, func() { srv.Close() }, nil
}

// issuer signs tokens, and publishes the key that verifies them.
type issuer struct {
	signer    jose.Signer
	published []byte
}

func newIssuer() *issuer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "1"}}, nil)
	if err != nil {
		log.Fatal(err)
	}
	public, err := (&jose.JSONWebKey{Key: key.Public(), KeyID: "1", Use: "sig"}).MarshalJSON()
	if err != nil {
		log.Fatal(err)
	}
	return &issuer{signer, fmt.Appendf(nil, `{"keys":[%s]}`, public)}
}

func (i *issuer) token(claims string) string {
	signed, err := i.signer.Sign([]byte(claims))
	if err != nil {
		log.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		log.Fatal(err)
	}
	return text
}
