package policy_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/telemetry"
)

// expressions compiles an expression to itself, unless it is "wrong".
type expressions struct{}

type expression string

func (e expression) Keeps(telemetry.Attributes) bool { return e == "true" }

func (expressions) Filter(text string) (telemetry.Filter, error) {
	if text == "wrong" {
		return nil, errors.New("at character 1: wrong")
	}
	return expression(text), nil
}

// reports compiles Telemetry documents, of which each is NAMESPACE/NAME followed by its spec, for workload.
func reports(t *testing.T, documents ...string) (*telemetry.Settings, policy.Findings) {
	t.Helper()
	var b strings.Builder
	for i, d := range documents {
		id, spec, _ := strings.Cut(d, " ")
		namespace, name, _ := strings.Cut(id, "/")
		fmt.Fprintf(&b, "---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: %s, namespace: %s, creationTimestamp: \"2026-01-%02dT00:00:00Z\"}\nspec: {%s}\n",
			name, namespace, i+1, spec)
	}
	w := workload
	w.Expressions = expressions{}
	plan, findings := policy.Compile([]policy.Source{{Name: "t.yaml", Data: []byte(b.String())}}, w)
	if plan == nil {
		return nil, findings
	}
	return plan.Telemetry(), findings
}

// What holds tokens must not be recorded: on calls that go out, too, which carry those of other workloads.
func TestTelemetry_ParametersWithTokens(t *testing.T) {
	const users = `
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: %[1]s, namespace: %[2]s}
spec: {selector: {matchLabels: {app: %[1]s}}, jwtRules: [{issuer: i, jwks: '{"keys":[{"kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}', fromParams: [%[3]s]}]}
---`
	plan, findings := policy.Compile([]policy.Source{{Name: "t.yaml", Data: []byte(fmt.Sprintf(users, "a", "default", "jwt, b") + fmt.Sprintf(users, "c", "elsewhere", "jwt, a"))}}, workload)
	if plan == nil {
		t.Fatal(findings)
	}
	for name, side := range map[string]*telemetry.Side{"client": plan.Telemetry().Client(), "server": plan.Telemetry().Server()} {
		if got := fmt.Sprint(side.SecretParams); got != "[a b jwt]" {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// The cases are those of Istio's own merging of access logs.
func TestTelemetry_AccessLogging(t *testing.T) {
	for _, tt := range []struct {
		name           string
		documents      []string
		client, server string // "off", "on", or the filters
	}{
		{"nothing", []string{"default/a tracing: []"}, "on", "on"},
		{"off", []string{"default/a accessLogging: [{disabled: true}]"}, "off", "off"},
		{"off for one side", []string{"default/a accessLogging: [{match: {mode: CLIENT}, disabled: true}]"}, "off", "on"},
		{"off, then on", []string{"istio-system/a accessLogging: [{disabled: true}]", "default/b accessLogging: [{disabled: false}]"}, "on", "on"},
		{"off, then on by a provider", []string{"istio-system/a accessLogging: [{disabled: true}]", "default/b accessLogging: [{providers: [{name: x}]}]"}, "on", "on"},
		{"on, then off", []string{"istio-system/a accessLogging: [{providers: [{name: x}]}]", "default/b accessLogging: [{disabled: true}]"}, "off", "off"},
		{"the younger document of a namespace", []string{"default/a accessLogging: [{disabled: true}]", "default/b accessLogging: [{disabled: false}]"}, "off", "off"},
		{"another namespace", []string{"other/a accessLogging: [{disabled: true}]"}, "none", "none"},
		{"the workload", []string{"default/a accessLogging: [{disabled: true}]", "default/b selector: {matchLabels: {app: order-service}}, accessLogging: [{disabled: false}]"}, "on", "on"},
		{"all that select it", []string{"default/b selector: {matchLabels: {app: order-service}}, accessLogging: [{disabled: false}]",
			"default/c selector: {matchLabels: {version: v1}}, accessLogging: [{disabled: true}]"}, "off", "off"},
		{"another workload", []string{"default/b selector: {matchLabels: {app: web}}, accessLogging: [{disabled: true}]"}, "none", "none"},
		{"a filter", []string{"default/a accessLogging: [{providers: [{name: x}], filter: {expression: one}}]"}, "one", "one"},
		{"a filter for each side", []string{"default/a accessLogging: [{match: {mode: CLIENT}, providers: [{name: x}], filter: {expression: one}}, {match: {mode: SERVER}, providers: [{name: x}], filter: {expression: two}}]"}, "one", "two"},
		{"two providers", []string{"default/a accessLogging: [{providers: [{name: x}], filter: {expression: one}}, {providers: [{name: y}], filter: {expression: two}}]"}, "one|two", "one|two"},
		{"two providers, one without a filter", []string{"default/a accessLogging: [{providers: [{name: x}], filter: {expression: one}}, {providers: [{name: y}]}]"}, "on", "on"},
		{"another filter later", []string{"istio-system/a accessLogging: [{providers: [{name: x}], filter: {expression: one}}]",
			"default/b accessLogging: [{providers: [{name: x}], filter: {expression: two}}]"}, "two", "two"},
		{"another provider later", []string{"istio-system/a accessLogging: [{providers: [{name: x}], filter: {expression: one}}]",
			"default/b accessLogging: [{providers: [{name: y}]}]"}, "on", "on"},
		{"a filter without provider", []string{"istio-system/a accessLogging: [{providers: [{name: x}], filter: {expression: one}}]",
			"default/b accessLogging: [{filter: {expression: two}}]"}, "one", "one"},
	} {
		s, findings := reports(t, tt.documents...)
		if err := findings.Err(); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		show := func(l *telemetry.AccessLog) string {
			switch {
			case s == nil:
				return "none"
			case l.Disabled:
				return "off"
			case l.Filters == nil:
				return "on"
			}
			var all []string
			for _, f := range l.Filters {
				all = append(all, string(f.(expression)))
			}
			return strings.Join(all, "|")
		}
		if client, server := show(&s.Client().Log), show(&s.Server().Log); client != tt.client || server != tt.server {
			t.Errorf("%s: %s for calls and %s for requests, want %s and %s", tt.name, client, server, tt.client, tt.server)
		}
	}
}

func TestTelemetry_Metrics(t *testing.T) {
	const count, size = "match: {metric: REQUEST_COUNT}", "match: {metric: REQUEST_SIZE}"
	metrics := func(overrides string) string { return "default/a metrics: [{overrides: [" + overrides + "]}]" }
	for _, tt := range []struct {
		name      string
		documents []string
		want      string // of REQUEST_COUNT and REQUEST_SIZE, of calls
	}{
		{"nothing", []string{"default/a metrics: [{}]"}, "{} {}"},
		{"all off", []string{metrics("{disabled: true}")}, "{off} {off}"},
		{"ALL_METRICS off", []string{metrics("{match: {metric: ALL_METRICS, mode: CLIENT}, disabled: true}")}, "{off} {off}"},
		{"of the other side", []string{metrics("{match: {metric: ALL_METRICS, mode: SERVER}, disabled: true}")}, "{} {}"},
		{"one off", []string{metrics("{" + count + ", disabled: true}")}, "{off} {}"},
		{"all off, one on", []string{metrics("{disabled: true}, {" + count + ", disabled: false}")}, "{} {}"},
		{"back with what was said before", []string{metrics("{" + size + ", disabled: true}, {disabled: true}, {" + count + ", tagOverrides: {a: {value: \"'b'\"}}}")}, "{a=b} {off}"},
		{"off for all, then on for one label", []string{metrics("{" + count + ", disabled: true}"), "default/b selector: {matchLabels: {app: order-service}}, metrics: [{overrides: [{tagOverrides: {a: {operation: REMOVE}}}]}]"}, "{off -a} {-a}"},
		{"labels merge", []string{"istio-system/a metrics: [{overrides: [{tagOverrides: {a: {value: \"'1'\"}, b: {operation: REMOVE}}}]}]",
			metrics("{" + count + ", tagOverrides: {a: {value: \"'2'\"}}}")}, "{a=2 -b} {a=1 -b}"},
		{"removed, then set", []string{metrics("{tagOverrides: {a: {operation: REMOVE}}}, {" + count + ", tagOverrides: {a: {value: \"request.headers['x-a']\"}}}")}, "{a=X-A} {-a}"},
		{"providers replace", []string{"istio-system/a metrics: [{providers: [{name: x}], overrides: [{disabled: true}]}]",
			"default/b metrics: [{providers: [{name: y}]}]"}, "{} {}"},
		{"the same provider", []string{"istio-system/a metrics: [{providers: [{name: x}], overrides: [{disabled: true}]}]",
			"default/b metrics: [{providers: [{name: x}]}]"}, "{off} {off}"},
	} {
		s, findings := reports(t, tt.documents...)
		if err := findings.Err(); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		show := func(name string) string {
			m := s.Client().Metrics[name]
			var all []string
			if m.Disabled {
				all = append(all, "off")
			}
			for _, tag := range m.Set {
				if tag.Header != "" {
					all = append(all, tag.Name+"="+tag.Header)
				} else {
					all = append(all, tag.Name+"="+tag.Text)
				}
			}
			for _, name := range m.Remove {
				all = append(all, "-"+name)
			}
			return "{" + strings.Join(all, " ") + "}"
		}
		if got := show("REQUEST_COUNT") + " " + show("REQUEST_SIZE"); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

// Istio does not support several entries of tracing. The last one counts, for each side, and the document is remarked upon.
func TestTelemetry_SeveralEntriesOfTracing(t *testing.T) {
	s, findings := reports(t, "default/a tracing: [{randomSamplingPercentage: 10}, {match: {mode: CLIENT}, randomSamplingPercentage: 20}]")
	if len(findings) != 1 || findings[0].Severity != policy.Warning || findings[0].Field != "spec.tracing" || !strings.Contains(findings[0].Message, "has 2 entries") {
		t.Errorf("findings %v", findings)
	}
	if client, server := s.Client().Tracing.Sampling, s.Server().Tracing.Sampling; client != 20 || server != 10 {
		t.Errorf("%v%% of the calls and %v%% of the requests are sampled, want 20 and 10", client, server)
	}
}

func TestTelemetry_Expressions(t *testing.T) {
	const document = "default/a accessLogging: [{providers: [{name: x}], filter: {expression: wrong}}]"
	if s, findings := reports(t, document); s != nil || len(findings) != 1 || findings[0].Field != "spec.accessLogging[0].filter.expression" ||
		findings[0].Message != "at character 1: wrong" {
		t.Errorf("findings %v", findings)
	}
	source := policy.Source{Name: "t.yaml", Data: []byte("apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: a}\n" +
		"spec: {accessLogging: [{providers: [{name: x}], filter: {expression: 'true'}}]}\n")}
	plan, findings := policy.Compile([]policy.Source{source}, policy.Workload{})
	if plan != nil || len(findings) != 1 || !strings.Contains(findings[0].Message, "policy/telemetry/cel") {
		t.Errorf("findings %v", findings)
	}
}

// A document that did not change is not compiled again, and says the same.
func TestTelemetry_Recompile(t *testing.T) {
	w := policy.Workload{Expressions: expressions{}}
	source := func(extra string) []policy.Source {
		return []policy.Source{{Name: "t.yaml", Data: []byte("apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: a}\n" +
			"spec: {accessLogging: [{providers: [{name: x}], filter: {expression: 'true'}}], tracing: [{customTags: {a: {literal: {value: b}}}}]}\n" + extra)}}
	}
	first, _ := policy.Compile(source(""), w)
	second, findings := policy.Recompile(first, source("---\napiVersion: v1\nkind: Service\nmetadata: {name: shop}\nspec: {ports: [{port: 80}]}\n"), w)
	if findings.Err() != nil {
		t.Fatal(findings)
	}
	for _, plan := range []*policy.Plan{first, second} {
		side := plan.Telemetry().Server()
		if len(side.Log.Filters) != 1 || side.Log.Filters[0].(expression) != "true" || len(side.Tracing.Tags) != 1 {
			t.Errorf("%+v", side)
		}
	}
}
