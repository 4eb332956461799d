package policy_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
)

// services returns two documents for each of n services.
func services(n int, timeout string) []policy.Source { return perService(n, timeout, serviceDocuments) }

// TestRecompile compiles every set of documents that there is after a plan of almost the same documents: what comes of it
// is what comes of compiling them afresh.
func TestRecompile(t *testing.T) {
	files, err := filepath.Glob("testdata/*/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	more := []byte(`---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: recompiled}
spec:
  hosts: [recompiled]
  http: [{route: [{destination: {host: recompiled, subset: v1}}]}]
---
apiVersion: v1
kind: Service
metadata: {name: recompiled}
spec: {ports: [{port: 8080}]}
`)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		names := regexp.MustCompile(`[a-z0-9-]+(\.[a-z0-9-]+)*`).FindAllString(string(text)+" recompiled", -1)
		slices.Sort(names)
		names = slices.Compact(names)
		one := func(parts ...[]byte) []policy.Source {
			return []policy.Source{{Name: "a.yaml", Data: slices.Concat(parts...)}}
		}
		line := []byte("\n---\n")
		sets := [][]policy.Source{
			one(text), one(text, more), one(more, line, text), one(text, line), nil, one(line, line, text), append(one(text), policy.Source{Name: "b.yaml", Data: more}),
		}
		var last *policy.Plan
		for i, sources := range sets {
			want, wantFindings := policy.Compile(sources, workload)
			got, gotFindings := policy.Recompile(last, sources, workload)
			if !slices.Equal(gotFindings, wantFindings) {
				t.Errorf("%s, set %d: the findings are\n%v\nwant\n%v", file, i, gotFindings, wantFindings)
			}
			if (got == nil) != (want == nil) {
				t.Fatalf("%s, set %d: Recompile = %v, Compile = %v", file, i, got, want)
			}
			if got == nil {
				continue
			}
			last = got
			for _, name := range names {
				samePlan(t, fmt.Sprintf("%s, set %d", file, i), got, want, name)
			}
		}
	}
}

// samePlan compares what two plans say of a host.
func samePlan(t *testing.T, when string, got, want *policy.Plan, name string) {
	t.Helper()
	g, w := got.Host(name), want.Host(name)
	if g.Service != w.Service || g.Document != w.Document || g.Known != w.Known || !g.Entry.Equal(w.Entry) || g.Routes.Len() != w.Routes.Len() {
		t.Fatalf("%s: Host(%s) = %+v, want %+v", when, name, g, w)
	}
	for i := range g.Routes.Len() {
		a, b := g.Routes.Rule(i), w.Routes.Rule(i)
		if !reflect.DeepEqual(a.Route, b.Route) || g.Origin(a, -1) != w.Origin(b, -1) {
			t.Fatalf("%s: route %d of %s is %+v, want %+v", when, i, name, a.Route, b.Route)
		}
	}
	for _, subset := range []string{"", "v1", "v2", "stable"} {
		target := route.Target{Host: name, Subset: subset, Port: 8080}
		if a, b := got.Cluster(target), want.Cluster(target); !reflect.DeepEqual(a, b) {
			t.Fatalf("%s: Cluster(%v) = %+v, want %+v", when, target, a, b)
		}
	}
}

// TestRecompile_SameTextTwice has a document that stands twice after a reload: findings name the first.
func TestRecompile_SameTextTwice(t *testing.T) {
	document := func(name string) string {
		return strings.TrimPrefix(virtualService(name, "{hosts: [a], http: [{route: [{destination: {host: b}}]}]}"), "\n") + "\n"
	}
	sources := func(text string) []policy.Source { return []policy.Source{{Name: "a.yaml", Data: []byte(text)}} }
	last, _ := policy.Compile(sources(document("first")), workload)
	twice := sources(document("first") + document("second") + document("first"))
	_, want := policy.Compile(twice, workload)
	if _, got := policy.Recompile(last, twice, workload); !slices.Equal(got, want) {
		t.Errorf("the findings are\n%v\nwant\n%v", got, want)
	}
}

// TestRecompile_KeepsItems has the routes of a List's items compiled once for all plans in which the List is the same.
func TestRecompile_KeepsItems(t *testing.T) {
	sources := func(more string) []policy.Source {
		const item = "- apiVersion: networking.istio.io/v1\n  kind: VirtualService\n  metadata: {name: %[1]s}\n" +
			"  spec: {hosts: [%[1]s], http: [{route: [{destination: {host: b, subset: v1}}]}]}\n"
		list := "apiVersion: v1\nkind: List\nitems:\n" + fmt.Sprintf(item, "a") + fmt.Sprintf(item, "c")
		return []policy.Source{{Name: "a.yaml", Data: []byte(more + "---\n" + list)}}
	}
	changed := sources(strings.TrimPrefix(virtualService("b", "{hosts: [b], http: [{route: [{destination: {host: c}}]}]}"), "\n") + "\n")
	first, _ := policy.Compile(sources(""), workload)
	routes := first.Host("a").Routes
	second, got := policy.Recompile(first, changed, workload)
	if second.Host("a").Routes != routes {
		t.Error("the routes of an item were compiled again")
	}
	if _, want := policy.Compile(changed, workload); len(want) != 2 || !slices.Equal(got, want) {
		t.Errorf("the findings are\n%v\nwant\n%v", got, want)
	}
}

// TestRecompileKeepsRoutes has the routes of a service compiled once for all plans in which they are the same.
func TestRecompileKeepsRoutes(t *testing.T) {
	first, _ := policy.Compile(services(10, "1s"), workload)
	second, _ := policy.Recompile(first, services(10, "2s"), workload)
	routes := first.Host("service-1").Routes
	if again := first.Host("service-1").Routes; again != routes {
		t.Error("the routes of a service were compiled twice")
	}
	if second.Host("service-1").Routes != routes {
		t.Error("the routes of a service that did not change were compiled again")
	}
	if first.Host("service-5").Routes == second.Host("service-5").Routes {
		t.Error("the routes of a service that changed stayed")
	}
	other := workload
	other.Namespace = "other"
	third, _ := policy.Recompile(first, services(10, "1s"), other)
	if third.Host("service-1").Known {
		t.Error("a plan for another workload was used")
	}
}

// TestRecompile_MovedSources has the routes of services kept where their sources, or the documents in them, have other places and names.
func TestRecompile_MovedSources(t *testing.T) {
	const n = 10
	last, _ := policy.Compile(services(n, "1s"), workload)
	for _, tt := range []struct {
		name string
		move func(sources []policy.Source) []policy.Source
	}{
		{"another order", func(s []policy.Source) []policy.Source { slices.Reverse(s); return s }},
		{"one before them", func(s []policy.Source) []policy.Source {
			return slices.Insert(s, 0, policy.Source{Name: "a.yaml", Data: serviceDocuments(n, "1s")})
		}},
		{"other names", func(s []policy.Source) []policy.Source {
			for i := range s {
				s[i].Name = fmt.Sprintf("other-%d.yaml", i)
			}
			return s
		}},
		{"two in one", func(s []policy.Source) []policy.Source {
			s[0].Data = slices.Concat(s[0].Data, s[1].Data)
			return slices.Delete(s, 1, 2)
		}},
	} {
		sources := tt.move(services(n, "1s"))
		plan, findings := policy.Recompile(last, sources, workload)
		want, wantFindings := policy.Compile(sources, workload)
		if !slices.Equal(findings, wantFindings) {
			t.Errorf("%s: the findings are\n%v\nwant\n%v", tt.name, findings, wantFindings)
		}
		for i := range n {
			host := fmt.Sprintf("service-%d", i)
			if plan.Host(host).Routes != last.Host(host).Routes {
				t.Errorf("%s: %s was compiled again", tt.name, host)
			}
			samePlan(t, tt.name, plan, want, host)
		}
	}
}

// TestRecompile_ChangedInPlace has the text of a source changed in the memory in which it was loaded before: that is a change like any other.
func TestRecompile_ChangedInPlace(t *testing.T) {
	sources := services(2, "1s")
	last, _ := policy.Compile(sources, workload)
	copy(sources[1].Data[bytes.Index(sources[1].Data, []byte("timeout: 1s"))+len("timeout: "):], "3")
	plan, findings := policy.Recompile(last, sources, workload)
	if plan == nil {
		t.Fatal(findings)
	}
	if got := plan.Host("service-1").Routes.Rule(1).Route.Timeout; got != 3*time.Second {
		t.Errorf("the timeout is %v, want that of the new text", got)
	}
}

// TestRecompile_AllocatesLittle bounds what a change of one document allocates for each that did not change, in sources of their own or in one:
// it used to be 2,000 bytes, 480 and 770 before a compiler used the memory of the last one again, and 176 and 344 before plans shared their maps.
// Objects that stand alone took 550, and routes of the Gateway API 715.
func TestRecompile_AllocatesLittle(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // it would drop that memory
	const n = 1000                                   // services, of two documents each
	type test struct {
		name      string
		documents func(timeout string) []policy.Source
		most      int
	}
	before := alone(n, "1s")
	tests := []test{{"one source", func(timeout string) []policy.Source {
		var all []byte
		for _, source := range services(n, timeout) {
			all = append(all, source.Data...)
		}
		return []policy.Source{{Name: "all.yaml", Data: all}}
	}, 300}, {"each an object", func(timeout string) []policy.Source { return unchanged(before, alone(n, timeout)) }, 100}}
	for _, kind := range kinds {
		if kind.change > 0 {
			tests = append(tests, test{kind.name, func(timeout string) []policy.Source { return perService(n, timeout, kind.documents) }, kind.change})
		}
	}
	for _, test := range tests {
		last, _ := policy.Compile(test.documents("1s"), workload)
		last, _ = policy.Recompile(last, test.documents("2s"), workload)
		sources := test.documents("3s")
		var plan *policy.Plan
		var findings policy.Findings
		bytes := leak.Allocated(func() { plan, findings = policy.Recompile(last, sources, workload) }) / (2 * n)
		if plan == nil {
			t.Fatal(findings)
		}
		t.Logf("%s: %d bytes for each document", test.name, bytes)
		if bytes > test.most {
			t.Errorf("%s: a change allocates %d bytes for each document", test.name, bytes)
		}
	}
}

// TestRecompile_Concurrently: plans made of the same one at once, or one after the other, have nothing in common that changes.
func TestRecompile_Concurrently(t *testing.T) {
	const n = 20
	last, findings := policy.Compile(delegating(n, "1s"), workload)
	if last == nil {
		t.Fatal(findings)
	}
	timeout := func(i int) string { return fmt.Sprintf("%ds", 2+i) }
	var plans [4][3]*policy.Plan
	var running sync.WaitGroup
	for i := range plans {
		running.Go(func() {
			from := last
			for j := range plans[i] {
				from, _ = policy.Recompile(from, delegating(n, timeout(3*i+j)), workload)
				plans[i][j] = from
			}
		})
	}
	running.Wait()
	for i := range plans {
		for j, plan := range plans[i] {
			want, _ := policy.Compile(delegating(n, timeout(3*i+j)), workload)
			for k := range n {
				samePlan(t, fmt.Sprintf("plan %d of %d", j, i), plan, want, fmt.Sprintf("service-%d", k))
			}
		}
	}
}

// TestRecompileKeepsJointRoutes has the routes of a document with a delegate, and those that a ServiceProfile has a part in, made
// once for all plans in which those documents are the same.
func TestRecompileKeepsJointRoutes(t *testing.T) {
	for name, documents := range map[string]func(n int, timeout string) []policy.Source{"delegates": delegating, "profiles": profiled} {
		first, _ := policy.Compile(documents(10, "1s"), workload)
		kept, changed := first.Host("service-1").Routes, first.Host("service-5").Routes
		second, findings := policy.Recompile(first, documents(10, "2s"), workload)
		if second == nil {
			t.Fatal(findings)
		}
		if second.Host("service-1").Routes != kept {
			t.Errorf("%s: the routes of a service that did not change were made again", name)
		}
		if second.Host("service-5").Routes == changed {
			t.Errorf("%s: the routes of a service that changed stayed", name)
		}
	}
}

// TestManyServicesWithSmallProfiles: the bound on joined routes is for documents that multiply, not for services that are many.
func TestManyServicesWithSmallProfiles(t *testing.T) {
	defer policy.SetMostJoined(10)()
	plan, findings := policy.Compile(profiled(50, "1s"), workload)
	if plan == nil {
		t.Fatal(findings)
	}
	for i := range 50 {
		host := fmt.Sprintf("service-%d", i)
		if routes := plan.Host(host).Routes; routes == nil || routes.Len() < 3 {
			t.Errorf("%s: the VirtualService and the ServiceProfile are not both in force", host)
		}
	}
}

// TestHeapPerService bounds the memory of services that nobody calls, after the documents were loaded and loaded again.
func TestHeapPerService(t *testing.T) {
	const n = 500
	for _, kind := range kinds {
		sources, changed := perService(n, "10s", kind.documents), perService(n, "20s", kind.documents)
		before := leak.Heap()
		plan, findings := policy.Compile(sources, workload)
		if plan == nil {
			t.Fatal(findings)
		}
		each := (leak.Heap() - before) / n
		plan, findings = policy.Recompile(plan, changed, workload)
		if plan == nil {
			t.Fatal(findings)
		}
		again := (leak.Heap() - before) / n
		t.Logf("%s: %d bytes, %d after a change", kind.name, each, again)
		if each > kind.most || again > kind.most {
			t.Errorf("%s: a service that nobody calls takes %d bytes, and %d after a change, want at most %d", kind.name, each, again, kind.most)
		}
		runtime.KeepAlive(plan)
		runtime.KeepAlive(sources)
		runtime.KeepAlive(changed)
	}
}

// alone returns the documents of n services, each an object of an API server.
func alone(n int, timeout string) []policy.Source { return objects(services(n, timeout)) }

// delegating returns n VirtualServices that each hand their requests to another one, which has the timeout.
func delegating(n int, timeout string) []policy.Source {
	return perService(n, timeout, delegatingDocuments)
}

// profiled returns a VirtualService and a ServiceProfile for each of n services.
func profiled(n int, timeout string) []policy.Source {
	return perService(n, timeout, profiledDocuments)
}
