package mesh_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/jwttest"
	"github.com/nosidecar/mesh/internal/memnet"
	"github.com/nosidecar/mesh/policy/jwt"
)

// authentication is a RequestAuthentication for everything in the namespace default.
func authentication(rules ...string) string {
	return "---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: users, namespace: default}\nspec:\n  jwtRules:\n  - {" +
		strings.Join(rules, "}\n  - {") + "}\n"
}

func authorization(action, rules string) string {
	annotation := ""
	if action, dry := strings.CutSuffix(action, " dry"); dry {
		return strings.Replace(authorization(action, rules), "namespace: default}", "namespace: default, annotations: {istio.io/dry-run: 'true'}}", 1)
	}
	return "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: " + strings.ToLower(action) + ", namespace: default" + annotation +
		"}\nspec: {action: " + action + ", rules: [" + rules + "]}\n"
}

// Whose token a request has, and which peer sent it, decides together with the documents.
func TestDecisionsAboutTokens(t *testing.T) {
	noLeaks(t)
	issuer, other := jwttest.New("a"), jwttest.New("b")
	users := authentication(
		"issuer: i, audiences: [shop], jwks: '"+jwttest.KeySet(issuer)+"', outputClaimToHeaders: [{header: x-sub, claim: sub}]",
		"issuer: j, jwks: '"+jwttest.KeySet(other)+"'")
	alice := issuer.Token(`{"iss":"i","sub":"alice","aud":"shop","groups":["dev"],"scope":"read"}`)
	tokens := []struct {
		name, header string
	}{
		{"none", ""},
		{"alice", "Bearer " + alice},
		{"root", "Bearer " + issuer.Token(`{"iss":"i","sub":"root","aud":"shop","groups":["admin"],"scope":"read write"}`)},
		{"carol of another issuer", "Bearer " + other.Token(`{"iss":"j","sub":"carol","groups":["admin"]}`)},
		{"forged", "Bearer " + other.Token(`{"iss":"i","sub":"root","aud":"shop","groups":["admin"]}`)},
		{"expired", "Bearer " + issuer.Token(`{"iss":"i","sub":"alice","aud":"shop","exp":1000000000}`)},
		{"for others", "Bearer " + issuer.Token(`{"iss":"i","sub":"alice","aud":"bank"}`)},
		{"not signed", "Bearer eyJhbGciOiJub25lIn0.eyJpc3MiOiJpIiwic3ViIjoicm9vdCIsImF1ZCI6InNob3AifQ."},
		{"no token", "Basic YTpi"},
	}
	const caller = "cluster.local/ns/default/sa/order-service"
	for _, test := range []struct {
		name, documents string
		plain, mutual   string // the status for each token, over plaintext and mutual TLS; - is none
	}{
		{"no policy", "", "200 200 200 200 401 401 403 401 200", "200 200 200 200 401 401 403 401 200"},
		{"somebody", authorization("ALLOW", "{from: [{source: {requestPrincipals: ['*']}}]}"), "403 200 200 200 401 401 403 401 403", "403 200 200 200 401 401 403 401 403"},
		{"alice", authorization("ALLOW", "{from: [{source: {requestPrincipals: [i/alice]}}]}"), "403 200 403 403 401 401 403 401 403", "403 200 403 403 401 401 403 401 403"},
		{"an issuer", authorization("ALLOW", "{from: [{source: {requestPrincipals: ['j/*']}}]}"), "403 403 403 200 401 401 403 401 403", "403 403 403 200 401 401 403 401 403"},
		{"nobody without a token", authorization("DENY", "{from: [{source: {notRequestPrincipals: ['*']}}]}"), "403 200 200 200 401 401 403 401 403", "403 200 200 200 401 401 403 401 403"},
		{"a user and a peer", authorization("ALLOW", "{from: [{source: {principals: ["+caller+"], requestPrincipals: ['*']}}]}"), "403 403 403 403 401 401 403 401 403", "403 200 200 200 401 401 403 401 403"},
		{"a user or a peer", authorization("ALLOW", "{from: [{source: {principals: ["+caller+"]}}, {source: {requestPrincipals: [i/alice]}}]}"), "403 200 403 403 401 401 403 401 403", "200 200 200 200 401 401 403 401 200"},
		{"a group", authorization("ALLOW", "{when: [{key: 'request.auth.claims[groups]', values: [admin]}]}"), "403 403 200 200 401 401 403 401 403", "403 403 200 200 401 401 403 401 403"},
		{"a group of one issuer", authorization("ALLOW", "{from: [{source: {requestPrincipals: ['i/*']}}], when: [{key: 'request.auth.claims[groups]', values: [admin]}]}"), "403 403 200 403 401 401 403 401 403", "403 403 200 403 401 401 403 401 403"},
		{"no writers", authorization("DENY", "{when: [{key: 'request.auth.claims[scope]', values: [write]}]}"), "200 200 403 200 401 401 403 401 200", "200 200 403 200 401 401 403 401 200"},
		{"an audience", authorization("ALLOW", "{when: [{key: request.auth.audiences, values: [shop]}]}"), "403 200 200 403 401 401 403 401 403", "403 200 200 403 401 401 403 401 403"},
		{"a claim as a header", authorization("ALLOW", "{when: [{key: 'request.headers[x-sub]', values: [alice]}]}"), "403 200 403 403 401 401 403 401 403", "403 200 403 403 401 401 403 401 403"},
		{"no header", authorization("DENY", "{when: [{key: 'request.headers[x-sub]', values: ['*']}]}"), "200 403 403 200 401 401 403 401 200", "200 403 403 200 401 401 403 401 200"},
		{"DENY before ALLOW", authorization("ALLOW", "{}") + authorization("DENY", "{from: [{source: {requestPrincipals: [i/root]}}]}"), "200 200 403 200 401 401 403 401 200", "200 200 403 200 401 401 403 401 200"},
		{"AUDIT", authorization("AUDIT", "{from: [{source: {notRequestPrincipals: ['*']}}]}"), "200 200 200 200 401 401 403 401 200", "200 200 200 200 401 401 403 401 200"},
		{"dry run", authorization("DENY dry", "{from: [{source: {notRequestPrincipals: ['*']}}]}"), "200 200 200 200 401 401 403 401 200", "200 200 200 200 401 401 403 401 200"},
		{"STRICT", "---" + strict + authorization("ALLOW", "{from: [{source: {requestPrincipals: ['*']}}]}"), "- - - - - - - - -", "403 200 200 200 401 401 403 401 403"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newTown(t)
			e := labeled(w.serve(t, w.member(t, "web", users+test.documents), "web", func(http.ResponseWriter, *http.Request) {}), "security.istio.io/tlsMode", "istio")
			w.registry.Set("web", e)
			plain := &http.Client{Transport: new(http.Transport)}
			defer plain.CloseIdleConnections()
			for _, way := range []struct {
				name, want, url string
				client          *http.Client
			}{
				{"plaintext", test.plain, "http://" + addressOf(e) + "/", plain},
				{"mutual TLS", test.mutual, "http://web/", w.member(t, "order-service", "").Client()},
			} {
				wants := strings.Fields(way.want)
				for i, token := range tokens {
					req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, way.url, nil)
					req.Header.Set("X-Sub", "alice") // what it may not say itself
					if token.header != "" {
						req.Header.Set("Authorization", token.header)
					}
					got := "-"
					if resp, err := way.client.Do(req); err == nil {
						got = fmt.Sprint(resp.StatusCode)
						resp.Body.Close()
					}
					if got != wants[i] {
						t.Errorf("%s, token %s: got %s, want %s", way.name, token.name, got, wants[i])
					}
				}
			}
		})
	}
}

// The handler sees the user and what the rules give it, and neither the token nor what the client made up.
func TestTokensAreHiddenFromHandlers(t *testing.T) {
	noLeaks(t)
	issuer := jwttest.New("a")
	seen := make(chan *http.Request, 1)
	users := make(chan string, 1)
	m := newMesh(t, authentication("issuer: i, jwks: '"+jwttest.KeySet(issuer)+"', outputPayloadToHeader: x-payload, outputClaimToHeaders: [{header: x-sub, claim: sub}]"),
		mesh.WithObserver(mesh.Observer{InboundEnd: func(_ context.Context, in *mesh.Inbound) { users <- in.User }}))
	e := serveMesh(t, m, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if claims := jwt.ClaimsOf(r.Context()); claims != nil {
			w.Header().Set("User", claims.Subject())
		}
		seen <- r.Clone(r.Context())
	})
	client := &http.Client{Transport: new(http.Transport)}
	defer client.CloseIdleConnections()
	token := issuer.Token(`{"iss":"i","sub":"alice"}`)
	for _, test := range []struct {
		name, query, authorization string
		user                       string
	}{
		{"header", "a=b", "Bearer " + token, "alice"}, {"query", "a=b&access_token=" + token + "&c=%7e", "", "alice"}, {"none", "a=b", "", ""},
	} {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+addressOf(e)+"/p?"+test.query, strings.NewReader("body"))
		req.Header.Set("X-Sub", "root")
		req.Header["x_payload"] = []string{"forged"}
		if test.authorization != "" {
			req.Header.Set("Authorization", test.authorization)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		r := await.Receive(t, "a request", seen)
		if got := resp.Header.Get("User"); got != test.user || r.Header.Get("X-Sub") != test.user {
			t.Errorf("%s: the handler sees the user %q and the header %q", test.name, got, r.Header.Get("X-Sub"))
		}
		if strings.Contains(fmt.Sprint(r.Header, r.URL, r.RequestURI), token) || strings.Contains(fmt.Sprint(r.Header), "forged") {
			t.Errorf("%s: the handler sees %v %s", test.name, r.Header, r.RequestURI)
		}
		if got, want := await.Receive(t, "the end of a request", users), map[string]string{"alice": "i/alice"}[test.user]; got != want {
			t.Errorf("%s: observers are told of %q", test.name, got)
		}
	}
}

// Keys of a host in the mesh are fetched through the mesh. Until they are there, tokens are refused, the rest passes, and the mesh is
// not ready.
func TestKeysThroughTheMesh(t *testing.T) {
	noLeaks(t)
	issuer := jwttest.New("a")
	w := newTown(t)
	var peer sync.Map
	keys := w.member(t, "keys", strict)
	fetches := make(chan jwt.State, 100)
	m := w.member(t, "web", authentication("issuer: i, jwksUri: 'http://keys.default.svc.cluster.local/set'")+"---"+strict, mesh.WithObserver(mesh.Observer{
		Keys: func(s jwt.State) {
			select {
			case fetches <- s:
			default:
			}
		},
	}))
	e := serveMesh(t, m, func(http.ResponseWriter, *http.Request) {})
	if state := await.Receive(t, "a fetch", fetches); state.Err == nil {
		t.Error("keys are fetched from nowhere")
	}
	if s := m.Status(); s.Ready || len(s.Keys) != 1 || s.Keys[0].Error == "" || !strings.Contains(fmt.Sprint(s.NotReady), "have not been fetched") {
		t.Errorf("status %+v", s.Keys)
	}
	get := func(token string) int {
		c := w.member(t, "order-service", strict)
		e.ServiceAccount = "web"
		w.registry.Set("web", e)
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://web/", nil)
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := c.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	token := issuer.Token(`{"iss":"i","sub":"alice"}`)
	if with, without := get(token), get(""); with != 401 || without != 200 {
		t.Errorf("without keys: %d with a token, %d without", with, without)
	}
	w.serve(t, keys, "keys", func(rw http.ResponseWriter, r *http.Request) {
		peer.Store(mesh.PeerID(r.Context()), true)
		io.WriteString(rw, jwttest.KeySet(issuer))
	})
	await.True(t, "keys to be fetched", func() bool { return m.Status().Ready })
	if code := get(token); code != 200 {
		t.Errorf("with keys: %d", code)
	}
	if _, ok := peer.Load("spiffe://cluster.local/ns/default/sa/web"); !ok {
		t.Error("the keys were not fetched with the identity of the process")
	}
}

// Over HTTP, too, no client takes all places of those who wait for keys. Clients are told apart as a trusted proxy does.
func TestNoClientTakesAllWaitsForKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := jwttest.New("a"), jwttest.New("b")
		var network memnet.Network
		fetch := make(chan string) // each is an answer of the issuer
		keys := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if set, ok := <-fetch; ok {
				io.WriteString(w, set)
			}
		})}
		listener := network.Listen("10.0.0.9:80")
		var serving sync.WaitGroup
		serving.Go(func() { _ = keys.Serve(listener) })
		defer serving.Wait()
		defer keys.Close()
		defer close(fetch)
		m := newMesh(t, authentication("issuer: i, jwksUri: 'http://keys/'"), mesh.WithServer(mesh.ServerConfig{TrustedHops: 1}),
			mesh.WithDiscovery(discovery.Static{"keys": {{Address: "10.0.0.9", Port: 80}}}),
			mesh.WithTransport(&http.Transport{DialContext: network.DialContext}))
		defer m.Close()
		handler := m.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		fetch <- jwttest.KeySet(first)
		time.Sleep(time.Minute)
		token := "Bearer " + second.Token(`{"iss":"i","sub":"alice"}`)
		ask := func(client string) int {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil) // always from the proxy
			r.Header["X-Forwarded-For"], r.Header["Authorization"] = []string{client}, []string{token}
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			return w.Code
		}
		var waiting sync.WaitGroup
		for _, client := range []struct {
			address string
			most    int
		}{{"10.1.1.1", 64}, {"10.1.1.2", 32}, {"2001:db8::1", 16}, {"2001:db8:0:1::1", 8}} {
			for range client.most {
				waiting.Go(func() {
					if code := ask(client.address); code != 200 {
						t.Errorf("a request of %s that waited gets %d", client.address, code)
					}
				})
			}
			synctest.Wait()
			began := time.Now()
			if code := ask(client.address); code != 401 || time.Since(began) > 0 {
				t.Errorf("one request more of %s than may wait: %d after %v, want 401 at once", client.address, code, time.Since(began))
			}
		}
		fetch <- jwttest.KeySet(first, second)
		waiting.Wait()
	})
}

// A change of documents brings rules about tokens into force, and takes them back, without a request in between seeing half.
func TestTokensAndReloads(t *testing.T) {
	noLeaks(t)
	issuer := jwttest.New("a")
	with := authentication("issuer: i, jwks: '"+jwttest.KeySet(issuer)+"', outputClaimToHeaders: [{header: x-sub, claim: sub}]") +
		authorization("ALLOW", "{when: [{key: 'request.headers[x-sub]', values: [alice]}]}")
	const without = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: none, namespace: default}\nspec: {}\n"
	m := newMesh(t, without)
	e := serveMesh(t, m, func(http.ResponseWriter, *http.Request) {})
	client := &http.Client{Transport: new(http.Transport)}
	defer client.CloseIdleConnections()
	send := func(token string) int {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addressOf(e)+"/", nil)
		req.Header.Set("X-Sub", "alice")
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := client.Do(req)
		if err != nil {
			t.Error(err)
			return 0
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	bob, alice := issuer.Token(`{"iss":"i","sub":"bob"}`), issuer.Token(`{"iss":"i","sub":"alice"}`)
	stop := make(chan struct{})
	var asking sync.WaitGroup
	defer asking.Wait()
	defer close(stop)
	for range 2 {
		asking.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if code := send(bob); code != 403 {
					t.Errorf("bob gets %d", code)
					return
				}
			}
		})
	}
	for range 50 {
		for _, documents := range []string{with, without} {
			if err := m.Apply(source(documents)); err != nil {
				t.Fatal(err)
			}
			want := map[string]int{with: 200, without: 403}[documents]
			if code := send(alice); code != want {
				t.Fatalf("alice gets %d, want %d", code, want)
			}
		}
	}
}

// What the mesh says of the user is not for the client to say in trailers, nor to have removed by a proxy behind the handler.
func TestClaimsInTrailersAndConnection(t *testing.T) {
	noLeaks(t)
	issuer := jwttest.New("a")
	seen := make(chan string, 1)
	m := newMesh(t, authentication("issuer: i, jwks: '"+jwttest.KeySet(issuer)+"', outputClaimToHeaders: [{header: x-sub, claim: sub}]"))
	e := serveMesh(t, m, func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		seen <- fmt.Sprint(r.Header["X-Sub"], r.Header["Connection"], r.Trailer)
	})
	client := &http.Client{Transport: new(http.Transport)}
	defer client.CloseIdleConnections()
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+addressOf(e)+"/", io.MultiReader(strings.NewReader("body")))
	req.Header.Set("Authorization", "Bearer "+issuer.Token(`{"iss":"i","sub":"alice"}`))
	req.Header.Set("Connection", "x-other, x-sub, X_Sub")
	req.Trailer = http.Header{"X-Sub": {"root"}, "X_sub": {"root"}, "X-Sum": {"1"}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got, want := await.Receive(t, "a request", seen), "[alice] [x-other] map[X-Sum:[1]]"; got != want {
		t.Errorf("the handler sees %s, want %s", got, want)
	}
}

// A refused document that names other keys does not make the mesh wait for them.
func TestRefusedDocumentsAndReadiness(t *testing.T) {
	noLeaks(t)
	m := newMesh(t, authorization("ALLOW", "{}"))
	if err := m.Apply(source(authentication("issuer: i, jwksUri: 'http://127.0.0.1:1/keys'") + "---\nkind: Unknown\n")); err == nil {
		t.Fatal("taken")
	}
	if s := m.Status(); !s.Ready || len(s.Keys) != 0 {
		t.Errorf("not ready: %q, keys %v", s.NotReady, s.Keys)
	}
}

// A request that is running when rules about tokens come into force is judged by its token, and not by what its client wrote into a
// header that is a claim from then on.
func TestRunningRequestsAndNewHeadersOfClaims(t *testing.T) {
	noLeaks(t)
	issuer := jwttest.New("a")
	users := func(outputs string) string {
		return authentication("issuer: i, jwks: '" + jwttest.KeySet(issuer) + "'" + outputs)
	}
	const outputs = ", outputClaimToHeaders: [{header: x-sub, claim: sub}]"
	allow := authorization("ALLOW", "{when: [{key: 'request.headers[x-sub]', values: [alice]}]}")
	deny := authorization("DENY", "{when: [{key: 'request.headers[x-sub]', values: [bob]}]}")
	for _, test := range []struct {
		name, before, then string
		header, user       string
		ends               bool
	}{
		{"the client's own header", "", users(outputs) + allow, "alice", "", true},
		{"in another spelling", "", users(outputs) + authorization("ALLOW", "{when: [{key: 'request.headers[x_sub]', values: [alice]}]}"), "alice", "", true},
		{"against the claim", users(""), users(outputs) + allow, "alice", "bob", true},
		{"the claim", users(""), users(outputs) + allow, "bob", "alice", false},
		{"a denied claim", users(""), users(outputs) + deny, "alice", "bob", true},
		{"an allowed claim", users(""), users(outputs) + deny, "bob", "alice", false},
		{"the claim as it was", users(outputs), users(outputs) + allow, "bob", "alice", false},
		{"a rule of another issuer", users(""), strings.Replace(users(outputs), "issuer: i", "issuer: j", 1) + allow, "alice", "alice", true},
		{"no header as before", "", users("") + allow, "alice", "", false},
	} {
		for _, kind := range []string{"HTTP", "taken over"} {
			t.Run(test.name+", "+kind, func(t *testing.T) {
				// On a busy machine the client may send its first byte late.
				m := newMesh(t, test.before+authorization("ALLOW", "{}"), mesh.WithServer(mesh.ServerConfig{HandshakeTimeout: time.Hour}))
				begun, ended, stopped := make(chan error, 3), make(chan struct{}), make(chan struct{})
				stop := sync.OnceFunc(func() { close(stopped) })
				var asking sync.WaitGroup
				defer asking.Wait()
				defer stop()
				e := serveMesh(t, m, func(w http.ResponseWriter, r *http.Request) {
					defer close(ended)
					begun <- nil
					if kind == "HTTP" {
						select {
						case <-r.Context().Done():
						case <-stopped:
						}
						return
					}
					conn, _, err := http.NewResponseController(w).Hijack()
					if err != nil {
						t.Error(err)
						return
					}
					defer conn.Close()
					begun <- nil
					io.Copy(io.Discard, conn)
				})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addressOf(e)+"/", strings.NewReader("body"))
				name := "X-Sub"
				if strings.Contains(test.name, "spelling") {
					name = "X_sub"
				}
				req.Header.Set(name, test.header)
				if test.user != "" {
					req.Header.Set("Authorization", "Bearer "+issuer.Token(`{"iss":"i","sub":"`+test.user+`"}`))
				}
				client := &http.Client{Transport: new(http.Transport)}
				defer client.CloseIdleConnections()
				asking.Go(func() {
					resp, err := client.Do(req)
					if err == nil {
						resp.Body.Close()
					}
					begun <- fmt.Errorf("the request ended before it was served: %v", err) // read only if it is
				})
				for _, expected := range map[string][]string{"HTTP": {"the request"}, "taken over": {"the request", "the connection"}}[kind] {
					if err := await.Receive(t, expected, begun); err != nil {
						t.Fatal(err)
					}
				}
				apply(t, m, test.then)
				select {
				case <-ended:
					if !test.ends {
						t.Error("the request was ended")
					}
				default:
					if test.ends {
						await.Receive(t, "the end of the request", ended)
					}
				}
				stop()
				cancel()
				await.Receive(t, "the end of the handler", ended)
			})
		}
	}
}

// An issuer outside the mesh does not lead the process to services of the mesh: they would take the fetch for a call of that process.
func TestIssuersOutsideLeadNowhereInTheMesh(t *testing.T) {
	noLeaks(t)
	issuer := jwttest.New("a")
	w := newTown(t)
	peers := make(chan string, 100)
	w.serve(t, w.member(t, "keys", strict), "keys", func(rw http.ResponseWriter, r *http.Request) {
		peers <- mesh.PeerID(r.Context())
		io.WriteString(rw, jwttest.KeySet(issuer))
	})
	outside := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		io.WriteString(rw, `{"jwks_uri":"http://keys.default.svc.cluster.local/set"}`)
	}))
	defer outside.Close()
	fetches := make(chan jwt.State, 100)
	w.member(t, "web", authentication("issuer: '"+outside.URL+"', timeout: 1s")+"---"+strict, mesh.WithObserver(mesh.Observer{Keys: func(s jwt.State) {
		select {
		case fetches <- s:
		default:
		}
	}}))
	if state := await.Receive(t, "a fetch", fetches); state.Err == nil || state.Keys > 0 {
		t.Errorf("%d keys were fetched", state.Keys)
	}
	select {
	case peer := <-peers:
		t.Errorf("a service of the mesh was called by %s", peer)
	default:
	}
}
