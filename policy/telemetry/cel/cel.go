// Package cel compiles the expressions of Telemetry documents, which are written in the Common Expression Language:
//
//	m, err := mesh.New(ctx, mesh.WithWorkload(policy.Workload{Expressions: cel.Expressions{}}), ...)
//
// Only programs that import it link cel-go. Expressions are checked when documents are loaded: an attribute that calls of a process do
// not have, a comparison of two types, and a result that is not true or false are errors then. An expression with exists, all, map or
// filter that takes more than 100,000 steps for a call is not true of it.
package cel

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"

	"github.com/nosidecar/mesh/internal/attribute"
	"github.com/nosidecar/mesh/policy/telemetry"
)

// Expressions implements [telemetry.Expressions]. Its zero value is ready, and safe for concurrent use.
type Expressions struct{}

const (
	// longest bounds an expression, in characters.
	longest = 8192

	// mostSteps bounds what an expression with exists, all and the like costs for each call, in the units of cel-go: about one for
	// each operation. Nested in one another, a few of them would not end within a lifetime.
	mostSteps = 100_000
)

// Filter implements [telemetry.Expressions].
func (Expressions) Filter(expression string) (telemetry.Filter, error) {
	if len(expression) > longest {
		return nil, fmt.Errorf("is too long: the most is %d characters", longest)
	}
	env, err := cel.NewEnv(newObjects().options()...)
	if err != nil {
		return nil, err
	}
	compiled, issues := env.Compile(expression)
	if issues.Err() != nil {
		return nil, explain(issues)
	}
	if compiled.OutputType() != cel.BoolType {
		return nil, fmt.Errorf("is a %s: an expression must be true or false", compiled.OutputType())
	}
	options := []cel.ProgramOption{cel.EvalOptions(cel.OptOptimize)}
	if repeats(compiled) {
		options = append(options, cel.CostLimit(mostSteps))
	}
	program, err := env.Program(compiled, options...)
	if err != nil {
		return nil, err
	}
	f := &filter{text: expression, program: program}
	f.calls.New = func() any { return new(call) }
	return f, nil
}

// repeats reports whether an expression evaluates a part of it several times. One that does not takes time as it is long, and
// counting its steps would cost more than they do.
func repeats(compiled *cel.Ast) bool {
	found := false
	ast.PreOrderVisit(compiled.NativeRep().Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		found = found || e.Kind() == ast.ComprehensionKind
	}))
	return found
}

// explain returns what is wrong with an expression, in one line.
func explain(issues *cel.Issues) error {
	const most = 3
	var all []string
	for i, e := range issues.Errors() {
		if i == most {
			all = append(all, fmt.Sprintf("and %d more", len(issues.Errors())-most))
			break
		}
		message := e.Message
		for _, unknown := range []string{"undeclared reference to '", "undefined field '"} {
			if name, ok := strings.CutPrefix(message, unknown); ok {
				name, _, _ = strings.Cut(name, "'")
				message = fmt.Sprintf("%s is not enforced: calls of a process have no such attribute; there are %s", name,
					strings.Join(slices.Sorted(maps.Keys(attribute.Variables())), ", "))
			}
		}
		all = append(all, fmt.Sprintf("at character %d: %s", e.Location.Column()+1, strings.Join(strings.Fields(message), " ")))
	}
	return errors.New(strings.Join(all, "; "))
}

// filter is a compiled expression.
type filter struct {
	text    string
	program cel.Program
	calls   sync.Pool
}

// Keeps implements telemetry.Filter.
func (f *filter) Keeps(attributes telemetry.Attributes) bool {
	c := f.calls.Get().(*call)
	c.attributes = attributes
	result, _, err := f.program.Eval(c)
	c.attributes = nil
	f.calls.Put(c)
	if err != nil {
		return false
	}
	keeps, ok := result.Value().(bool)
	return ok && keeps
}

// String returns the expression.
func (f *filter) String() string { return f.text }

// call is the variables of an expression: a name stands for the call that it is about, whose fields are looked up when they are asked
// for.
type call struct {
	attributes telemetry.Attributes
}

// ResolveName implements cel.Activation.
func (c *call) ResolveName(string) (any, bool) { return c, true }

// Parent implements cel.Activation.
func (c *call) Parent() cel.Activation { return nil }
