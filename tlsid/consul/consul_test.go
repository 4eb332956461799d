package consul_test

import (
	"crypto/elliptic"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/internal/consul/connecttest"
	"github.com/nosidecar/mesh/internal/consul/consultest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/tlsid"
	"github.com/nosidecar/mesh/tlsid/consul"
)

func TestMain(m *testing.M) { os.Exit(leak.Run(m)) }

// agent is the part of an agent's API that is used here. Real agents are in realservers.
type agent struct {
	*consultest.Agent

	roots  api.CARootList
	leaf   api.LeafCert
	status map[string]int // of the answers for "roots" and "leaf", if not 0
	reads  map[string]int // of "roots" and "leaf"
	fresh  map[string]int // those that did not block
}

func newAgent(t *testing.T, ca *connecttest.CA) *agent {
	a := &agent{status: map[string]int{}, reads: map[string]int{}, fresh: map[string]int{}}
	a.Agent = consultest.New(t, a.answer)
	a.trust(ca)
	a.issue(ca.Leaf("dc1", "web"))
	return a
}

// trust has the agent list authorities, of which the last is active.
func (a *agent) trust(all ...*connecttest.CA) {
	a.Change(func() {
		a.roots = api.CARootList{TrustDomain: connecttest.Domain}
		for i, ca := range all {
			a.roots.Roots = append(a.roots.Roots, &api.CARoot{ID: strconv.Itoa(i), RootCertPEM: ca.RootPEM, Active: i == len(all)-1})
		}
	})
}

func (a *agent) issue(certPEM, keyPEM string) {
	a.Change(func() { a.leaf = api.LeafCert{Service: "web", CertPEM: certPEM, PrivateKeyPEM: keyPEM} })
}

func (a *agent) answer(w http.ResponseWriter, r *http.Request) {
	what := map[string]string{"/v1/agent/connect/ca/roots": "roots", "/v1/agent/connect/ca/leaf/web": "leaf"}[r.URL.Path]
	a.reads[what]++
	if !r.URL.Query().Has("index") {
		a.fresh[what]++
	}
	a.Await(w, r)
	if status := a.status[what]; status != 0 {
		http.Error(w, "Permission denied: token lacks permission 'service:write' on \"web\"", status)
		return
	}
	switch what {
	case "roots":
		json.NewEncoder(w).Encode(a.roots)
	case "leaf":
		json.NewEncoder(w).Encode(a.leaf)
	default:
		http.NotFound(w, r)
	}
}

func (a *agent) count(what string) (reads, fresh int) {
	a.Lock()
	defer a.Unlock()
	return a.reads[what], a.fresh[what]
}

// keep follows the identity of the service web.
func (a *agent) keep(t *testing.T) (k *tlsid.Keeper, failures func() string) {
	t.Helper()
	var mu sync.Mutex
	var all []string
	k = tlsid.Keep(consul.Source{Service: "web", Client: a.Client(t)}, tlsid.Hooks{Failed: func(err error) {
		mu.Lock()
		all = append(all, err.Error())
		mu.Unlock()
	}})
	t.Cleanup(k.Close)
	synctest.Wait()
	return k, func() string {
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		return strings.Join(all, "\n")
	}
}

// kept returns an agent, its authority, and the identity that is kept of it.
func kept(t *testing.T) (ca *connecttest.CA, a *agent, k *tlsid.Keeper, failures func() string, before *tlsid.Identity) {
	ca = connecttest.New(t, elliptic.P256())
	a = newAgent(t, ca)
	k, failures = a.keep(t)
	before, _, _ = identity(t, k)
	return ca, a, k, failures, before
}

// identity returns the identity in force, and how many authorities and certificates it has.
func identity(t *testing.T, k *tlsid.Keeper) (id *tlsid.Identity, authorities, certificates int) {
	t.Helper()
	synctest.Wait()
	id, err := k.Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id, len(id.Bundles()[0].X509Authorities()), len(id.Certificate().Certificate)
}

func TestIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, ca := connecttest.New(t, elliptic.P256()), connecttest.New(t, elliptic.P384())
		a := newAgent(t, old)
		a.trust(ca, old) // the first is not active
		k, failures := a.keep(t)
		defer k.Close()
		id, authorities, _ := identity(t, k)
		if got := id.ID().String(); got != "spiffe://"+connecttest.Domain+"/ns/default/dc/dc1/svc/web" || authorities != 2 || failures() != "" {
			t.Errorf("%s with %d authorities; %s", got, authorities, failures())
		}
	})
}

func TestNewRootsAreInForceBeforeTheNewCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, ca := connecttest.New(t, elliptic.P256()), connecttest.New(t, elliptic.P384())
		a := newAgent(t, old)
		k, failures := a.keep(t)
		defer k.Close()
		before, _, _ := identity(t, k)
		a.trust(old, ca)
		id, authorities, _ := identity(t, k)
		if authorities != 2 || id.Certificate().Leaf != before.Certificate().Leaf && !id.Certificate().Leaf.Equal(before.Certificate().Leaf) {
			t.Errorf("with new roots: %d authorities, want 2 and the same certificate", authorities)
		}
		time.Sleep(29 * time.Second)
		cert, key := ca.Leaf("dc1", "web", ca.Cross(old))
		a.issue(cert, key)
		if id, authorities, certificates := identity(t, k); authorities != 2 || certificates != 2 || id.Certificate().Leaf.Equal(before.Certificate().Leaf) {
			t.Errorf("%d authorities and %d certificates, want the new one with its intermediate", authorities, certificates)
		}
		a.trust(ca)
		if _, authorities, _ := identity(t, k); authorities != 1 {
			t.Errorf("%d authorities, want the new one alone", authorities)
		}
		if failures() != "" {
			t.Errorf("failures: %s", failures())
		}
		if _, fresh := a.count("leaf"); fresh != 1 {
			t.Errorf("%d reads of the certificate that did not wait for it: each would have it issued again", fresh)
		}
	})
}

// The peers' certificates are cross-signed: a certificate that comes before the roots that signed it is an identity too.
func TestNewCertificateBeforeTheRoots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, ca := connecttest.New(t, elliptic.P256()), connecttest.New(t, elliptic.P256())
		a := newAgent(t, old)
		k, failures := a.keep(t)
		defer k.Close()
		cert, key := ca.Leaf("dc1", "web", ca.Cross(old))
		a.issue(cert, key)
		if _, _, certificates := identity(t, k); certificates != 2 || failures() != "" {
			t.Errorf("%d certificates: %s", certificates, failures())
		}
	})
}

func TestDenialKeepsTheIdentityUntilItExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := connecttest.New(t, elliptic.P256())
		a := newAgent(t, ca)
		k, failures := a.keep(t)
		defer k.Close()
		a.Change(func() { a.status["leaf"] = http.StatusForbidden })
		if id, _, _ := identity(t, k); id == nil || !strings.Contains(failures(), `certificate of the service "web"`) || !strings.Contains(failures(), "denied") {
			t.Errorf("failures: %s", failures())
		}
		time.Sleep(50 * time.Minute)
		identity(t, k)
		if reads, _ := a.count("leaf"); reads > 600 {
			t.Errorf("%d reads in 50 minutes", reads)
		}
		time.Sleep(15 * time.Minute)
		if _, err := k.Identity(); !isExpired(err) {
			t.Errorf("after its end: %v", err)
		}
		a.Change(func() { a.status["leaf"] = 0 })
		a.issue(ca.Leaf("dc1", "web"))
		time.Sleep(time.Minute)
		identity(t, k)
	})
}

func isExpired(err error) bool {
	_, ok := errors.AsType[*tlsid.ExpiredError](err)
	return ok
}

func TestDeniedFromTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(t, connecttest.New(t, elliptic.P256()))
		a.Change(func() { a.status["leaf"] = http.StatusForbidden })
		k, failures := a.keep(t)
		defer k.Close()
		if _, err := k.Identity(); !errors.Is(err, tlsid.ErrNoIdentity) || !strings.Contains(err.Error(), "denied") {
			t.Errorf("%v; %s", err, failures())
		}
	})
}

func TestDeadAgentKeepsTheIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, ca := connecttest.New(t, elliptic.P256()), connecttest.New(t, elliptic.P256())
		a := newAgent(t, old)
		k, failures := a.keep(t)
		defer k.Close()
		a.Change(func() { a.Down = true })
		time.Sleep(10 * time.Minute)
		identity(t, k)
		if failures() == "" {
			t.Error("nobody is told that the agent is gone")
		}
		if reads, _ := a.count("leaf"); reads > 1200 {
			t.Errorf("%d reads in ten minutes", reads)
		}
		a.trust(old, ca)
		a.Change(func() { a.Down = false })
		time.Sleep(3 * time.Second)
		if _, authorities, _ := identity(t, k); authorities != 2 {
			t.Errorf("%d authorities after the agent came back", authorities)
		}
		if _, err := k.Latest(); err != nil {
			t.Errorf("after the agent came back: %v", err)
		}
	})
}

func TestAnswersThatAreNoIdentity(t *testing.T) {
	for name, spoil := range map[string]func(a *agent, ca *connecttest.CA){
		"another service": func(a *agent, ca *connecttest.CA) { a.issue(ca.Leaf("dc1", "db")) },
		"another case":    func(a *agent, ca *connecttest.CA) { a.issue(ca.Leaf("dc1", "Web")) },
		"another namespace": func(a *agent, ca *connecttest.CA) {
			a.issue(ca.LeafAt(time.Now().Add(time.Hour), "/ns/other/dc/dc1/svc/web"))
		},
		"another key": func(a *agent, ca *connecttest.CA) {
			a.issue(first(ca.Leaf("dc1", "web")), second(ca.Leaf("dc1", "web")))
		},
		"half a key": func(a *agent, ca *connecttest.CA) {
			a.issue(first(ca.Leaf("dc1", "web")), "-----BEGIN EC PRIVATE KEY-----\nMHcC")
		},
		"no certificate": func(a *agent, ca *connecttest.CA) { a.issue("", "") },
		"unknown issuer": func(a *agent, ca *connecttest.CA) { a.issue(connecttest.New(t, elliptic.P256()).Leaf("dc1", "web")) },
		"no roots":       func(a *agent, ca *connecttest.CA) { a.trust() },
		"other roots":    func(a *agent, ca *connecttest.CA) { a.trust(connecttest.New(t, elliptic.P256())) },
		"half a root": func(a *agent, ca *connecttest.CA) {
			a.Change(func() { a.roots.Roots[0].RootCertPEM = ca.RootPEM[:99] })
		},
		"null for a root": func(a *agent, ca *connecttest.CA) { a.Change(func() { a.roots.Roots = append(a.roots.Roots, nil) }) },
		"no trust domain": func(a *agent, ca *connecttest.CA) { a.Change(func() { a.roots.TrustDomain = "" }) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca, a, k, failures, before := kept(t)
				spoil(a, ca)
				time.Sleep(time.Minute)
				if now, _, _ := identity(t, k); now != before || failures() == "" {
					t.Errorf("taken, or not told: %q", failures())
				}
				a.trust(ca)
				a.issue(ca.Leaf("dc1", "web"))
				time.Sleep(time.Minute)
				if now, _, _ := identity(t, k); now == before {
					t.Errorf("a good identity after it is not taken: %s", failures())
				}
			})
		})
	}
}

// While the certificate cannot be renewed, a change of the roots is no reason to forget that.
func TestErrorsAreNotOverWithTheOtherHalf(t *testing.T) {
	for what, change := range map[string]func(a *agent, ca *connecttest.CA){
		"leaf":  func(a *agent, ca *connecttest.CA) { a.trust(ca, connecttest.New(t, elliptic.P256())) },
		"roots": func(a *agent, ca *connecttest.CA) { a.issue(ca.Leaf("dc1", "web")) },
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca, a, k, _, _ := kept(t)
				a.Change(func() { a.status[what] = http.StatusForbidden })
				time.Sleep(time.Minute)
				change(a, ca)
				time.Sleep(time.Minute)
				if _, err := k.Latest(); err == nil || !strings.Contains(err.Error(), "denied") {
					t.Errorf("after the change: %v, want what is still denied", err)
				}
				a.Change(func() { a.status[what] = 0 })
				time.Sleep(time.Minute)
				if _, err := k.Latest(); err != nil {
					t.Errorf("when it is no longer denied: %v", err)
				}
			})
		})
	}
}

func first(s, _ string) string  { return s }
func second(_, s string) string { return s }

func TestSourceThatCannotBeUsed(t *testing.T) {
	for _, service := range []string{"", "a/b", "a b", ".."} {
		n := 0
		for _, err := range (consul.Source{Service: service}).Watch(t.Context()) {
			if n++; err == nil || !strings.Contains(err.Error(), "Source.Service") {
				t.Errorf("%q: %v", service, err)
			}
		}
		if n != 1 {
			t.Errorf("%q: %d errors", service, n)
		}
	}
}
