package cors_test

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nosidecar/mesh/internal/cors"
)

func exactly(origins ...string) (list []cors.Match) {
	for _, o := range origins {
		list = append(list, cors.Match{Kind: cors.Exact, Value: o})
	}
	return list
}

// TestEdit compares with what the source of Envoy's filter does.
func TestEdit(t *testing.T) {
	const app, evil = "https://app.example", "https://evil.example"
	full := cors.Config{
		Origins: exactly(app), Methods: []string{"GET", "PUT"}, Headers: []string{"x-a", "x-b"}, Expose: []string{"x-c"},
		MaxAge: 24 * time.Hour, Credentials: true,
	}
	ignoring, withholding := full, full
	ignoring.Unmatched, withholding.Unmatched = cors.Ignore, cors.Withhold
	stars := cors.Config{Origins: exactly("*"), Methods: []string{"*"}, Headers: []string{"*"}, Expose: []string{"*"}}
	listed := cors.Config{Origins: exactly(app), Methods: []string{"GET", "*"}}
	type fields = map[string]string
	asks := func(origin string) http.Header {
		return http.Header{"Origin": {origin}, "Access-Control-Request-Method": {"PUT"}, "Access-Control-Request-Headers": {"x-z"}}
	}
	allowed := fields{"Access-Control-Allow-Origin": app, "Access-Control-Allow-Credentials": "true", "Access-Control-Expose-Headers": "x-c", "Vary": "Origin"}
	preflight := fields{"Access-Control-Allow-Origin": app, "Access-Control-Allow-Credentials": "true", "Access-Control-Allow-Methods": "GET,PUT",
		"Access-Control-Allow-Headers": "x-a,x-b", "Access-Control-Max-Age": "86400", "Vary": "Origin"}
	rest := maps.Clone(preflight)
	delete(rest, "Access-Control-Allow-Origin")
	varies := fields{"Vary": "Origin"}
	for _, test := range []struct {
		name   string
		config cors.Config
		method string
		header http.Header
		set    http.Header // by the handler
		ends   bool
		want   fields // nil: the policy says nothing
	}{
		{"no origin", full, "GET", nil, nil, false, nil},
		{"empty origin", full, "GET", http.Header{"Origin": {""}}, nil, false, nil},
		{"allowed", full, "GET", http.Header{"Origin": {app}}, nil, false, allowed},
		{"HEAD", full, "HEAD", http.Header{"Origin": {app}}, nil, false, allowed},
		{"over the handler's", full, "GET", http.Header{"Origin": {app}},
			http.Header{"Access-Control-Allow-Origin": {"*", "x"}, "access-control-allow-credentials": {"false"}}, false, allowed},
		{"not allowed", full, "GET", http.Header{"Origin": {evil}}, nil, false, varies},
		{"not allowed, but by the handler", full, "GET", http.Header{"Origin": {evil}}, http.Header{"Access-Control-Allow-Origin": {evil}}, false,
			fields{"Vary": "Origin", "Access-Control-Allow-Origin": evil}},
		{"upper case", full, "GET", http.Header{"Origin": {"https://APP.example"}}, nil, false, varies},
		{"null", full, "GET", http.Header{"Origin": {"null"}}, nil, false, varies},
		{"null of all", stars, "GET", http.Header{"Origin": {"null"}}, nil, false,
			fields{"Access-Control-Allow-Origin": "null", "Access-Control-Expose-Headers": "*", "Vary": "Origin"}},
		{"two origins", full, "GET", http.Header{"Origin": {app, evil}}, nil, false, varies},
		{"two origins of all", stars, "GET", http.Header{"Origin": {app, evil}}, nil, false,
			fields{"Access-Control-Allow-Origin": app + "," + evil, "Access-Control-Expose-Headers": "*", "Vary": "Origin"}},
		{"varies already", full, "GET", http.Header{"Origin": {evil}}, http.Header{"Vary": {"accept, ORIGIN"}}, false, fields{"Vary": "accept, ORIGIN"}},
		{"varies by everything", full, "GET", http.Header{"Origin": {evil}}, http.Header{"Vary": {"*"}}, false, fields{"Vary": "*"}},
		{"varies by another", full, "GET", http.Header{"Origin": {evil}}, http.Header{"Vary": {"Accept"}}, false, fields{"Vary": "Accept|Origin"}},
		{"preflight", full, "OPTIONS", asks(app), nil, true, preflight},
		{"preflight for a method that is not listed", full, "OPTIONS", asks(app), nil, true, preflight},
		{"OPTIONS that asks for nothing", full, "OPTIONS", http.Header{"Origin": {app}}, nil, false, allowed},
		{"OPTIONS that asks for an empty method", full, "OPTIONS", http.Header{"Origin": {app}, "Access-Control-Request-Method": {""}}, nil, false, allowed},
		{"GET that asks", full, "GET", asks(app), nil, false, allowed},
		{"options", full, "options", asks(app), nil, false, allowed},
		{"preflight not allowed", full, "OPTIONS", asks(evil), nil, false, varies},
		{"preflight not allowed, ignored", ignoring, "OPTIONS", asks(evil), nil, true, rest},
		{"preflight not allowed, withheld", withholding, "OPTIONS", asks(evil), nil, true, varies},
		{"preflight allowed, withholding", withholding, "OPTIONS", asks(app), nil, true, preflight},
		{"preflight of stars", stars, "OPTIONS", asks(app), nil, true, fields{"Access-Control-Allow-Origin": app, "Access-Control-Allow-Methods": "PUT",
			"Access-Control-Allow-Headers": "x-z", "Vary": "Origin"}},
		{"preflight of stars without headers", stars, "OPTIONS", http.Header{"Origin": {app}, "Access-Control-Request-Method": {"PUT"}}, nil, true,
			fields{"Access-Control-Allow-Origin": app, "Access-Control-Allow-Methods": "PUT", "Vary": "Origin"}},
		{"a star among others", listed, "OPTIONS", asks(app), nil, true, fields{"Access-Control-Allow-Origin": app, "Access-Control-Allow-Methods": "GET,*", "Vary": "Origin"}},
		{"no origins", cors.Config{}, "OPTIONS", asks(app), nil, false, varies},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, err := cors.New(test.config)
			if err != nil {
				t.Fatal(err)
			}
			v, ok := p.Visit(test.method, test.header)
			if ok != (test.want != nil) {
				t.Fatalf("Visit = %v", ok)
			}
			if !ok {
				return
			}
			if v.Ends() != test.ends {
				t.Errorf("Ends = %v", v.Ends())
			}
			h := test.set.Clone()
			if h == nil {
				h = make(http.Header)
			}
			for range 2 {
				v.Edit(h)
				got := make(fields)
				for name, values := range h {
					for _, value := range values {
						if got[name] != "" {
							value = got[name] + "|" + value
						}
						got[name] = value
					}
				}
				if !maps.Equal(got, test.want) {
					t.Errorf("the header is\n%v\nwant\n%v", got, test.want)
				}
			}
		})
	}
}

func TestAllows(t *testing.T) {
	for _, test := range []struct {
		name     string
		match    cors.Match
		takes    []string
		refuses  []string
		stranger bool // with credentials, that is a mistake
	}{
		{"exact", cors.Match{Value: "https://a.example"}, []string{"https://a.example"}, []string{"https://a.example:1", "https://a.examples", "xhttps://a.example"}, false},
		{"prefix", cors.Match{Kind: cors.Prefix, Value: "https://a."}, []string{"https://a.example", "https://a."}, []string{"https://b.a.example"}, true},
		{"prefix with a port", cors.Match{Kind: cors.Prefix, Value: "http://localhost:"}, []string{"http://localhost:3000"}, []string{"http://localhost"}, false},
		{"regex", cors.Match{Kind: cors.Regex, Value: `https://(a|b)\.example`}, []string{"https://b.example"},
			[]string{"https://b.example.evil", "evil https://b.example", "https://b.example\n", "https://b-example"}, false},
		{"alternatives", cors.Match{Kind: cors.Regex, Value: `https://a|https://b`}, []string{"https://a", "https://b"}, []string{"https://ab", "https://b.evil"}, false},
		{"star", cors.Match{Value: "*"}, []string{"null", "https://a", ""}, nil, true},
		{"prefix star", cors.Match{Kind: cors.Prefix, Value: "*"}, []string{"https://a"}, nil, true},
		{"long", cors.Match{Kind: cors.Regex, Value: `https://([a-z]+\.)*example`}, []string{"https://" + strings.Repeat("a.", 100) + "example"},
			[]string{"https://" + strings.Repeat("a.", 1000) + "example"}, false},
		{"long, of all", cors.Match{Value: "*"}, []string{"https://" + strings.Repeat("a.", 100)}, []string{"https://" + strings.Repeat("a.", 1000)}, true},
		{"regex of all", cors.Match{Kind: cors.Regex, Value: ".*"}, []string{"null"}, nil, true},
		{"null", cors.Match{Value: "null"}, []string{"null"}, []string{"https://a"}, true},
		{"regex of all of http", cors.Match{Kind: cors.Regex, Value: "http://.*"}, []string{"http://a"}, []string{"https://a"}, true},
		{"prefix of all of http", cors.Match{Kind: cors.Prefix, Value: "http:"}, []string{"http://a"}, []string{"https://a"}, true},
		{"regex that takes a star", cors.Match{Kind: cors.Regex, Value: "[*]"}, []string{"https://a"}, nil, true}, // as in Envoy
		{"regex of all of a scheme", cors.Match{Kind: cors.Regex, Value: "https?://.*"}, []string{"http://a"}, []string{"null"}, true},
	} {
		config := cors.Config{Origins: []cors.Match{{Value: "x"}, test.match}}
		p, err := cors.New(config)
		if err != nil {
			t.Fatal(err)
		}
		for _, origin := range slices.Concat(test.takes, test.refuses) {
			if got, want := p.Allows(origin), slices.Contains(test.takes, origin); got != want {
				t.Errorf("%s: Allows(%.60q) = %v", test.name, origin, got)
			}
		}
		if got := config.Stranger(); (got != "") != test.stranger || got != "" && !p.Allows(got) {
			t.Errorf("%s: Stranger = %q", test.name, got)
		}
	}
	for _, expr := range []string{"a)|(b", strings.Repeat("(", 999) + "a" + strings.Repeat(")", 999)} { // the latter is too deep inside of a group
		if _, err := cors.New(cors.Config{Origins: []cors.Match{{Kind: cors.Regex, Value: expr}}}); err == nil {
			t.Errorf("%.20s is accepted", expr)
		}
	}
}

func TestMistakes(t *testing.T) {
	const origin = "allowOrigins 0: matches no origin that a browser sends: "
	for _, test := range []struct {
		match cors.Match
		want  string
	}{
		{cors.Match{Value: "https://app.example"}, ""},
		{cors.Match{Value: "https://app.example:8443"}, ""},
		{cors.Match{Value: "http://[::1]"}, ""},
		{cors.Match{Value: "http://[::1]:3000"}, ""},
		{cors.Match{Value: "chrome-extension://ABC/*"}, ""},
		{cors.Match{Value: "*"}, ""},
		{cors.Match{Value: "null"}, ""},
		{cors.Match{Value: "app.example"}, origin + "it has no scheme: write it like https://app.example"},
		{cors.Match{Value: "https://app.example/"}, origin + "an origin ends with its host or its port: remove what follows"},
		{cors.Match{Value: "https://*.example"}, origin + "only a regex can stand for several hosts"},
		{cors.Match{Value: "https://App.example"}, origin + "it is sent in lower case"},
		{cors.Match{Value: "HTTPS://app.example"}, origin + "it is sent in lower case"},
		{cors.Match{Value: "https://app.example:443"}, origin + "the default port of the scheme is left out"},
		{cors.Match{Value: "http://app.example:80"}, origin + "the default port of the scheme is left out"},
		{cors.Match{Value: "http://app.example:443"}, ""},
		{cors.Match{Value: "https://app.example:"}, origin + "its port is none from 1 to 65535"},
		{cors.Match{Value: "https://app.example:0443"}, origin + "its port is none from 1 to 65535"},
		{cors.Match{Value: "https://app.example:65536"}, origin + "its port is none from 1 to 65535"},
		{cors.Match{Kind: cors.Prefix, Value: "https://app."}, ""},
		{cors.Match{Kind: cors.Prefix, Value: "https://app.example:443"}, ""},
		{cors.Match{Kind: cors.Prefix, Value: "htt"}, ""},
		{cors.Match{Kind: cors.Prefix, Value: "https://*."}, origin + "only a regex can stand for several hosts"},
		{cors.Match{Kind: cors.Prefix, Value: "https://app.example/"}, origin + "an origin ends with its host or its port: remove what follows"},
		{cors.Match{Kind: cors.Regex, Value: "https://App.*/"}, ""},
	} {
		config := cors.Config{Origins: []cors.Match{test.match}}
		var got []string
		config.Mistakes(func(field string, i int, message string) {
			got = append(got, fmt.Sprintf("%s %d: %s", field, i, message))
		})
		if strings.Join(got, "|") != test.want {
			t.Errorf("%v: %q, want %q", test.match, got, test.want)
		}
	}
	config := cors.Config{Origins: exactly("null"), Expose: []string{"x-a", "*"}, Credentials: true}
	var got []string
	config.Mistakes(func(field string, i int, message string) {
		got = append(got, fmt.Sprintf("%s %d: %.24s", field, i, message))
	})
	if want := "allowCredentials -1: lets pages of other site|exposeHeaders 1: the star stands for no h"; strings.Join(got, "|") != want {
		t.Errorf("with credentials: %q", got)
	}
}
