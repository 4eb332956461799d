package balancer_test

import (
	"math"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/nosidecar/mesh/balancer"
)

func TestConfigErrors(t *testing.T) {
	enabled := func(l balancer.Locality) balancer.Config {
		l.Enabled = true
		return balancer.Config{Locality: l}
	}
	hashed := func(k balancer.HashKey) balancer.Config {
		return balancer.Config{Algorithm: balancer.RingHash, HashKey: k}
	}
	for _, c := range []struct {
		name string
		cfg  balancer.Config
		want string
	}{
		{"algorithm", balancer.Config{Algorithm: 99}, "Algorithm is 99"},
		{"one choice", balancer.Config{Choices: 1}, "want 2 to 10"},
		{"choices of round robin", balancer.Config{Algorithm: balancer.RoundRobin, Choices: 2}, "round robin"},
		{"aperture of one", balancer.Config{Algorithm: balancer.PeakEWMA, Aperture: 1}, "Aperture is 1"},
		{"aperture of least request", balancer.Config{Aperture: 12}, "least request"},
		{"negative decay", balancer.Config{Algorithm: balancer.PeakEWMA, Decay: -1}, "Decay is -1ns"},
		{"decay of least request", balancer.Config{Decay: time.Second}, "least request"},
		{"ring of maglev", balancer.Config{Algorithm: balancer.Maglev, MinRingSize: 1}, "maglev"},
		{"ring too large", balancer.Config{Algorithm: balancer.RingHash, MaxRingSize: 8<<20 + 1}, "MaxRingSize"},
		{"ring inside out", balancer.Config{Algorithm: balancer.RingHash, MinRingSize: 100, MaxRingSize: 99}, "above"},
		{"table not prime", balancer.Config{Algorithm: balancer.Maglev, TableSize: 65536}, "prime"},
		{"table too large", balancer.Config{Algorithm: balancer.Maglev, TableSize: 5000077}, "prime up to"},
		{"table negative", balancer.Config{Algorithm: balancer.Maglev, TableSize: -7}, "prime"},
		{"bound below 1", balancer.Config{BoundedLoad: 0.9}, "1 or more"},
		{"bound not a number", balancer.Config{BoundedLoad: math.NaN()}, "1 or more"},
		{"panic above 100", balancer.Config{PanicFraction: 1.01}, "0 to 1"},
		{"slow start without window", balancer.Config{SlowStart: balancer.SlowStart{MinFraction: 0.05}}, "no Window"},
		{"slow start of a hash", balancer.Config{
			Algorithm: balancer.Maglev, SlowStart: balancer.SlowStart{Window: time.Second},
		}, "maglev"},
		{"slow start above 100%", balancer.Config{
			SlowStart: balancer.SlowStart{Window: time.Second, MinFraction: 1.01},
		}, "MinFraction"},
		{"aggression not a number", balancer.Config{
			SlowStart: balancer.SlowStart{Window: time.Second, Aggression: math.NaN()},
		}, "Aggression"},

		{"key without hash", balancer.Config{HashKey: balancer.HashKey{Source: balancer.SourceIPKey}}, "least request"},
		{"header that there is not", hashed(balancer.HashKey{Source: balancer.HeaderKey, Name: ":status"}), "not the name of a header"},
		{"header without name", hashed(balancer.HashKey{Source: balancer.HeaderKey}), "no name"},
		{"name of nothing", hashed(balancer.HashKey{Name: "x"}), "of nothing"},
		{"cookie name", hashed(balancer.HashKey{Source: balancer.CookieKey, Name: "a b"}), "name of a cookie"},
		{"ttl of a passive cookie", hashed(balancer.HashKey{
			Source: balancer.CookieKey, Name: "a", TTL: time.Second,
		}), "generated"},
		{"ttl not in seconds", hashed(balancer.HashKey{
			Source: balancer.CookieKey, Name: "a", Generate: true, TTL: time.Millisecond,
		}), "whole seconds"},
		{"attribute injects a header", hashed(balancer.HashKey{
			Source: balancer.CookieKey, Name: "a", Generate: true, Attributes: []string{"x\r\nX: y"},
		}), "cannot be sent"},
		{"generated header", hashed(balancer.HashKey{
			Source: balancer.HeaderKey, Name: "a", Generate: true,
		}), "only cookies"},
		{"source ip", hashed(balancer.HashKey{Source: balancer.SourceIPKey, SourceIP: "here"}), "not an IP"},

		{"locality not enabled", balancer.Config{Locality: balancer.Locality{Failover: []balancer.Failover{{"a", "b"}}}}, "not enabled"},
		{"two localities", enabled(balancer.Locality{Failover: []balancer.Failover{{"a", "b"}}, Distribute: distribution("a", "b", 1)}), "more than one"},
		{"distribute from nowhere", enabled(balancer.Locality{Distribute: distribution("", "b", 1)}), "no From"},
		{"distribute nothing", enabled(balancer.Locality{Distribute: distribution("a", "b", 0)}), "all 0"},
		{"distribute to nowhere", enabled(balancer.Locality{Distribute: distribution("a", "", 1)}), "no Place"},
		{"failover to itself", enabled(balancer.Locality{Failover: []balancer.Failover{{"a", "a"}}}), "to itself"},
		{"label without value", enabled(balancer.Locality{FailoverPriority: []balancer.Label{{"a", ""}}}), "without name or value"},
	} {
		_, err := balancer.New(c.cfg, balancer.Hooks{})
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "balancer: ") {
			t.Errorf("%s: New: %v, want an error with %q", c.name, err, c.want)
		}
	}
}

func TestHashKeyOf(t *testing.T) {
	request := func(url string, edit func(*http.Request)) *http.Request {
		req, err := http.NewRequest("GET", url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if edit != nil {
			edit(req)
		}
		return req
	}
	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Add(name, value) }
	}
	for _, c := range []struct {
		name string
		key  balancer.HashKey
		req  *http.Request
		want string
		ok   bool
	}{
		{"none", balancer.HashKey{}, request("http://a/", nil), "", false},
		{"header", balancer.HashKey{Source: balancer.HeaderKey, Name: "x-user"},
			request("http://a/", header("X-User", "7")), "7", true},
		{"header absent", balancer.HashKey{Source: balancer.HeaderKey, Name: "x-user"},
			request("http://a/", nil), "", false},
		{"header twice", balancer.HashKey{Source: balancer.HeaderKey, Name: "x-user"},
			request("http://a/", func(r *http.Request) { r.Header["X-User"] = []string{"7", "8"} }), "7,8", true},
		{"host", balancer.HashKey{Source: balancer.HeaderKey, Name: "host"},
			request("http://a/", func(r *http.Request) { r.Host = "b" }), "b", true},
		{"host of the URL", balancer.HashKey{Source: balancer.HeaderKey, Name: "Host"},
			request("http://a:80/", func(r *http.Request) { r.Host = "" }), "a:80", true},
		{"authority", balancer.HashKey{Source: balancer.HeaderKey, Name: ":authority"},
			request("http://a/", func(r *http.Request) { r.Host = "b" }), "b", true},
		{"path", balancer.HashKey{Source: balancer.HeaderKey, Name: ":path"}, request("http://a/x%2Fy?z=1", nil), "/x%2Fy?z=1", true},
		{"method", balancer.HashKey{Source: balancer.HeaderKey, Name: ":method"},
			request("http://a/", func(r *http.Request) { r.Method = "PUT" }), "PUT", true},
		{"method unset", balancer.HashKey{Source: balancer.HeaderKey, Name: ":method"},
			request("http://a/", func(r *http.Request) { r.Method = "" }), "GET", true},
		{"scheme", balancer.HashKey{Source: balancer.HeaderKey, Name: ":scheme"}, request("https://a/", nil), "https", true},
		{"cookie", balancer.HashKey{Source: balancer.CookieKey, Name: "id"},
			request("http://a/", header("Cookie", "x=1; id=7")), "7", true},
		{"cookie names have case", balancer.HashKey{Source: balancer.CookieKey, Name: "ID"},
			request("http://a/", header("Cookie", "id=7")), "", false},
		{"source of the request", balancer.HashKey{Source: balancer.SourceIPKey, SourceIP: "10.0.0.1"},
			request("http://a/", func(r *http.Request) { r.RemoteAddr = "[::1]:99" }), "::1", true},
		{"source of the process", balancer.HashKey{Source: balancer.SourceIPKey, SourceIP: "10.0.0.1"},
			request("http://a/", nil), "10.0.0.1", true},
		{"source unknown", balancer.HashKey{Source: balancer.SourceIPKey}, request("http://a/", nil), "", false},
		{"query", balancer.HashKey{Source: balancer.QueryKey, Name: "q"},
			request("http://a/?p=1&q=a%20b&q=c", nil), "a b", true},
		{"query empty", balancer.HashKey{Source: balancer.QueryKey, Name: "q"}, request("http://a/?q", nil), "", true},
		{"query has case", balancer.HashKey{Source: balancer.QueryKey, Name: "q"}, request("http://a/?Q=1", nil), "", false},
		{"query absent", balancer.HashKey{Source: balancer.QueryKey, Name: "q"}, request("http://a/", nil), "", false},
		{"query broken", balancer.HashKey{Source: balancer.QueryKey, Name: "q"}, request("http://a/?q=%zz", nil), "", false},
	} {
		if got, ok := c.key.Of(c.req); got != c.want || ok != c.ok {
			t.Errorf("%s: Of = %q, %v, want %q, %v", c.name, got, ok, c.want, c.ok)
		}
	}
}

func TestNewCookie(t *testing.T) {
	for _, c := range []struct {
		name string
		key  balancer.HashKey
		want string // after the value
	}{
		{"session", balancer.HashKey{Source: balancer.CookieKey, Name: "id", Generate: true}, "; HttpOnly"},
		{"all", balancer.HashKey{
			Source: balancer.CookieKey, Name: "id", Generate: true, TTL: time.Minute, Path: "/x",
			Attributes: []string{"SameSite=Strict", "Secure"},
		}, "; Max-Age=60; Path=/x; SameSite=Strict; Secure; HttpOnly"},
	} {
		key, header, ok := c.key.NewCookie()
		if want := "id=" + key + c.want; !ok || len(key) < 16 || header != want {
			t.Errorf("%s: NewCookie = %q, %q, %v, want the header %q", c.name, key, header, ok, want)
		}
		if again, _, _ := c.key.NewCookie(); again == key {
			t.Errorf("%s: the same key twice: %q", c.name, key)
		}
	}
	if _, _, ok := (balancer.HashKey{Source: balancer.CookieKey, Name: "id"}).NewCookie(); ok {
		t.Error("a passive cookie is generated")
	}
}

func distribution(from, to string, weight uint32) []balancer.Distribution {
	return []balancer.Distribution{{From: from, To: []balancer.Portion{{to, weight}}}}
}

func FuzzLocality(f *testing.F) {
	f.Add("eu/a/*", "eu/a/*", uint32(80), "", "", "", "")
	f.Add("*", "*", uint32(1), "", "", "", "")
	f.Add("", "", uint32(0), "a", "b", "", "")
	f.Add("", "", uint32(0), "", "", "topology.kubernetes.io/region", "eu")
	f.Fuzz(func(t *testing.T, from, to string, weight uint32, region, other, label, value string) {
		locality := balancer.Locality{Enabled: true}
		switch {
		case weight > 0:
			locality.Distribute = distribution(from, to, weight)
		case region != "":
			locality.Failover = []balancer.Failover{{region, other}}
		default:
			locality.FailoverPriority = []balancer.Label{{label, value}}
		}
		b, err := balancer.New(balancer.Config{Locality: locality}, balancer.Hooks{})
		if err != nil {
			return
		}
		b.Update(placed("eu/a/1", "us", ""))
		if h, err := b.Pick(balancer.PickInfo{}); err == nil {
			h.Release(0, false)
		} else if weight == 0 {
			t.Errorf("Pick: %v, though no rule leaves a place out", err)
		}
	})
}

func TestEqual(t *testing.T) {
	config := func() balancer.Config {
		return balancer.Config{
			Locality: balancer.Locality{Enabled: true, Distribute: distribution("a", "b", 1)},
			HashKey:  balancer.HashKey{Source: balancer.CookieKey, Name: "a", Generate: true, Attributes: []string{"Secure"}},
		}
	}
	a, b := config(), config()
	if !a.Equal(b) {
		t.Error("equal settings differ")
	}
	b.Locality.Distribute[0].To[0].Weight = 2
	if a.Equal(b) {
		t.Error("another weight makes no difference")
	}
	b = config()
	b.HashKey.Attributes[0] = "SameSite=Strict"
	if a.Equal(b) {
		t.Error("another attribute makes no difference")
	}
}
