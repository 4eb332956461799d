package consul_test

import (
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy/consul"
)

func TestFilters(t *testing.T) {
	endpoint := &discovery.Endpoint{Record: &api.ServiceEntry{
		Node:    &api.Node{Node: "n1", Meta: map[string]string{"rack": "r1"}},
		Service: &api.AgentService{ID: "web-1", Service: "web", Tags: []string{"primary", "v1"}, Meta: map[string]string{"version": "1"}, Port: 80},
		Checks:  api.HealthChecks{{CheckID: "ttl", Status: api.HealthWarning}},
	}}
	for _, test := range []struct {
		expression  string
		onlyPassing bool
		want        bool
	}{
		{"", false, true},
		{"", true, false},
		{"Service.Meta.version == 1", false, true},
		{"Service.Meta.version == 2", false, false},
		{"Service.Meta.other == 2", false, false},
		{"Service.Meta.other != 2", false, true},
		{`"v1" in Service.Tags and not (Node.Meta.rack == r2)`, false, true},
		{`Service.Tags contains v2`, false, false},
		{"Service.Port == 80", false, true},
		{`Checks.Status == warning`, false, true},
		{`Service.Meta is empty`, false, false},
		{`Service.ID matches "web-[0-9]"`, false, true},
		{"Service.Meta.version == 1", true, false},
	} {
		match, err := consul.Filters{}.Compile(test.expression, test.onlyPassing)
		if err != nil {
			t.Errorf("%q: %v", test.expression, err)
			continue
		}
		if got := match(endpoint); got != test.want {
			t.Errorf("%q, only passing %t: %t, want %t", test.expression, test.onlyPassing, got, test.want)
		}
		if match(&discovery.Endpoint{}) {
			t.Errorf("%q: an endpoint without record is in the subset", test.expression)
		}
	}
	nested := func(n int) string { return strings.Repeat("(", n) + "Service.Port == 80" + strings.Repeat(")", n) }
	if match, err := (consul.Filters{}).Compile(nested(3)+" and "+nested(3), false); err != nil || !match(endpoint) {
		t.Errorf("a few parentheses: %v", err)
	}
	for expression, want := range map[string]string{
		nested(6):      "takes too long to read", // a tenth of a second, and five times that with each pair more
		nested(2_000):  "takes too long to read",
		nested(20_000): "bytes, and may have 4096",
		"Service.Meta.x matches \"" + strings.Repeat("(a*)*", 1000) + "\"": "bytes, and may have 4096",

		"Foo == 1":                           `Foo`,
		"Service.Version == 1":               `Version`,
		"Service.Meta.version = 1":           "not valid",
		"Service.Port == many":               "not valid",
		"Node.Locality.Region == east":       "Locality",
		"Service.Tags == v1":                 "not valid",
		"Service.Meta.version == 1 or Fo==2": `Fo`,
	} {
		if _, err := (consul.Filters{}).Compile(expression, false); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", expression, err, want)
		}
	}
}
