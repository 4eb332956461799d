package policy_test

import (
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// workload is what the documents of testdata are compiled for.
var workload = policy.Workload{
	Namespace: "default",
	Labels:    map[string]string{"app": "order-service", "version": "v1"},
	Locality:  discovery.Locality{Region: "eu", Zone: "eu-a", SubZone: "1"},
}

// TestGolden compiles every file of testdata and compares what was found and what came out with the golden file beside
// it. Run it with -update to rewrite those, and read the difference.
func TestGolden(t *testing.T) {
	for _, dialect := range []string{"seed", "istio", "linkerd", "smi", "gateway", "combined"} {
		paths, err := filepath.Glob(filepath.Join("testdata", dialect, "*.yaml"))
		if err != nil || len(paths) == 0 {
			t.Fatalf("no documents: %v", err)
		}
		for _, path := range paths {
			t.Run(dialect+"/"+strings.TrimSuffix(filepath.Base(path), ".yaml"), func(t *testing.T) {
				data, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				plan, findings := policy.Compile([]policy.Source{{Name: filepath.Base(path), Data: data}}, workload)
				got := dump(plan, findings, hostsOf(string(data)), asked(string(data), "# peers: "))
				golden := strings.TrimSuffix(path, ".yaml") + ".golden"
				if *update {
					if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(golden)
				if err != nil {
					t.Fatal(err)
				}
				if got != string(want) {
					t.Errorf("got:\n%s\nwant:\n%s", got, want)
				}
			})
		}
	}
}

// asked returns what comments of a file that start with a mark ask the plan.
func asked(data, mark string) (questions []string) {
	for line := range strings.Lines(data) {
		if question, ok := strings.CutPrefix(strings.TrimSpace(line), mark); ok {
			questions = append(questions, question)
		}
	}
	return questions
}

// hostsOf returns the hosts that a file asks the plan about, in comments that start with "# host: ", and those that
// stand in a list of hosts.
func hostsOf(data string) []string {
	hosts := asked(data, "# host: ")
	in := false
	for line := range strings.Lines(data) {
		text := strings.TrimSpace(line)
		if host, ok := strings.CutPrefix(text, "- "); ok && in && !strings.Contains(host, "*") {
			hosts = append(hosts, strings.Trim(host, `"`))
		} else {
			in = text == "hosts:"
		}
		if host, ok := strings.CutPrefix(text, "hosts: ["); ok {
			for _, host := range strings.Split(strings.TrimSuffix(host, "]"), ", ") {
				if !strings.Contains(host, "*") {
					hosts = append(hosts, host)
				}
			}
		}
		if host, ok := strings.CutPrefix(line, "  service: "); ok {
			hosts = append(hosts, strings.TrimSpace(host))
		}
		if host, ok := strings.CutPrefix(line, "  host: "); ok && !strings.Contains(host, "*") {
			hosts = append(hosts, strings.TrimSpace(host))
		}
	}
	return hosts
}

// dump renders findings and plan for people.
func dump(plan *policy.Plan, findings policy.Findings, hosts, peers []string) string {
	var b strings.Builder
	for _, f := range findings {
		fmt.Fprintln(&b, f)
	}
	if plan == nil {
		return b.String()
	}
	for _, asked := range peers {
		namespace, rest, _ := strings.Cut(asked, " ")
		list, port, _ := strings.Cut(rest, " ")
		labels := make(map[string]string)
		for label := range strings.SplitSeq(list, ",") {
			name, value, _ := strings.Cut(label, "=")
			labels[name] = value
		}
		number, _ := strconv.Atoi(port)
		mode, set := plan.Peers(namespace).Mode(labels, number)
		fmt.Fprintf(&b, "peers %s: %v, said: %v\n", asked, mode, set)
	}
	if s := plan.Telemetry(); s != nil {
		fmt.Fprintf(&b, "\ntelemetry of calls: %s\ntelemetry of requests: %s\n", fields(*s.Client()), fields(*s.Server()))
	}
	seen := make(map[string]bool)
	routed := make(map[*route.Table]bool)
	targets := make(map[route.Target]bool)
	var order []route.Target
	target := func(t route.Target) {
		if !targets[t] {
			targets[t] = true
			order = append(order, t)
		}
	}
	for _, authority := range hosts {
		if seen[authority] {
			continue
		}
		seen[authority] = true
		h := plan.Host(authority)
		fmt.Fprintf(&b, "\nhost %s: %s", authority, h.Service.Host)
		if h.Service.Name != "" {
			fmt.Fprintf(&b, " (%s in %s)", h.Service.Name, h.Service.Namespace)
		}
		if !h.Known {
			b.WriteString(", unknown")
		}
		if h.Document != "" {
			fmt.Fprintf(&b, ", routed by %s", h.Document)
		}
		b.WriteString("\n")
		if e := h.Entry; e != nil {
			resolution := "static"
			if e.LookUp {
				resolution = "dns"
			}
			fmt.Fprintf(&b, "  %s: %s\n", e.Document, resolution)
			for _, endpoint := range e.Endpoints {
				fmt.Fprintf(&b, "    %s\n", fields(endpoint))
			}
		}
		if h.Routes != nil && routed[h.Routes] {
			b.WriteString("  as above\n")
			continue
		}
		routed[h.Routes] = true
		for i := range h.Routes.Len() {
			e := h.Routes.Rule(i)
			r := e.Route
			fmt.Fprintf(&b, "  route %d: %s\n", i, fields(*r))
			if o := h.Origin(e, -1); o.Document != h.Document || o.Route != i {
				fmt.Fprintf(&b, "    from %s\n", cmp.Or(fields(o), "the defaults"))
			}
			for _, d := range r.Destinations {
				target(d.Target)
			}
			for _, m := range r.Mirrors {
				target(m.Target)
			}
		}
		if h.Routes == nil {
			target(route.Target{Host: h.Service.Host})
		}
	}
	for _, t := range order {
		c := plan.Cluster(t)
		budget := c.RetryBudget
		c.RetryBudget = retry.BudgetConfig{}
		fmt.Fprintf(&b, "\ncluster %s: %s\n", fields(t), fields(c))
		if !budget.Off {
			fmt.Fprintf(&b, "  retry budget: %s\n", fields(budget))
		}
	}
	return b.String()
}

// fields renders a value without its zero fields.
func fields(v any) string {
	var b strings.Builder
	write(&b, reflect.ValueOf(v))
	return b.String()
}

func write(b *strings.Builder, v reflect.Value) {
	if v.CanInterface() {
		_, target := v.Interface().(route.Target) // shown field by field
		if s, ok := v.Interface().(fmt.Stringer); ok && v.Kind() != reflect.Pointer && !target {
			b.WriteString(s.String())
			return
		}
	}
	switch v.Kind() {
	case reflect.Pointer:
		write(b, v.Elem())
	case reflect.Struct:
		b.WriteByte('{')
		space := ""
		for i := range v.NumField() {
			if f := v.Field(i); !f.IsZero() {
				b.WriteString(space)
				if f, name := v.Field(i), v.Type().Field(i); !name.Anonymous && name.Type != reflect.TypeFor[route.Target]() {
					b.WriteString(name.Name + ":")
					write(b, f)
				} else {
					write(b, f)
				}
				space = " "
			}
		}
		b.WriteByte('}')
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			fmt.Fprintf(b, "%q", v.Bytes())
			return
		}
		b.WriteByte('[')
		for i := range v.Len() {
			if i > 0 {
				b.WriteByte(' ')
			}
			write(b, v.Index(i))
		}
		b.WriteByte(']')
	case reflect.String:
		fmt.Fprintf(b, "%q", v.String())
	default:
		fmt.Fprint(b, v)
	}
}

func compile(t *testing.T, documents string) *policy.Plan {
	t.Helper()
	plan, findings := policy.Compile([]policy.Source{{Name: "test.yaml", Data: []byte(documents)}}, workload)
	if err := findings.Err(); err != nil {
		t.Fatal(err)
	}
	return plan
}

func TestFindings(t *testing.T) {
	f := policy.Finding{
		File: "a.yaml", Line: 7, Kind: "VirtualService", Namespace: "default", Name: "x",
		Field: "spec.http[0].timeout", Severity: policy.Error, Message: "no good",
	}
	if got, want := f.String(), "a.yaml:7: VirtualService default/x: spec.http[0].timeout: error: no good"; got != want {
		t.Errorf("String() = %q, want %q", got, want)
	}
	text, err := json.Marshal(f)
	want := `{"file":"a.yaml","line":7,"kind":"VirtualService","namespace":"default","name":"x",` +
		`"field":"spec.http[0].timeout","severity":"error","message":"no good"}`
	if err != nil || string(text) != want {
		t.Errorf("JSON = %s, %v, want %s", text, err, want)
	}
	if err := (policy.Findings{{Severity: policy.Warning}}).Err(); err != nil {
		t.Errorf("Err() of a warning = %v", err)
	}
	err = fmt.Errorf("loading: %w", policy.Findings{{Severity: policy.Warning}, f}.Err())
	var findings policy.Findings
	if !errors.As(err, &findings) || len(findings) != 1 || findings[0] != f {
		t.Errorf("errors.As = %v, want the one error", findings)
	}
	if !strings.HasSuffix(err.Error(), "loading: "+f.String()) {
		t.Errorf("Error() = %q", err)
	}
}

// A volume that Kubernetes mounts consists of links, and a release often is one.
func TestReadDir_Links(t *testing.T) {
	folder := t.TempDir()
	write := func(name string) {
		path := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("kind: "+name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	link := func(target, name string) {
		if err := os.Symlink(target, filepath.Join(folder, name)); err != nil {
			t.Fatal(err)
		}
	}
	write("v1/..2026/a.yaml")
	write("v1/..2026/sub/b.yaml")
	write("v1/c.yml")
	write("v1/notes.txt")
	link("..2026", "v1/..data")
	link("..data/a.yaml", "v1/a.yaml")
	link("..data/sub", "v1/sub")
	link("v1", "current")
	sources, err := policy.ReadDir(filepath.Join(folder, "current"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, source := range sources {
		name, err := filepath.Rel(folder, source.Name)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, filepath.ToSlash(name))
	}
	if want := []string{"current/a.yaml", "current/c.yml", "current/sub/b.yaml"}; !slices.Equal(names, want) {
		t.Errorf("ReadDir found %q, want %q", names, want)
	}
	link("..", "v1/circle")
	if _, err := policy.ReadDir(filepath.Join(folder, "current")); err == nil || !strings.Contains(err.Error(), "current/circle: a link to a folder") {
		t.Errorf("ReadDir with a link that leads back: %v, want an error", err)
	}
}
