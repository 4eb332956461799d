package authz

import (
	"errors"
	"fmt"
	"strings"

	"github.com/nosidecar/mesh/internal/field"
)

// The checks below reject values that no request can match: a Deny rule with such a value would silently deny nothing.

var (
	errMiddleStar = errors.New("only one star is special, at the beginning or at the end: write out what any other stands for")
	errSpaces     = errors.New("it contains a space or a control character, which no request has there")
)

// checkStar rejects a star that would only match itself, in a field whose text cannot contain one.
func checkStar(p pattern) error {
	if p.kind != nonEmpty && strings.Contains(p.text, "*") {
		return errMiddleStar
	}
	return nil
}

// checkPrincipal rejects text that cannot be a SPIFFE ID without its scheme, or part of one (SPIFFE-ID, section 2).
func checkPrincipal(p pattern) error {
	if err := checkStar(p); err != nil {
		return err
	}
	for i := range len(p.text) {
		if c := p.text[i]; !isUnreserved(c) && c != '/' || c == '~' {
			return fmt.Errorf("no SPIFFE ID contains %q", string(c))
		}
	}
	domain, path, _ := strings.Cut(p.text, "/")
	if p.kind == exact && (domain == "" || path == "") {
		return errors.New("want trust-domain/path, such as cluster.local/ns/default/sa/web")
	}
	if (p.kind == exact || p.kind == prefix) && strings.ToLower(domain) != domain {
		return errors.New("a trust domain is in lower case")
	}
	if strings.Contains(p.text, "//") || (p.kind == exact || p.kind == suffix) && strings.HasSuffix(p.text, "/") {
		return errors.New("a SPIFFE ID has no empty segments")
	}
	return nil
}

// checkIdentityPart rejects characters other than stars that a part of a SPIFFE ID cannot contain. also lists further characters
// to allow.
func checkIdentityPart(v, also string) error {
	for i := range len(v) {
		if c := v[i]; (!isUnreserved(c) || c == '~') && c != '*' && strings.IndexByte(also, c) < 0 {
			return fmt.Errorf("no SPIFFE ID contains %q there", string(c))
		}
	}
	return nil
}

// checkHost rejects text that cannot be the host of a request, with or without a port, or part of one.
func checkHost(p pattern) error {
	if strings.Contains(p.text, "://") {
		return errors.New("write the host without a scheme")
	}
	for i := range len(p.text) {
		switch c := p.text[i]; {
		case c <= ' ' || c == 0x7f:
			return errSpaces
		case strings.IndexByte(`/\?#@`, c) >= 0:
			return fmt.Errorf("no host contains %q", string(c))
		}
	}
	if err := checkStar(p); err != nil {
		return err
	}
	name, _, _ := strings.Cut(p.text, ":")
	if p.kind != prefix && strings.HasSuffix(name, ".") {
		return errors.New("write the host without the trailing dot: hosts of requests are compared without it")
	}
	return nil
}

func checkMethod(p pattern) error {
	if p.text != "" && !field.IsToken(p.text) {
		return errors.New("not a method")
	}
	return nil
}

// checkName rejects the name of a header that no request has: net/http and gRPC keep some to themselves.
func checkName(name string) error {
	switch lower(name) {
	case "transfer-encoding", "trailer", "expect":
		return errors.New("net/http does not pass this header on")
	case "grpc-timeout", "grpc-encoding", "grpc-message-type", "grpc-status", "grpc-message":
		return errors.New("gRPC does not pass this header on")
	}
	if !field.IsToken(name) { // also those that begin with a colon
		return errors.New("not the name of a header")
	}
	return nil
}

// checkHeader rejects text that cannot be the value of a header, or part of one.
func checkHeader(p pattern) error {
	if strings.ContainsAny(p.text, "\x00\r\n") {
		return errSpaces
	}
	if p.kind == exact && strings.Trim(p.text, " \t") != p.text || p.kind == prefix && strings.TrimLeft(p.text, " \t") != p.text ||
		p.kind == suffix && strings.TrimRight(p.text, " \t") != p.text {
		return errors.New("values of headers have no leading or trailing space")
	}
	return nil
}

// checkPath rejects text that cannot be a path, or part of one, after it is normalised in the mode.
func checkPath(p pattern, mode Normalization) error {
	text := p.text
	switch {
	case strings.ContainsAny(text, "?#"):
		return errors.New("a path has no query and no fragment: write %3F for a question mark and %23 for a number sign")
	case strings.IndexByte(p.decoded, 0) >= 0:
		return errors.New("no rule is tried for a path with NUL, which gets a 400 response")
	case p.kind == nonEmpty || p.kind == exact && text == "*":
		return nil
	case p.kind != suffix && text != "" && text[0] != '/':
		return errors.New("a path begins with a slash")
	case mode == None:
		return nil
	}
	for i, segment := range strings.Split(text, "/") {
		last := strings.Count(text, "/") == i
		whole := (i > 0 || p.kind != suffix) && !(last && p.kind == prefix)
		if whole && (segment == "." || segment == "..") {
			return errors.New("paths are compared with their dot segments resolved: write the resolved path")
		}
	}
	if (mode == MergeSlashes || mode == DecodeAndMergeSlashes) && strings.Contains(text, "//") {
		return errors.New("paths are compared with their slashes merged: write a single slash")
	}
	return nil
}
