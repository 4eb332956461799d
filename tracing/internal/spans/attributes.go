package spans

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/nosidecar/mesh/internal/field"
)

// Attributes that are not part of the semantic conventions.
const (
	flagsKey = "mesh.response_flags"
	routeKey = "mesh.route"
	retryKey = "mesh.retry_stopped"
)

// other stands for an error or a gRPC method for which the conventions have no name.
const other = "_OTHER"

// longest bounds the texts that others choose, such as a path, a User-Agent or a header that documents add, in bytes. It is the default of
// Envoy's max_path_tag_length.
const longest = 256

// bounded cuts a text that others choose to a maximum length, and replaces invalid UTF-8: exporters refuse a whole batch of spans because of
// one invalid byte.
func bounded(text string, most int) string {
	if len(text) > most {
		text = text[:most]
		for i := len(text) - 1; i >= 0 && i >= len(text)-utf8.UTFMax; i-- {
			if utf8.RuneStart(text[i]) { // do not cut within a character
				if !utf8.FullRuneInString(text[i:]) {
					text = text[:i]
				}
				break
			}
		}
	}
	return strings.ToValidUTF8(text, "\ufffd")
}

// method returns the name of a span that has no route. Unknown methods share one, because callers can make up any number.
func method(name string) string {
	if known(name) {
		return orGet(name)
	}
	return "HTTP"
}

func orGet(name string) string {
	if name == "" {
		return http.MethodGet // as in net/http
	}
	return name
}

func known(name string) bool {
	switch name {
	case "", http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete,
		http.MethodConnect, http.MethodOptions, http.MethodTrace, "QUERY":
		return true
	}
	return false
}

func appendMethod(all []attribute.KeyValue, name string) []attribute.KeyValue {
	if known(name) {
		return append(all, semconv.HTTPRequestMethodKey.String(orGet(name)))
	}
	return append(all, semconv.HTTPRequestMethodOther, semconv.HTTPRequestMethodOriginalKey.String(bounded(name, longest)))
}

// appendServer appends the name and the port of a server.
func appendServer(all []attribute.KeyValue, hostport string) []attribute.KeyValue {
	host, port := splitHostPort(hostport)
	return appendPort(append(all, semconv.ServerAddressKey.String(bounded(host, longest))), semconv.ServerPortKey, port)
}

// appendPeer appends the address of the endpoint of an attempt, if it is known.
func appendPeer(all []attribute.KeyValue, endpoint string) []attribute.KeyValue {
	host, port := splitHostPort(endpoint)
	if port == "" {
		return all
	}
	return appendPort(append(all, semconv.NetworkPeerAddressKey.String(bounded(host, longest))), semconv.NetworkPeerPortKey, port)
}

func appendPort(all []attribute.KeyValue, key attribute.Key, port string) []attribute.KeyValue {
	if n, err := strconv.Atoi(port); err == nil {
		all = append(all, key.Int(n))
	}
	return all
}

// splitHostPort is net.SplitHostPort for addresses that may have no port, without the allocations of its errors.
func splitHostPort(s string) (host, port string) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 || s[len(s)-1] == ']' || s[0] != '[' && strings.IndexByte(s[:i], ':') >= 0 { // a bare IPv6 address
		return strings.Trim(s, "[]"), ""
	}
	return strings.Trim(s[:i], "[]"), s[i+1:]
}

// Version returns an HTTP version in the form that attributes use.
func Version(major, minor int) string {
	switch {
	case major == 1 && minor == 1:
		return "1.1"
	case major >= 2:
		return strconv.Itoa(major)
	}
	return strconv.Itoa(major) + "." + strconv.Itoa(minor)
}

// secretQueries are the query parameters whose values the semantic conventions redact, and that of tokens (RFC 6750, section 2.3).
var secretQueries = []string{"AWSAccessKeyId", "Signature", "sig", "X-Goog-Signature", "access_token"}

// fullURL returns a URL without its secrets. Its host, and its path and query, are bounded.
func fullURL(u *url.URL, secret []string) string {
	clean, most := withoutSecrets(u, secret), longest
	if before, rest, ok := strings.Cut(clean, "//"); ok {
		host, _, _ := strings.Cut(rest, "/")
		most += len(before) + len("//") + min(len(host), longest)
	}
	return bounded(clean, most)
}

func withoutSecrets(u *url.URL, secret []string) string {
	if u.User == nil && u.RawQuery == "" {
		return u.String()
	}
	clean := *u
	if clean.User != nil {
		clean.User = url.UserPassword(field.Redacted, field.Redacted)
	}
	clean.RawQuery = field.RedactQuery(field.RedactQuery(clean.RawQuery, secretQueries), secret)
	return clean.String()
}

func rpcMethod(path string) string { return bounded(strings.TrimPrefix(path, "/"), longest) }

// failWith records that a span failed with err, whose text may be chosen by others.
func failWith(span trace.Span, err error) {
	span.SetStatus(codes.Error, bounded(err.Error(), 4*longest))
	span.SetAttributes(semconv.ErrorTypeKey.String(errorType(err)))
}

// gaveUp reports whether a call ended because its caller gave up. That is not an error.
func gaveUp(ctx context.Context, err error) bool {
	return errors.Is(err, context.Canceled) && ctx.Err() != nil
}

// errorType returns the kind of an error. The number of kinds is small.
func errorType(err error) string {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.Is(err, context.Canceled):
		return "canceled"
	}
	for next := err; next != nil; next = errors.Unwrap(next) {
		if _, ok := next.(*net.OpError); ok {
			return "*net.OpError"
		}
	}
	t := reflect.TypeOf(err)
	if t.PkgPath() == "" && t.Name() == "" && t.Kind() != reflect.Pointer {
		return other
	}
	return t.String()
}
