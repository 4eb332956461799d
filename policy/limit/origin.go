package limit

import (
	"cmp"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/nosidecar/mesh/internal/field"
)

// origin is what a connection is for: the scheme and the host of URLs (RFC 6454).
type origin struct {
	secure bool
	http1  bool   // no other protocol will do
	host   string // with the port if the URL has one; empty if any host will do, because the proxy connects to it
	proxy  string // the URL; empty without one
}

// originOf returns the origin of a request, and its proxy, if there is one.
func (h *clientConns) originOf(req *http.Request) (origin, *url.URL, error) {
	o := origin{secure: req.URL.Scheme == "https", host: req.URL.Host}
	if o.secure && len(req.Header["Upgrade"]) > 0 {
		o.http1 = upgradesToWebSocket(req.Header)
	}
	if h.proxy == nil {
		return o, nil, nil
	}
	proxy, err := h.proxy(req)
	if proxy == nil || err != nil {
		return o, nil, err
	}
	o.proxy = proxy.String()
	if !o.secure && (proxy.Scheme == "http" || proxy.Scheme == "https") {
		o.host = ""
	}
	return o, proxy, nil
}

// upgradesToWebSocket reports whether a request needs HTTP/1, as in net/http.
func upgradesToWebSocket(header http.Header) bool {
	if !strings.EqualFold(header.Get("Upgrade"), "websocket") {
		return false
	}
	for option := range strings.FieldsFuncSeq(header.Get("Connection"), func(r rune) bool { return r == ' ' || r == ',' || r == '\t' }) {
		if strings.EqualFold(option, "upgrade") {
			return true
		}
	}
	return false
}

// ports are the default ones of the schemes of URLs and of proxies.
var ports = map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}

// address is what net/http dials for a URL.
func address(u *url.URL) string {
	return net.JoinHostPort(field.ASCII(u.Hostname()), cmp.Or(u.Port(), ports[u.Scheme]))
}
