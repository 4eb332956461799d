package imports

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/nosidecar/mesh"

// Names for what is allowed below: each third-party module with the reason why it may be reached.
const (
	gobreaker = "github.com/sony/gobreaker/v2" // the state machine of the circuit
	xrate     = "golang.org/x/time"            // the token bucket of the local rate limit
	xxhash    = "github.com/cespare/xxhash/v2" // the hash of ring and Maglev, shared with Envoy
	yaml      = "go.yaml.in/yaml/v3"           // the document syntax
	fsnotify  = "github.com/fsnotify/fsnotify" // notice of changed files
	xsys      = "golang.org/x/sys"             // what fsnotify and gRPC call the kernel with

	// What identities are: IDs, SVIDs and bundles. The client of the Workload API, which speaks gRPC, is not among them.
	spiffeID     = "github.com/spiffe/go-spiffe/v2/spiffeid"
	spiffeSVID   = "github.com/spiffe/go-spiffe/v2/svid/x509svid"
	spiffeBundle = "github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	spiffeInside = "github.com/spiffe/go-spiffe/v2/internal"

	spiffe   = "github.com/spiffe/go-spiffe/v2" // with the client of the Workload API
	jose     = "github.com/go-jose/go-jose/v4"  // of the Workload API client: JWT-SVIDs and bundles
	grpc     = "google.golang.org/grpc"         // of the gRPC adapters
	protobuf = "google.golang.org/protobuf"     // of gRPC
	genproto = "google.golang.org/genproto"     // the status of gRPC
	xnet     = "golang.org/x/net"               // HTTP/2 for gRPC
	xtext    = "golang.org/x/text"              // of x/net
)

// layers may be reached by what stands above them. Every list names all packages of this module and all third-party
// modules that a package may link, itself excepted. The standard library is always allowed.
var (
	shared = []string{"/internal/body", "/internal/refusal", "/internal/reply", "/internal/deadline", "/internal/failure", "/internal/attempt", "/internal/response",
		"/internal/caller", "/internal/field", "/internal/statusset", "/internal/httpclone"}

	limits   = list(shared, xrate)
	identity = []string{spiffeID, spiffeSVID, spiffeBundle, spiffeInside}
	grpcs    = list(shared, grpc, protobuf, genproto, xnet, xtext, xsys)
	layers   = list(shared, "/discovery", "/retry", "/timeout", "/breaker", "/balancer", "/policy/limit", "/policy/fault",
		gobreaker, xrate, xxhash, "/internal/endpointpool")
	plan = list(append(layers, identity...), "/tlsid", "/internal/asserted", "/policy/authz", "/policy/route", "/policy/internal/istio", "/policy/internal/linkerd", "/policy/internal/smi", "/policy/internal/conjunction",
		"/policy/internal/folder", "/internal/yamldoc", yaml)

	allowed = map[string][]string{
		"/internal/body":         nil,
		"/internal/httpclone":    nil,
		"/internal/refusal":      nil,
		"/internal/reply":        nil,
		"/internal/deadline":     shared,
		"/internal/failure":      shared,
		"/internal/attempt":      nil,
		"/internal/caller":       {"/internal/field"},
		"/internal/field":        nil,
		"/internal/statusset":    nil,
		"/internal/asserted":     nil,
		"/internal/response":     nil,
		"/internal/endpointpool": list(limits, "/discovery", "/policy/limit"),
		"/internal/yamldoc":      {yaml},

		"/discovery":    nil,
		"/retry":        shared,
		"/timeout":      shared,
		"/breaker":      list(shared, gobreaker),
		"/balancer":     list(limits, "/discovery", xxhash, "/internal/endpointpool", "/policy/limit"),
		"/policy/limit": limits,
		"/policy/fault": list(shared),
		"/policy/route": list(limits, "/retry", "/timeout", "/policy/fault"),

		"/policy/internal/conjunction": list(layers, "/policy/route"),

		"/tlsid":        identity,
		"/tlsid/spiffe": list(grpcs, "/tlsid", spiffe, jose),
		"/policy/authz": {"/internal/field"},

		"/internal/grpcstatus":  grpcs,
		"/internal/grpcwire":    grpcs,
		"/internal/grpcconns":   list(grpcs, "/internal/grpcstatus", "/internal/grpcwire"),
		"/internal/grpcreplay":  list(grpcs, "/internal/grpcwire"),
		"/internal/grpctest":    list(grpcs, "/internal/grpcwire"), // servers that cut connections read frames
		"/internal/workloadapi": list(grpcs, "/tlsid", spiffe, jose),

		"/retry/retrygrpc":        list(grpcs, "/retry", "/internal/grpcstatus", "/internal/grpcwire", "/internal/grpcreplay"),
		"/timeout/timeoutgrpc":    list(grpcs, "/timeout", "/internal/grpcstatus"),
		"/policy/limit/limitgrpc": list(grpcs, "/policy/limit", xrate, "/internal/grpcstatus"),
		"/policy/fault/faultgrpc": list(grpcs, "/policy/fault", "/internal/grpcstatus"),
		"/breaker/breakergrpc":    list(grpcs, "/breaker", gobreaker, "/internal/grpcstatus"),
		"/balancer/balancergrpc":  list(layers, append(grpcs, "/internal/grpcstatus", "/internal/grpcwire", "/internal/grpcconns")...),

		"/policy/internal/istio":      list(layers, "/policy/authz", spiffeID, spiffeInside, "/policy/route", "/internal/yamldoc", "/policy/internal/conjunction", yaml),
		"/policy/internal/linkerd":    list(layers, "/policy/route", "/internal/yamldoc", "/policy/internal/conjunction", yaml),
		"/policy/internal/smi":        list(layers, "/policy/route", "/internal/yamldoc", "/policy/internal/conjunction", yaml),
		"/policy/internal/folder":     nil,
		"/policy":                     plan,
		"/policy/file":                list(plan, "/policy", fsnotify, xsys),
		"/internal/engine":            list(plan, "/policy"),
		"/internal/engine/enginehttp": list(plan, "/policy", "/internal/engine"),
		"":                            list(plan, "/policy", "/internal/engine", "/internal/engine/enginehttp"),
		"/cmd/mesh":                   list(plan, "/policy"),
		"/meshgrpc": list(plan, append(grpcs, "", "/policy", "/internal/engine", "/internal/engine/enginehttp", "/internal/grpcstatus", "/internal/grpcwire", "/internal/grpcreplay", "/internal/grpcconns",
			"/retry/retrygrpc", "/balancer/balancergrpc", "/breaker/breakergrpc")...),
		"/policy/internal": nil, // the test that generates docs/documents.md
		// What tests alone import: no other entry allows these, so nothing that a program links reaches them.
		"/internal/await":    nil,
		"/internal/leak":     nil,
		"/internal/memnet":   nil,
		"/internal/meshtest": list(plan, "", "/policy", "/internal/engine", "/internal/engine/enginehttp", "/internal/memnet"),
	}
)

func list(base []string, more ...string) []string {
	return append(slices.Clone(base), more...)
}

// TestImports asserts, package by package, what a program that imports it links.
func TestImports(t *testing.T) {
	for _, pkg := range goList(t, module+"/...") {
		name := strings.TrimPrefix(pkg, module)
		if name == "/internal/imports" || strings.HasPrefix(name, "/examples") {
			continue // programs, and this test
		}
		want, listed := allowed[name]
		if !listed {
			t.Errorf("%s is not in the list of packages: add it with what it may reach", pkg)
			continue
		}
		for _, dep := range goList(t, "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", pkg) {
			if dep == pkg || slices.ContainsFunc(want, func(entry string) bool { return permits(entry, dep) }) {
				continue
			}
			t.Errorf("%s reaches %s, which its list does not allow", pkg, dep)
		}
	}
}

// permits reports whether an entry of a list allows the package dep: entries of this module name one package, others a
// module with all its packages.
func permits(entry, dep string) bool {
	if entry == "" || strings.HasPrefix(entry, "/") {
		return dep == module+entry
	}
	return dep == entry || strings.HasPrefix(dep, entry+"/")
}

func goList(t *testing.T, args ...string) []string {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list"}, args...)...).Output()
	if err != nil {
		t.Fatalf("go list %s: %v", strings.Join(args, " "), err)
	}
	return strings.Fields(string(out))
}
