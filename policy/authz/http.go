package authz

import (
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"github.com/nosidecar/mesh/internal/field"
)

// Handler is an http.Handler that passes on what its Authorizer allows. It answers the rest as [Decision.Refuse]
// does. It belongs outside of what changes requests: it judges the request target as it was sent. Its fields must not
// be changed once it is used.
type Handler struct {
	// Next serves what is allowed. It must be set.
	Next http.Handler

	// Authorizer decides. nil allows everything.
	Authorizer *Authorizer

	// Principal returns the verified identity of the peer, without "spiffe://", or "" if it has none. nil means that no
	// peer has one.
	Principal func(*http.Request) string

	// TrustedHops is how many proxies in front may add to x-forwarded-for; see [NewRequest].
	TrustedHops int

	// OnDecision, if not nil, is told of every decision before the request is served or refused.
	OnDecision func(*http.Request, Decision)
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var principal string
	if h.Principal != nil {
		principal = h.Principal(r)
	}
	view := NewRequest(r, principal, h.TrustedHops)
	d := h.Authorizer.Decide(&view)
	if h.OnDecision != nil {
		h.OnDecision(r, d)
	}
	if !d.Allowed {
		d.Refuse(w, r)
		return
	}
	h.Next.ServeHTTP(w, r)
}

const (
	deniedText     = "RBAC: access denied" // Envoy's
	badRequestText = "Bad Request"
)

// Refuse answers a request that is not allowed: 403 with Envoy's text, or 400 if the path cannot be read. A gRPC call
// gets the code that stands for that status. Nothing in the answer says why.
func (d *Decision) Refuse(w http.ResponseWriter, r *http.Request) {
	status, text, code := http.StatusForbidden, deniedText, "7" // PERMISSION_DENIED
	if d.BadRequest {
		status, text, code = http.StatusBadRequest, badRequestText, "13" // INTERNAL
	}
	header := w.Header()
	if field.IsGRPC(r.Header.Get("Content-Type")) {
		header["Content-Type"] = []string{"application/grpc"}
		header["Grpc-Status"] = []string{code}
		header["Grpc-Message"] = []string{text}
		w.WriteHeader(http.StatusOK)
		return
	}
	header["Content-Type"] = []string{"text/plain"}
	header["Content-Length"] = []string{strconv.Itoa(len(text))}
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text)) // a peer that has gone needs no answer
}

// NewRequest returns the view of a request that a net/http server received, over HTTP/1 or HTTP/2, from a peer with
// the given principal. Remote is the address of the client by x-forwarded-for: with n trusted hops (Istio's
// numTrustedProxies) the nth from the right, which the outermost trusted proxy wrote; what is left of it anyone may have
// written. Without trusted hops, or if there is no address in that place, it is the peer's.
func NewRequest(r *http.Request, principal string, trustedHops int) Request {
	view := Request{
		Principal: principal,
		Source:    parseAddr(r.RemoteAddr).Addr(),
		Host:      r.Host,
		Method:    r.Method,
		Target:    r.RequestURI,
		Header:    r.Header,
	}
	view.Remote = remoteAddr(view.Source, r.Header["X-Forwarded-For"], trustedHops)
	if view.Target == "" && r.URL != nil { // made by a program, not by a server
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

// parseAddr returns the zero value for what is not an address with a port, such as that of a Unix socket.
func parseAddr(s string) netip.AddrPort {
	addr, err := netip.ParseAddrPort(s)
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
}

// remoteAddr returns the address of the client by the values of x-forwarded-for. With n trusted hops (Istio's
// numTrustedProxies) it is the nth address from the right, which the outermost trusted proxy wrote; what is left of
// it anyone may have written. Without trusted hops, or if there is no address in that place, it is source.
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
			addr, err := netip.ParseAddr(strings.Trim(last, " \t"))
			if err != nil {
				return source
			}
			return addr.Unmap()
		}
	}
	return source
}
