package authz

import (
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"github.com/nosidecar/mesh/internal/admission"
	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/incoming"
)

// Handler is an http.Handler that serves the requests that its Authorizer allows, and refuses the others with [Decision.Refuse].
// It decides by the request target as it was sent, so it must be outside of any handler that changes requests. It is safe for
// concurrent use. Its fields must not be changed after its first use.
//
// Conditions on tokens are about the claims that a jwt.Handler around this one has verified. Nothing but other layers should be between
// the two. Without one, no request has claims.
//
// Nobody would decide about requests that follow a switch to HTTP/2 on a connection of HTTP/1. So Next does not see a request for an
// upgrade to h2c, and a request that begins HTTP/2 in another way is refused.
type Handler struct {
	// Next serves the requests that are allowed. It must be set.
	Next http.Handler

	// Authorizer decides. Nil allows everything.
	Authorizer *Authorizer

	// Principal returns the verified identity of the peer, without "spiffe://", or "" if it has none. Nil means that no peer has
	// one.
	Principal func(*http.Request) string

	// TrustedHops is the number of proxies in front whose additions to x-forwarded-for are trusted; see [NewRequest].
	TrustedHops int

	// OnDecision, if not nil, is called with every decision, before the request is served or refused.
	OnDecision func(*http.Request, Decision)
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var principal string
	if h.Principal != nil {
		principal = h.Principal(r)
	}
	view := NewRequest(r, principal, h.TrustedHops)
	if user, ok := r.Context().Value(admission.UserKey{}).(interface{ Values(path ...string) []string }); ok {
		view.Claims = user
	}
	d := h.Authorizer.Decide(&view)
	if d.Allowed && field.BeginsHTTP2(r) {
		d = Decision{
			Match: noMatch, Audit: noMatch, Shadow: Shadow{Match: noMatch}, BadRequest: true, Reason: "HTTP/2 on a connection of HTTP/1",
		}
	}
	if h.OnDecision != nil {
		h.OnDecision(r, d)
	}
	if !d.Allowed {
		d.Refuse(w, r)
		return
	}
	if field.AsksForHTTP2(r.Header) {
		seen := r.WithContext(r.Context())
		seen.Header = field.WithoutUpgrade(r.Header)
		defer incoming.Return(r, seen)
		r = seen
	}
	h.Next.ServeHTTP(w, r)
}

const (
	deniedText     = "RBAC: access denied" // Envoy's text
	badRequestText = "Bad Request"
	notFoundText   = "Not Found"
)

// Refuse writes the response to a request that is not allowed: 403 with Envoy's text, 404 if it belongs to no route, or 400 if the path
// or the method cannot be read. A gRPC call gets the gRPC code that stands for that status. The response does not say why the request was refused.
func (d *Decision) Refuse(w http.ResponseWriter, r *http.Request) {
	status, text, code := http.StatusForbidden, deniedText, "7" // PERMISSION_DENIED
	switch {
	case d.BadRequest:
		status, text, code = http.StatusBadRequest, badRequestText, "13" // INTERNAL
	case d.NotFound:
		status, text, code = http.StatusNotFound, notFoundText, "5" // NOT_FOUND
	}
	incoming.Refuse(w, r, status, code, text)
}

// NewRequest returns the view of a request that a net/http server received over HTTP/1 or HTTP/2 from a peer with the given
// principal. Remote is the address of the client. With n trusted hops (Istio's numTrustedProxies), that is the nth address of
// x-forwarded-for from the right, which the outermost trusted proxy wrote; anyone may have written the addresses to the left of
// it. It may have a port. If it is no address, such as "unknown", Remote is unknown: it could be any. Without trusted hops, or if there are
// fewer addresses, Remote is the address of the peer.
func NewRequest(r *http.Request, principal string, trustedHops int) Request {
	view := Request{
		Principal: principal,
		Source:    parseAddr(r.RemoteAddr).Addr(),
		Host:      r.Host,
		Method:    r.Method,
		Target:    r.RequestURI,
		Header:    r.Header,
	}
	if view.Remote = view.Source; trustedHops > 0 {
		view.Remote = remoteAddr(view.Source, r.Header["X-Forwarded-For"], trustedHops)
	}
	if view.Target == "" && r.URL != nil { // a request that did not come from a server, as in tests
		view.Target = r.URL.RequestURI()
	}
	switch local := r.Context().Value(http.LocalAddrContextKey).(type) {
	case *net.TCPAddr:
		addr := local.AddrPort()
		view.Destination = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	case net.Addr:
		view.Destination = parseAddr(local.String())
	}
	if r.TLS != nil {
		view.SNI = r.TLS.ServerName
	}
	return view
}

// parseAddr is netip.ParseAddrPort, except that it returns the zero value for text that is not an address with a port, such as that of
// a Unix socket. It takes less of the stack, which often has to grow otherwise: HTTP/2 serves each request on a new goroutine.
func parseAddr(s string) netip.AddrPort {
	if addr, ok := parseAddr4(s); ok {
		return addr
	}
	colon := strings.LastIndexByte(s, ':')
	if colon < 0 {
		return netip.AddrPort{}
	}
	port, err := strconv.ParseUint(s[colon+1:], 10, 16)
	if err != nil {
		return netip.AddrPort{}
	}
	host, bracketed := s[:colon], false
	if last := len(host) - 1; last > 0 && host[0] == '[' && host[last] == ']' {
		host, bracketed = host[1:last], true
	}
	addr, err := netip.ParseAddr(host)
	if err != nil || addr.Is6() != bracketed {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(port))
}

// parseAddr4 is parseAddr for what nearly all servers get: an IPv4 address and a port, as package net writes them.
func parseAddr4(s string) (netip.AddrPort, bool) {
	const most = 1<<16 - 1
	var addr [4]byte
	part, field, digits := 0, 0, 0
	for i := range len(s) {
		c := s[i]
		switch d := int(c - '0'); {
		case d <= 9 && field <= most/10 && (digits == 0 || field > 0):
			field, digits = 10*field+d, digits+1
		case digits > 0 && field <= 255 && (c == '.' && part < 3 || c == ':' && part == 3):
			addr[part] = byte(field)
			part, field, digits = part+1, 0, 0
		default:
			return netip.AddrPort{}, false
		}
	}
	if part < 4 || digits == 0 || field > most {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(netip.AddrFrom4(addr), uint16(field)), true
}

// remoteAddr returns the address of the client by the values of x-forwarded-for, as NewRequest documents it.
func remoteAddr(source netip.Addr, xff []string, trustedHops int) netip.Addr {
	if trustedHops <= 0 {
		return source
	}
	for i := len(xff) - 1; i >= 0; i-- {
		for list, more := xff[i], true; more; trustedHops-- {
			last := list
			if comma := strings.LastIndexByte(list, ','); comma >= 0 {
				list, last = list[:comma], list[comma+1:]
			} else {
				more = false
			}
			if trustedHops > 1 {
				continue
			}
			return clientAddr(strings.Trim(last, " \t"))
		}
	}
	return source
}

// clientAddr returns the address in an element of x-forwarded-for, with or without a port. It is invalid if there is none: the proxy that wrote
// the element did not know its client, which must not be taken for that proxy.
func clientAddr(s string) netip.Addr {
	addr, err := netip.ParseAddr(s)
	if err == nil {
		return addr.Unmap()
	}
	if at, err := netip.ParseAddrPort(s); err == nil {
		return at.Addr().Unmap()
	}
	if bare, ok := strings.CutPrefix(s, "["); ok {
		if addr, err = netip.ParseAddr(strings.TrimSuffix(bare, "]")); err == nil {
			return addr.Unmap()
		}
	}
	return netip.Addr{}
}
