// Package failure tells apart the ways in which a call ends without a response: what may be retried, what counts against
// an endpoint and what a response flag says all hang on it.
package failure

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
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
	// Refused is a refusal of ours; nothing was sent.
	Refused
	// Canceled means that the caller went away.
	Canceled
	// BadRequest means that the caller's request is at fault: it cannot be sent, its body failed or has another length than
	// it said. It says nothing about the server, and it would fail again.
	BadRequest
	// RequestTimeout is the end of the time for the whole call, be it set by us or by the caller.
	RequestTimeout
	// TryTimeout means that one try took too long: our per-try timeout, or a timeout of the transport's own.
	TryTimeout
	// Connect means that no connection came about: name lookup, dial, proxy or TLS handshake failed.
	Connect
	// RefusedStream means that the server said it did not process the request: REFUSED_STREAM, or a GOAWAY that names an
	// earlier stream as the last.
	RefusedStream
	// Unsent means that the connection was lost before any of the request was written to it.
	Unsent
	// StreamReset means that the server reset the HTTP/2 stream, for another reason than to refuse it. The request may have
	// been processed.
	StreamReset
	// Reset is every other failure: the request may or may not have been processed.
	Reset
)

// String returns the kind in words.
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

// Unprocessed reports whether the server provably did not act on the request.
func (k Kind) Unprocessed() bool {
	switch k {
	case Refused, Connect, RefusedStream, Unsent:
		return true
	}
	return false
}

// Mark wraps err, whose kind the transport knows, so that Of knows it too.
func Mark(kind Kind, err error) error {
	return &marked{err, kind}
}

type marked struct {
	error
	kind Kind
}

func (e *marked) Unwrap() error { return e.error }

// Of returns the kind of err, an error of http.RoundTripper or of a response body, for a call made with ctx. ctx must be the
// context of the whole call and not that of a try: only it tells whether the caller went away. req is the request that was
// sent, and nil for calls of another kind.
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
		// Cause, because a context of ours that a timer ended may lie above one that only says "canceled".
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

// overdue reports whether the time of ctx is up. What derives from the same deadline can end a call a moment before the
// context does: a connection's own deadline, or the Cancel channel that http.Client.Timeout sets.
func overdue(ctx context.Context) bool {
	at, ok := ctx.Deadline()
	return ok && !time.Now().Before(at)
}

// IsTimeout reports whether err is a timeout of any kind.
func IsTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
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

// handshakeAlert reports whether err is a TLS alert that a peer sends only before the handshake is complete. With TLS
// 1.3 a refusal of the client's certificate arrives when the client has sent its request already; a server that refuses
// one never reads it. crypto/tls does not export the type: it is a uint8 of RFC 8446, section 6.
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

// streamError has the shape of the stream error inside net/http, whose As method fills any struct of this shape.
type streamError struct {
	StreamID uint32
	Code     uint32
	Cause    error
}

func (streamError) Error() string { return "" }

const refusedStream = 0x7 // RFC 9113, section 7

// ofHTTP2 tells what only the HTTP/2 stack can know. Except for the stream error, net/http has nothing but texts for it.
func ofHTTP2(err error) Kind {
	var stream streamError
	if errors.As(err, &stream) {
		if stream.Code == refusedStream {
			return RefusedStream
		}
		return StreamReset
	}
	for e := err; e != nil; e = errors.Unwrap(e) {
		text := e.Error()
		if rest, ok := strings.CutPrefix(text, "http2: Transport: cannot retry err ["); ok {
			// net/http could not rewind the body and has put the error into words. The body may still be ours to rewind.
			if strings.HasPrefix(rest, "stream error:") && strings.Contains(rest, "; REFUSED_STREAM") ||
				strings.HasPrefix(rest, gotGoAway) {
				return RefusedStream
			}
			return Reset
		}
		switch {
		case strings.HasPrefix(text, "stream error: stream ID ") && strings.Contains(text, "; REFUSED_STREAM"):
			return RefusedStream // of golang.org/x/net/http2
		case text == gotGoAway, strings.HasPrefix(text, "http2: Transport received GOAWAY from server ErrCode:"):
			return RefusedStream
		case text == "http2: client conn not usable", text == "http2: client conn could not be established",
			text == "http2: no cached connection was available":
			return Unsent
		}
	}
	return Reset
}

const gotGoAway = "http2: Transport received Server's graceful shutdown GOAWAY"

func hasText(err error, text string) bool {
	for ; err != nil; err = errors.Unwrap(err) {
		if err.Error() == text {
			return true
		}
	}
	return false
}
