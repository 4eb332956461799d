package consul_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/consul"
	"github.com/nosidecar/mesh/policy/route"
)

// folder writes files and returns their folder.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// check reads and checks one file.
func check(t *testing.T, name, text string) policy.Report {
	t.Helper()
	sources, err := consul.ReadDir(folder(t, map[string]string{name: text}))
	if err != nil {
		t.Fatal(err)
	}
	return policy.Check(sources, policy.Workload{Filters: consul.Filters{}})
}

const resolverInHCL = `# the instances of web
Kind = "service-resolver"
Name           = "web"
connect_timeout = "3s"
Subsets = {
  v1 = {
    filter = "Service.Meta.version == v1"
  }
  "v2" = { Filter = <<EOT
Service.Meta.version == v2
EOT
    OnlyPassing = true }
}
failover "*" {
  targets = [
    { service = "api" },
    { datacenter = "dc2" }
  ]
}
load_balancer {
  policy = "maglev"
  hash_policies {
    field = "header"
    field_value = "x-user"
  }
}
`

func TestReadDir_HCL(t *testing.T) {
	sources, err := consul.ReadDir(folder(t, map[string]string{
		"web.hcl": resolverInHCL, "api.json": `{"Kind": "service-resolver", "Name": "api"}`, "package.json": `{"name": "x"}`, "read.me": "no document",
		"other.yaml": "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: x}\nspec: {host: other}",
	}))
	if err != nil {
		t.Fatal(err)
	}
	plan, findings := policy.Compile(sources, policy.Workload{Filters: consul.Filters{}})
	if plan == nil || len(findings) != 1 || !strings.Contains(findings[0].String(), "package.json:1: warning: no document") {
		t.Fatal(findings)
	}
	c := plan.Cluster(route.Target{Host: "web", Subset: "v2"})
	if c.Pool.ConnectTimeout.Seconds() != 3 || c.Filter.Text != "(Service.Meta.version == v2\n) and only passing" || len(c.Failover) != 3 || c.Balancer.HashKey.Name != "x-user" {
		t.Errorf("%+v", c)
	}
}

func TestReadDir_MistakesInHCL(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"syntax", "Kind = \"service-router\"\nName = ", "web.hcl:2: error: not valid HCL: "},
		{"two entries", "Kind = \"service-router\"\nName = \"web\"\nKind = \"service-router\"\nName = \"api\"", "web.hcl:3: error: Kind is set twice, first in line 1: remove one; a file has one entry"},
		{"a key twice", "Kind = \"service-router\"\nName = \"web\"\nRoutes = []\nRoutes = []", "web.hcl:4: error: Routes is set twice, first in line 3"},
		{"a key and a block", "Kind = \"service-router\"\nName = \"web\"\nRoutes = []\nRoutes {}", "web.hcl:4: error: Routes is set twice, first in line 3"},
		{"a number that is none", "Kind = \"service-splitter\"\nName = \"web\"\nSplits = [{ Weight = 99999999999999999999 }]", "web.hcl:3: error: not valid HCL: "},
		{"unknown key", "Kind = \"service-router\"\nName = \"web\"\nroutes {\n  match {\n    http {\n      path_perfix = \"/\"\n    }\n  }\n}", `web.hcl:6: service-router default/web: routes[0].match.http.path_perfix: error: unknown field "path_perfix", did you mean "PathPrefix"?`},
		{"third block", "kind = \"service-router\"\nname = \"web\"\nroutes {\n  match { http { path_prefix = \"/a\" } }\n}\nroutes {\n}\nroutes {\n  match { http { path_regex = \"(\" } }\n}", `web.hcl:9: service-router default/web: routes[2].match.http.path_regex: error: error parsing regexp`},
		{"two spellings", "Kind = \"service-router\"\nName = \"web\"\nname = \"api\"", `web.hcl:3: service-router default/web: Name: error: set twice, first in line 2`},
		{"labels twice", "Kind = \"service-resolver\"\nName = \"web\"\nSubsets \"v1\" {}\nSubsets \"v1\" {}", `Subsets.v1: error: set twice`},
		{"no kind", "Name = \"web\"", `web.hcl:1: kind: error: missing`},
	} {
		t.Run(test.name, func(t *testing.T) {
			report := check(t, "web.hcl", test.text)
			found := false
			for _, f := range report.Findings {
				_, rest, _ := strings.Cut(f.String(), "/001/")
				found = found || strings.Contains(rest, test.want)
			}
			if !found {
				t.Errorf("%v, want %s", report.Findings, test.want)
			}
		})
	}
	if report := check(t, "web.hcl", "# nothing\n"); report.Documents != 0 {
		t.Errorf("a file without content has %d documents", report.Documents)
	}
}

// What is nested without end would end the process: no recover helps where the stack ends.
func TestHCL_NestedTooDeep(t *testing.T) {
	toJSON := consul.Formats()[".hcl"]
	for name, text := range map[string]string{
		"lists":    "kind = \"mesh\"\nx = " + strings.Repeat("[", 8<<20),
		"blocks":   "kind = \"mesh\"\n" + strings.Repeat("x {", 4<<20),
		"closed":   "kind = \"mesh\"\nx = " + strings.Repeat("[", 65) + strings.Repeat("]", 65),
		"objects":  "kind = \"mesh\"\nx = " + strings.Repeat("{x = ", 65) + "1" + strings.Repeat("}", 65),
		"comments": "kind = \"mesh\"\n" + strings.Repeat("x {/*}*/", 4<<20),
		"texts":    "kind = \"mesh\"\nx = " + strings.Repeat("{x = [\"}]}]\",", 4<<20),
	} {
		if _, err := toJSON([]byte(text)); err == nil || err.Error() != "2: nested more than 64 levels deep" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := toJSON([]byte("x = " + strings.Repeat("[", 64) + strings.Repeat("]", 64) + strings.Repeat("\ny { z = \"[a-z]{3}\" } # {", 100))); err != nil {
		t.Errorf("many things that are not deep: %v", err)
	}
}

// FuzzHCL holds that whatever is made of HCL has as many lines, and can be read.
func FuzzHCL(f *testing.F) {
	f.Add(resolverInHCL)
	f.Add("a = 1\nb { c = [1, \"x\", { d = true }] }\nb \"l\" \"m\" {}")
	f.Add("{\"a\": 1}")
	f.Fuzz(func(t *testing.T, text string) {
		out, err := consul.Formats()[".hcl"]([]byte(text))
		if err != nil {
			if !strings.Contains("0123456789", err.Error()[:1]) {
				t.Errorf("an error without line: %v", err)
			}
			return
		}
		policy.Check([]policy.Source{{Name: "x", Data: out}}, policy.Workload{})
		if strings.Count(string(out), "\n") > strings.Count(text, "\n") {
			t.Errorf("%q became %q", text, out)
		}
	})
}
