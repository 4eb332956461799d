package kubernetes

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"
)

const readEvery = time.Second // a file is read at most this often

// renewed is a file that may be replaced while it is in use, or a text that never changes if path is empty.
type renewed struct {
	name, path string
	check      func(text string) (string, error) // returns the part that is used; an error completes a sentence that begins with the path

	mu   sync.Mutex
	last string
	err  error     // why the last content is still used although the file may have changed
	at   time.Time // when the file was last read
}

// openRenewed reads a file for the first time.
func openRenewed(name, path string, check func(string) (string, error)) (*renewed, error) {
	f := &renewed{name: name, path: path, check: check, at: time.Now()}
	f.load()
	return f, f.err
}

func (f *renewed) load() {
	data, err := readRegular(f.path)
	if err == nil {
		var text string
		if text, err = f.check(string(data)); err == nil {
			f.last, f.err = text, nil
			return
		}
		err = fmt.Errorf("%s %w", f.path, err)
	}
	f.err = fmt.Errorf("kubernetes: %s: %w", f.name, err)
}

// read returns the current content. It reads the file again at most once per second. If the file cannot be read, or is invalid because it
// is being written, the last content stays in use.
func (f *renewed) read() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); f.path != "" && now.Sub(f.at) >= readEvery {
		f.at = now
		f.load()
	}
	return f.last
}

// fault returns why the file could not be read the last time.
func (f *renewed) fault() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// trusting sends requests to a server whose certificate authority is in a file. When the file changes, new connections are verified with
// its new content. Watches stay on their connections, which close when the watches end.
type trusting struct {
	file *renewed
	make func(ca string) (*http.Transport, error)

	mu        sync.Mutex
	ca        string
	transport *http.Transport
}

func newTrusting(config Config) (*trusting, error) {
	file, err := openRenewed("certificate authority of the API server", config.CAFile, checkCA)
	if err != nil {
		return nil, err
	}
	t := &trusting{file: file, ca: file.last, make: func(ca string) (*http.Transport, error) {
		config.CA = []byte(ca)
		return newTransport(config)
	}}
	t.transport, err = t.make(t.ca)
	return t, err
}

func checkCA(text string) (string, error) {
	switch {
	case text == "":
		return "", errors.New("is empty")
	case !x509.NewCertPool().AppendCertsFromPEM([]byte(text)):
		return "", errors.New("has no certificate")
	}
	return text, nil
}

// RoundTrip implements http.RoundTripper.
func (t *trusting) RoundTrip(r *http.Request) (*http.Response, error) { return t.now().RoundTrip(r) }

func (t *trusting) now() *http.Transport {
	ca := t.file.read()
	t.mu.Lock()
	defer t.mu.Unlock()
	if ca != t.ca {
		if made, err := t.make(ca); err == nil {
			t.transport.CloseIdleConnections()
			t.ca, t.transport = ca, made
		}
	}
	return t.transport
}
