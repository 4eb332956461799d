package consul

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-bexpr"

	"github.com/nosidecar/mesh/discovery"
)

// Filters compiles the filters of subsets, in the language and the version of it that Consul's servers use (go-bexpr), for
// [github.com/nosidecar/mesh/policy.Workload]. They look at the record that discovery/consul has of an endpoint; endpoints without
// one, which others found, are in no subset.
type Filters struct{}

// Compile returns a function that reports whether an endpoint meets an expression and, with onlyPassing, whether all its checks pass. All
// endpoints meet an empty expression. The error names what is wrong, such as a field that a health entry does not have: Consul takes any
// expression, and fails when it is used.
//
// An expression that takes too long to parse is an error, too: the time grows fivefold with each pair of parentheses around others.
func (Filters) Compile(expression string, onlyPassing bool) (func(*discovery.Endpoint) bool, error) {
	var evaluator *bexpr.Evaluator
	if expression != "" {
		if err := affordable(expression); err != nil {
			return nil, err
		}
		var err error
		if evaluator, err = bexpr.CreateEvaluatorForType(expression, &bexpr.EvaluatorConfig{Registry: fields{}}, (*api.ServiceEntry)(nil)); err != nil {
			return nil, fmt.Errorf("the filter %q is not valid: %w; it is about a health entry, as in Service.Meta.version == v1", expression, err)
		}
		// What the type does not tell shows with a value of it.
		if _, err := evaluator.Evaluate(sample); err != nil {
			return nil, fmt.Errorf("the filter %q cannot be evaluated: %w", expression, err)
		}
	}
	return func(e *discovery.Endpoint) bool {
		entry, ok := e.Record.(*api.ServiceEntry)
		if !ok || entry == nil || onlyPassing && entry.Checks.AggregatedStatus() != api.HealthPassing {
			return false
		}
		if evaluator == nil {
			return true
		}
		meets, err := evaluator.Evaluate(entry)
		return err == nil && meets
	}, nil
}

const (
	mostFilter = 4 << 10 // bytes of a filter
	mostSteps  = 100_000 // of the parser, which takes them in a few milliseconds
)

// affordable returns an error for a filter that it would take too long to read. Any other error is for whoever compiles it to
// find.
func affordable(expression string) error {
	if len(expression) > mostFilter {
		return fmt.Errorf("the filter %.40q... has %d bytes, and may have %d", expression, len(expression), mostFilter)
	}
	_, err := bexpr.Parse("", []byte(expression), bexpr.MaxExpressions(mostSteps))
	if err != nil && strings.Contains(err.Error(), "max number of expresssions") {
		return fmt.Errorf("the filter %.40q... takes too long to read: use fewer parentheses within parentheses", expression)
	}
	return nil
}

// fields are what filters may ask about: what the entries of Consul's servers have. Those of the client have more.
type fields struct{}

// GetFieldConfigurations returns the fields of an entry.
func (fields) GetFieldConfigurations(reflect.Type) (bexpr.FieldConfigurations, error) {
	all, err := bexpr.GenerateFieldConfigurations((*api.ServiceEntry)(nil))
	if err != nil {
		return nil, err
	}
	for part, names := range map[bexpr.FieldName][]bexpr.FieldName{
		"Node":   {"CreateIndex", "Locality", "ModifyIndex"},
		"Checks": {"CreateIndex", "Definition", "ModifyIndex", "Namespace", "Partition"},
	} {
		if of := all[part]; of != nil {
			for _, name := range names {
				delete(of.SubFields, name)
			}
		}
	}
	return all, nil
}

// sample is an entry in which everything is there.
var sample = &api.ServiceEntry{
	Node:    &api.Node{Meta: map[string]string{}, TaggedAddresses: map[string]string{}},
	Service: &api.AgentService{Meta: map[string]string{}, Tags: []string{}, Proxy: &api.AgentServiceConnectProxyConfig{}, Connect: &api.AgentServiceConnect{}},
	Checks:  api.HealthChecks{&api.HealthCheck{}},
}
