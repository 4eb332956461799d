package authz

import (
	"errors"
	"fmt"
	"strings"

	"github.com/nosidecar/mesh/internal/field"
)

// The checks below refuse values that no request can match: a Deny rule with such a value would silently deny nothing.

var (
	errMiddleStar = errors.New("only a star at the beginning or the end stands for other text, and only one of them")
	errSpaces     = errors.New("there is space or a control character in it, which no request has there")
)

// checkStar refuses a star that would stand for itself, in a text that cannot have one.
func checkStar(p pattern) error {
	if p.kind != nonEmpty && strings.Contains(p.text, "*") {
		return errMiddleStar
	}
	return nil
}

// checkPrincipal refuses what is not, or not part of, a SPIFFE ID without its scheme (SPIFFE-ID, section 2).
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
		return errors.New("no segment of a SPIFFE ID is empty")
	}
	return nil
}

// checkIdentityPart refuses what is in no part of a SPIFFE ID. Stars may be anywhere.
func checkIdentityPart(v, also string) error {
	for i := range len(v) {
		if c := v[i]; (!isUnreserved(c) || c == '~') && c != '*' && strings.IndexByte(also, c) < 0 {
			return fmt.Errorf("no SPIFFE ID contains %q there", string(c))
		}
	}
	return nil
}

// checkHost refuses what is not, or not part of, a host as requests have it, with or without a port.
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
		return errors.New("write the host without the dot at its end: requests are read without it")
	}
	return nil
}

func checkMethod(p pattern) error {
	if p.text != "" && !field.IsToken(p.text) {
		return errors.New("not a method")
	}
	return nil
}

// checkHeader refuses what is not, or not part of, the value of a header.
func checkHeader(p pattern) error {
	if strings.ContainsAny(p.text, "\x00\r\n") {
		return errSpaces
	}
	if p.kind == exact && strings.Trim(p.text, " \t") != p.text || p.kind == prefix && strings.TrimLeft(p.text, " \t") != p.text ||
		p.kind == suffix && strings.TrimRight(p.text, " \t") != p.text {
		return errors.New("there is space around it, which values of headers do not have")
	}
	return nil
}

// checkPath refuses what is not, or not part of, a path as it is read in a mode.
func checkPath(p pattern, mode Normalization) error {
	text := p.text
	switch {
	case strings.ContainsAny(text, "?#"):
		return errors.New("there is no query and no fragment in a path: write %3F for a question mark and %23 for a number sign that belong to it")
	case strings.IndexByte(p.decoded, 0) >= 0:
		return errors.New("a path with NUL is answered with 400")
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
			return errors.New("paths are read with their dot segments resolved: write what remains then")
		}
	}
	if (mode == MergeSlashes || mode == DecodeAndMergeSlashes) && strings.Contains(text, "//") {
		return errors.New("paths are read with their slashes merged: write one")
	}
	return nil
}
