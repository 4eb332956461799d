package tlsid

import (
	"bytes"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"

	"github.com/nosidecar/mesh/internal/pemfile"
)

// FuzzPEM reads any bytes as certificates and as a key. What is taken is whole: the same with half a block behind it is
// not. A leaf that is taken for an SVID has an ID with a path.
func FuzzPEM(f *testing.F) {
	os.Unsetenv("KUBERNETES_SERVICE_HOST")
	ca, err := NewDevCA("cluster.local")
	if err != nil {
		f.Fatal(err)
	}
	dir := f.TempDir()
	if err := ca.WriteFiles(dir, "default", "order-service"); err != nil {
		f.Fatal(err)
	}
	for _, name := range []string{"tls.crt", "tls.key", "ca.crt"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
		f.Add(data[:len(data)/2])
		f.Add(append(bytes.Clone(data), data...))
	}
	f.Add([]byte(""))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("-----BEGIN EC PRIVATE KEY-----\nMA==\n-----END EC PRIVATE KEY-----\n"))

	f.Fuzz(func(t *testing.T, data []byte) {
		torn := append(bytes.Clone(data), "\n-----BEGIN CERTIFICATE-----\nMIIB"...)
		if certificates, err := pemfile.Certificates(data); err == nil {
			if len(certificates) == 0 {
				t.Error("no certificate and no error")
			}
			if _, err := pemfile.Certificates(torn); err == nil {
				t.Error("half a certificate was passed over")
			}
			checkAll(t, certificates)
		}
		if key, err := pemfile.Key(data); err == nil {
			if key == nil || key.Public() == nil {
				t.Error("no key and no error")
			}
			if _, err := pemfile.Key(torn); err == nil {
				t.Error("half a block was passed over")
			}
		}
	})
}

func checkAll(t *testing.T, certificates []*x509.Certificate) {
	for _, c := range certificates {
		if id, err := checkLeaf(c); err == nil && (id.IsZero() || id.Path() == "" || c.IsCA) {
			t.Errorf("%q is taken for an SVID", id)
		}
	}
}
