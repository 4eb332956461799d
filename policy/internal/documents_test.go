package internal

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/internal/catalog"
	"github.com/nosidecar/mesh/policy/internal/consul"
	"github.com/nosidecar/mesh/policy/internal/istio"
	"github.com/nosidecar/mesh/policy/internal/linkerd"
	"github.com/nosidecar/mesh/policy/internal/smi"
)

const documentsFile = "../../docs/documents.md"

var update = flag.Bool("update", false, "rewrite docs/documents.md")

// TestDocuments compares documents.md with what the code says now.
func TestDocuments(t *testing.T) {
	want := generate(t)
	if *update {
		if err := os.WriteFile(documentsFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(documentsFile)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(got, want) {
		return
	}
	was, is := strings.Split(string(got), "\n"), strings.Split(string(want), "\n")
	for i := range max(len(was), len(is)) {
		if i >= len(was) || i >= len(is) || was[i] != is[i] {
			t.Fatalf("documents.md is stale from line %d on: run go test ./policy/internal -update", i+1)
		}
	}
}

// TestRecursiveTypes has a type listed that contains itself, as conditions do.
func TestRecursiveTypes(t *testing.T) {
	var b strings.Builder
	type condition struct {
		Name string       `yaml:"name"`
		Any  []condition  `yaml:"any" mesh:"meaningless: it is a test"`
		Not  []*condition `yaml:"not"`
	}
	newTable("spec", reflect.TypeFor[condition]()).write(&b, "spec", reflect.TypeFor[condition](), "enforced")
	const want = "| object | enforced | not enforced |\n|---|---|---|\n" +
		"| `spec` | `name` `not[]` (as `spec`) | `any[]`: **meaningless**: it is a test |\n"
	if b.String() != want {
		t.Errorf("fields wrote\n%s\nwant\n%s", b.String(), want)
	}
}

func generate(t *testing.T) []byte {
	var b strings.Builder
	b.WriteString(introduction)
	b.WriteString("\n## Kinds\n\n")
	kindTable(&b, t)
	b.WriteString(afterKinds)
	metadata(&b, t)
	for _, s := range sections {
		s.write(&b, t)
	}
	configEntries(&b)
	differences, err := os.ReadFile("testdata/differences.md")
	if err != nil {
		t.Fatal(err)
	}
	b.WriteString("\n")
	b.Write(differences)
	return []byte(b.String())
}

// configEntries describes the config entries of Consul.
func configEntries(b *strings.Builder) {
	b.WriteString(aboutEntries)
	for _, e := range []struct {
		kind, text string
		of         reflect.Type
	}{
		{consul.ServiceRouterKind, "The first route that a request matches counts; a last, implicit route leads to the service itself. Only the router of the service that is called counts. " +
			"`RequestTimeout` is for the whole call: 15 s unless it is set, none if it is negative. `NumRetries` alone retries nothing, and a condition alone retries once; every method is retried. " +
			"A header that must not have a value (`Invert`) must be present. `PrefixRewrite: \"/\"` takes the slash after the prefix away, too; with `PathExact` it changes nothing, as in Consul 1.22, with a warning.",
			reflect.TypeFor[consul.Router]()},
		{consul.ServiceSplitterKind, "Weights are percent, to a hundredth, and their sum is 100. A service with a splitter of its own is divided further.", reflect.TypeFor[consul.Splitter]()},
		{consul.ServiceResolverKind, "Redirects lead to the resolver of the other service, default subsets to the subset. `Failover` is an ordered list: a target gets calls only while those before it have no healthy endpoint, made as `ConnectTimeout` and `LoadBalancer` of the first one say. " +
			"`Filter` is evaluated on the health entry of `discovery/consul`, and checked when it is read. `RequestTimeout` counts only where neither a router nor a splitter is before it. Several `HashPolicies` are an error.",
			reflect.TypeFor[consul.Resolver]()},
		{consul.ServiceDefaultsKind, "The protocol (`tcp` unless it is named) is that of all services of a chain; `tcp` has neither routers nor splitters. `UpstreamConfig` is that of the service that the process is an instance of " +
			"(`Workload.Service`): an override takes the place of whole `Limits` and `PassiveHealthCheck`. A limit of 0 is an error, and so is `EnforcingConsecutive5xx` from 1 to 99. `MaxInboundConnections`, `LocalRequestTimeoutMs` and " +
			"`MutualTLSMode: permissive` are errors for the process's own service, and about others for any other.",
			reflect.TypeFor[consul.ServiceDefaults]()},
		{consul.ProxyDefaultsKind, "`Config.protocol` is the protocol of services without a service-defaults entry. Limits on inbound traffic of a service (`max_inbound_connections`, `local_request_timeout_ms`, `local_idle_timeout_ms`) and configuration of Envoy in their place (`envoy_public_listener_json`, `envoy_local_cluster_json`) are errors in a process that is an instance of a service; anything else in `Config` is a warning.", reflect.TypeFor[consul.ProxyDefaults]()},
		{consul.MeshKind, "Nothing of it is enforced.", reflect.TypeFor[consul.Mesh]()},
	} {
		fmt.Fprintf(b, "\n### %s\n\n%s\n\n", e.kind, e.text)
		newTable("entry", e.of).write(b, "entry", e.of, "enforced")
	}
}

const aboutEntries = `
## Config entries of Consul

They are written as JSON of Consul's API (keys in PascalCase or snake_case, weak types, whole numbers as durations are nanoseconds), as HCL read
with policy/consul, or as objects of consul.hashicorp.com/v1alpha1. The service web of Consul is the service web of the namespace default; a
service in another datacenter is web.service.DC.consul. Entries govern the services that they are about, and those that
these lead to. With a proxy-defaults entry, or a service-defaults entry of the process's own service, they also govern every other service of the
namespace default that no document names. A service that is also governed by a document of another dialect is an error.

Unset fields have the defaults of Consul's Envoy: round robin, 5 s to connect, 15 s for a request (no limit for tcp), 1,024
connections, pending requests and requests, 3 retries at once, outlier detection on (5 errors in a row, and success rate), no panic
threshold, no retries. Namespaces, partitions, peers and sameness groups are errors. So are all kinds of entries but these and service-intentions,
except those about gateways for requests from outside and about Consul's servers: api-gateway, bound-api-gateway,
control-plane-request-limit, file-system-certificate, http-route, ingress-gateway, inline-certificate and tcp-route are
skipped, with a warning. The server side of service-defaults (15 s for local requests) is not enforced.
`

// write writes what there is to say about a kind.
func (s *section) write(b *strings.Builder, t *testing.T) {
	fmt.Fprintf(b, "\n## %s\n\n%s", cmp.Or(s.title, s.kind), s.text)
	if s.of == nil {
		return
	}
	list := newTable("", s.of)
	var answers []string
	for _, p := range s.probes {
		finding := p.answer(t, s)
		path := list.place(s.of, finding.Field)
		switch {
		case p.whole && finding.Severity == policy.Error:
			list.except[path] = yamldoc.Field{State: yamldoc.Refused, Reason: finding.Message}
			continue
		case p.whole:
			list.except[path] = yamldoc.Field{State: yamldoc.Meaningless, Reason: finding.Message}
			continue
		case finding.Severity == policy.Error:
			list.marked[path] = true
		}
		answers = append(answers, fmt.Sprintf("| `%s` | %s: %s |\n",
			strings.ReplaceAll(p.written, "|", `\|`), finding.Severity, inCell.Replace(finding.Message)))
	}
	heading := "enforced"
	if s.refused {
		heading = "checked"
	}
	b.WriteString("\n")
	list.write(b, "", s.of, heading)
	for path := range list.except {
		if !list.used[path] {
			t.Errorf("%s has no field %q", s.kind, path)
		}
	}
	for path := range list.marked {
		if !list.used[path] {
			t.Errorf("%s has no field %q", s.kind, path)
		}
	}
	if len(answers) > 0 {
		b.WriteString("\n| written | answer |\n|---|---|\n")
		b.WriteString(strings.Join(answers, ""))
	}
}

// inCell writes a text so that it stays within its cell of a table.
var inCell = strings.NewReplacer("|", `\|`, "\n", "<br>")

// kindTable asks the loader what becomes of each kind in each version.
func kindTable(b *strings.Builder, t *testing.T) {
	b.WriteString("| group | versions | kinds | what becomes of them |\n|---|---|---|---|\n")
	for _, g := range groups {
		type row struct{ versions, answer string }
		var rows []row
		members := make(map[row][]string)
		for _, kind := range g.kinds {
			var r row
			var versions []string
			for _, version := range []string{"v1alpha1", "v1alpha2", "v1alpha3", "v1alpha4", "v1beta1", "v1beta2", "v1beta3", "v1", "any"} {
				if answer := standing(t, g.name, version, kind); answer != "" {
					versions, r.answer = append(versions, version), answer
				}
			}
			if r.versions = strings.Join(versions, ", "); slices.Contains(versions, "any") {
				r.versions = "any"
			}
			if members[r] == nil {
				rows = append(rows, r)
			}
			members[r] = append(members[r], kind)
		}
		for _, r := range rows {
			name := "`" + g.name + "`"
			if g.name == "" {
				name = "(core)"
			}
			fmt.Fprintf(b, "| %s | %s | %s | %s |\n", name, r.versions, strings.Join(members[r], ", "), r.answer)
		}
	}
	for _, k := range catalog.All() {
		if !slices.ContainsFunc(groups, func(g group) bool { return g.name == k.Group && slices.Contains(g.kinds, k.Name) }) {
			t.Errorf("the table does not have %s of %s", k.Name, k.Group)
		}
	}
}

// skippedObjects returns the kinds of consul.Skipped that are those of Kubernetes objects.
func skippedObjects() []string {
	return slices.DeleteFunc(slices.Clone(consul.Skipped), func(kind string) bool { return kind == strings.ToLower(kind) })
}

// standing returns what becomes of a kind, and "" if the version does not exist.
func standing(t *testing.T, group, version, kind string) string {
	apiVersion := strings.TrimPrefix(group+"/"+version, "/")
	for _, f := range check(fmt.Sprintf("apiVersion: %s\nkind: %s\nmetadata: {name: a}\n", apiVersion, kind)) {
		switch {
		case f.Field != "kind":
		case strings.HasPrefix(f.Message, "unknown version"):
			return ""
		case strings.HasPrefix(f.Message, kind+" is not enforced yet: "):
			return "refused: " + strings.TrimPrefix(f.Message, kind+" is not enforced yet: ")
		case strings.HasSuffix(f.Message, "it is skipped"):
			return "skipped, with a warning"
		default:
			t.Errorf("%s %s: %s", apiVersion, kind, f.Message)
		}
	}
	if group == consul.Group && consul.Objects[kind] == consul.MeshKind {
		return "checked: none of its fields is enforced"
	}
	return "enforced"
}

func check(documents string) policy.Findings {
	return policy.Check([]policy.Source{{Name: "document", Data: []byte(documents)}}, policy.Workload{}).Findings
}

// metadata describes what all kinds share.
func metadata(b *strings.Builder, t *testing.T) {
	var first reflect.Type
	var names []string
	for _, s := range sections {
		if s.of == nil {
			continue
		}
		f, _ := s.of.FieldByName("Metadata")
		level, _ := one(f.Type)
		var own []string
		for _, f := range level {
			own = append(own, fmt.Sprint(f))
		}
		if first == nil {
			first, names = f.Type, own
		} else if !slices.Equal(own, names) {
			t.Errorf("the metadata of %s is another than that of %s", s.kind, sections[0].kind)
		}
	}
	list := newTable("metadata", first)
	list.except["metadata.annotations{}"] = yamldoc.Field{State: yamldoc.Unused,
		Reason: "annotations have no meaning here, except for `istio.io/dry-run` of an AuthorizationPolicy, those of Linkerd for retries, timeouts and failing endpoints of Services and routes, and `kubectl.kubernetes.io/last-applied-configuration`, which shows the fields that an API server dropped"}
	list.except["metadata.labels{}"] = yamldoc.Field{State: yamldoc.Unused,
		Reason: "labels of a document select nothing here, except that a ServerAuthorization selects Servers by theirs; `istio.io/rev` of a document of Istio gets a warning"}
	list.except["metadata.creationTimestamp"] = yamldoc.Field{State: yamldoc.Unused,
		Reason: "bookkeeping of Kubernetes, except that the oldest counts where several VirtualServices, DestinationRules, ServiceEntries, Sidecars, PeerAuthentications, Telemetries or Servers are about the same"}
	list.write(b, "metadata", first, "enforced")
}

// one returns the fields of a struct without those inside of them, and their types.
func one(t reflect.Type) ([]yamldoc.Field, []reflect.Type) {
	var flat []reflect.StructField
	var types []reflect.Type
	for _, f := range reflect.VisibleFields(t) {
		if f.Tag.Get("yaml") != "" {
			flat = append(flat, reflect.StructField{Name: f.Name, Type: reflect.TypeFor[yamldoc.Any](), Tag: f.Tag})
			types = append(types, f.Type)
		}
	}
	return yamldoc.Fields(reflect.StructOf(flat)), types
}

// table is a list of objects with their fields. Structs that occur several times are listed where they are nearest to
// the top.
type table struct {
	places map[reflect.Type]string  // where each struct is listed
	except map[string]yamldoc.Field // the fields that are not enforced although their tag says nothing
	marked map[string]bool          // the fields of which some values are refused
	used   map[string]bool          // the fields that were listed
	rows   strings.Builder
}

// newTable finds the place of each struct in a type. At the top level only the spec counts, and what stands in its place.
func newTable(path string, of reflect.Type) *table {
	type object struct {
		path string
		is   reflect.Type
	}
	t := &table{
		places: map[reflect.Type]string{of: path},
		except: make(map[string]yamldoc.Field),
		marked: make(map[string]bool),
		used:   make(map[string]bool),
	}
	for queue := []object{{path, of}}; len(queue) > 0; queue = queue[1:] {
		o := queue[0]
		level, types := one(o.is)
		for i, f := range level {
			suffix, inner := elements(types[i])
			if _, known := t.places[inner]; known || f.State != yamldoc.Enforced || !isObject(inner) || head(o.path, f.Path) {
				continue
			}
			at := join(o.path, f.Path+suffix)
			t.places[inner] = at
			queue = append(queue, object{at, inner})
		}
	}
	return t
}

// place returns where the field of a finding is listed.
func (t *table) place(of reflect.Type, field string) string {
	at, path := "", ""
	parts := strings.Split(regexp.MustCompile(`\[[0-9]+\]`).ReplaceAllString(field, ""), ".")
	for len(parts) > 0 {
		level, types := one(of)
		i := slices.IndexFunc(level, func(f yamldoc.Field) bool { return f.Path == parts[0] })
		if i < 0 {
			return ""
		}
		suffix, inner := elements(types[i])
		at = join(path, parts[0]+suffix)
		parts = parts[1:]
		if len(parts) > 0 && strings.Contains(suffix, "{}") {
			parts = parts[1:] // the key
		}
		path, of = t.places[inner], inner
		if !isObject(inner) {
			break
		}
	}
	return at
}

// write writes a table of the fields of a type, a row for each object in it.
func (t *table) write(b *strings.Builder, path string, of reflect.Type, heading string) {
	t.object(path, of)
	fmt.Fprintf(b, "| object | %s | not enforced |\n|---|---|---|\n%s", heading, t.rows.String())
}

// head says that a field is one of those that every document begins with.
func head(path, name string) bool {
	return path == "" && (name == "apiVersion" || name == "kind" || name == "metadata")
}

func join(path, name string) string { return strings.TrimPrefix(path+"."+name, ".") }

// object adds the row of an object and those of the objects in it.
func (t *table) object(path string, of reflect.Type) {
	var enforced, not []string
	level, types := one(of)
	for i, f := range level {
		if head(path, f.Path) {
			continue
		}
		suffix, inner := elements(types[i])
		at := join(path, f.Path+suffix)
		t.used[at] = true
		name := "`" + f.Path + suffix + "`"
		if exception, ok := t.except[at]; ok {
			f.State, f.Reason = exception.State, exception.Reason
		}
		if f.State != yamldoc.Enforced {
			not = append(not, reason(name, f))
			continue
		}
		if t.marked[at] {
			name += "†"
		}
		if first, known := t.places[inner]; known && first != at {
			name += " (as `" + strings.TrimPrefix(first, path+".") + "`)"
		}
		enforced = append(enforced, name)
	}
	at := "`" + path + "`"
	if path == "" {
		at = "(document)"
	}
	if is := strings.Join(enforced, " ") + strings.Join(not, " "); is != "`spec`" && is != "`spec`"+status { // else the introduction says it
		fmt.Fprintf(&t.rows, "| %s | %s | %s |\n", at, strings.Join(enforced, " "), strings.Join(merged(not), "<br>"))
	}
	for i, f := range level {
		suffix, inner := elements(types[i])
		if at := join(path, f.Path+suffix); t.places[inner] == at {
			t.object(at, inner)
		}
	}
}

// reason says why a field is not enforced.
func reason(name string, f yamldoc.Field) string {
	state := string(f.State)
	if f.State == yamldoc.Unused {
		state = "no effect"
	}
	return fmt.Sprintf("%s: **%s**: %s", name, state, f.Reason)
}

// merged joins lines that differ only in the name before the colon.
func merged(lines []string) []string {
	var out, rests []string
	for _, line := range lines {
		name, rest, _ := strings.Cut(line, ": ")
		if i := slices.Index(rests, rest); i >= 0 {
			out[i] += " " + name
		} else {
			out, rests = append(out, name), append(rests, rest)
		}
	}
	for i := range out {
		out[i] += ": " + rests[i]
	}
	return out
}

// elements takes pointers, lists and maps off a type.
func elements(t reflect.Type) (suffix string, inner reflect.Type) {
	for {
		switch {
		case t.Kind() == reflect.Pointer:
		case t.Kind() == reflect.Map:
			suffix += "{}"
		case t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.Uint8:
			suffix += "[]"
		default:
			return suffix, t
		}
		t = t.Elem()
	}
}

func isObject(t reflect.Type) bool {
	switch t {
	case reflect.TypeFor[yamldoc.Any](), reflect.TypeFor[yamldoc.Duration](), reflect.TypeFor[yamldoc.Quantity]():
		return false
	}
	return t.Kind() == reflect.Struct
}

// probe is a part of a document that is valid elsewhere, and that the loader has something to say about.
type probe struct {
	written string
	in      string // the spec, with %s where the part goes
	at      string // the end of the field that the answer is about
	whole   bool   // there is no value that is enforced
}

// answer returns what the loader says, errors first.
func (p probe) answer(t *testing.T, s *section) policy.Finding {
	name := "a"
	if s.kind == "ServiceProfile" {
		name = "a.default.svc.cluster.local"
	}
	spec := strings.Replace(p.in, "%s", p.written, 1)
	document := fmt.Sprintf("apiVersion: %s\nkind: %s\nmetadata: {name: %s}\nspec: {%s}\n", s.apiVersion, s.kind, name, spec)
	findings := check(document)
	for _, severity := range []policy.Severity{policy.Error, policy.Warning} {
		for _, f := range findings {
			if f.Severity == severity && (f.Field == p.at || strings.HasSuffix(f.Field, "."+p.at)) {
				return f
			}
		}
	}
	t.Errorf("%s: nothing is said of %s, only:\n%v", p.written, p.at, findings)
	return policy.Finding{}
}

// group is an API group with the kinds that the loader is asked about.
type group struct {
	name  string
	kinds []string
}

// section describes a kind.
type section struct {
	apiVersion, kind string
	title            string // the kind if it is empty
	text             string
	of               reflect.Type
	refused          bool // as a whole
	probes           []probe
}

var groups = []group{
	{istio.Group, []string{"VirtualService", "DestinationRule", "ServiceEntry", "Sidecar", "WorkloadEntry", "WorkloadGroup",
		"EnvoyFilter", "ProxyConfig", "Gateway"}},
	{istio.SecurityGroup, []string{"PeerAuthentication", "AuthorizationPolicy", "RequestAuthentication"}},
	{istio.TelemetryGroup, []string{"Telemetry"}},
	{"extensions.istio.io", []string{"WasmPlugin", "TrafficExtension"}},
	{linkerd.Group, []string{"ServiceProfile"}},
	{linkerd.PolicyGroup, []string{"Server", "ServerAuthorization", "AuthorizationPolicy", "MeshTLSAuthentication",
		"NetworkAuthentication", "HTTPRoute", "HTTPLocalRateLimitPolicy", "EgressNetwork"}},
	{smi.SplitGroup, []string{"TrafficSplit"}},
	{smi.SpecsGroup, []string{"HTTPRouteGroup", "TCPRoute", "UDPRoute"}},
	{smi.AccessGroup, []string{"TrafficTarget"}},
	{"gateway.networking.k8s.io", []string{"HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute", "BackendTLSPolicy",
		"BackendLBPolicy", "ReferenceGrant", "Gateway", "GatewayClass", "ListenerSet"}},
	{"gateway.networking.x-k8s.io", []string{"XBackendTrafficPolicy", "XListenerSet", "XMesh"}},
	{consul.Group, slices.Concat(slices.Sorted(maps.Keys(consul.Objects)), slices.Sorted(maps.Keys(consul.OtherObjects)), skippedObjects())},
	{"", []string{"Service", "ConfigMap", "Namespace"}},
	{"apps", []string{"Deployment"}},
}

const introduction = `# What the documents mean here

<!-- Generated by policy/internal/documents_test.go. Change what it reads, then run: go test ./policy/internal -update -->

A document means what it means to a sidecar. This file lists, field by field, what is enforced and what is not, and at the end
every difference. Nothing is silently ignored. A field or value is one of these:

- **enforced**: it does what the documentation of its API says;
- **refused**: an error at load, which names the field. The set of documents does not take effect, and after a reload the previous one
  stays in force; of documents that [stand alone](feeds.md), only this one does not take effect;
- **meaningless**: valid, but there is nothing in a process that it could act on. It is a warning;
- **no effect**: it never affects how a call is handled here. It is not reported.

Fields that are in no table are errors. Names are camelCase, durations have a unit (` + "`100ms`, `1m`, `0.5s`" + `). A table lists the fields of
an object that occurs several times once: "as" says where. A field with † is enforced, but some of its values are refused. A second table
shows what ` + "`mesh check`" + ` says of some values.
`

const afterKinds = `
Any other kind or version of these groups is an error, and so is any other group of Istio, Linkerd, SMI or Consul, or of the meshes Kuma, App
Mesh and Open Service Mesh. Kinds of the groups of
Kubernetes itself (core, ` + "`apps`, `batch`, `autoscaling`, `policy`, `*.k8s.io`" + `) are skipped with a warning, and so are those of other groups, such
as ` + "`cert-manager.io`" + `, unless they have the name of a kind that is enforced or refused above: that is a wrong ` + "`apiVersion`" + `, an error. So is a
document in one that would be skipped, as in a ` + "`Template`" + ` of OpenShift: it would not take effect. A ` + "`List`" + `,
or the list of one kind that an API server returns (` + "`VirtualServiceList`" + `), stands for its items. Other answers of an API server
(` + "`Status`, `Table`, `WatchEvent`" + `) are errors, and so is a field that a document has twice, even one that would be skipped: often the line
` + "`---`" + ` before the next document is missing.

What is refused above is skipped, with a warning, where it acts in gateways alone: a route of the Gateway API whose ` + "`parentRefs`" + ` are all
Gateways or ListenerSets; an EnvoyFilter whose patches all have ` + "`context: GATEWAY`" + `; an EnvoyFilter, WasmPlugin or TrafficExtension whose ` + "`targetRefs`" + ` are all
Gateways, or that selects the gateways that Istio installs or makes: by the label ` + "`istio`" + ` or ` + "`app`" + ` with a value such as ` + "`ingressgateway`" + ` or
` + "`istio-egressgateway`" + `, or by ` + "`gateway.networking.k8s.io/gateway-name`" + `. If the workload itself has these labels, it is refused.

Documents have a ` + "`spec`" + `. Those of Istio may have a ` + "`status`" + `, which has no effect: it is written by the control plane. All
kinds have the metadata of Kubernetes, whose name and namespace count:

`

const status = "`status`: **no effect**: written by the control plane"
