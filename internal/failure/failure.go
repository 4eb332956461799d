// Package failure classifies the ways in which a call ends without a response. Retries, outlier detection and response flags all depend
// on it.
package failure

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"reflect"
	"strings"
	"time"

	"github.com/nosidecar/mesh/internal/caller"
	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/refusal"
)

// Kind is the way a call failed.
type Kind uint8

const (
	// None means that there is no failure: the error is nil.
	None Kind = iota
	// Refused means that we refused the call. Nothing was sent.
	Refused
	// Canceled means that the caller gave up.
	Canceled
	// BadRequest means that the caller's request is at fault: it cannot be sent, its body failed, or its body does not have the
	// announced length. It says nothing about the server, and would fail again.
	BadRequest
	// RequestTimeout means that the time for the whole call is up, whether we or the caller set it.
	RequestTimeout
	// TryTimeout means that one try took too long: our per-try timeout, or a timeout of the transport.
	TryTimeout
	// Connect means that no connection could be made: name lookup, dial, proxy or TLS handshake failed.
	Connect
	// RefusedStream means that the server said that it did not process the request: REFUSED_STREAM, or a GOAWAY that names an
	// earlier stream as the last.
	RefusedStream
	// Unsent means that the connection was lost before any of the request was written to it.
	Unsent
	// StreamReset means that the server reset the HTTP/2 stream for a reason other than refusing it. The request may have been
	// processed.
	StreamReset
	// Reset is every other failure: the request may or may not have been processed.
	Reset
)

// String returns the name of the kind.
func (k Kind) String() string {
	switch k {
	case None:
		return "none"
	case Refused:
		return "refused"
	case Canceled:
		return "canceled"
	case BadRequest:
		return "bad request"
	case RequestTimeout:
		return "request timeout"
	case TryTimeout:
		return "try timeout"
	case Connect:
		return "connect failure"
	case RefusedStream:
		return "refused stream"
	case Unsent:
		return "unsent"
	case StreamReset:
		return "stream reset"
	}
	return "reset"
}

// Unprocessed reports whether the server certainly did not act on the request.
func (k Kind) Unprocessed() bool {
	switch k {
	case Refused, Connect, RefusedStream, Unsent:
		return true
	}
	return false
}

// Mark wraps err so that Of returns kind for it. It is for errors whose kind only the transport knows.
func Mark(kind Kind, err error) error {
	return &marked{err, kind}
}

type marked struct {
	error
	kind Kind
}

func (e *marked) Unwrap() error { return e.error }

// Of returns the kind of err, an error of an http.RoundTripper or of a response body, for a call that was made with ctx. ctx must be the
// context of the whole call, not that of a try: only the former shows that the caller gave up. req is the request that was sent, or nil
// for protocols other than HTTP.
func Of(ctx context.Context, req *http.Request, err error) Kind {
	if err == nil {
		return None
	}
	if refusal.Is(err) {
		return Refused
	}
	var exceeded *deadline.Error
	isLimit := errors.As(err, &exceeded)
	switch {
	case isLimit && exceeded.Kind == deadline.Request:
		return RequestTimeout
	case ctx.Err() != nil:
		// Look at the cause too: ctx may be a child of a context of ours that a timer ended, and only say "canceled".
		if errors.Is(ctx.Err(), context.DeadlineExceeded) || errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
			return RequestTimeout
		}
		return Canceled
	case isLimit:
		return TryTimeout
	case overdue(ctx):
		return RequestTimeout
	case req != nil && caller.Canceled(req):
		return Canceled
	case req != nil && caller.Fault(req) != nil:
		return BadRequest
	case isConnect(err):
		return Connect
	}
	if known, ok := errors.AsType[*marked](err); ok {
		return known.kind
	}
	switch {
	case IsTimeout(err):
		return TryTimeout
	case errors.Is(err, context.Canceled):
		return Canceled
	case caller.Refused(err), req != nil && caller.Check(req) != nil:
		return BadRequest
	}
	return ofHTTP2(err)
}

// Over reports whether ctx has ended, or its time is up.
func Over(ctx context.Context) bool {
	return ctx.Err() != nil || overdue(ctx)
}

// overdue reports whether the deadline of ctx has passed. Other timers for the same deadline can end a call a moment before the context
// ends: the deadline of a connection, or the Cancel channel of http.Client.Timeout.
func overdue(ctx context.Context) bool {
	at, ok := ctx.Deadline()
	return ok && !time.Now().Before(at)
}

// IsTimeout reports whether err is a timeout of any kind.
func IsTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// Explain returns err or, for a server that answers TLS with plain HTTP, an error that is also [http.ErrSchemeMismatch]. http.Client
// says so itself, but only of an error that nothing wraps.
func Explain(err error) error {
	record, ok := errors.AsType[tls.RecordHeaderError](err)
	if !ok || string(record.RecordHeader[:]) != "HTTP/" || errors.Is(err, http.ErrSchemeMismatch) {
		return err
	}
	return fmt.Errorf("%w (%w)", http.ErrSchemeMismatch, err)
}

func isConnect(err error) bool {
	for e := err; ; {
		var op *net.OpError
		if !errors.As(e, &op) {
			break
		}
		switch op.Op {
		case "dial", "proxyconnect", "socks connect":
			return true
		case "remote error":
			if handshakeAlert(op.Err) {
				return true
			}
		}
		e = op.Err
	}
	var (
		dns         *net.DNSError
		certificate *tls.CertificateVerificationError
		record      tls.RecordHeaderError
		ech         *tls.ECHRejectionError
		authority   x509.UnknownAuthorityError
		hostname    x509.HostnameError
		invalid     x509.CertificateInvalidError
	)
	return errors.As(err, &dns) || errors.As(err, &certificate) || errors.As(err, &record) || errors.As(err, &ech) ||
		errors.As(err, &authority) || errors.As(err, &hostname) || errors.As(err, &invalid) ||
		hasText(err, "net/http: TLS handshake timeout")
}

// handshakeAlert reports whether err is a TLS alert that a peer sends only before it has completed the handshake. In TLS 1.3 the refusal
// of a client's certificate arrives after the client has sent its request, but such a server never reads the request. crypto/tls does
// not export the type, which is a uint8 with the values of RFC 8446, section 6.
func handshakeAlert(err error) bool {
	v := reflect.ValueOf(err)
	if v.Kind() != reflect.Uint8 {
		return false
	}
	switch v.Uint() {
	case 40, // handshake_failure
		42, 43, 44, 45, 46, // certificate: bad, unsupported, revoked, expired, unknown
		48, 49, // unknown_ca, access_denied
		70, 71, 86, // protocol_version, insufficient_security, inappropriate_fallback
		109, 110, 112, 113, // extension: missing, unsupported; unrecognized_name, bad_certificate_status_response
		115, 116, 120: // unknown_psk_identity, certificate_required, no_application_protocol
		return true
	}
	return false
}

// StreamError has the fields of net/http's own stream error, whose As method fills any struct with these fields.
type StreamError struct {
	StreamID uint32
	Code     uint32
	Cause    error
}

// Error implements error.
func (StreamError) Error() string { return "" }

// CodeRefused is the code of a StreamError with which a peer says that it has not processed a call (RFC 9113, section 8.7).
const CodeRefused = 0x7

// ofHTTP2 returns the kind of an error of the HTTP/2 stack. Except for the stream error, only the text of an error identifies it.
func ofHTTP2(err error) Kind {
	var stream StreamError
	if errors.As(err, &stream) {
		if stream.Code == CodeRefused {
			return RefusedStream
		}
		return StreamReset
	}
	for e := err; e != nil; e = errors.Unwrap(e) {
		text := e.Error()
		if rest, ok := strings.CutPrefix(text, "http2: Transport: cannot retry err ["); ok {
			// net/http could not rewind the body, and only has the error as text. We may still be able to rewind it.
			if strings.HasPrefix(rest, "stream error:") && strings.Contains(rest, "; REFUSED_STREAM") ||
				strings.HasPrefix(rest, GotGoAway) {
				return RefusedStream
			}
			return Reset
		}
		switch {
		case strings.HasPrefix(text, "stream error: stream ID ") && strings.Contains(text, "; REFUSED_STREAM"):
			return RefusedStream // an error of golang.org/x/net/http2
		case text == GotGoAway, strings.HasPrefix(text, "http2: Transport received GOAWAY from server ErrCode:"):
			return RefusedStream
		case text == NotUsable, text == "http2: client conn could not be established",
			text == "http2: no cached connection was available":
			return Unsent
		}
	}
	return Reset
}

// The texts of errors of HTTP/2 in net/http, which it does not export, of calls that were not processed.
const (
	GotGoAway = "http2: Transport received Server's graceful shutdown GOAWAY"
	NotUsable = "http2: client conn not usable"
)

func hasText(err error, text string) bool {
	for ; err != nil; err = errors.Unwrap(err) {
		if err.Error() == text {
			return true
		}
	}
	return false
}
