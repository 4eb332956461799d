package jwt

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"
)

// checkRedirect allows three redirects, all from https to https.
func checkRedirect(req *http.Request, via []*http.Request) error {
	switch {
	case len(via) > 3:
		return errors.New("more than 3 redirects")
	case req.URL.Scheme != "https" || via[0].URL.Scheme != "https":
		return errors.New("redirects are followed only from https to https")
	}
	return nil
}

// chosen is a transport that chooses another one for each request of the fetches from a URI.
type chosen struct {
	choose  func(*http.Request) http.RoundTripper
	uri     string
	guarded *http.Transport
}

// RoundTrip implements http.RoundTripper.
func (c *chosen) RoundTrip(r *http.Request) (*http.Response, error) {
	if c.choose != nil {
		transport := c.choose(r)
		if transport != nil && r.URL.String() != c.uri {
			first, err := http.NewRequestWithContext(r.Context(), http.MethodGet, c.uri, nil)
			if err != nil || c.choose(first) == nil {
				transport = nil
			}
		}
		if transport != nil {
			return transport.RoundTrip(r)
		}
	}
	return c.guarded.RoundTrip(r)
}

// guarded returns a transport that does not connect to what only this machine can reach: neighbors on its link, and the metadata service of
// its cloud, which hands out credentials.
func guarded() *http.Transport {
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, IdleConnTimeout: 90 * time.Second}
	if standard, ok := http.DefaultTransport.(*http.Transport); ok { // programs may replace it
		transport = standard.Clone()
	}
	dialer := &net.Dialer{Timeout: 5 * time.Second, Control: func(_, address string, _ syscall.RawConn) error {
		addr, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		return checkAddress(addr.Addr())
	}}
	transport.DialContext = dialer.DialContext
	transport.MaxResponseHeaderBytes = 64 << 10
	// A program may have set these in http.DefaultTransport, to dial in its own way: they would be a way around the check.
	transport.DialTLSContext = nil
	//lint:ignore SA1019 a program may still set it
	transport.DialTLS = nil
	if proxy := transport.Proxy; proxy != nil {
		transport.Proxy = func(r *http.Request) (*url.URL, error) {
			through, err := proxy(r)
			if through != nil && err == nil {
				err = checkProxied(r.URL.Hostname())
			}
			return through, err
		}
	}
	return transport
}

func checkAddress(ip netip.Addr) error {
	ip = ip.Unmap().WithZone("")
	if nat64.Contains(ip) {
		of := ip.As16()
		ip = netip.AddrFrom4([4]byte(of[12:]))
	}
	if ip.IsLinkLocalUnicast() || ip.IsMulticast() || slices.Contains(metadata, ip) {
		return fmt.Errorf("%s is a link-local or metadata address: keys are not fetched from there", ip)
	}
	return nil
}

// checkProxied checks a host that a proxy connects to. The proxy resolves names, so only those names can be checked here that C's resolver
// takes for addresses, such as 0xa9fea9fe and 2852039166.
func checkProxied(host string) error {
	if ip, err := netip.ParseAddr(host); err == nil {
		return checkAddress(ip)
	}
	host = strings.TrimSuffix(host, ".")
	last := strings.ToLower(host[strings.LastIndexByte(host, '.')+1:])
	if last == "" || '0' <= last[0] && last[0] <= '9' {
		return fmt.Errorf("the host %q is an address in a spelling of its own: keys are not fetched from there through a proxy", host)
	}
	if strings.EqualFold(host, "metadata.google.internal") {
		return fmt.Errorf("%s is a metadata service: keys are not fetched from there", host)
	}
	return nil
}

// metadata has the addresses of metadata services that are not link-local.
var metadata = []netip.Addr{
	netip.MustParseAddr("fd00:ec2::254"),   // AWS
	netip.MustParseAddr("fd20:ce::254"),    // Google
	netip.MustParseAddr("168.63.129.16"),   // Azure
	netip.MustParseAddr("100.100.100.200"), // Alibaba
	netip.MustParseAddr("192.0.0.192"),     // Oracle
}

// nat64 is the prefix behind which a NAT64 reaches IPv4 addresses (RFC 6052, section 2.1).
var nat64 = netip.MustParsePrefix("64:ff9b::/96")
