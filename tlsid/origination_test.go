package tlsid_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/originate"
)

// These tests are here because of the authority that they share with those of this package.

const host = "api.example.com"

// web makes an SVID into a certificate as web servers have it.
func web(c *x509.Certificate) {
	c.URIs, c.DNSNames, c.IPAddresses = nil, []string{host, "*.wild.example"}, []net.IP{{10, 0, 0, 7}}
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
}

// withURI makes an SVID into a certificate of a web server whose name is a URI.
func withURI(uri string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		web(c)
		u, err := url.Parse(uri)
		if err != nil {
			panic(err)
		}
		c.URIs = []*url.URL{u}
	}
}

// outside is a folder with the files of an originate.Config.
func outside(t testing.TB, ca *authority) string {
	dir := t.TempDir()
	write(t, dir, volume(t, ca, order))
	return dir
}

func origination(t testing.TB, cfg originate.Config) *originate.Origination {
	t.Helper()
	o, err := originate.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestOrigination(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	dir := outside(t, ca)
	roots := filepath.Join(dir, "ca.crt")
	clients := x509.NewCertPool()
	clients.AddCert(ca.cert)

	tests := []struct {
		name   string
		cfg    originate.Config
		host   string
		server func(*x509.Certificate)
		want   string // of the error; empty for none
	}{
		{"SIMPLE", originate.Config{CACertificates: roots}, host, web, ""},
		{"wildcard", originate.Config{CACertificates: roots}, "a.wild.example", web, ""},
		{"IP address", originate.Config{CACertificates: roots}, "10.0.0.7", web, ""},
		{"another host", originate.Config{CACertificates: roots}, "b.example.com", web, "valid for api.example.com"},
		{"another IP address", originate.Config{CACertificates: roots}, "10.0.0.8", web, "10.0.0.8"},
		{"SNI", originate.Config{CACertificates: roots, ServerName: host}, "10.0.0.9", web, ""},
		{"another SNI", originate.Config{CACertificates: roots, ServerName: "b.example.com"}, host, web, "not b.example.com"},
		{"authorities of the system", originate.Config{}, host, web, "unknown authority"},
		{"expired", originate.Config{CACertificates: roots}, host, func(c *x509.Certificate) { web(c); lasting(-time.Hour, -time.Minute)(c) }, "has expired"},
		{"not yet valid", originate.Config{CACertificates: roots}, host, func(c *x509.Certificate) { web(c); lasting(time.Minute, time.Hour)(c) }, "not yet valid"},
		{"certificate of a client", originate.Config{CACertificates: roots}, host,
			func(c *x509.Certificate) { web(c); c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }, "incompatible key usage"},
		{"SAN by DNS name", originate.Config{CACertificates: roots, SubjectAltNames: []string{"other.example", host}}, "b.example.com", web, ""},
		{"SAN by IP address", originate.Config{CACertificates: roots, SubjectAltNames: []string{"10.0.0.7"}}, "b.example.com", web, ""},
		{"SAN by URI", originate.Config{CACertificates: roots, SubjectAltNames: []string{order}}, host, func(*x509.Certificate) {}, ""},
		{"SAN is another URI", originate.Config{CACertificates: roots, SubjectAltNames: []string{user}}, host, func(*x509.Certificate) {}, "none of the subjectAltNames " + user},
		{"SAN is a part of the URI", originate.Config{CACertificates: roots, SubjectAltNames: []string{order[:len(order)-1]}}, host, func(*x509.Certificate) {}, "none of the subjectAltNames"},
		{"SAN by URI with a comma", originate.Config{CACertificates: roots, SubjectAltNames: []string{"https://api.example.com/a,b"}}, host, withURI("https://api.example.com/a,b"), ""},
		{"SAN is a part of a URI with a comma", originate.Config{CACertificates: roots, SubjectAltNames: []string{"https://api.example.com/a,b"}}, host, withURI("https://api.example.com/a"),
			"none of the subjectAltNames https://api.example.com/a,b"},
		{"SAN is a URI that looks like the DNS name", originate.Config{CACertificates: roots, SubjectAltNames: []string{"other.example"}}, host, withURI("other.example"),
			"none of the subjectAltNames other.example"},
		{"SAN is a DNS name that looks like the URI", originate.Config{CACertificates: roots, SubjectAltNames: []string{"https://other.example"}}, host,
			func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"https://other.example"} }, "none of the subjectAltNames https://other.example"},
		{"SAN instead of host", originate.Config{CACertificates: roots, SubjectAltNames: []string{"other.example"}}, host, web, "none of the subjectAltNames other.example"},
		{"MUTUAL", originate.Config{CACertificates: roots, ClientCertificate: filepath.Join(dir, "tls.crt"), PrivateKey: filepath.Join(dir, "tls.key")}, host, web, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := origination(t, tt.cfg)
			server := bare(ca.issue(t, order, tt.server))
			mutual := tt.cfg.ClientCertificate != ""
			if mutual {
				server.ClientAuth, server.ClientCAs = tls.RequireAndVerifyClientCert, clients
			}
			server.NextProtos = []string{"h2"}
			ofClient, ofServer, clientErr, serverErr := handshake(t, o.TLS(tt.host), server)
			if tt.want != "" {
				if clientErr == nil || !strings.Contains(clientErr.Error(), tt.want) || !strings.HasPrefix(clientErr.Error(), "originate: server ") {
					t.Errorf("error %v, want %q", clientErr, tt.want)
				}
				return
			}
			if clientErr != nil || serverErr != nil {
				t.Fatal(clientErr, serverErr)
			}
			if ofClient.NegotiatedProtocol != "h2" {
				t.Errorf("protocol %q", ofClient.NegotiatedProtocol)
			}
			if got := len(ofServer.PeerCertificates) > 0; got != mutual {
				t.Errorf("the client presented a certificate: %v, want %v", got, mutual)
			}
			if sni := tt.host; tt.cfg.ServerName == "" && net.ParseIP(sni) == nil && ofServer.ServerName != sni {
				t.Errorf("the server was asked for %q, want %q", ofServer.ServerName, sni)
			}
		})
	}
}

func TestOriginationRefuses(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	dir := outside(t, ca)
	write(t, dir, map[string][]byte{"other.key": keyPEM(t, generateKey(t)), "bad.crt": []byte("x")})
	at := func(name string) string { return filepath.Join(dir, name) }
	tests := []struct {
		name string
		cfg  originate.Config
		want string
	}{
		{"certificate without key", originate.Config{ClientCertificate: at("tls.crt")}, "need each other"},
		{"key without certificate", originate.Config{PrivateKey: at("tls.key")}, "need each other"},
		{"no certificate file", originate.Config{ClientCertificate: at("none"), PrivateKey: at("tls.key")}, at("none")},
		{"no key file", originate.Config{ClientCertificate: at("tls.crt"), PrivateKey: at("none")}, at("none")},
		{"no CA file", originate.Config{CACertificates: at("none")}, at("none")},
		{"another key", originate.Config{ClientCertificate: at("tls.crt"), PrivateKey: at("other.key")}, at("other.key") + ": it is not the key"},
		{"bad certificate", originate.Config{ClientCertificate: at("bad.crt"), PrivateKey: at("tls.key")}, at("bad.crt")},
		{"bad CA", originate.Config{CACertificates: at("bad.crt")}, at("bad.crt")},
		{"empty name", originate.Config{SubjectAltNames: []string{"a", "", "b"}}, "an empty name in SubjectAltNames"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o, err := originate.New(tt.cfg)
			if o != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("New = %v, %v, want %q", o, err, tt.want)
			}
		})
	}
}

// TestOriginationRotates changes the client's pair and the authorities while the configuration is in use.
func TestOriginationRotates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, next := newAuthority(t, "cluster.local"), newAuthority(t, "cluster.local")
		dir := outside(t, ca)
		o := origination(t, originate.Config{
			ClientCertificate: filepath.Join(dir, "tls.crt"), PrivateKey: filepath.Join(dir, "tls.key"), CACertificates: filepath.Join(dir, "ca.crt"),
		})
		config := o.TLS(host)
		presented := func(ca *authority) []byte {
			t.Helper()
			_, ofServer, clientErr, serverErr := handshake(t, config, bare(ca.issue(t, order, web)))
			if clientErr != nil || serverErr != nil {
				t.Fatal(clientErr, serverErr)
			}
			return pemOf(ofServer.PeerCertificates...)
		}
		old, fresh := presented(ca), volume(t, next, user)

		// Half a change is not used, and Err says why.
		write(t, dir, map[string][]byte{"tls.crt": fresh["tls.crt"]})
		time.Sleep(time.Second)
		if got := presented(ca); string(got) != string(old) {
			t.Error("the client presented half a pair")
		}
		if err := o.Err(); err == nil || !strings.Contains(err.Error(), "tls.key") {
			t.Errorf("Err = %v", err)
		}
		// Within a second nobody looks again.
		write(t, dir, fresh)
		if got := presented(ca); string(got) != string(old) {
			t.Error("the files were read twice within a second")
		}
		time.Sleep(time.Second)
		if got := presented(next); string(got) != string(fresh["tls.crt"]) {
			t.Error("the client did not present the new certificate")
		}
		if err := o.Err(); err != nil {
			t.Errorf("Err = %v", err)
		}
		if _, _, clientErr, _ := handshake(t, config, bare(ca.issue(t, order, web))); clientErr == nil {
			t.Error("the client accepted a server of the authority before")
		}
		// What is gone is kept until it expires.
		if err := os.Remove(filepath.Join(dir, "tls.key")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Minute)
		presented(next)
		time.Sleep(31 * time.Minute)
		_, _, clientErr, _ := handshake(t, config, bare(next.issue(t, order, web)))
		if clientErr == nil || !strings.Contains(clientErr.Error(), "tls.crt: the certificate expired at 2000-01-01T01:00:00Z") {
			t.Errorf("error %v after the client's certificate expired", clientErr)
		}
	})
}

// TestOriginationDoesNotResume has a client that was given a session cache meet a server that gives tickets.
func TestOriginationDoesNotResume(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	dir := outside(t, ca)
	config := origination(t, originate.Config{CACertificates: filepath.Join(dir, "ca.crt")}).TLS(host)
	config.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	server := bare(ca.issue(t, order, web))
	for range 2 {
		ofClient, _, clientErr, serverErr := handshake(t, config, server)
		if err := errors.Join(clientErr, serverErr); err != nil {
			t.Fatal(err)
		}
		if ofClient.DidResume {
			t.Error("the client resumed a session")
		}
	}
}
