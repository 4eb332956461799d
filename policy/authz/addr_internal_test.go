package authz

import (
	"net/netip"
	"testing"
)

func FuzzParseAddr(f *testing.F) {
	for _, s := range []string{
		"10.0.0.1:8080", "[::1]:80", "[fe80::1%eth0]:80", "[::ffff:10.0.0.1]:80", "10.0.0.1", "::1", "::1:80", "[10.0.0.1]:80",
		"10.0.0.1:", "10.0.0.1:65536", "10.0.0.1:+80", "10.0.0.1:080", "[::1]80", "[]:80", "[:80", ":80", ":", "", "@", "/run/socket",
		"255.255.255.255:65535", "256.0.0.1:80", "0.0.0.0:0", "10.0.0.01:80", "10.0.1:80", "10.0.0.0.1:80", "10..0.1:80", "1.2.3.4:65546",
		"1.2.3.4:99999999999999999999", "1.2.3.4:80:80", "1.2.3.4.:80", "1.2.3.:80", ".1.2.3:80", "1.2.3.4/80", "1.2.3.1234567:80",
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
