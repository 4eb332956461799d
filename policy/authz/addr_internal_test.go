package authz

import (
	"net/netip"
	"testing"
)

func FuzzParseAddr(f *testing.F) {
	for _, s := range []string{
		"10.0.0.1:8080", "[::1]:80", "[fe80::1%eth0]:80", "[::ffff:10.0.0.1]:80", "10.0.0.1", "::1", "::1:80", "[10.0.0.1]:80",
		"10.0.0.1:", "10.0.0.1:65536", "10.0.0.1:+80", "10.0.0.1:080", "[::1]80", "[]:80", "[:80", ":80", ":", "", "@", "/run/socket",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var want netip.AddrPort
		if addr, err := netip.ParseAddrPort(s); err == nil {
			want = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
		}
		if got := parseAddr(s); got != want {
			t.Errorf("parseAddr(%q) = %v, want %v", s, got, want)
		}
	})
}
