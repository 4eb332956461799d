package mesh_test

import (
	"context"
	"fmt"
	"net/http"
	"testing"

	"github.com/nosidecar/mesh"
)

// values is a context of a type that is not comparable, which is allowed.
type values struct {
	context.Context
	all map[string]string
}

func (v values) Value(key any) any {
	if name, ok := key.(string); ok {
		return v.all[name]
	}
	return v.Context.Value(key)
}

// A caller's context may be of any type: that two of it cannot be compared must not cost the call.
func TestContextsThatCannotBeCompared(t *testing.T) {
	noLeaks(t)
	observed := mesh.WithObserver(mesh.Observer{
		AttemptStart: func(ctx context.Context, a *mesh.Attempt) context.Context {
			a.Sent.SetHeader("X-Try", "1")
			return ctx
		},
	})
	for name, rt := range map[string]http.RoundTripper{
		"plain":    noopMesh(t, fmt.Sprintf(benchDocuments, "", "")),
		"timeouts": noopMesh(t, fmt.Sprintf(benchDocuments, ", perTryTimeout: 2s", "timeout: 5s")),
		"observed": noopMesh(t, fmt.Sprintf(benchDocuments, "", ""), observed),
		"default":  noopMesh(t, ""),
	} {
		t.Run(name, func(t *testing.T) {
			req := noopRequest(t).WithContext(values{context.Background(), nil})
			noopCall(t, rt, req, make([]byte, 512))
		})
	}
}
