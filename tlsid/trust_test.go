package tlsid_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"iter"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/nosidecar/mesh/tlsid"
)

// TestNoResumption has each end do all it can to resume a session with the other.
func TestNoResumption(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			// A client with a session cache, and our server.
			server := keepOne(t, ca.identity(t, user)).Server()
			client := bare(ca.issue(t, order))
			client.MaxVersion, client.ServerName = version, "user-service"
			client.ClientSessionCache = tls.NewLRUClientSessionCache(8)
			// Our client, given a session cache, and a server that gives tickets.
			ours := keepOne(t, ca.identity(t, order)).Client(tlsid.Expect(userID))
			ours.MaxVersion, ours.ServerName = version, "user-service"
			ours.ClientSessionCache = tls.NewLRUClientSessionCache(8)
			tickets := bare(ca.issue(t, user))
			for name, ends := range map[string][2]*tls.Config{"server": {client, server}, "client": {ours, tickets}} {
				for range 3 {
					ofClient, ofServer, clientErr, serverErr := handshake(t, ends[0], ends[1])
					if err := errors.Join(clientErr, serverErr); err != nil {
						t.Fatal(name, err)
					}
					if ofClient.DidResume || ofServer.DidResume {
						t.Errorf("our %s resumed a session", name)
					}
				}
			}
			// The same two do resume without us, or the test would show nothing.
			for i := range 2 {
				ofClient, _, clientErr, serverErr := handshake(t, client, tickets)
				if err := errors.Join(clientErr, serverErr); err != nil {
					t.Fatal(err)
				}
				if i == 1 && !ofClient.DidResume {
					t.Error("the peers of this test cannot resume a session")
				}
			}
		})
	}
}

// TestVerifiedOnResumption switches resumption on again, as somebody may who changes a configuration, and takes
// the trust away between two connections: the second is refused although its session resumes.
func TestVerifiedOnResumption(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run("server, "+tls.VersionName(version), func(t *testing.T) {
			ca, next := newAuthority(t, "cluster.local"), newAuthority(t, "cluster.local")
			s, told := make(source, 1), make(chan struct{}, 2)
			s <- ca.identity(t, user)
			k := keepSource(t, s, tlsid.Hooks{Rotated: func(_, _ *tlsid.Identity) { told <- struct{}{} }})
			<-told
			server := k.Server()
			server.SessionTicketsDisabled = false
			client := bare(ca.issue(t, order))
			client.MaxVersion, client.ServerName = version, "user-service"
			client.ClientSessionCache = tls.NewLRUClientSessionCache(8)
			for range 2 {
				if _, _, clientErr, serverErr := handshake(t, client, server); clientErr != nil || serverErr != nil {
					t.Fatal(clientErr, serverErr)
				}
			}
			s <- next.identity(t, user)
			<-told
			_, _, _, serverErr := handshake(t, client, server)
			if refused := new(tlsid.PeerError); !errors.As(serverErr, &refused) {
				t.Errorf("error %v, want a PeerError", serverErr)
			}
		})
		t.Run("client, "+tls.VersionName(version), func(t *testing.T) {
			ca := newAuthority(t, "cluster.local")
			k := keepOne(t, ca.identity(t, order))
			sessions := tls.NewLRUClientSessionCache(8)
			config := func(expect tlsid.Expected) *tls.Config {
				c := k.Client(expect)
				c.SessionTicketsDisabled, c.ClientSessionCache = false, sessions
				c.MaxVersion, c.ServerName = version, "user-service"
				return c
			}
			server := bare(ca.issue(t, user))
			for range 2 {
				if _, _, clientErr, serverErr := handshake(t, config(tlsid.Expect(userID)), server); clientErr != nil || serverErr != nil {
					t.Fatal(clientErr, serverErr)
				}
			}
			_, _, clientErr, _ := handshake(t, config(tlsid.Expect(orderID)), server)
			if mismatch := new(tlsid.MismatchError); !errors.As(clientErr, &mismatch) {
				t.Errorf("error %v, want a MismatchError", clientErr)
			}
		})
	}
}

// TestPeerIsAskedEachTime has a connection outlive the certificate of its peer, and the trust in it.
func TestPeerIsAskedEachTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, next := newAuthority(t, "cluster.local"), newAuthority(t, "cluster.local")
		s := make(source, 1)
		s <- newIdentity(t, ca.issue(t, user, lasting(0, 10*time.Hour)), ca)
		k := keepSource(t, s, tlsid.Hooks{})
		state := stateOf(ca.issue(t, order, lasting(0, time.Hour)))

		if _, err := k.Peer(state, time.Now()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if _, err := k.Peer(state, time.Now()); err != nil {
			t.Errorf("Peer = %v in the last moment", err)
		}
		time.Sleep(time.Second)
		_, err := k.Peer(state, time.Now())
		var refused *tlsid.PeerError
		var expired *tlsid.ExpiredError
		if !errors.As(err, &refused) || !errors.As(err, &expired) || expired.ID != orderID {
			t.Errorf("Peer = %v after the certificate expired", err)
		}

		state = stateOf(ca.issue(t, order))
		if _, err := k.Peer(state, time.Now()); err != nil {
			t.Fatal(err)
		}
		s <- newIdentity(t, next.issue(t, user), next)
		synctest.Wait()
		if _, err := k.Peer(state, time.Now()); !errors.As(err, &refused) {
			t.Errorf("Peer = %v after the authority was withdrawn", err)
		}
	})
}

// TestRotationIsTold tells of each rotation in time to retire what was made with the identity before, and uses the new
// one with the configurations of before.
func TestRotationIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newDevCA(t, "cluster.local")
		type rotation struct{ old, new *tlsid.Identity }
		rotations := make(chan rotation, 10)
		var k *tlsid.Keeper
		started := make(chan struct{})
		k = keepSource(t, ca.Source("default", "user-service"), tlsid.Hooks{Rotated: func(old, new *tlsid.Identity) {
			<-started
			if now, err := k.Identity(); now != new || err != nil {
				t.Errorf("Identity = %v, %v while Rotated is told of another", now, err)
			}
			rotations <- rotation{old, new}
		}})
		close(started)
		server := k.Server()
		client := keepSource(t, ca.Source("default", "order-service"), tlsid.Hooks{}).Client(tlsid.Expect(userID))
		before := <-rotations
		if before.old != nil {
			t.Error("the first identity replaced another")
		}
		for range 3 {
			ca.Rotate()
			synctest.Wait()
			r := <-rotations
			if r.old != before.new || r.new == r.old {
				t.Errorf("rotated from %p to %p, was %p", r.old, r.new, before.new)
			}
			before = r
			ofClient, _, clientErr, serverErr := handshake(t, client, server)
			if err := errors.Join(clientErr, serverErr); err != nil {
				t.Fatal(err)
			}
			if !ofClient.PeerCertificates[0].Equal(r.new.Certificate().Leaf) {
				t.Error("the server presented a certificate of before")
			}
		}
	})
}

// TestWaitHasADeadline has a source that is refused, then blocks for ever.
func TestWaitHasADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		denied := errors.New("workload API: permission denied")
		blocking := func(fail ...error) watch {
			return func(ctx context.Context) iter.Seq2[*tlsid.Identity, error] {
				return func(yield func(*tlsid.Identity, error) bool) {
					for _, err := range fail {
						if !yield(nil, err) {
							return
						}
					}
					<-ctx.Done()
				}
			}
		}
		cause := errors.New("start-up takes too long")
		for _, tt := range []struct {
			name   string
			source watch
			want   string
		}{
			{"silent", blocking(), "tlsid: no identity (start-up takes too long)"},
			{"denied", blocking(errors.New("first"), denied), "tlsid: no identity: workload API: permission denied (start-up takes too long)"},
		} {
			k := tlsid.Keep(tt.source, tlsid.Hooks{})
			ctx, cancel := context.WithTimeoutCause(t.Context(), 5*time.Second, cause)
			start := time.Now()
			err := k.Wait(ctx)
			if took := time.Since(start); took != 5*time.Second {
				t.Errorf("%s: Wait took %s", tt.name, took)
			}
			if err == nil || err.Error() != tt.want || !errors.Is(err, cause) || !errors.Is(err, tlsid.ErrNoIdentity) {
				t.Errorf("%s: Wait = %v, want %q", tt.name, err, tt.want)
			}
			if tt.name == "denied" && !errors.Is(err, denied) {
				t.Errorf("%s: Wait = %v does not join what the source said", tt.name, err)
			}
			// Not ready meanwhile, at either end, and no peer is believed.
			if _, err := k.Identity(); !errors.Is(err, tlsid.ErrNoIdentity) {
				t.Errorf("%s: Identity = %v", tt.name, err)
			}
			ca := newAuthority(t, "cluster.local")
			if _, err := k.Peer(stateOf(ca.issue(t, order)), time.Now()); !errors.Is(err, tlsid.ErrNoIdentity) {
				t.Errorf("%s: Peer = %v", tt.name, err)
			}
			if _, _, clientErr, _ := handshake(t, k.Client(tlsid.Expect(userID)), bare(ca.issue(t, user))); !errors.Is(clientErr, tlsid.ErrNoIdentity) {
				t.Errorf("%s: client: %v", tt.name, clientErr)
			}
			if _, _, _, serverErr := handshake(t, bare(ca.issue(t, user)), k.Server()); !errors.Is(serverErr, tlsid.ErrNoIdentity) {
				t.Errorf("%s: server: %v", tt.name, serverErr)
			}
			cancel()
			k.Close() // ends at once
		}
	})
}

// TestExpiredWithoutError has a source that died after its first identity, and never said so.
func TestExpiredWithoutError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "cluster.local")
		told := new(journal)
		s := make(source, 1)
		identity := ca.identity(t, order)
		s <- identity
		k := keepSource(t, s, told.hooks())
		told.expect(t, "first "+order)
		time.Sleep(time.Hour + time.Second)
		told.expect(t, "expired") // without being asked, so that somebody can raise an alarm

		got, err := k.Identity()
		var expired *tlsid.ExpiredError
		if got != nil || !errors.As(err, &expired) || expired.ID != orderID || !expired.NotAfter.Equal(identity.NotAfter()) {
			t.Errorf("Identity = %v, %v", got, err)
		}
		if want := "tlsid: certificate of " + order + " expired at 2000-01-01T01:00:00Z"; err == nil || err.Error() != want {
			t.Errorf("Identity = %v, want %q", err, want)
		}
		if latest, err := k.Latest(); latest != identity || !errors.As(err, &expired) {
			t.Errorf("Latest = %v, %v", latest, err)
		}
		fresh := stateOf(ca.issue(t, user))
		if _, err := k.Peer(fresh, time.Now()); !errors.As(err, &expired) || expired.ID != orderID {
			t.Errorf("Peer = %v: whoever has no valid identity has no valid bundles", err)
		}
		if _, _, clientErr, _ := handshake(t, k.Client(tlsid.Expect(userID)), bare(ca.issue(t, user))); !errors.As(clientErr, &expired) {
			t.Errorf("client: %v", clientErr)
		}
		if _, _, _, serverErr := handshake(t, bare(ca.issue(t, user)), k.Server()); !errors.As(serverErr, &expired) {
			t.Errorf("server: %v", serverErr)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := k.Wait(ctx); !errors.As(err, &expired) {
			t.Errorf("Wait = %v", err)
		}

		// It recovers.
		s <- ca.identity(t, order)
		told.expect(t, "rotated")
		if _, err := k.Identity(); err != nil {
			t.Error(err)
		}
		if _, err := k.Peer(fresh, time.Now()); err != nil {
			t.Error(err)
		}
	})
}

// TestOnlyExpectedIDsAreTalkedTo wants the client to talk to those it expects and to nobody else, of the same authority or not.
func TestOnlyExpectedIDsAreTalkedTo(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	k := keepOne(t, ca.identity(t, order))
	server := keepOne(t, ca.identity(t, user)).Server()
	admin := spiffeid.RequireFromString("spiffe://cluster.local/ns/default/sa/admin")
	for _, tt := range []struct {
		name   string
		expect tlsid.Expected
		want   string
	}{
		{"the one", tlsid.Expect(userID), ""},
		{"one of two", tlsid.Expect(userID, admin), ""},
		{"another", tlsid.Expect(admin), "tlsid: peer is " + user + ", expected " + admin.String()},
		{"two others", tlsid.Expect(orderID, admin), "tlsid: peer is " + user + ", expected " + admin.String() + " or " + order},
		{"its trust domain", tlsid.Expect(userID.TrustDomain().ID()), "tlsid: peer is " + user + ", expected spiffe://cluster.local"},
		{"empty", tlsid.Expect(), "tlsid: peer is " + user + ", expected nobody"},
		{"zero value", tlsid.Expected{}, "tlsid: peer is " + user + ", expected nobody"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, clientErr, serverErr := handshake(t, k.Client(tt.expect), server)
			if tt.want == "" {
				if clientErr != nil || serverErr != nil {
					t.Error(clientErr, serverErr)
				}
				return
			}
			var mismatch *tlsid.MismatchError
			if !errors.As(clientErr, &mismatch) || mismatch.Presented != userID || mismatch.Expected != tt.expect || clientErr.Error() != tt.want {
				t.Errorf("error %v, want %q", clientErr, tt.want)
			}
		})
	}
}

// TestBundlesStayApart has the authorities of two trust domains that know each other issue IDs of each other.
func TestBundlesStayApart(t *testing.T) {
	ca, foreign := newAuthority(t, "cluster.local"), newAuthority(t, "other.example")
	const billing = "spiffe://other.example/ns/default/sa/billing"
	k := keepOne(t, ca.identity(t, user, foreign))
	for _, tt := range []struct {
		name   string
		issuer *authority
		id     string
		want   string
	}{
		{"our own", ca, order, ""},
		{"federated", foreign, billing, ""},
		{"a foreign CA issues one of our IDs", foreign, order, `the bundle of trust domain "cluster.local" does not vouch for it`},
		{"our CA issues a foreign ID", ca, billing, `the bundle of trust domain "other.example" does not vouch for it`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			svid := tt.issuer.issue(t, tt.id)
			check := func(where string, err error) {
				t.Helper()
				if tt.want == "" {
					if err != nil {
						t.Errorf("%s: %v", where, err)
					}
					return
				}
				var refused *tlsid.PeerError
				if !errors.As(err, &refused) || refused.ID.String() != tt.id || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%s: error %v, want %q", where, err, tt.want)
				}
				var unknown x509.UnknownAuthorityError
				if !errors.As(err, &unknown) {
					t.Errorf("%s: error %v hides what crypto/x509 says", where, err)
				}
			}
			_, _, _, serverErr := handshake(t, bare(svid), k.Server())
			check("server", serverErr)
			_, _, clientErr, _ := handshake(t, k.Client(tlsid.Expect(spiffeid.RequireFromString(tt.id))), bare(svid))
			check("client", clientErr)
		})
	}
}
