package examples_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// programs are the examples, each with a line that it prints when all went as it should.
var programs = map[string]string{
	"balancer":   "endpoints a user met: 1.0 on average",
	"breaker":    "circuit: half-open -> closed",
	"consul":     "Everything was as expected.",
	"discovery":  "blue drains and goes, no call failed: green",
	"errors":     "there was no connection: the server has not seen the call",
	"fault":      "an aborted call is never sent",
	"grpc":       "Everything matched the documents.",
	"jwt":        "alice     /orders     200 for \"alice\"",
	"limit":      "refused so far: 3",
	"linkerd":    "Everything matched the documents.",
	"mtls":       "Everything matched the documents.",
	"observer":   "route=orders status=200 flags=- attempts=2",
	"quickstart": "Everything matched the documents.",
	"retry":      "the caller gets 200; the server got 3 requests",
	"route":      "GET /users/42, x-tester  200 v2",
	"timeout":    "body idle timeout",
	"tracing":    "client GET server.address=payments http.request.resend_count=1 http.response.status_code=200",
}

// TestExamples builds and runs every example.
func TestExamples(t *testing.T) {
	bin := t.TempDir()
	// One build for all of them: they share nearly every package.
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin+string(filepath.Separator), "./...").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	folders, err := filepath.Glob("*/main.go")
	if err != nil {
		t.Fatal(err)
	}
	if len(folders) != len(programs) {
		t.Errorf("%d examples, of which %d are tested", len(folders), len(programs))
	}
	for name, want := range programs {
		if _, err := exec.LookPath("consul"); name == "consul" && err != nil {
			want = "https://developer.hashicorp.com/consul/install" // the tests of realservers run it with Consul
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// They take a second or two, the quickstart now and then five. This is for one that hangs.
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			program := exec.CommandContext(ctx, filepath.Join(bin, name))
			program.Dir = t.TempDir() // it must not matter where they run
			var stdout, stderr bytes.Buffer
			program.Stdout, program.Stderr = &stdout, &stderr
			if err := program.Run(); err != nil {
				t.Fatalf("%v\n%s%s", errors.Join(err, context.Cause(ctx)), stdout.Bytes(), stderr.Bytes())
			}
			if !strings.Contains(stdout.String(), want) {
				t.Errorf("the output does not contain %q:\n%s", want, stdout.Bytes())
			}
		})
	}
}

// TestReadme checks that the table of examples has them all.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for name := range programs {
		if !strings.Contains(string(readme), "`go run ./examples/"+name+"`") {
			t.Errorf("README.md does not tell how to run %s", name)
		}
	}
}

// TestSecurityDocuments checks that the documents of mtls are those that the policy package is tested with.
func TestSecurityDocuments(t *testing.T) {
	for _, name := range []string{"06-peer-authentication.yaml", "07-authorization-policies.yaml"} {
		original, err := os.ReadFile("../policy/testdata/seed/" + name)
		if err != nil {
			t.Fatal(err)
		}
		document, err := os.ReadFile("mtls/mesh.d/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(original, document) {
			t.Errorf("%s is not what mtls has", name)
		}
	}
}

// TestDocuments checks that the quickstart's documents are those that the policy package is tested with.
func TestDocuments(t *testing.T) {
	originals, err := filepath.Glob("../policy/testdata/seed/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	compared := 0
	for _, path := range originals {
		original, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		document, err := os.ReadFile(filepath.Join("quickstart/mesh.d", filepath.Base(path)))
		if errors.Is(err, os.ErrNotExist) {
			continue // another example has it
		}
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(original, document) {
			t.Errorf("%s is not what the quickstart has", path)
		}
		compared++
	}
	if compared != 7 {
		t.Errorf("%d documents compared, want 7", compared)
	}
}
