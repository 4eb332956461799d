package jwt

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzParse compares the reader of JSON to encoding/json, which is laxer: what is taken here means the same there.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"a":1}`, ` {"a" : [ 1 , -2.5e+3, "x\n\ud83d\ude00", true, false, null ] , "b":{"c":{}}} `, `{"a":1,"a":2}`, `{"a":"\ud800"}`,
		`{"a":01}`, `{"a":1}x`, `{"a":-}`, `{"a":1.}`, `{"a":1e}`, `{"a":[1,]}`, `[1]`, `{"a"}`, `{"a":}`, "{\"a\":\"\x01\"}", `{"a":"\x"}`, `{"a":tru}`,
		`{"aud":[ "x" , "y,]\u0041" ],"b":[],"c":[ ],"d":["x",1],"e":["",null,"z"]}`, `{"a":1e999,"b":[-1E+400]}`,
		strings.Repeat(`{"a":`, 70) + "1" + strings.Repeat("}", 70),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		members, ok := parse(s, nil)
		if !ok {
			if plain(s) {
				t.Errorf("%q is refused", s)
			}
			return
		}
		unmarshal := func(data []byte, into any) error { // numbers as they are written: a float64 does not have all of them
			d := json.NewDecoder(bytes.NewReader(data))
			d.UseNumber()
			return d.Decode(into)
		}
		var want map[string]any
		if err := unmarshal([]byte(s), &want); err != nil || !json.Valid([]byte(s)) {
			t.Fatalf("%q is taken: %v", s, err)
		}
		if len(members) != len(want) {
			t.Errorf("%q has %d members, and %d are read", s, len(want), len(members))
		}
		for _, m := range members {
			var got any
			if err := unmarshal(m.appendJSON(nil), &got); err != nil || !reflect.DeepEqual(got, want[m.name]) {
				t.Errorf("%q: %q is read as %v (%v), want %v", s, m.name, got, err, want[m.name])
			}
		}
	})
}

// plain reports whether s is an object that everybody reads alike: of JSON, and neither deep, wide nor odd.
func plain(s string) bool {
	if !json.Valid([]byte(s)) || !utf8.ValidString(s) || strings.Contains(s, `\u`) || strings.Count(s, "{")+strings.Count(s, "[") > maxDepth || strings.Count(s, ":") > maxMembers {
		return false
	}
	if !strings.HasPrefix(strings.TrimLeft(s, " \t\r\n"), "{") {
		return false
	}
	return !repeats(json.NewDecoder(bytes.NewReader([]byte(s))))
}

// repeats reports whether a name occurs twice in an object.
func repeats(d *json.Decoder) bool {
	d.UseNumber()
	type level struct {
		names  map[string]bool // nil in a list
		isName bool
	}
	var levels []level
	for {
		token, err := d.Token()
		if err != nil {
			return false
		}
		var top *level
		if len(levels) > 0 {
			top = &levels[len(levels)-1]
		}
		if name, ok := token.(string); ok && top != nil && top.names != nil && top.isName {
			if top.names[name] {
				return true
			}
			top.names[name], top.isName = true, false
			continue
		}
		if top != nil {
			top.isName = true // the next one, after this value
		}
		switch token {
		case json.Delim('{'):
			levels = append(levels, level{map[string]bool{}, true})
		case json.Delim('['):
			levels = append(levels, level{})
		case json.Delim('}'), json.Delim(']'):
			levels = levels[:len(levels)-1]
		}
	}
}

// Whoever sends a forged token does not decide how much memory it takes.
func TestParseKeepsNothing(t *testing.T) {
	for _, s := range []string{
		`{"l":[` + strings.Repeat("1,", 5000) + `1]}`, `{"l":[` + strings.Repeat("[1],", 2500) + `1]}`, `{"l":[` + strings.Repeat(`{"a":1},`, 1500) + `1]}`,
		`{"o":` + strings.Repeat(`{"a":`, 60) + "1" + strings.Repeat("}", 61), `{"l":[` + strings.Repeat(`"\n",`, 1500) + `1]}`,
	} {
		if n := testing.AllocsPerRun(5, func() {
			if _, ok := parse(s, nil); !ok {
				t.Fatal("refused")
			}
		}); n > 1 {
			t.Errorf("%.60s: %v allocations", s, n)
		}
	}
}

// Nor does it by the number of its audiences.
func TestReadKeepsNoAudiences(t *testing.T) {
	const many = 3000
	allocated := func(claims string, want *Error) float64 {
		s := base64url.EncodeToString([]byte(`{"alg":"RS256"}`)) + "." + base64url.EncodeToString([]byte(claims)) + ".AAAA"
		return testing.AllocsPerRun(5, func() {
			tok, err := read(s)
			if err != want || err == nil && (!tok.meant([]string{"mesh"}) || tok.meant([]string{"web"})) {
				t.Fatalf("%.60s: %v, want %v", claims, err, want)
			}
		})
	}
	one := allocated(`{"aud":["mesh"],"x":"`+strings.Repeat("a", 3*many)+`"}`, nil)
	for claims, want := range map[string]*Error{
		`{"aud":[` + strings.Repeat(`"",`, many) + `"mesh"]}`:   nil,
		`{"aud":[` + strings.Repeat(`"",`, many) + `1]}`:        errAudienceType,
		`{"aud":[` + strings.Repeat(`"",`, many) + `["mesh"]]}`: errAudienceType,
	} {
		if n := allocated(claims, want); n > one {
			t.Errorf("%.60s: %v allocations, and %v for one audience", claims, n, one)
		}
	}
}

// FuzzRead takes tokens apart whatever they are.
func FuzzRead(f *testing.F) {
	f.Add("eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJpIiwiZXhwIjoxfQ.AAAA")
	f.Add("..")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := read(s)
		if (tok == nil) == (err == nil) {
			t.Fatal("neither a token nor an error, or both")
		}
		if err == nil && (!strings.HasPrefix(s, tok.signed+".") || tok.alg == nil) {
			t.Errorf("%q is read as %+v", s, tok)
		}
	})
}
