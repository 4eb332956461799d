package policy_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy"
)

// TestAlone_CostGrowsWithDocuments: documents that are refused, of any number and together with whatever others, do not cost the documents of
// others more than their share: what a change allocates is in proportion to the documents, and the documents are combined a bounded number of times.
func TestAlone_CostGrowsWithDocuments(t *testing.T) {
	alone := func(text string) []policy.Source {
		return []policy.Source{{Name: "x.yaml", Alone: true, Data: []byte(text)}}
	}
	many := func(n int, separator string, each func(i int) string) string {
		parts := make([]string, n)
		for i := range parts {
			parts[i] = each(i)
		}
		return strings.Join(parts, separator)
	}
	sources := func(n int, each func(i int) object) []policy.Source {
		all := make([]policy.Source, n)
		for i := range all {
			all[i] = each(i).source()
		}
		return all
	}
	list := func(n int, each func(i int) string) []policy.Source {
		return alone("{apiVersion: v1, kind: List, items: [\n" + many(n, ",\n", each) + "]}")
	}
	anchored := func(name string, uid int) object { // cannot be combined with another condition on the path
		return object{kind: "ServiceProfile", namespace: "other", name: name + ".other.svc.cluster.local", uid: uid,
			spec: "{routes: [{name: r, condition: {pathRegex: '(/a$|/b)'}, timeout: 3s}]}"}
	}
	leads := func(i int, host, to string) object {
		return object{kind: "VirtualService", name: fmt.Sprintf("v%03d", i), uid: 1000 + i,
			spec: "{hosts: [" + host + "], http: [{match: [{uri: {regex: '/a.*'}}], route: [{destination: {host: " + to + ".other.svc.cluster.local}}]}]}"}
	}
	claims := func(i int, field string) string { // all of them the same host
		return fmt.Sprintf("{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: v%03d, namespace: shop}, spec: {hosts: [a], %s: [{directResponse: {status: 201}}]}}", i, field)
	}
	for _, test := range []struct {
		name        string
		before, now func(n int) []policy.Source
	}{
		{"VirtualServices for one host, each with the same ServiceProfile", nil, func(n int) []policy.Source {
			return append(sources(n, func(i int) object { return leads(i, "b", "c") }), anchored("c", 1).source())
		}},
		{"VirtualServices with a ServiceProfile each", nil, func(n int) []policy.Source {
			all := sources(n, func(i int) object { return leads(i, fmt.Sprint("b", i), fmt.Sprint("c", i)) })
			return append(all, sources(n, func(i int) object { return anchored(fmt.Sprint("c", i), 1+i) })...)
		}},
		{"ServiceProfiles that change under VirtualServices", func(n int) []policy.Source {
			return sources(n, func(i int) object { return leads(i, fmt.Sprint("b", i), fmt.Sprint("c", i)) })
		}, func(n int) []policy.Source {
			all := sources(n, func(i int) object { return leads(i, fmt.Sprint("b", i), fmt.Sprint("c", i)) })
			return append(all, sources(n, func(i int) object { return anchored(fmt.Sprint("c", i), 1+i) })...)
		}},
		{"VirtualServices with one delegate", nil, func(n int) []policy.Source {
			all := sources(n, func(i int) object {
				return object{kind: "VirtualService", name: fmt.Sprintf("v%03d", i), uid: 1000 + i,
					spec: "{hosts: [b], http: [{match: [{uri: {regex: '/a.*'}}], delegate: {name: d, namespace: other}}]}"}
			})
			return append(all, object{kind: "VirtualService", namespace: "other", name: "d", uid: 1,
				spec: "{http: [{match: [{uri: {regex: '(/a$|/b)'}}], directResponse: {status: 200}}]}"}.source())
		}},
		{"policies of one name", nil, func(n int) []policy.Source {
			return sources(n, func(i int) object {
				return object{kind: "AuthorizationPolicy", name: "x", uid: 1 + i, spec: "{rules: [{}]}"}
			})
		}},
		{"rules for one host that are refused", nil, func(n int) []policy.Source {
			return sources(n, func(i int) object {
				return object{kind: "DestinationRule", name: fmt.Sprintf("d%03d", i), uid: 1 + i, spec: "{host: a, wrong: 1, trafficPolicy: {tls: {mode: SIMPLE}}}"}
			})
		}},
		{"wildcards, and what is looked up among them", nil, func(n int) []policy.Source {
			all := sources(n, func(i int) object {
				return object{kind: "DestinationRule", name: fmt.Sprintf("d%03d", i), uid: 1 + i, spec: fmt.Sprintf("{host: '*.n%d.example', subsets: [{name: v1}]}", i)}
			})
			return append(all, sources(n, func(i int) object {
				return object{kind: "VirtualService", name: fmt.Sprintf("v%03d", i), uid: 1000 + i,
					spec: fmt.Sprintf("{hosts: ['*.m%d.example'], http: [{route: [{destination: {host: x.n%[1]d.example, subset: v1}}]}]}", i)}
			})...)
		}},
		{"items that are no documents", nil, func(n int) []policy.Source {
			return list(n, func(int) string { return "x" })
		}},
		{"items without a kind", nil, func(n int) []policy.Source {
			return list(n, func(int) string { return "{metadata: {name: x}}" })
		}},
		{"items that are broken at once, and claim one host", func(n int) []policy.Source {
			return list(n, func(i int) string { return claims(i, "http") })
		}, func(n int) []policy.Source {
			return list(n, func(i int) string { return claims(i, "htpt") })
		}},
		{"text after end marks", nil, func(n int) []policy.Source {
			return alone(many(n, "\n", func(int) string { return "... x" }))
		}},
		{"documents that are no YAML", nil, func(n int) []policy.Source {
			return alone(many(n, "\n---\n", func(int) string { return "{" }))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			const n = 100
			few, fewRounds := costOf(t, test.before, test.now, n)
			most, rounds := costOf(t, test.before, test.now, 4*n)
			if most > 6*few {
				t.Errorf("%d documents take %d bytes, and %d take %d: more than in proportion", n, few, 4*n, most)
			}
			if fewRounds > 40 || rounds > 40 {
				t.Errorf("%d documents were combined %d times, and %d were %d times", n, fewRounds, 4*n, rounds)
			}
		})
	}
}

// costOf returns how many bytes it takes to compile n documents, and how often they are combined.
func costOf(t *testing.T, before, now func(n int) []policy.Source, n int) (bytes uint64, rounds int) {
	t.Helper()
	w := policy.Workload{Namespace: "shop", Labels: map[string]string{"app": "web"}}
	var last *policy.Plan
	if before != nil {
		last, _ = policy.Compile(before(n), w)
	}
	sources := now(n)
	var from, to runtime.MemStats
	runtime.ReadMemStats(&from)
	plan, findings := policy.Recompile(last, sources, w)
	runtime.ReadMemStats(&to)
	if plan == nil || before == nil && len(findings) == 0 && !strings.Contains(t.Name(), "wildcards") {
		t.Fatalf("nothing is refused: %v", findings)
	}
	return to.TotalAlloc - from.TotalAlloc, policy.Rounds(last, sources, w)
}
