package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the transcripts in testdata")

// command runs the command and returns its exit status and what it printed.
func command(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(args, &out, &errs)
	return code, out.String(), errs.String()
}

// TestTranscripts runs the commands of testdata/*.txt, which stand in lines that begin with "$ ". What follows is what
// they print, errors after "! ", and the exit status if it is not 0. Lines that begin with "# " explain.
func TestTranscripts(t *testing.T) {
	names, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(names) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	vars := strings.NewReplacer("$SEED", seed)
	values := strings.NewReplacer(seed, "$SEED")
	for _, name := range names {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txt"), func(t *testing.T) {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			want, got := string(data), ""
			for line := range strings.Lines(want) {
				switch {
				case strings.HasPrefix(line, "# "), line == "\n":
					got += line
				case strings.HasPrefix(line, "$ mesh "):
					got += line + values.Replace(transcript(words(vars.Replace(strings.TrimSpace(line)))[2:]))
				}
			}
			if got == want {
				return
			}
			if !*update {
				t.Fatalf("%s differs (-update rewrites it); got:\n%s", name, got)
			}
			if err := os.WriteFile(name, []byte(got), 0o666); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func transcript(args []string) string {
	code, stdout, stderr := command(args...)
	text := stdout
	for line := range strings.Lines(stderr) {
		if line == seeHelp {
			break
		}
		text += "! " + line
	}
	if code != 0 {
		text += fmt.Sprintf("exit status %d\n", code)
	}
	return text
}

// words splits a command as a shell does, as far as spaces and single quotes go.
func words(command string) []string {
	var words []string
	quoted := false
	word, begun := "", false
	for _, c := range command + " " {
		switch {
		case c == '\'':
			quoted, begun = !quoted, true
		case c != ' ' || quoted:
			word, begun = word+string(c), true
		case begun:
			words = append(words, word)
			word, begun = "", false
		}
	}
	return words
}

const seed = "../../policy/testdata/seed"

func TestUsage(t *testing.T) {
	const doc = "testdata/shop.yaml"
	for _, test := range []struct {
		name string
		args []string
		want string // in the errors
	}{
		{"no command", nil, "name a command"},
		{"version with arguments", []string{"version", "all"}, "takes no arguments"},
		{"unknown command", []string{"rout"}, `unknown command "rout"`},
		{"check without path", []string{"check"}, "name the files or folders"},
		{"check, unknown flag", []string{"check", "-f", doc}, "-f"},
		{"check, unknown format", []string{"check", "-o", "yaml", doc}, `"yaml"`},
		{"check, format without value", []string{"check", "-o"}, "-o"},
		{"route without documents", []string{"route", "http://shop/"}, "-f"},
		{"route without URL", []string{"route", "-f", doc}, "name the URL"},
		{"route, flags after the URL", []string{"route", "-f", doc, "http://shop/", "-n", "default"}, "flags come before"},
		{"route, unknown flag", []string{"route", "-z", "-f", doc, "http://shop/"}, "-z"},
		{"route, URL without scheme", []string{"route", "-f", doc, "shop/cart"}, `"shop/cart" has no scheme`},
		{"route, host and port only", []string{"route", "-f", doc, "shop:8080"}, `"shop:8080" has no scheme`},
		{"route, path only", []string{"route", "-f", doc, "/cart"}, "has no scheme"},
		{"route, other scheme", []string{"route", "-f", doc, "ftp://shop/"}, "neither http nor https"},
		{"route, no host", []string{"route", "-f", doc, "http:///cart"}, "no host"},
		{"route, broken URL", []string{"route", "-f", doc, "http://shop/%zz"}, "%zz"},
		{"route, broken method", []string{"route", "-f", doc, "-X", "G T", "http://shop/"}, `"G T"`},
		{"route, header without colon", []string{"route", "-f", doc, "-H", "version", "http://shop/"}, "NAME: VALUE"},
		{"route, header without name", []string{"route", "-f", doc, "-H", ": v2", "http://shop/"}, "NAME: VALUE"},
		{"route, broken header name", []string{"route", "-f", doc, "-H", "a b: v2", "http://shop/"}, "NAME: VALUE"},
		{"route, broken header value", []string{"route", "-f", doc, "-H", "a: b\r\nc: d", "http://shop/"}, "control character"},
		{"route, empty Host", []string{"route", "-f", doc, "-H", "Host:", "http://shop/"}, "not an authority"},
		{"route, broken Host", []string{"route", "-f", doc, "-H", "Host: shop/cart", "http://shop/"}, "not an authority"},
		{"route, label without value", []string{"route", "-f", doc, "-l", "app", "http://shop/"}, "KEY=VALUE"},
		{"route, label without key", []string{"route", "-f", doc, "-l", "app=a,=b", "http://shop/"}, "KEY=VALUE"},
		{"authz without documents", []string{"authz", "http://shop/"}, "-f"},
		{"authz without URL", []string{"authz", "-f", doc}, "name the URL"},
		{"authz, SPIFFE ID", []string{"authz", "-f", doc, "--principal", "spiffe://a/b", "http://shop/"}, "without spiffe://"},
		{"authz, no SPIFFE ID", []string{"authz", "-f", doc, "--principal", "foo", "http://shop/"}, "such as cluster.local/ns/default/sa/web"},
		{"authz, trust domain only", []string{"authz", "-f", doc, "--principal", "cluster.local/", "http://shop/"}, "such as cluster.local/ns/default/sa/web"},
		{"authz, trust domain in capitals", []string{"authz", "-f", doc, "--principal", "Cluster.Local/ns/a/sa/b", "http://shop/"}, "trust domain"},
		{"authz, pattern", []string{"authz", "-f", doc, "--principal", "cluster.local/ns/*", "http://shop/"}, "without stars"},
		{"authz, empty principal", []string{"authz", "-f", doc, "--principal", "", "http://shop/"}, "leave the flag out"},
		{"authz, broken source", []string{"authz", "-f", doc, "--source-ip", "10.0.0.0/8", "http://shop/"}, "10.0.0.0/8"},
		{"authz, broken port", []string{"authz", "-f", doc, "--port", "0", "http://shop/"}, `"0" is not a port`},
		{"authz, negative hops", []string{"authz", "-f", doc, "--trusted-hops", "-1", "http://shop/"}, "not negative"},
		{"authz, broken method", []string{"authz", "-f", doc, "-X", "G T", "http://shop/"}, `"G T"`},
		{"authz, broken Host", []string{"authz", "-f", doc, "-H", "Host: shop/cart", "http://shop/"}, "not an authority"},
		{"authz, URL without scheme", []string{"authz", "-f", doc, "/admin"}, "has no scheme"},
		{"authz, other scheme", []string{"authz", "-f", doc, "ftp://shop/"}, "neither http nor https"},
		{"authz, no host", []string{"authz", "-f", doc, "http:///admin"}, "no host"},
		{"authz, broken authority", []string{"authz", "-f", doc, "http://sh%zzop/"}, "%zz"},
		{"authz, port out of range", []string{"authz", "-f", doc, "http://shop:65536/"}, `"65536" is not a port`},
		{"route, label twice", []string{"route", "-f", doc, "-l", "app=a,app=b", "http://shop/"}, "app is given twice"},
	} {
		t.Run(test.name, func(t *testing.T) {
			code, stdout, stderr := command(test.args...)
			if code != 2 || stdout != "" || !strings.Contains(stderr, test.want) || !strings.Contains(stderr, "mesh help") || strings.Count(stderr, "\n") != 2 {
				t.Errorf("mesh %q = %d, printed %q and as errors %q; want 2, with %q and the way to the usage", test.args, code, stdout, stderr, test.want)
			}
		})
	}
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{{"help"}, {"-h"}, {"--help"}} {
		code, stdout, stderr := command(args...)
		if code != 0 || stdout != usage || stderr != "" {
			t.Errorf("mesh %q = %d, printed %q and as errors %q; want the usage", args, code, stdout, stderr)
		}
	}
	for _, name := range []string{"check", "route", "authz", "push", "pull", "diff", "certs", "version"} {
		for _, args := range [][]string{{"help", name}, {name, "-h"}, {name, "--help"}} {
			if name == "version" && args[0] == name {
				continue // it has no flags
			}
			code, stdout, stderr := command(args...)
			if code != 0 || stderr != "" || !strings.HasPrefix(stdout, "Usage:\n\n  mesh "+name) || strings.Count(stdout, "\n  mesh ") != 1 ||
				!strings.Contains(stdout, "The exit status is 2") {
				t.Errorf("mesh %q = %d, printed %q and as errors %q; want the usage of %s", args, code, stdout, stderr, name)
			}
		}
	}
	if code, stdout, stderr := command("help", "chek"); code != 2 || stdout != "" || !strings.Contains(stderr, `unknown command "chek"`) {
		t.Errorf("mesh help chek = %d, printed %q and as errors %q", code, stdout, stderr)
	}
}

// TestUnreadable: documents that cannot be read are no documents without mistakes.
func TestUnreadable(t *testing.T) {
	for _, args := range [][]string{
		{"check", "testdata/shop.yaml", "testdata/missing.yaml"},
		{"check", "-o", "json", "testdata/missing.yaml"},
		{"route", "-f", "testdata/missing.yaml", "http://shop/"},
		{"authz", "-f", "testdata/missing.yaml", "http://shop/"},
	} {
		code, stdout, stderr := command(args...)
		if code != 2 || stdout != "" || !strings.Contains(stderr, "testdata/missing.yaml") || strings.Contains(stderr, "Usage") {
			t.Errorf("mesh %q = %d, printed %q and as errors %q; want 2 and the path", args, code, stdout, stderr)
		}
	}
}

// TestUnwritable: an answer that nobody gets is none.
func TestUnwritable(t *testing.T) {
	for _, args := range [][]string{
		{"check", "testdata/broken.yaml"},
		{"check", "-o", "json", "testdata/shop.yaml"},
		{"route", "-f", "testdata/shop.yaml", "http://shop/"},
		{"authz", "-f", "testdata/shop.yaml", "http://shop/"},
	} {
		var stderr bytes.Buffer
		if code := run(args, full{}, &stderr); code != 2 || !strings.Contains(stderr.String(), errFull.Error()) {
			t.Errorf("mesh %q on a full disk = %d with errors %q, want 2", args, code, &stderr)
		}
	}
}

type full struct{}

var errFull = errors.New("no space left on device")

func (full) Write([]byte) (int, error) { return 0, errFull }

// TestRouteToAPortThatIsNotThere: a call that the library refuses is told as such.
func TestRouteToAPortThatIsNotThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.yaml")
	documents := "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: db}\nspec:\n  hosts: [db.example]\n  location: MESH_EXTERNAL\n" +
		"  resolution: STATIC\n  ports: [{number: 8080, name: http, protocol: HTTP}]\n  endpoints: [{address: 10.0.0.1}]\n"
	if err := os.WriteFile(path, []byte(documents), 0o666); err != nil {
		t.Fatal(err)
	}
	const refused = `"refused": "ServiceEntry default/db has no port 80, it has 8080"`
	for url, want := range map[string]bool{"http://db.example/": true, "http://db.example:8080/": false} {
		code, stdout, stderr := command("route", "-f", path, url)
		if code != 0 || stderr != "" || strings.Contains(stdout, refused) != want {
			t.Errorf("route %s = %d, printed %s %s; want a refusal: %v", url, code, stdout, stderr, want)
		}
	}
}
