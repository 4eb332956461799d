// Package namespaces carries the namespaces of a mesh to the feeds that it follows. A feed that reads documents by namespace must read those
// that the documents are compiled for: otherwise a policy that protects the process would be unknown.
package namespaces

import "context"

const (
	// DefaultOwn is the namespace of a workload that names none.
	DefaultOwn = "default"

	// DefaultRoot is the namespace of the documents that apply to the whole mesh, unless the workload names another one.
	DefaultRoot = "istio-system"
)

// Pair has the namespaces that matter to a process.
type Pair struct {
	Own  string // that of the process
	Root string // that of the documents that apply to the whole mesh
}

type key struct{}

// With returns a context that carries the namespaces.
func With(ctx context.Context, p Pair) context.Context { return context.WithValue(ctx, key{}, p) }

// From returns the namespaces that a context carries, and false if it carries none.
func From(ctx context.Context) (Pair, bool) {
	p, ok := ctx.Value(key{}).(Pair)
	return p, ok
}
