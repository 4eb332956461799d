package tlsid

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
)

// maxFile is how large a file of certificates may be, in bytes.
const maxFile = 1 << 20

// files is what a set of files held at one time, or why it could not be read.
type files struct {
	paths []string
	data  [][]byte
	err   error
}

func (f files) equal(other files) bool {
	if f.err != nil || other.err != nil {
		return f.err != nil && other.err != nil && f.err.Error() == other.err.Error()
	}
	return slices.Equal(f.paths, other.paths) && slices.EqualFunc(f.data, other.data, bytes.Equal)
}

// readTogether reads files that belong together and may be replaced at any time, all at once or one by one. It reads them
// until it finds the same twice running: only then did no replacement come between the first and the last of them.
func readTogether(paths []string) files {
	before := readOnce(paths)
	for range 10 {
		now := readOnce(paths)
		if now.equal(before) {
			return now
		}
		before = now
	}
	return files{err: fmt.Errorf("%s and the files with it do not stop changing", paths[0])}
}

func readOnce(paths []string) files {
	f := files{paths: paths}
	for _, path := range paths {
		data, err := readFile(path)
		if err != nil {
			return files{err: err}
		}
		f.data = append(f.data, data)
	}
	return f
}

func readFile(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%s: larger than %d bytes", path, maxFile)
	}
	return data, err
}

// parseBlocks returns the PEM blocks in data. Unlike pem.Decode it passes over nothing that begins like a block: half a
// file must not look like a whole one.
func parseBlocks(data []byte) ([]*pem.Block, error) {
	var blocks []*pem.Block
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		blocks = append(blocks, block)
	}
	switch begun := bytes.Count(data, []byte("-----BEGIN ")); {
	case begun != len(blocks):
		return nil, fmt.Errorf("a PEM block is cut short or malformed: %d begin, %d are whole", begun, len(blocks))
	case begun == 0 && len(bytes.TrimSpace(data)) == 0:
		return nil, errors.New("the file is empty")
	case begun == 0:
		return nil, errors.New("the file holds no PEM block")
	}
	return blocks, nil
}

// parseCertificates returns the certificates in data, of which there is at least one. Other blocks are passed over.
func parseCertificates(data []byte) ([]*x509.Certificate, error) {
	blocks, err := parseBlocks(data)
	if err != nil {
		return nil, err
	}
	var certificates []*x509.Certificate
	for _, block := range blocks {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certificates)+1, err)
		}
		certificates = append(certificates, c)
	}
	if len(certificates) == 0 {
		return nil, errors.New("the file holds no certificate")
	}
	return certificates, nil
}

// parseKey returns the one private key in data, in any of the encodings that cert-manager and Istio write. Other blocks
// are passed over.
func parseKey(data []byte) (crypto.Signer, error) {
	blocks, err := parseBlocks(data)
	if err != nil {
		return nil, err
	}
	var found crypto.Signer
	for _, block := range blocks {
		var key any
		var err error
		switch block.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "ENCRYPTED PRIVATE KEY":
			err = errors.New("the key is encrypted")
		default:
			continue
		}
		if err != nil {
			return nil, err
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("a key of type %T cannot sign", key)
		}
		if found != nil {
			return nil, errors.New("the file holds more than one private key")
		}
		found = signer
	}
	if found == nil {
		return nil, errors.New("the file holds no private key")
	}
	return found, nil
}
