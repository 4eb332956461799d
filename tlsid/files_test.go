package tlsid_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/tlsid"
)

func write(t testing.TB, dir string, files map[string][]byte) {
	t.Helper()
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// volume is what a folder in the layout of cert-manager holds.
func volume(t testing.TB, ca *authority, id string) map[string][]byte {
	t.Helper()
	svid := ca.issue(t, id)
	return map[string][]byte{
		"tls.crt": pemOf(svid.Certificates...), "tls.key": keyPEM(t, svid.PrivateKey), "ca.crt": pemOf(ca.cert),
	}
}

// first returns the first that the files yield.
func first(t testing.TB, f tlsid.Files) (*tlsid.Identity, error) {
	t.Helper()
	for identity, err := range f.Watch(t.Context()) {
		return identity, err
	}
	t.Fatal("Watch yielded nothing")
	return nil, nil
}

func TestFilesLayouts(t *testing.T) {
	ca, other := newAuthority(t, "cluster.local"), newAuthority(t, "other.example")
	middle := ca.below(t)
	svid := middle.issue(t, order)
	chain := pemOf(append(svid.Certificates, middle.cert)...)
	key := keyPEM(t, svid.PrivateKey)
	sec1, err := x509.MarshalECPrivateKey(svid.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	ecKey := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1})
	roots := append(pemOf(newAuthority(t, "cluster.local").cert), pemOf(ca.cert)...)

	dir := func(files map[string][]byte) string {
		dir := t.TempDir()
		write(t, dir, files)
		return dir
	}
	certManager := dir(map[string][]byte{"tls.crt": chain, "tls.key": ecKey, "ca.crt": roots})
	istio := dir(map[string][]byte{"cert-chain.pem": chain, "key.pem": key, "root-cert.pem": roots, "other.pem": pemOf(other.cert)})
	at := func(dir, name string) string { return filepath.Join(dir, name) }

	tests := []struct {
		name    string
		files   tlsid.Files
		bundles int
	}{
		{"cert-manager", tlsid.Files{Dir: certManager}, 1},
		{"Istio", tlsid.Files{Dir: istio}, 1},
		{"three files", tlsid.Files{Certificate: at(istio, "cert-chain.pem"), Key: at(certManager, "tls.key"), CA: at(istio, "root-cert.pem")}, 1},
		{"folder and one file", tlsid.Files{Dir: dir(map[string][]byte{"tls.crt": chain, "tls.key": key}), CA: at(istio, "root-cert.pem")}, 1},
		{"one file for all", func() tlsid.Files {
			all := at(dir(map[string][]byte{"all.pem": bytes.Join([][]byte{chain, key, pemOf(ca.cert)}, nil)}), "all.pem")
			return tlsid.Files{Certificate: all, Key: all, CA: at(istio, "root-cert.pem")}
		}(), 1},
		{"federated", tlsid.Files{Dir: istio, Federated: map[string]string{"other.example": at(istio, "other.pem")}}, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			identity, err := first(t, tt.files)
			if err != nil {
				t.Fatal(err)
			}
			if identity.ID() != orderID || len(identity.Bundles()) != tt.bundles {
				t.Errorf("identity %s with %d bundles, want %d", identity.ID(), len(identity.Bundles()), tt.bundles)
			}
		})
	}
}

func TestFilesRSA(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := ca.issue(t, order).Certificates[0]
	leaf := create(t, template, ca.cert, key.Public(), ca.key)
	dir := t.TempDir()
	write(t, dir, map[string][]byte{
		"tls.crt": pemOf(leaf), "ca.crt": pemOf(ca.cert),
		"tls.key": pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}),
	})
	if _, err := first(t, tlsid.Files{Dir: dir}); err != nil {
		t.Error(err)
	}
}

// TestBadFiles has every kind of bad file, and wants an error that names it.
func TestBadFiles(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	key := keyPEM(t, generateKey(t))
	good := volume(t, ca, order)
	cut := func(data []byte, by int) []byte { return data[:len(data)-by] }
	middle := ca.below(t)

	type test struct {
		name, file string
		data       []byte // nil removes the file
		want       string
	}
	tests := []test{
		{"no certificate file", "tls.crt", nil, "tls.crt: no such file"},
		{"no key file", "tls.key", nil, "tls.key: no such file"},
		{"no CA file", "ca.crt", nil, "ca.crt: no such file"},
		{"empty certificate", "tls.crt", []byte("\n"), "tls.crt: empty"},
		{"empty key", "tls.key", []byte{}, "tls.key: empty"},
		{"empty CA", "ca.crt", []byte{}, "ca.crt: empty"},
		{"no PEM", "tls.crt", []byte("hello"), "tls.crt: no PEM block"},
		{"DER", "ca.crt", ca.cert.Raw, "ca.crt: no PEM block"},
		{"half a certificate", "tls.crt", cut(good["tls.crt"], 40), "tls.crt: a PEM block is cut short"},
		{"half an intermediate", "tls.crt", append(bytes.Clone(good["tls.crt"]), cut(pemOf(middle.cert), 40)...), "tls.crt: a PEM block is cut short or malformed: 2 begin, 1 are whole"},
		{"half a second root", "ca.crt", append(bytes.Clone(good["ca.crt"]), cut(pemOf(middle.cert), 40)...), "ca.crt: a PEM block is cut short"},
		{"half a key", "tls.key", cut(good["tls.key"], 40), "tls.key: a PEM block is cut short"},
		{"certificate that is none", "tls.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}), "tls.crt: certificate 1: x509: malformed certificate"},
		{"key that is none", "tls.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}), "tls.key: asn1:"},
		{"encrypted key", "tls.key", pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")}), "tls.key: the key is encrypted"},
		{"two keys", "tls.key", append(bytes.Clone(key), key...), "tls.key: more than one private key"},
		{"another key", "tls.key", key, "tls.key: it is not the key of the certificate"},
		{"key for certificate", "tls.crt", key, "tls.crt: no certificate"},
		{"certificate for key", "tls.key", good["tls.crt"], "tls.key: no private key"},
		{"leaf for CA", "ca.crt", good["tls.crt"], "ca.crt: the certificate of \"\" is not that of an authority"},
		{"another CA", "ca.crt", pemOf(newAuthority(t, "cluster.local").cert), "does not vouch for it"},
		{"a revocation list with the CA", "ca.crt", append(bytes.Clone(good["ca.crt"]), ca.revoke(t)...), "ca.crt: revocation lists are not enforced"},
		{"a revocation list alone", "ca.crt", ca.revoke(t), "ca.crt: revocation lists are not enforced"},
		{"too large", "ca.crt", bytes.Repeat([]byte("#"), 1<<20+1), "ca.crt: larger than 1048576 bytes"},
	}
	for _, bad := range badLeaves {
		if bad.name != "foreign trust domain" { // then the CA is taken for that of the other one
			tests = append(tests, test{bad.name, "tls.crt", pemOf(ca.issue(t, order, bad.change).Certificates...), "tls.crt: "})
		}
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, good)
			if tt.data == nil {
				os.Remove(filepath.Join(dir, tt.file))
			} else {
				write(t, dir, map[string][]byte{tt.file: tt.data})
			}
			identity, err := first(t, tlsid.Files{Dir: dir})
			if identity != nil || err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), dir) {
				t.Errorf("Watch yielded %v, %v; want an error with %q", identity, err, tt.want)
			}
		})
	}
}

// Opening a pipe without a writer blocks, and neither the source nor the keeper could end then.
func TestPipesAreNoFiles(t *testing.T) {
	leak.Check(t)
	good := volume(t, newAuthority(t, "cluster.local"), order)
	for name := range good {
		dir := t.TempDir()
		write(t, dir, good)
		path := filepath.Join(dir, name)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		failed := make(chan error, 1)
		k := tlsid.Keep(tlsid.Files{Dir: dir}, tlsid.Hooks{Failed: func(err error) { failed <- err }})
		if err := await.Receive(t, "an error", failed); !strings.Contains(err.Error(), path+" is not a regular file") {
			t.Errorf("%s: %v", name, err)
		}
		k.Close()
	}
}

func TestFilesRefuses(t *testing.T) {
	tests := []struct {
		name  string
		files tlsid.Files
		want  string
	}{
		{"nothing", tlsid.Files{}, "needs Dir, or all of"},
		{"no key", tlsid.Files{Certificate: "a", CA: "b"}, "needs Dir, or all of"},
		{"negative interval", tlsid.Files{Dir: "a", Interval: -1}, "Files.Interval is -1ns, want 0 or more"},
		{"bad trust domain", tlsid.Files{Dir: "a", Federated: map[string]string{"a b": "c"}}, `trust domain "a b"`},
		{"trust domain as ID", tlsid.Files{Dir: "a", Federated: map[string]string{"spiffe://b.example": "c"}}, `write it "b.example"`},
		{"no file", tlsid.Files{Dir: "a", Federated: map[string]string{"b.example": ""}}, "has no file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := 0
			for _, err := range tt.files.Watch(t.Context()) {
				if n++; err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("Watch yielded %v, want %q", err, tt.want)
				}
			}
			if n != 1 { // it cannot become good, so it ends
				t.Errorf("Watch yielded %d times", n)
			}
		})
	}
}

// swap replaces what a mounted Secret holds, as Kubernetes does: by a link to a new folder.
func swap(t testing.TB, dir string, version int, files map[string][]byte) {
	t.Helper()
	name := fmt.Sprintf("..version-%d", version)
	if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, name), files)
	fresh, data := filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")
	if err := os.Symlink(name, fresh); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(fresh, data); err != nil {
		t.Fatal(err)
	}
	for file := range files {
		os.Symlink(filepath.Join("..data", file), filepath.Join(dir, file)) // the first time
	}
}

func TestSymlinkSwap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "cluster.local")
		dir := t.TempDir()
		swap(t, dir, 0, volume(t, ca, order))
		told := new(journal)
		k := keepSource(t, tlsid.Files{Dir: dir}, told.hooks())
		told.expect(t, "first "+order)
		time.Sleep(10 * time.Second)
		told.expect(t) // nothing changed
		for version := 1; version <= 3; version++ {
			before, _ := k.Identity()
			swap(t, dir, version, volume(t, ca, order))
			time.Sleep(1100 * time.Millisecond)
			told.expect(t, "rotated")
			if after, err := k.Identity(); err != nil || after == before {
				t.Errorf("Identity = %v, %v after swap %d", after, err, version)
			}
		}
	})
}

// restless is in the error about files that change whenever they are read.
const restless = "keep changing"

// TestSwappedFilesAreNeverMixed swaps the pair all the while that it is read, and wants no other error: each set that was taken
// belonged together.
func TestSwappedFilesAreNeverMixed(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	dir := t.TempDir()
	var sets []map[string][]byte
	for range 4 {
		sets = append(sets, volume(t, ca, order))
	}
	swap(t, dir, 0, sets[0])
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for version := 1; ; version++ {
			select {
			case <-stop:
				return
			default:
				swap(t, dir, version, sets[version%len(sets)])
			}
		}
	}()
	n := 0
	for _, err := range (tlsid.Files{Dir: dir, Interval: time.Millisecond}).Watch(t.Context()) {
		if err != nil && !strings.Contains(err.Error(), restless) {
			t.Error(err)
		}
		if n++; n == 50 {
			break
		}
	}
	close(stop)
	<-stopped
}

// TestFilesThatChangeWithEachRead has a file of Linux that is another one each time.
func TestFilesThatChangeWithEachRead(t *testing.T) {
	const path = "/proc/sys/kernel/random/uuid"
	if _, err := os.Stat(path); err != nil {
		t.Skip(err)
	}
	for id, err := range (tlsid.Files{Certificate: path, Key: path, CA: path}).Watch(t.Context()) {
		if id != nil || err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), restless) {
			t.Errorf("Watch yields %v, %v, want an error that names %s and says %q", id, err, path, restless)
		}
		break
	}
}

func TestTornWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "cluster.local")
		dir := t.TempDir()
		old, fresh := volume(t, ca, order), volume(t, ca, order)
		write(t, dir, old)
		told := new(journal)
		k := keepSource(t, tlsid.Files{Dir: dir, Interval: 5 * time.Second}, told.hooks())
		told.expect(t, "first "+order)
		before, err := k.Identity()
		if err != nil {
			t.Fatal(err)
		}
		path := func(name string) string { return filepath.Join(dir, name) }

		// Each step is found once, however long it lasts, and none but the last changes anything.
		steps := []struct {
			name, file string
			data       []byte
			want       string
		}{
			{"half the certificate", "tls.crt", fresh["tls.crt"][:100], "tlsid: " + path("tls.crt") + ": a PEM block is cut short or malformed: 1 begin, 0 are whole"},
			{"the whole certificate, the old key", "tls.crt", fresh["tls.crt"], "tlsid: " + path("tls.key") + ": it is not the key of the certificate"},
			{"an empty key", "tls.key", nil, "tlsid: " + path("tls.key") + ": empty"},
			{"the whole key", "tls.key", fresh["tls.key"], "rotated"},
			{"an empty CA", "ca.crt", nil, "tlsid: " + path("ca.crt") + ": empty"},
			{"the same again", "ca.crt", fresh["ca.crt"], ""},
		}
		for _, step := range steps {
			write(t, dir, map[string][]byte{step.file: step.data})
			time.Sleep(time.Minute)
			if step.want == "" {
				told.expect(t)
				if _, err := k.Latest(); err != nil {
					t.Errorf("%s: Latest = %v", step.name, err)
				}
				continue
			}
			told.expect(t, step.want)
			after, err := k.Identity()
			if err != nil || (after != before) != (step.want == "rotated") {
				t.Errorf("%s: Identity = %p, %v; it was %p", step.name, after, err, before)
			}
			before = after
		}

		// A file that is missing is no different.
		if err := os.Remove(path("tls.key")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		told.expect(t, "tlsid: open "+path("tls.key")+": no such file or directory")
		write(t, dir, volume(t, ca, order))
		time.Sleep(time.Minute)
		told.expect(t, "rotated")
	})
}

// TestFilesComeLater starts before the files are there.
func TestFilesComeLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "cluster.local")
		dir := filepath.Join(t.TempDir(), "later")
		told := new(journal)
		k := tlsid.Keep(tlsid.Files{Dir: dir}, told.hooks())
		defer k.Close()
		time.Sleep(10 * time.Second)
		told.expect(t, "tlsid: open "+filepath.Join(dir, "tls.crt")+": no such file or directory")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, dir, volume(t, ca, order))
		wait(t, k)
		told.expect(t, "first "+order)
	})
}

// TestFilesBecomeGood has an authority that is not valid yet: time alone makes the same files good.
func TestFilesBecomeGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "cluster.local").below(t, lasting(10*time.Second, time.Hour))
		dir := t.TempDir()
		write(t, dir, volume(t, ca, order))
		failed := 0
		k := tlsid.Keep(tlsid.Files{Dir: dir}, tlsid.Hooks{Failed: func(error) { failed++ }})
		defer k.Close()
		time.Sleep(9 * time.Second)
		if _, err := k.Identity(); !errors.Is(err, tlsid.ErrNoIdentity) || !strings.Contains(err.Error(), "not yet valid") {
			t.Errorf("Identity = %v", err)
		}
		wait(t, k)
		k.Close()
		if failed != 1 {
			t.Errorf("the same was reported %d times", failed)
		}
	})
}
