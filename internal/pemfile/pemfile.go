// Package pemfile reads certificates and keys from PEM files that may be replaced at any time.
package pemfile

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

// maxFile is the maximum size of a file, in bytes.
const maxFile = 1 << 20

// Set is the content of files at one time, or the error of reading them.
type Set struct {
	Paths []string
	Data  [][]byte
	Err   error
}

// Equal reports whether both sets have the same content, or the same error.
func (s Set) Equal(other Set) bool {
	if s.Err != nil || other.Err != nil {
		return s.Err != nil && other.Err != nil && s.Err.Error() == other.Err.Error()
	}
	return slices.Equal(s.Paths, other.Paths) && slices.EqualFunc(s.Data, other.Data, bytes.Equal)
}

// Read reads files that belong together and may be replaced at any time, together or one by one. It reads them until two consecutive
// reads are equal: only then was none of them replaced in between.
func Read(paths []string) Set {
	before := readOnce(paths)
	for range 10 {
		now := readOnce(paths)
		if now.Equal(before) {
			return now
		}
		before = now
	}
	return Set{Err: fmt.Errorf("%s and the files with it keep changing", paths[0])}
}

func readOnce(paths []string) Set {
	s := Set{Paths: paths}
	for _, path := range paths {
		data, err := readFile(path)
		if err != nil {
			return Set{Err: err}
		}
		s.Data = append(s.Data, data)
	}
	return s
}

// readFile reads a regular file. A pipe without a writer would block whoever opens it for ever.
func readFile(path string) ([]byte, error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
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

// parseBlocks returns the PEM blocks in data. Unlike pem.Decode, it does not skip anything that begins like a block: a truncated file
// must not look like a complete one.
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
		return nil, errors.New("empty")
	case begun == 0:
		return nil, errors.New("no PEM block")
	}
	return blocks, nil
}

// Certificates returns the certificates in data. It is an error if there are none, or if there is a revocation list, since nobody would
// enforce it. Other blocks are skipped.
func Certificates(data []byte) ([]*x509.Certificate, error) {
	blocks, err := parseBlocks(data)
	if err != nil {
		return nil, err
	}
	var certificates []*x509.Certificate
	for _, block := range blocks {
		switch block.Type {
		case "CERTIFICATE":
		case "X509 CRL":
			return nil, errors.New("revocation lists are not enforced: remove it from the file, and issue certificates with short lives")
		default:
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certificates)+1, err)
		}
		certificates = append(certificates, c)
	}
	if len(certificates) == 0 {
		return nil, errors.New("no certificate")
	}
	return certificates, nil
}

// Key returns the only private key in data, in any of the encodings that cert-manager and Istio write. Other blocks are skipped.
func Key(data []byte) (crypto.Signer, error) {
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
			return nil, errors.New("more than one private key")
		}
		found = signer
	}
	if found == nil {
		return nil, errors.New("no private key")
	}
	return found, nil
}

// CheckKey returns an error if key is not the private key of leaf.
func CheckKey(leaf *x509.Certificate, key crypto.Signer) error {
	if key == nil {
		return errors.New("there is none")
	}
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok {
		return fmt.Errorf("%T is not supported", key)
	}
	if !public.Equal(leaf.PublicKey) {
		return errors.New("it is not the key of the certificate")
	}
	return nil
}
