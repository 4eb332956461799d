// Package cel compiles the expressions of Telemetry documents, which are written in the Common Expression Language:
//
//	m, err := mesh.New(ctx, mesh.WithWorkload(policy.Workload{Expressions: cel.Expressions{}}), ...)
//
// Only programs that import this package link cel-go. Expressions are checked when documents are loaded: attributes that calls of a
// process do not have, comparisons of different types, and results that are not boolean are errors. An expression with exists, all, map,
// filter or + is false for a call if it needs more than 100,000 steps.
package cel

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"

	"github.com/nosidecar/mesh/internal/attribute"
	"github.com/nosidecar/mesh/policy/telemetry"
)

// Expressions implements [telemetry.Expressions]. Its zero value is ready, and safe for concurrent use.
type Expressions struct{}

const (
	// longest is the maximum length of an expression, in bytes.
	longest = 8192

	// mostSteps bounds the cost of an expression with exists, all, + and the like per call, in the units of cel-go, which are about one
	// per operation, or per ten characters. A few of these nested in each other would practically never end.
	mostSteps = 100_000
)

// Filter implements [telemetry.Expressions].
func (Expressions) Filter(expression string) (telemetry.Filter, error) {
	if len(expression) > longest {
		return nil, fmt.Errorf("is too long: at most %d bytes are allowed", longest)
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
	grows, err := inspect(compiled)
	if err != nil {
		return nil, err
	}
	options := []cel.ProgramOption{cel.EvalOptions(cel.OptOptimize)}
	if grows {
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

// inspect reports whether an expression evaluates a part of itself several times, or joins texts, which may be long. The cost of other
// expressions is bounded by their length, and counting their steps would cost more than the steps do. The error is about an operation
// that is refused.
func inspect(compiled *cel.Ast) (grows bool, err error) {
	ast.PreOrderVisit(compiled.NativeRep().Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		switch e.Kind() {
		case ast.ComprehensionKind:
			grows = true
		case ast.CallKind:
			call := e.AsCall()
			grows = grows || call.FunctionName() == operators.Add
			err = cmp.Or(err, check(call))
		}
	}))
	return grows, err
}

// check returns an error for patterns of matches that are not literals: callers would choose what is compiled for each call, such as 8 kB
// that compile to millions of instructions. The other one is for headers that no request has in-process, although Envoy has them.
func check(call ast.CallExpr) error {
	args := call.Args()
	if call.FunctionName() == overloads.Matches && args[len(args)-1].Kind() != ast.LiteralKind {
		return errors.New("matches needs a pattern that is a literal")
	}
	if name := headerOf(call); strings.HasPrefix(name, ":") || strings.EqualFold(name, "host") {
		return fmt.Errorf("%s is not among the headers of a request: write request.host, request.path or request.method", name)
	}
	return nil
}

// headerOf returns the name of the header that a call looks up, "" if it is no literal.
func headerOf(call ast.CallExpr) string {
	args := call.Args()
	if call.FunctionName() != operators.Index || args[0].Kind() != ast.SelectKind || args[0].AsSelect().FieldName() != "headers" ||
		args[1].Kind() != ast.LiteralKind {
		return ""
	}
	name, _ := args[1].AsLiteral().Value().(string)
	return name
}

// explain returns the errors of an expression in one line.
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

// call has the variables of an expression. The value of every variable is the call itself, whose fields are looked up when they are
// needed.
type call struct {
	attributes telemetry.Attributes
}

// ResolveName implements cel.Activation.
func (c *call) ResolveName(string) (any, bool) { return c, true }

// Parent implements cel.Activation.
func (c *call) Parent() cel.Activation { return nil }
