package authz

import (
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// What follows is a second, slow implementation of the readings, as near to the words that describe them as it can be.

var (
	anyEscape   = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)
	badEscape   = regexp.MustCompile(`%(?:$|[^0-9A-Fa-f]|[0-9A-Fa-f](?:$|[^0-9A-Fa-f]))`)
	unreserved  = regexp.MustCompile(`^[A-Za-z0-9._~-]$`)
	parameters  = regexp.MustCompile(`;[^/]*`)
	dotsAtEnd   = regexp.MustCompile(`[/\\]\.\.?$`)
	manySlashes = regexp.MustCompile(`//+`)
)

func refUnescape(path string, decode func(string) bool) string {
	return anyEscape.ReplaceAllStringFunc(path, func(escape string) string {
		c, err := url.PathUnescape(escape)
		if err != nil {
			panic(err)
		}
		if decode(c) {
			return c
		}
		return strings.ToUpper(escape)
	})
}

// refRemoveDots is the algorithm of RFC 3986, section 5.2.4, in its own steps.
func refRemoveDots(in string) string {
	out := ""
	for in != "" {
		switch {
		case strings.HasPrefix(in, "/./"): // B
			in = in[2:]
		case in == "/.":
			in = "/"
		case strings.HasPrefix(in, "/../"), in == "/..": // C
			in = "/" + strings.TrimPrefix(in[3:], "/")
			out = out[:max(0, strings.LastIndex(out, "/"))]
		default: // E
			next := strings.Index(in[1:], "/") + 1
			if next == 0 {
				next = len(in)
			}
			out, in = out+in[:next], in[next:]
		}
	}
	return out
}

func refReadings(path string, mode Normalization) map[reading]bool {
	all := make(map[reading]bool)
	plain := unreserved.MatchString
	slashes := func(c string) bool { return plain(c) || c == "/" || c == `\` }
	every := func(string) bool { return true }
	cut, fragment, _ := strings.Cut(path, "#")
	starts := []string{cut}
	if strings.ContainsAny(fragment, `/\%`) || cut != path && dotsAtEnd.MatchString(refUnescape(cut, every)) {
		starts = append(starts, path)
	}
	for _, start := range starts {
		starts = append(starts, parameters.ReplaceAllString(start, ""))
	}
	for _, start := range starts {
		for i, decode := range []func(string) bool{plain, slashes, every} {
			if i == 0 && mode == DecodeAndMergeSlashes {
				continue
			}
			text := refUnescape(start, decode)
			forms := []string{strings.ReplaceAll(text, `\`, "/")}
			if strings.Contains(text, `\`) && (mode != DecodeAndMergeSlashes || strings.Contains(text, "..") || strings.Contains(text, ";")) {
				forms = append(forms, text)
			}
			for _, form := range forms {
				for _, form := range []string{form, parameters.ReplaceAllString(form, "")} {
					if mode == Base || mode == None {
						all[reading{refRemoveDots(form), i == 2}] = true
					}
					all[reading{manySlashes.ReplaceAllString(refRemoveDots(form), "/"), i == 2}] = true
					all[reading{refRemoveDots(manySlashes.ReplaceAllString(form, "/")), i == 2}] = true
				}
			}
		}
	}
	if mode == None {
		all[reading{path: refUnescape(path, plain)}] = true
		all[reading{refUnescape(path, every), true}] = true
	}
	for _, cut := range []string{cut, parameters.ReplaceAllString(cut, "")} {
		if refRemoveDots(refUnescape(cut, plain)) == refUnescape(refRemoveDots(cut), plain) {
			continue // there are no escaped dot segments
		}
		cleaned := refRemoveDots(manySlashes.ReplaceAllString(cut, "/"))
		some := plain
		if mode == DecodeAndMergeSlashes {
			some = slashes
		}
		all[reading{manySlashes.ReplaceAllString(refUnescape(cleaned, some), "/"), false}] = true
		all[reading{manySlashes.ReplaceAllString(refUnescape(cleaned, every), "/"), true}] = true
	}
	return all
}

func FuzzPath(f *testing.F) {
	for _, seed := range []string{
		"/", "/a/b", "//admin", "/x/../admin", "/%2e%2e/admin", "/a%2Fb", "/a%5cb", `/a\b`, `/a\..\b`, "/a;b=c/d",
		"/a/..;/b", "/a#b", "/a#/../b", "/a%00", "/a\x00", "/%", "/%c0%ae", "/caf%c3%a9", "/a//../b", "/.", "/..", "/a/.",
		"/a/..", "/...", "/.well-known/x", "/a?b#c", "/a%252e%252e", "/a/%2e%2e%2f%2e./b", "/%5c..%5c..", "/;/;a/../b;", "/x;%2Fa/..%2Fb",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, target string) {
		target = "/" + target
		path, plain, ok := targetPath("GET", target)
		if want, _, _ := strings.Cut(target, "?"); !ok || path != want {
			t.Fatalf("targetPath(%q) = %q, %v, want %q", target, path, ok, want)
		}
		unescaped := refUnescape(path, func(string) bool { return true })
		wantValid := !badEscape.MatchString(path) && utf8.ValidString(unescaped) && !strings.Contains(unescaped, "\x00")
		if got := valid(path, escapesOf(path)); got != wantValid {
			t.Fatalf("valid(%q) = %v, want %v", path, got, wantValid)
		}
		if !wantValid {
			if plain {
				t.Fatalf("%q is malformed, and yet taken for plain", path)
			}
			return
		}
		for mode := Base; mode <= DecodeAndMergeSlashes; mode++ {
			got, want := readings(path, mode, true), refReadings(path, mode)
			for _, r := range got {
				if !want[r] {
					t.Errorf("readings(%q, %v) has %v", path, mode, r)
				}
				if r.path == "" || r.path[0] != '/' {
					t.Errorf("readings(%q, %v) has %v, which does not begin with a slash", path, mode, r)
				}
				if mode == MergeSlashes && strings.Contains(r.path, "//") {
					t.Errorf("readings(%q, %v) has %v", path, mode, r)
				}
				if plain && r.path != path {
					t.Errorf("%q is taken for plain, but reads also %v", path, r)
				}
			}
			if len(got) != len(want) {
				t.Errorf("readings(%q, %v) = %v, want %d: %v", path, mode, got, len(want), want)
			}
			if mode == None {
				continue // whose first reading is what was sent
			}
			if again := readings(got[0].path, mode, true); again[0].path != got[0].path {
				t.Errorf("the canonical form of %q is %q, and its own is %q", path, got[0].path, again[0].path)
			}
			if mode == Base && !slices.Contains(got, reading{refRemoveDots(strings.ReplaceAll(
				refUnescape(strings.SplitN(path, "#", 2)[0], unreserved.MatchString), `\`, "/")), false}) {
				t.Errorf("readings(%q) lacks the canonical one", path)
			}
		}
	})
}

func TestRemoveDots(t *testing.T) {
	for _, tt := range []struct{ path, want string }{
		{"/a/b/c/./../../g", "/a/g"}, // RFC 3986, section 5.2.4
		{"/", "/"}, {"/.", "/"}, {"/..", "/"}, {"/a/.", "/a/"}, {"/a/..", "/"}, {"/a/b/..", "/a/"},
		{"/../../a", "/a"}, {"/a//../b", "/a/b"}, {"/...", "/..."}, {"/.a/..b", "/.a/..b"}, {"//..", "/"},
	} {
		if got := removeDots(tt.path); got != tt.want {
			t.Errorf("removeDots(%q) = %q, want %q", tt.path, got, tt.want)
		}
	}
}
