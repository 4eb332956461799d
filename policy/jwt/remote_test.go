package jwt_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/jwttest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/policy/jwt"
)

// server answers fetches as a function says, and counts them.
type server struct {
	mu      sync.Mutex
	answer  func(*http.Request) (*http.Response, error)
	fetches int
	busy    atomic.Int32
	most    atomic.Int32
}

func (s *server) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	s.fetches++
	answer := s.answer
	s.mu.Unlock()
	if n := s.busy.Add(1); n > s.most.Load() {
		s.most.Store(n)
	}
	defer s.busy.Add(-1)
	resp, err := answer(r)
	if resp != nil {
		resp.Request = r
	}
	return resp, err
}

func (s *server) set(answer func(*http.Request) (*http.Response, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

// count returns the number of fetches since it was last called.
func (s *server) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.fetches
	s.fetches = 0
	return n
}

func says(status int, body string, headers ...string) func(*http.Request) (*http.Response, error) {
	return func(*http.Request) (*http.Response, error) {
		h := http.Header{}
		for i := 0; i < len(headers); i += 2 {
			h.Set(headers[i], headers[i+1])
		}
		return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(body))}, nil
	}
}

// hangs answers nothing before the fetch is given up.
func hangs(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// stalls answers, and never ends its body.
func stalls(r *http.Request) (*http.Response, error) {
	body, _ := io.Pipe()
	context.AfterFunc(r.Context(), func() { body.CloseWithError(r.Context().Err()) })
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: body}, nil
}

// sized answers with a body of 60 MB, and says so.
func sized(r *http.Request) (*http.Response, error) {
	resp, err := endless(r)
	resp.ContentLength = 60 << 20
	return resp, err
}

// endless answers with a body that has no end.
func endless(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(spaces{})}, nil
}

type spaces struct{}

func (spaces) Read(p []byte) (int, error) { return len(p), nil } // what is in p counts for no more than its length

// fetching runs a test with an Authenticator whose keys are fetched from a scripted server, in a bubble of synthetic time.
func fetching(t *testing.T, rule jwt.Rule, first func(*http.Request) (*http.Response, error), test func(t *testing.T, s *server, remotes *jwt.Remotes, judge func(token string) string)) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{answer: first}
		remotes := &jwt.Remotes{Transport: func(*http.Request) http.RoundTripper { return s }}
		defer remotes.Close()
		a, err := jwt.New([]jwt.Rule{rule}, remotes)
		if err != nil {
			t.Fatal(err)
		}
		judge := func(token string) string {
			return outcome(a.Authenticate(t.Context(), bearer(token), time.Now()))
		}
		remotes.Use(a)
		synctest.Wait()
		test(t, s, remotes, judge)
	})
}

var fetched = jwt.Rule{URI: "https://keys/set"}

const user = `{"iss":"i","sub":"alice"}`

// Keys are fetched ahead of need, at the pace that the answer allows, by one request at a time.
func TestKeysAreFetchedAhead(t *testing.T) {
	k := rs("k", "RS256")
	set := keySet(t, k.jwk(t, nil))
	for _, test := range []struct {
		cache    string
		min, max int // fetches in a day
	}{
		{"", 96, 130}, {"max-age=86400", 96, 130}, {"public, max-age=600", 192, 260}, {"max-age=0", 1440, 1930}, {"no-store", 96, 130}, {"max-age=x", 96, 130},
	} {
		fetching(t, fetched, says(200, set, "Cache-Control", test.cache), func(t *testing.T, s *server, remotes *jwt.Remotes, judge func(string) string) {
			if got := judge(k.token(user)); got != "i/alice" || remotes.States()[0].Keys == 0 {
				t.Errorf("got %q", got)
			}
			s.count()
			time.Sleep(24 * time.Hour)
			if n := s.count(); n < test.min || n > test.max || s.most.Load() != 1 {
				t.Errorf("%q: %d fetches in a day, %d at a time", test.cache, n, s.most.Load())
			}
		})
	}
}

// Whatever the server does, the last good set stays in force, and is asked for at a bounded pace.
func TestKeyServerInTrouble(t *testing.T) {
	k, other := signer{"k", "EdDSA", ed25519Key()}, signer{"k2", "ES256", ecKey()} // which sign faster than RSA
	set := keySet(t, k.jwk(t, nil))
	for name, trouble := range map[string]func(*http.Request) (*http.Response, error){
		"dead": func(*http.Request) (*http.Response, error) { return nil, errors.New("refused") }, "hanging": hangs, "stalling": stalls,
		"500": says(500, set), "404": says(404, ""), "204": says(204, ""), "empty": says(200, ""), "no keys": says(200, `{"keys":[]}`),
		"a page": says(200, "<html>"), "60 MB": sized, "no end": endless,
		"redirect to http":  func(r *http.Request) (*http.Response, error) { return redirect(r, "http://keys/set") },
		"redirect to files": func(r *http.Request) (*http.Response, error) { return redirect(r, "file:///etc/passwd") },
		"redirects":         func(r *http.Request) (*http.Response, error) { return redirect(r, "https://keys/again") },
	} {
		t.Run(name, func(t *testing.T) {
			fetching(t, fetched, says(200, set), func(t *testing.T, s *server, remotes *jwt.Remotes, judge func(string) string) {
				good := k.token(user)
				s.set(trouble)
				time.Sleep(20 * time.Minute) // when the next fetch is due
				s.count()
				for range 60 {
					time.Sleep(time.Minute)
					if got := judge(good); got != "i/alice" {
						t.Fatalf("a good token: %q", got)
					}
					if got := judge(k.token(`{"iss":"i","sub":"bob"}`)); got != "i/bob" { // one that is not remembered
						t.Fatalf("another good token: %q", got)
					}
				}
				n := s.count()
				if state := remotes.States()[0]; state.Err == nil || state.Keys != 1 || time.Since(state.Fetched) < time.Hour {
					t.Errorf("state %+v", state)
				}
				if limit := 60 * 60 / 45 * 4; n > limit { // a redirect is a request of its own
					t.Errorf("%d fetches in an hour", n)
				}
				s.set(says(200, keySet(t, other.jwk(t, nil))))
				time.Sleep(2 * time.Minute)
				if got := judge(other.token(user)); got != "i/alice" {
					t.Errorf("with new keys: %q", got)
				}
				if got := judge(good); got != noKey {
					t.Errorf("with the key gone: %q", got)
				}
			})
		})
	}
}

func redirect(_ *http.Request, to string) (*http.Response, error) {
	return says(302, "", "Location", to)(nil)
}

// Without keys no token passes, a request without one does, and both learn it at once.
func TestStartWithoutKeys(t *testing.T) {
	k := rs("k", "RS256")
	fetching(t, fetched, hangs, func(t *testing.T, s *server, remotes *jwt.Remotes, judge func(string) string) {
		start := time.Now()
		if got := judge(k.token(user)); got != "401 Jwks remote fetch is failed" || remotes.States()[0].Keys != 0 || time.Since(start) > 0 {
			t.Errorf("got %q after %v", got, time.Since(start))
		}
		if got := judge(k.token(`{"iss":"i","exp":1}`)); got != expired { // what is wrong with it anyway
			t.Errorf("an expired token: %q", got)
		}
		s.set(says(200, keySet(t, k.jwk(t, nil))))
		time.Sleep(10 * time.Second)
		if got := judge(k.token(user)); got != "i/alice" || remotes.States()[0].Keys == 0 {
			t.Errorf("with keys: %q", got)
		}
	})
}

// A token with an unknown key ID makes the set be fetched again, once in a while, and waits for it; nobody else does.
func TestUnknownKeyID(t *testing.T) {
	k, next := rs("k", "RS256"), signer{"next", "RS256", rsaKey2()}
	both := keySet(t, k.jwk(t, nil), next.jwk(t, nil))
	fetching(t, fetched, says(200, keySet(t, k.jwk(t, nil))), func(t *testing.T, s *server, _ *jwt.Remotes, judge func(string) string) {
		time.Sleep(time.Minute / 2)
		s.set(says(200, both))
		if got := judge(next.token(user)); got != "i/alice" {
			t.Errorf("after a rotation: %q", got)
		}
		s.count()
		// A flood of made-up key IDs.
		for i := range 1000 {
			if got := judge(signer{fmt.Sprint("kid-", i), "EdDSA", ed25519Key()}.token(user)); got != noKey {
				t.Fatal(got)
			}
			time.Sleep(time.Minute / 1000)
		}
		if n := s.count(); n > 6 {
			t.Errorf("%d fetches in a minute", n)
		}
		// While the server hangs, few wait; good tokens do not.
		s.set(hangs)
		time.Sleep(15 * time.Second)
		var wait sync.WaitGroup
		var waited atomic.Int32
		for i := range 500 {
			wait.Go(func() {
				start := time.Now()
				judge(signer{fmt.Sprint("kid-", i), "EdDSA", ed25519Key()}.token(user))
				if d := time.Since(start); d > 5*time.Second {
					t.Errorf("waited %v", d)
				} else if d > 0 {
					waited.Add(1)
				}
			})
		}
		synctest.Wait()
		start := time.Now()
		if got := judge(k.token(user)); got != "i/alice" || time.Since(start) > 0 {
			t.Errorf("a good token meanwhile: %q after %v", got, time.Since(start))
		}
		wait.Wait()
		if n := waited.Load(); n == 0 || n > 64 {
			t.Errorf("%d waited", n)
		}
	})
}

// An issuer that publishes a key a day before it signs with it, and keeps the old one a day longer, has no good token refused, whatever
// happens to its server in between; and a token of the key that is gone is refused.
func TestRotationOfKeys(t *testing.T) {
	first, second := signer{"1", "EdDSA", ed25519Key()}, signer{"2", "ES256", ecKey()}
	both, last := keySet(t, first.jwk(t, nil), second.jwk(t, nil)), keySet(t, second.jwk(t, nil))
	fetching(t, fetched, says(200, keySet(t, first.jwk(t, nil))), func(t *testing.T, s *server, _ *jwt.Remotes, judge func(string) string) {
		n := 0
		day := func(by signer, answer func(*http.Request) (*http.Response, error)) {
			s.set(answer)
			for minute := range 24 * 60 {
				if minute == 12*60 {
					s.set(hangs)
				}
				if minute == 13*60 {
					s.set(answer)
				}
				if minute%10 == 0 { // each a token that is not remembered
					n++
					if got, want := judge(by.token(fmt.Sprintf(`{"iss":"i","sub":"%d"}`, n))), fmt.Sprintf("i/%d", n); got != want {
						t.Fatalf("user %d, minute %d: %q", n, minute, got)
					}
				}
				time.Sleep(time.Minute)
			}
		}
		day(first, says(200, keySet(t, first.jwk(t, nil))))
		day(first, says(200, both))
		day(second, says(200, both))
		day(second, says(200, last))
		if got := judge(first.token(user)); got != noKey {
			t.Errorf("a token of the key that is gone: %q", got)
		}
	})
}

// Tokens that are remembered do not keep the key sets that verified them.
func TestOldKeySetsAreNotKept(t *testing.T) {
	const sets, size = 20, 900_000
	k := signer{"k", "EdDSA", ed25519Key()}
	set := func(n int) string { return keySet(t, k.jwk(t, nil)) + strings.Repeat(" ", size-n) }
	fetching(t, fetched, says(200, set(0), "Cache-Control", "max-age=0"), func(t *testing.T, s *server, _ *jwt.Remotes, judge func(string) string) {
		before := leak.Heap()
		for n := range sets {
			s.set(says(200, set(n+1), "Cache-Control", "max-age=0"))
			time.Sleep(time.Minute)
			if got, want := judge(k.token(fmt.Sprintf(`{"iss":"i","sub":"%d"}`, n))), fmt.Sprintf("i/%d", n); got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
		}
		if more := leak.Heap() - before; more > sets*size/4 {
			t.Errorf("after %d key sets of %d bytes, %d bytes more are in use", sets, size, more)
		}
		judge(k.token(user)) // until here, everything is in use
	})
}

// While many send tokens, the issuer publishes another key, signs with it, and withdraws the first one: no good token is refused.
func TestRotationOfKeysUnderLoad(t *testing.T) {
	const senders, minutes = 4, 4 * 60
	first, second := signer{"1", "EdDSA", ed25519Key()}, signer{"2", "ES256", ecKey()}
	both, last := keySet(t, first.jwk(t, nil), second.jwk(t, nil)), keySet(t, second.jwk(t, nil))
	fetching(t, fetched, says(200, keySet(t, first.jwk(t, nil))), func(t *testing.T, s *server, _ *jwt.Remotes, judge func(string) string) {
		var signing atomic.Pointer[signer]
		signing.Store(&first)
		var sending sync.WaitGroup
		for sender := range senders {
			sending.Go(func() {
				for n := range minutes {
					sub := fmt.Sprint(sender, "-", n)
					if got := judge(signing.Load().token(`{"iss":"i","sub":"` + sub + `"}`)); got != "i/"+sub {
						t.Errorf("minute %d: %q", n, got)
					}
					time.Sleep(time.Minute)
				}
			})
		}
		time.Sleep(time.Hour + time.Second)
		s.set(says(200, both))
		time.Sleep(time.Hour)
		signing.Store(&second)
		time.Sleep(time.Hour)
		s.set(says(200, last))
		sending.Wait()
		if got := judge(first.token(user)); got != noKey {
			t.Errorf("a token of the key that is gone: %q", got)
		}
		if n := s.count(); n > minutes {
			t.Errorf("%d fetches in %d minutes", n, minutes)
		}
	})
}

// A server whose answers are good and bad in turn is asked no more often than one that is down, and no good token is refused.
func TestKeyServerThatFlaps(t *testing.T) {
	k := signer{"k", "EdDSA", ed25519Key()}
	good := says(200, keySet(t, k.jwk(t, nil)))
	bad := []func(*http.Request) (*http.Response, error){says(500, ""), says(200, `{"keys":[]}`), hangs}
	var asked atomic.Int32
	fetching(t, fetched, func(r *http.Request) (*http.Response, error) {
		n := int(asked.Add(1) - 1)
		if n%2 == 0 {
			return good(r)
		}
		return bad[n/2%len(bad)](r)
	}, func(t *testing.T, s *server, remotes *jwt.Remotes, judge func(string) string) {
		const hours = 12
		for n := range hours * 60 {
			if got, want := judge(k.token(fmt.Sprintf(`{"iss":"i","sub":"%d"}`, n))), fmt.Sprintf("i/%d", n); got != want {
				t.Fatalf("minute %d: %q", n, got)
			}
			time.Sleep(time.Minute)
		}
		if n := s.count(); n < 2*len(bad) || n > hours*60*60/45 {
			t.Errorf("%d fetches in %d hours", n, hours)
		}
		if state := remotes.States()[0]; state.Keys != 1 {
			t.Errorf("state %+v", state)
		}
	})
}

// The issuer's OpenID configuration says where the keys are.
func TestDiscovery(t *testing.T) {
	k := rs("k", "RS256")
	for config, want := range map[string]string{
		`{"jwks_uri":"https://other/keys"}`: "i/alice",
		`{"jwks_uri":"http://other/keys"}`:  "401 Jwks remote fetch is failed",
		`{"jwks_uri":"file:///keys"}`:       "401 Jwks remote fetch is failed",
		`{"jwks_uri":1}`:                    "401 Jwks remote fetch is failed",
		`{}`:                                "401 Jwks remote fetch is failed",
		`{"jwks_uri":"https://other/keys","jwks_uri":"https://evil/keys"}`: "401 Jwks remote fetch is failed",
	} {
		answer := func(r *http.Request) (*http.Response, error) {
			switch r.URL.String() {
			case "https://issuer/realm/.well-known/openid-configuration":
				return says(200, config)(r)
			case "https://other/keys":
				return says(200, keySet(t, k.jwk(t, nil)))(r)
			}
			return says(404, "")(r)
		}
		fetching(t, jwt.Rule{Issuer: "https://issuer/realm/", Discover: true}, answer, func(t *testing.T, _ *server, _ *jwt.Remotes, judge func(string) string) {
			if got := strings.Replace(judge(k.token(`{"iss":"https://issuer/realm/","sub":"alice"}`)), "https://issuer/realm/", "i", 1); got != want {
				t.Errorf("%s: got %q", config, got)
			}
		})
	}
}

// A key set belongs to its source: other rules with the same one do not fetch it again, and keys that did not change forget no token.
func TestSourcesOutliveRules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := rs("k", "RS256")
		s := &server{answer: says(200, keySet(t, k.jwk(t, nil)))}
		remotes := &jwt.Remotes{Transport: func(*http.Request) http.RoundTripper { return s }}
		defer remotes.Close()
		var last *jwt.Authenticator
		for i := range 10 {
			a, err := jwt.New([]jwt.Rule{{Issuer: "i", URI: "https://keys/set"}, {Issuer: fmt.Sprint(i), URI: "https://keys/set"}}, remotes)
			if err != nil {
				t.Fatal(err)
			}
			remotes.Use(a)
			synctest.Wait()
			last = a
		}
		if n := s.count(); n != 1 {
			t.Errorf("%d fetches", n)
		}
		remotes.Use(nil)
		synctest.Wait()
		if len(remotes.States()) != 0 {
			t.Error("still in use")
		}
		time.Sleep(24 * time.Hour)
		if n := s.count(); n != 0 {
			t.Errorf("%d fetches of what nobody uses", n)
		}
		if got := outcome(last.Authenticate(t.Context(), bearer(k.token(user)), time.Now())); got != "i/alice" {
			t.Errorf("a request that began before: %q", got)
		}
	})
}

// Addresses that only this machine reaches are not asked for keys.
func TestMetadataIsNotFetched(t *testing.T) {
	for _, uri := range []string{
		"http://169.254.169.254/latest", "http://[fe80::1]/", "http://[fd00:ec2::254]/", "http://100.100.100.200/", "http://[::ffff:169.254.169.254]/",
		"http://[fd20:ce::254]/", "http://168.63.129.16/", "http://192.0.0.192/", "http://[64:ff9b::169.254.169.254]/",
	} {
		if state := fetchOnce(t, jwt.Rule{URI: uri}); state.Err == nil || !strings.Contains(state.Err.Error(), "link-local or metadata") {
			t.Errorf("%s: %v", uri, state.Err)
		}
	}
}

// Neither a proxy nor another way to dial of the program is a way past that.
func TestMetadataIsNotFetchedInOtherWays(t *testing.T) {
	asked := make(chan string, 100)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Host
		io.WriteString(w, jwttest.KeySet(jwttest.New("a")))
	}))
	defer proxy.Close()
	through, _ := url.Parse(proxy.URL)
	for name, transport := range map[string]*http.Transport{
		"proxy": {Proxy: http.ProxyURL(through)},
		"dial": {
			DialContext:    func(context.Context, string, string) (net.Conn, error) { asked <- "dialled"; return nil, io.EOF },
			DialTLSContext: func(context.Context, string, string) (net.Conn, error) { asked <- "dialled"; return nil, io.EOF },
		},
	} {
		standard := http.DefaultTransport
		http.DefaultTransport = transport
		for _, uri := range []string{
			"http://169.254.169.254/latest", "https://169.254.169.254/", "http://[fd00:ec2::254]/", "http://[::ffff:169.254.169.254]/",
			"http://2852039166/", "http://0xa9.254.0xa9fe/", "http://metadata.google.internal/", "http://METADATA.google.internal./",
		} {
			if name == "dial" && !strings.Contains(uri, "169.254.169.254") { // others are names
				continue
			}
			if state := fetchOnce(t, jwt.Rule{URI: uri}); state.Err == nil || !strings.Contains(state.Err.Error(), "keys are not fetched from there") {
				t.Errorf("%s, %s: %v", name, uri, state.Err)
			}
		}
		if name == "proxy" {
			for _, name := range []string{"issuer.example.com", "issuer.example.com."} {
				if state := fetchOnce(t, jwt.Rule{URI: "http://" + name + "/"}); state.Err != nil {
					t.Errorf("a name: %v", state.Err)
				} else if host := <-asked; host != name {
					t.Errorf("the proxy was asked for %s", host)
				}
			}
		}
		http.DefaultTransport = standard
	}
	select {
	case host := <-asked:
		t.Errorf("asked: %s", host)
	default:
	}
}

// fetchOnce returns what came of the first fetch.
func fetchOnce(t *testing.T, rule jwt.Rule) jwt.State {
	t.Helper()
	told := make(chan jwt.State, 1)
	remotes := &jwt.Remotes{OnFetch: func(s jwt.State) {
		select {
		case told <- s:
		default:
		}
	}}
	defer remotes.Close()
	a, err := jwt.New([]jwt.Rule{rule}, remotes)
	if err != nil {
		t.Fatal(err)
	}
	remotes.Use(a)
	return await.Receive(t, "a fetch", told)
}

// What an issuer names is of any length, and must not fill logs.
func TestLongURIsAreNotRepeated(t *testing.T) {
	long := strings.Repeat("x", 50_000)
	for name, answer := range map[string]http.HandlerFunc{
		"jwks_uri": func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, `{"jwks_uri": "ftp://`+strings.Repeat(long, 10)+`"}`)
		},
		"redirect": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "https://["+long)
			w.WriteHeader(http.StatusFound)
		},
	} {
		s := httptest.NewServer(answer)
		defer s.Close()
		if state := fetchOnce(t, jwt.Rule{Issuer: s.URL, Discover: true}); state.Err == nil || len(state.Err.Error()) > 2000 {
			t.Errorf("%s: the error has %d bytes", name, len(fmt.Sprint(state.Err)))
		}
	}
}

// A program may have replaced http.DefaultTransport by something else, as for tracing.
func TestAnotherDefaultTransport(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, jwttest.KeySet(jwttest.New("a")))
	}))
	defer s.Close()
	standard := http.DefaultTransport
	http.DefaultTransport = &server{answer: hangs}
	defer func() { http.DefaultTransport = standard }()
	told := make(chan jwt.State, 1)
	remotes := &jwt.Remotes{OnFetch: func(s jwt.State) {
		select {
		case told <- s:
		default:
		}
	}}
	defer remotes.Close()
	a, err := jwt.New([]jwt.Rule{{URI: s.URL}}, remotes)
	if err != nil {
		t.Fatal(err)
	}
	if states := remotes.States(); len(states) != 0 {
		t.Errorf("before Use: %v", states)
	}
	remotes.Use(a)
	if state := <-told; state.Err != nil || state.Keys != 1 {
		t.Errorf("%d keys, %v", state.Keys, state.Err)
	}
}

// Where a program has no transport of its own, the keys are fetched as by default.
func TestNoTransportForARequest(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, jwttest.KeySet(jwttest.New("a")))
	}))
	defer s.Close()
	told := make(chan jwt.State, 100)
	remotes := &jwt.Remotes{
		Transport: func(*http.Request) http.RoundTripper { return nil },
		OnFetch:   func(s jwt.State) { told <- s },
	}
	defer remotes.Close()
	a, err := jwt.New([]jwt.Rule{{URI: s.URL, Timeout: time.Millisecond}}, remotes)
	if err != nil {
		t.Fatalf("the shortest timeout: %v", err)
	}
	remotes.Use(a)
	if a, err = jwt.New([]jwt.Rule{{URI: s.URL}}, remotes); err != nil {
		t.Fatal(err)
	}
	remotes.Use(a)
	for {
		if state := await.Receive(t, "a fetch", told); state.Source.Timeout == time.Millisecond {
			continue
		} else if state.Err != nil || state.Keys != 1 {
			t.Errorf("%d keys, %v", state.Keys, state.Err)
		}
		return
	}
}

// Rules that were compiled and never put in force, as with documents that turn out to be wrong, leave nothing behind.
func TestRulesThatNeverComeIntoForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{answer: hangs}
		remotes := &jwt.Remotes{Transport: func(*http.Request) http.RoundTripper { return s }}
		var last *jwt.Authenticator
		for i := range 3 {
			a, err := jwt.New([]jwt.Rule{{URI: fmt.Sprint("https://keys/", i)}}, remotes)
			if err != nil {
				t.Fatal(err)
			}
			last = a
		}
		remotes.Use(last)
		synctest.Wait()
		if states := remotes.States(); len(states) != 1 || states[0].Source.URI != "https://keys/2" || s.count() != 1 {
			t.Errorf("states %v, want that of the rules in force", states)
		}
		remotes.Close()
	})
}

// No sender takes all places of those who wait for keys.
func TestWaitsForKeysAreShared(t *testing.T) {
	k := signer{"k", "EdDSA", ed25519Key()}
	fetching(t, fetched, says(200, keySet(t, k.jwk(t, nil))), func(t *testing.T, s *server, remotes *jwt.Remotes, _ func(string) string) {
		a, err := jwt.New([]jwt.Rule{fetched}, remotes)
		if err != nil {
			t.Fatal(err)
		}
		s.set(hangs)
		time.Sleep(15 * time.Second)
		var waiting sync.WaitGroup
		defer waiting.Wait()
		for _, sender := range []struct {
			address string
			most    int32
		}{{"192.0.2.1:1", 64}, {"192.0.2.1:2", 0}, {"[2001:db8::1]:1", 32}, {"[2001:db8::2]:1", 0}, {"[2001:db8:0:1::1]:1", 16}, {"@", 8}} {
			var refused atomic.Int32
			const n = 200
			for range n {
				waiting.Go(func() {
					r := bearer(signer{"new", "EdDSA", ed25519Key()}.token(user))
					r.RemoteAddr = sender.address
					a.Authenticate(t.Context(), r, time.Now())
					refused.Add(1)
				})
			}
			synctest.Wait()
			if got := n - refused.Load(); got != sender.most {
				t.Errorf("%d requests from %s wait, want %d", got, sender.address, sender.most)
			}
		}
	})
}

// Who waits for keys that are no longer fetched, since other rules are in force or the process ends, waits no longer.
func TestWaitsForKeysThatAreNoLongerFetched(t *testing.T) {
	k := signer{"k", "EdDSA", ed25519Key()}
	rule := fetched
	rule.Timeout = time.Hour
	fetching(t, rule, says(200, keySet(t, k.jwk(t, nil))), func(t *testing.T, s *server, remotes *jwt.Remotes, judge func(string) string) {
		s.set(hangs)
		time.Sleep(15 * time.Second)
		began := time.Now()
		ended := make(chan time.Duration, 1)
		go func() {
			judge(signer{"new", "EdDSA", ed25519Key()}.token(user))
			ended <- time.Since(began)
		}()
		synctest.Wait()
		remotes.Use(nil)
		if waited := <-ended; waited > 0 {
			t.Errorf("it waits for %v", waited)
		}
	})
}

// Rules that come into force again have their keys fetched again.
func TestRulesThatComeIntoForceAgain(t *testing.T) {
	k := signer{"k", "EdDSA", ed25519Key()}
	for _, test := range []struct {
		name  string
		other jwt.Rule
	}{{"after others", jwt.Rule{URI: "https://keys/other"}}, {"after others with the same keys", jwt.Rule{URI: fetched.URI, Audiences: []string{"shop"}}}} {
		t.Run(test.name, func(t *testing.T) {
			fetching(t, fetched, says(200, keySet(t, k.jwk(t, nil))), func(t *testing.T, s *server, remotes *jwt.Remotes, judge func(string) string) {
				a, err := jwt.New([]jwt.Rule{fetched}, remotes)
				if err != nil {
					t.Fatal(err)
				}
				remotes.Use(nil) // a is not in force yet
				other, err := jwt.New([]jwt.Rule{test.other}, remotes)
				if err != nil {
					t.Fatal(err)
				}
				remotes.Use(other)
				synctest.Wait()
				remotes.Use(a)
				synctest.Wait()
				second := signer{"2", "ES256", ecKey()}
				s.set(says(200, keySet(t, second.jwk(t, nil))))
				time.Sleep(time.Hour)
				if got := outcome(a.Authenticate(t.Context(), bearer(second.token(user)), time.Now())); got != "i/alice" {
					t.Errorf("a token of a key that was published since: %q", got)
				}
				if states := remotes.States(); len(states) != 1 || states[0].Err != nil || time.Since(states[0].Fetched) > 20*time.Minute {
					t.Errorf("states %+v", states)
				}
				s.count()
				time.Sleep(time.Hour)
				if n := s.count(); n > 5 {
					t.Errorf("%d fetches an hour", n)
				}
			})
		})
	}
}

// A token that is refused is judged anew when other keys are in force, or when its time has come.
func TestRefusedTokensThatBecomeGood(t *testing.T) {
	first, second := signer{"k", "EdDSA", ed25519Key()}, signer{"k", "ES256", ecKey()}
	third := rs("k", "RS256")
	fetching(t, fetched, says(200, keySet(t, first.jwk(t, nil), third.jwk(t, nil))), func(t *testing.T, s *server, _ *jwt.Remotes, judge func(string) string) {
		later := third.token(fmt.Sprintf(`{"iss":"i","sub":"alice","nbf":%d}`, time.Now().Add(10*time.Minute).Unix()))
		another := signer{"k", "RS256", rsaKey2()}
		rotated := another.token(user)
		is := func(token, want string) {
			t.Helper()
			for range 3 {
				if got := judge(token); got != want {
					t.Errorf("got %q, want %q", got, want)
				}
			}
		}
		is(second.token(user), noKey) // there is none for its algorithm
		is(rotated, failed)
		is(later, "401 Jwt not yet valid")
		s.set(says(200, keySet(t, first.jwk(t, nil), another.jwk(t, nil), third.jwk(t, nil))))
		time.Sleep(time.Hour)
		is(rotated, "i/alice")
		is(later, "i/alice")
		s.set(says(200, keySet(t, first.jwk(t, nil))))
		time.Sleep(time.Hour)
		is(rotated, noKey)
	})
}

// What is left out of the keys in force is in the state, for as long as they are.
func TestStateOfSkippedKeys(t *testing.T) {
	k := signer{"k", "EdDSA", ed25519Key()}
	fetching(t, fetched, says(200, keySet(t, k.jwk(t, map[string]any{"use": "enc"}), k.jwk(t, nil), map[string]any{"kty": "oct"})), func(t *testing.T, s *server, remotes *jwt.Remotes, _ func(string) string) {
		is := func(want string) {
			t.Helper()
			if state := remotes.States()[0]; state.Keys != 1 || fmt.Sprint(state.Skipped) != want {
				t.Errorf("%d keys, skipped %v, want %s", state.Keys, state.Skipped, want)
			}
		}
		const some = "[keys[0] is left out: its use is not sig keys[2] is left out: it is a private or a symmetric key, which has no place here]"
		is(some)
		s.set(says(500, ""))
		time.Sleep(time.Hour)
		is(some)
		s.set(says(200, keySet(t, k.jwk(t, nil))))
		time.Sleep(time.Hour)
		is("[]")
	})
}
