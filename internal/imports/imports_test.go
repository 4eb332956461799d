package imports

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/nosidecar/mesh"

var update = flag.Bool("update", false, "write what packages reach today to reach.txt")

// thirdParty is every module that may be reached, with the reason and with the packages that reach it by themselves. Whoever
// imports those reaches it too.
var thirdParty = []struct {
	module, reason string
	by             []string
}{
	{"github.com/sony/gobreaker/v2", "the state machine of the circuit", []string{"/breaker"}},
	{"golang.org/x/time", "the token bucket of the local rate limit", []string{"/policy/limit"}},
	{"github.com/cespare/xxhash/v2", "the hash of ring and Maglev, shared with Envoy; OpenTelemetry has it too", []string{"/balancer", "/tracing/internal/spans"}},
	{"go.opentelemetry.io/otel", "the API of traces, without the SDK", []string{"/tracing/internal/spans", "/metrics"}},
	{"github.com/prometheus/client_golang", "metrics", []string{"/metrics"}},
	{"github.com/prometheus/client_model", "of client_golang", []string{"/metrics"}},
	{"github.com/prometheus/common", "of client_golang", []string{"/metrics"}},
	{"github.com/prometheus/procfs", "of client_golang: its metrics of processes", []string{"/metrics"}},
	{"github.com/beorn7/perks", "of client_golang: its summaries", []string{"/metrics"}},
	{"github.com/munnerz/goautoneg", "of client_golang: what format is asked for", []string{"/metrics"}},
	{"go.yaml.in/yaml/v3", "the document syntax", []string{"/internal/yamldoc", "/policy/telemetry/cel", "/internal/kubernetes"}},
	{"cel.dev/cel-go", "the expressions of Telemetry documents", []string{"/policy/telemetry/cel"}},
	{"cel.dev/expr", "of cel-go", []string{"/policy/telemetry/cel"}},
	{"github.com/antlr4-go/antlr/v4", "of cel-go", []string{"/policy/telemetry/cel"}},
	{"golang.org/x/exp", "of cel-go and of the client of Consul", []string{"/policy/telemetry/cel", "/internal/consul"}},
	{"github.com/fsnotify/fsnotify", "notice of changed files", []string{"/policy/file"}},
	{"golang.org/x/sys", "what fsnotify, gRPC and Prometheus call the kernel with", []string{"/policy/file", "grpc", "/metrics", "/internal/consul"}},
	{"github.com/hashicorp/consul/api", "the client of Consul", []string{"/internal/consul"}},
	{"github.com/hashicorp/go-cleanhttp", "of the client of Consul: its transports", []string{"/internal/consul"}},
	{"github.com/hashicorp/go-rootcerts", "of the client of Consul: its certificates", []string{"/internal/consul"}},
	{"github.com/go-viper/mapstructure/v2", "of the client of Consul: its configuration entries", []string{"/internal/consul"}},
	{"github.com/hashicorp/go-multierror", "of the client of Consul", []string{"/internal/consul"}},
	{"github.com/hashicorp/errwrap", "of go-multierror", []string{"/internal/consul"}},
	{"github.com/hashicorp/serf", "of the client of Consul: the coordinates of nodes", []string{"/internal/consul"}},
	{"github.com/hashicorp/go-metrics", "of serf", []string{"/internal/consul"}},
	{"github.com/armon/go-metrics", "of serf", []string{"/internal/consul"}},
	{"github.com/hashicorp/go-immutable-radix", "of go-metrics", []string{"/internal/consul"}},
	{"github.com/hashicorp/golang-lru", "of go-immutable-radix", []string{"/internal/consul"}},
	{"github.com/hashicorp/go-hclog", "of the client of Consul: what it logs about its environment", []string{"/internal/consul"}},
	{"github.com/fatih/color", "of go-hclog", []string{"/internal/consul"}},
	{"github.com/mattn/go-colorable", "of go-hclog", []string{"/internal/consul"}},
	{"github.com/mattn/go-isatty", "of go-hclog", []string{"/internal/consul"}},
	{"github.com/hashicorp/hcl", "config entries of Consul in HCL", []string{"/policy/consul"}},
	{"github.com/hashicorp/go-bexpr", "the filters of service-resolvers", []string{"/policy/consul"}},
	{"github.com/spiffe/go-spiffe/v2/spiffeid", "the names of identities", []string{"/tlsid", "/policy/internal/istio"}},
	{"github.com/spiffe/go-spiffe/v2/svid/x509svid", "certificates that carry an identity", []string{"/tlsid"}},
	{"github.com/spiffe/go-spiffe/v2/bundle/x509bundle", "what they are verified with", []string{"/tlsid"}},
	{"github.com/spiffe/go-spiffe/v2/internal", "what the packages above share", []string{"/tlsid", "/policy/internal/istio"}},
	{"github.com/spiffe/go-spiffe/v2", "the client of the Workload API", []string{"/tlsid/spiffe", "/internal/workloadapi"}},
	{"github.com/go-jose/go-jose/v4", "the JWKs of JSON Web Tokens; JWT-SVIDs of the Workload API client", []string{"/policy/jwt", "/tlsid/spiffe", "/internal/workloadapi"}},
	{"google.golang.org/grpc", "the gRPC adapters", []string{"grpc"}},
	{"google.golang.org/protobuf", "of gRPC, and of Prometheus and the metadata of peers", []string{"grpc", "/metrics/internal/peermeta", "/policy/telemetry/cel"}},
	{"google.golang.org/genproto", "the status of gRPC", []string{"grpc", "/policy/telemetry/cel"}},
	{"golang.org/x/net", "HTTP/2 for gRPC", []string{"grpc"}},
	{"golang.org/x/text", "of golang.org/x/net", []string{"grpc", "/policy/telemetry/cel"}},
}

// speaksGRPC reports whether a package is one of those that gRPC may be reached by.
func speaksGRPC(name string) bool {
	return strings.Contains(name, "grpc") || name == "/tlsid/spiffe" || name == "/internal/workloadapi"
}

// layers are useful alone: none reaches documents, the assembly, or a layer that stands above it.
var layers = []string{"/discovery", "/discovery/consul", "/discovery/kubernetes", "/retry", "/timeout", "/breaker", "/balancer", "/policy/limit", "/policy/fault", "/policy/route",
	"/policy/authz", "/policy/jwt", "/policy/telemetry", "/policy/telemetry/cel", "/tlsid", "/tlsid/consul", "/tracing"}

// forTests are the packages that nothing but tests imports.
var forTests = []string{"/internal/await", "/internal/leak", "/internal/memnet", "/internal/meshtest", "/internal/grpctest",
	"/internal/workloadapi", "/tracing/internal/w3c", "/internal/jwttest", "/internal/consul/connecttest", "/internal/consul/consultest", "/internal/consul/kvtest", "/internal/kubernetes/kubetest"}

// TestImports holds reach.txt, which lists package by package what a program that imports it links, against the facts. What is
// there must be linked, and what is linked must be there: a change of it is seen in review.
func TestImports(t *testing.T) {
	reached := reach(t)
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(reached)) {
		lines = append(lines, strings.TrimRight(fmt.Sprintf("%s: %s", name, strings.Join(reached[name], " ")), " "))
	}
	got := strings.Join(lines, "\n") + "\n"
	if *update {
		if err := os.WriteFile("reach.txt", []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile("reach.txt")
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Split(strings.TrimSpace(string(data)), "\n")
	for _, line := range lines {
		if !slices.Contains(want, line) {
			t.Errorf("not in reach.txt: %s", line)
		}
	}
	for _, line := range want {
		if !slices.Contains(lines, line) {
			t.Errorf("no longer true in reach.txt: %s", line)
		}
	}
	if t.Failed() {
		t.Log("if that is meant: go test ./internal/imports -update")
	}
}

// TestRules holds what is linked against the promises, which no update of a file changes.
func TestRules(t *testing.T) {
	reached := reach(t)
	used := map[string]bool{}
	for name, deps := range reached {
		for _, dep := range deps {
			if strings.HasPrefix(dep, "/") || dep == "(root)" {
				if slices.Contains(layers, name) && (dep == "(root)" || dep == "/policy" || strings.HasPrefix(dep, "/policy/internal") ||
					strings.HasPrefix(dep, "/internal/engine") || strings.HasPrefix(dep, "/cmd")) {
					t.Errorf("the layer %s reaches %s", name, dep)
				}
				if slices.Contains(forTests, dep) && !slices.Contains(forTests, name) {
					t.Errorf("%s reaches %s, which is for tests", name, dep)
				}
				continue
			}
			used[dep] = true
			i := slices.IndexFunc(thirdParty, func(m struct {
				module, reason string
				by             []string
			}) bool {
				return m.module == dep
			})
			if i < 0 {
				t.Errorf("%s reaches %s, for which there is no reason", name, dep)
				continue
			}
			allowed := slices.ContainsFunc(thirdParty[i].by, func(by string) bool {
				return name == by || slices.Contains(deps, by) || by == "grpc" && speaksGRPC(name)
			})
			if !allowed {
				t.Errorf("%s reaches %s, though by none of %v", name, dep, thirdParty[i].by)
			}
		}
	}
	for _, m := range thirdParty {
		if !used[m.module] {
			t.Errorf("nothing reaches %s: remove it, and its reason", m.module)
		}
	}
}

// reach returns, for each package, those of this module and the third-party modules that it links.
func reach(t *testing.T) map[string][]string {
	t.Helper()
	const format = `{{.ImportPath}} {{.Standard}}{{range .Deps}} {{.}}{{end}}`
	out, err := exec.Command("go", "list", "-deps", "-f", format, module+"/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	standard, deps := map[string]bool{}, map[string][]string{}
	for line := range strings.SplitSeq(strings.TrimSpace(string(out)), "\n") {
		fields := strings.Fields(line)
		standard[fields[0]] = fields[1] == "true"
		deps[fields[0]] = fields[2:]
	}
	reached := map[string][]string{}
	for pkg := range deps {
		name, ours := strings.CutPrefix(pkg, module)
		if !ours || name == "/internal/imports" || strings.HasPrefix(name, "/examples") {
			continue // programs, and this test
		}
		if name == "" {
			name = "(root)"
		}
		reached[name] = []string{}
		for _, dep := range deps[pkg] {
			if standard[dep] {
				continue
			}
			short := moduleOf(dep)
			if rest, ours := strings.CutPrefix(dep, module); ours {
				if short = rest; rest == "" {
					short = "(root)"
				}
			}
			if !slices.Contains(reached[name], short) {
				reached[name] = append(reached[name], short)
			}
		}
		slices.Sort(reached[name])
	}
	return reached
}

// moduleOf returns the entry of thirdParty that a package belongs to, the longest, and the package itself if there is none.
func moduleOf(pkg string) string {
	found := ""
	for _, m := range thirdParty {
		if (pkg == m.module || strings.HasPrefix(pkg, m.module+"/")) && len(m.module) > len(found) {
			found = m.module
		}
	}
	if found == "" {
		return pkg
	}
	return found
}

// TestCore holds the engine to what it is: it decides about calls of all protocols. What speaks net/http are its adapters, and
// its sockets, which have the connections.
func TestCore(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{join .Imports " "}}`, module+"/internal/engine").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for _, dep := range strings.Fields(string(out)) {
		switch strings.TrimPrefix(dep, module) {
		case "net/http", "/internal/body", "/internal/reply", "/internal/response", "/internal/transports":
			t.Errorf("the engine imports %s: what it needs of it belongs to an adapter", dep)
		}
	}
}
