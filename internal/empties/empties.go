// Package empties carries to the feeds of a mesh that sources without any document are refused. A feed that joins several sources must refuse each
// of them itself: the mesh sees only what all of them have together.
package empties

import "context"

// Remedy ends the errors about sources without documents.
const Remedy = "or say WithEmptyPolicy if that is meant"

type key struct{}

// Refuse returns a context that says that sources without documents are refused.
func Refuse(ctx context.Context) context.Context { return context.WithValue(ctx, key{}, true) }

// Refused reports whether a context says that.
func Refused(ctx context.Context) bool { return ctx.Value(key{}) != nil }
