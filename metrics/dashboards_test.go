package metrics_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/metrics"
	"github.com/prometheus/client_golang/prometheus"
)

var (
	described = regexp.MustCompile(`fqName: "([^"]*)".*variableLabels: \{([^}]*)\}`)
	selector  = regexp.MustCompile(`\b((?:mesh|istio)_[a-z_]+)(\{[^}]*\})?`)
	matcher   = regexp.MustCompile(`([a-z_]+)(?:=~|!~|!=|=)`)
	grouping  = regexp.MustCompile(`\b(?:by|on|ignoring|without) \(([a-z_, ]*)\)`)
	legend    = regexp.MustCompile(`\{\{ *(?:\$labels\.)?([a-z_]+) *\}\}`)
)

// collected is a registry with one collector.
type collected struct{ prometheus.Collector }

func (r *collected) Register(c prometheus.Collector) error { r.Collector = c; return nil }
func (r *collected) MustRegister(...prometheus.Collector)  {}
func (r *collected) Unregister(prometheus.Collector) bool  { return true }

// The dashboard and the alert rules ask for metrics and labels that there are: a rule about another one would never fire.
func TestDashboardsAskForWhatThereIs(t *testing.T) {
	r := new(collected)
	m, err := metrics.New(metrics.Config{Registerer: r})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	descs := make(chan *prometheus.Desc, 1000)
	r.Describe(descs)
	close(descs)
	labels := map[string][]string{}
	for d := range descs {
		m := described.FindStringSubmatch(d.String())
		labels[m[1]] = append(strings.Split(m[2], ","), "job", "instance", "le") // those of Prometheus
	}
	rules, asked := 0, map[string]bool{}
	for _, file := range []string{"../dashboards/mesh.json", "../dashboards/alerts.yaml"} {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, rule := range strings.Split(strings.NewReplacer(`\"`, `"`, `"legendFormat"`, "", `- alert:`, `"expr":`).Replace(string(data)), `"expr":`)[1:] {
			rules++
			checkRule(t, file+": "+rule, labels, asked)
		}
	}
	for name := range labels { // the rest are Istio's, which Istio's own dashboards show, or numbers for people
		if !asked[name] && strings.HasPrefix(name, "mesh_") && !slices.Contains([]string{"mesh_policy_number", "mesh_policy_refused_timestamp_seconds"}, name) {
			t.Errorf("nothing shows %s", name)
		}
	}
	if rules < 60 {
		t.Errorf("%d rules and queries were read", rules)
	}
}

// checkRule checks the metrics and the labels of a rule, and notes which metrics it asks for.
func checkRule(t *testing.T, rule string, labels map[string][]string, asked map[string]bool) {
	t.Helper()
	var all []string
	for _, s := range selector.FindAllStringSubmatch(rule, -1) {
		name := s[1]
		for _, suffix := range []string{"_bucket", "_count"} {
			if labels[name] == nil {
				name = strings.TrimSuffix(name, suffix)
			}
		}
		if labels[name] == nil {
			t.Errorf("there is no %s: %s", s[1], rule)
		}
		asked[name] = true
		all = append(all, labels[name]...)
		for _, m := range matcher.FindAllStringSubmatch(s[2], -1) {
			if !slices.Contains(labels[name], m[1]) {
				t.Errorf("%s has no label %s: %s", name, m[1], rule)
			}
		}
	}
	used := legend.FindAllStringSubmatch(rule, -1)
	for _, g := range grouping.FindAllStringSubmatch(rule, -1) {
		for _, name := range strings.Split(g[1], ", ") {
			used = append(used, []string{"", name})
		}
	}
	for _, name := range used {
		if len(all) > 0 && !slices.Contains(all, name[1]) {
			t.Errorf("no metric here has the label %s: %s", name[1], rule)
		}
	}
}
