package consul_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/policy/consul"
	"github.com/nosidecar/mesh/policy/file"
	"github.com/nosidecar/mesh/policy/route"
)

// TestWatcher_MistakeInHCL: a file in HCL with a mistake is like one in YAML. Where documents stand alone, its last good version stays in force, and
// the other files are read on. Otherwise none takes effect. The finding names the line.
func TestWatcher_MistakeInHCL(t *testing.T) {
	const resolver = "Kind = \"service-resolver\"\nName = \"web\"\nConnectTimeout = \"3s\"\n"
	for _, alone := range []bool{true, false} {
		dir := folder(t, map[string]string{"web.hcl": resolver, "api.json": `{"Kind": "service-resolver", "Name": "api", "ConnectTimeout": "4s"}` + "\n"})
		w := &file.Watcher{Paths: []string{dir}, Alone: alone, Formats: consul.Formats()}
		var plan *policy.Plan
		step := 0
		for sources, err := range w.Watch(t.Context()) {
			if err != nil {
				t.Fatalf("alone %v: %v", alone, err)
			}
			next, findings := policy.Recompile(plan, sources, policy.Workload{})
			if step++; step == 1 {
				if plan = next; plan == nil {
					t.Fatal(findings)
				}
				write(t, filepath.Join(dir, "web.hcl"), resolver+"Redirect {\n  Service = \n}\n")
				write(t, filepath.Join(dir, "api.json"), `{"Kind": "service-resolver", "Name": "api", "ConnectTimeout": "5s"}`+"\n")
				continue
			}
			want := "web.hcl:6: error: not valid HCL: "
			if !alone {
				if next != nil || !strings.Contains(findings.Error(), want) {
					t.Errorf("a plan in spite of %v, want the finding %q", findings, want)
				}
				break
			}
			if next == nil || !strings.Contains(findings.Error(), want) || !strings.Contains(findings.Error(), "(in force: nothing)") {
				t.Fatalf("%v, want the finding %q", findings, want)
			}
			for host, seconds := range map[string]float64{"web": 3, "api": 5} {
				if c := next.Cluster(route.Target{Host: host}); c.Pool.ConnectTimeout.Seconds() != seconds {
					t.Errorf("%s has %v to connect, want %v s", host, c.Pool.ConnectTimeout, seconds)
				}
			}
			break
		}
	}
}

// TestWatcher_IntentionsInHCL: what intentions in HCL forbid is not known while they have a mistake and no last good version.
func TestWatcher_IntentionsInHCL(t *testing.T) {
	dir := folder(t, map[string]string{"web.hcl": "Kind = \"service-intentions\"\nName = \"web\"\nSources = [\n"})
	w := &file.Watcher{Paths: []string{dir}, Alone: true, Formats: consul.Formats()}
	for sources, err := range w.Watch(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		plan, findings := policy.Compile(sources, policy.Workload{Service: "web", AllowByDefault: true})
		if plan == nil {
			t.Fatal(findings)
		}
		if d := plan.Inbound().Authorize(&authz.Request{Method: "GET", Target: "/"}); d.Allowed {
			t.Errorf("a request is allowed in spite of %v", findings)
		}
		break
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".tmp", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		t.Fatal(err)
	}
}
