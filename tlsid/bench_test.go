package tlsid_test

import (
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"

	"github.com/nosidecar/mesh/tlsid"
)

func BenchmarkPeer(b *testing.B) {
	ca := newAuthority(b, "cluster.local")
	k := keepOne(b, ca.identity(b, user))
	state := stateOf(ca.issue(b, order))
	now := time.Now()
	b.Run("known", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := k.Peer(state, now); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("known, parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := k.Peer(state, now); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
	b.Run("known, new connection", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			parsed := *state.PeerCertificates[0]
			if _, err := k.Peer(&tls.ConnectionState{PeerCertificates: []*x509.Certificate{&parsed}}, now); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("new", func(b *testing.B) {
		b.ReportAllocs()
		svid := ca.issue(b, user)
		for b.Loop() {
			if _, err := newIdentity(b, svid, ca).Verify(state, now); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkIdentity(b *testing.B) {
	k := keepOne(b, newAuthority(b, "cluster.local").identity(b, user))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := k.Identity(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkExpected(b *testing.B) {
	expect := tlsid.Expect(orderID, userID)
	b.ReportAllocs()
	for b.Loop() {
		if err := expect.Check(userID); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHandshake makes full handshakes, beside crypto/tls that verifies both ends by itself.
func BenchmarkHandshake(b *testing.B) {
	ca := newAuthority(b, "cluster.local")
	client, server := keepOne(b, ca.identity(b, order)), keepOne(b, ca.identity(b, user))
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	withName := func(c *x509.Certificate) { c.DNSNames = []string{"user-service"} }
	bareClient, bareServer := bare(ca.issue(b, order)), bare(ca.issue(b, user, withName))
	bareClient.InsecureSkipVerify, bareClient.ServerName, bareClient.RootCAs = false, "user-service", pool
	bareServer.ClientAuth, bareServer.ClientCAs, bareServer.SessionTicketsDisabled = tls.RequireAndVerifyClientCert, pool, true

	for _, bb := range []struct {
		name           string
		client, server *tls.Config
	}{
		{"bare", bareClient, bareServer},
		{"tlsid", client.Client(tlsid.Expect(userID)), server.Server()},
	} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, clientErr, serverErr := handshake(b, bb.client, bb.server); clientErr != nil || serverErr != nil {
					b.Fatal(clientErr, serverErr)
				}
			}
		})
	}
}
