package tlsid_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/tlsid"
)

func newDevCA(t testing.TB, domain string) *tlsid.DevCA {
	t.Helper()
	ca, err := tlsid.NewDevCA(domain)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// TestDevCAIsNotForProduction pins what keeps a development authority from being taken for a real one.
func TestDevCAIsNotForProduction(t *testing.T) {
	ca := newDevCA(t, "cluster.local")
	ca.TTL = 24 * time.Hour
	identity, err := ca.Identity("default", "order-service")
	if err != nil {
		t.Fatal(err)
	}
	root := ca.Bundle().X509Authorities()[0]
	if name := root.Subject.String(); !strings.Contains(name, "DEVELOPMENT ONLY") {
		t.Errorf("the subject of the root is %q", name)
	}
	if name := identity.Certificate().Leaf.Subject.String(); !strings.Contains(name, "DEVELOPMENT ONLY") {
		t.Errorf("the subject of a certificate is %q", name)
	}
	if life := root.NotAfter.Sub(root.NotBefore); life > 24*time.Hour {
		t.Errorf("the root lives for %s", life)
	}
	if identity.NotAfter().After(root.NotAfter) {
		t.Error("a certificate outlives the root")
	}
	other := newDevCA(t, "cluster.local")
	if other.Bundle().Equal(ca.Bundle()) {
		t.Error("two authorities have the same root")
	}

	t.Setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
	if _, err := tlsid.NewDevCA("cluster.local"); err == nil || !strings.Contains(err.Error(), "inside Kubernetes") {
		t.Errorf("NewDevCA inside Kubernetes = %v", err)
	}
}

func TestDevCARefuses(t *testing.T) {
	for _, domain := range []string{"", "Cluster.Local", "a b", "cluster.local/ns"} {
		if ca, err := tlsid.NewDevCA(domain); err == nil {
			t.Errorf("NewDevCA(%q) = %v", domain, ca)
		}
	}
	tests := []struct {
		name               string
		ttl, every         time.Duration
		namespace, account string
		want               string
	}{
		{"TTL too long", 25 * time.Hour, 0, "default", "a", "DevCA.TTL is 25h0m0s, want 1s to 24h0m0s"},
		{"TTL too short", time.Millisecond, 0, "default", "a", "TTL is 1ms"},
		{"TTL negative", -time.Hour, 0, "default", "a", "TTL is -1h0m0s"},
		{"rotates too late", time.Minute, time.Minute, "default", "a", "DevCA.RotateEvery is 1m0s, want less than TTL (1m0s)"},
		{"rotates too late for the default", 0, time.Hour, "default", "a", "want less than TTL (1h0m0s)"},
		{"no namespace", 0, 0, "", "a", `namespace "", service account "a"`},
		{"no account", 0, 0, "default", "", `namespace "default", service account ""`},
		{"more than a segment", 0, 0, "default", "a/b", `service account "a/b"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ca := newDevCA(t, "cluster.local")
			ca.TTL, ca.RotateEvery = tt.ttl, tt.every
			if _, err := ca.Identity(tt.namespace, tt.account); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Identity = %v, want %q", err, tt.want)
			}
			if err := ca.WriteFiles(t.TempDir(), tt.namespace, tt.account); err == nil {
				t.Error("WriteFiles = nil")
			}
			for identity, err := range ca.Source(tt.namespace, tt.account).Watch(t.Context()) {
				if err == nil {
					t.Errorf("Watch yielded %v", identity)
				}
				break
			}
		})
	}
	ca := newDevCA(t, "cluster.local")
	if err := ca.Federate(newDevCA(t, "cluster.local").Bundle()); err == nil {
		t.Error("Federate took another authority of its own trust domain")
	}
}

func TestDevCARotates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, other := newDevCA(t, "cluster.local"), newDevCA(t, "other.example")
		ca.TTL, ca.RotateEvery = 10*time.Second, time.Second
		told := new(journal)
		k := keepSource(t, ca.Source("default", "order-service"), told.hooks())
		told.expect(t, "first "+order)
		time.Sleep(2500 * time.Millisecond)
		told.expect(t, "rotated", "rotated")
		ca.Rotate()
		told.expect(t, "rotated")
		if err := ca.Federate(other.Bundle()); err != nil {
			t.Fatal(err)
		}
		told.expect(t, "rotated")
		identity, err := k.Identity()
		if err != nil {
			t.Fatal(err)
		}
		if n := len(identity.Bundles()); n != 2 {
			t.Errorf("%d bundles, want 2", n)
		}

		k.Close()

		// By hand only: what nobody renews expires, like a source that died.
		ca = newDevCA(t, "cluster.local")
		ca.TTL, ca.RotateEvery = 10*time.Second, -1
		told = new(journal)
		keepSource(t, ca.Source("default", "order-service"), told.hooks())
		time.Sleep(time.Minute)
		told.expect(t, "first "+order, "expired")
		ca.Rotate()
		told.expect(t, "rotated")

		// The root's day ends, and with it everything.
		time.Sleep(25 * time.Hour)
		if _, err := ca.Identity("default", "order-service"); err == nil || !strings.Contains(err.Error(), "its root expired") {
			t.Errorf("Identity = %v after a day", err)
		}
	})
}

func TestDevCAWritesFiles(t *testing.T) {
	ca := newDevCA(t, "cluster.local")
	dir := filepath.Join(t.TempDir(), "certs")
	for range 3 {
		if err := ca.WriteFiles(dir, "default", "order-service"); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 5 { // three links, ..data, and one version
		t.Errorf("the folder holds %v", entries)
	}
	info, err := os.Stat(filepath.Join(dir, "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode().Perm(); mode != 0o600 {
		t.Errorf("the key has mode %v", mode)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for identity, err := range (tlsid.Files{Dir: dir}).Watch(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		if identity.ID() != orderID || !identity.Bundles()[0].Equal(ca.Bundle()) {
			t.Errorf("the files are of %s", identity.ID())
		}
		break
	}
}
