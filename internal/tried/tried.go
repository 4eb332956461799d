// Package tried remembers the endpoints that a call was sent to, across its attempts.
//
// Layers that are chained by hand do not know each other. The one that makes several attempts puts a List into their
// common context; the one that picks endpoints adds to it and avoids what it holds.
package tried

import (
	"context"
	"slices"
	"sync"
)

// List holds endpoint IDs. It is safe for concurrent use; a nil List is empty and stays so.
type List struct {
	mu  sync.Mutex
	ids []string
}

type key struct{}

// With returns a context with a new, empty List.
func With(ctx context.Context) context.Context {
	return context.WithValue(ctx, key{}, new(List))
}

// From returns the List of ctx, or nil.
func From(ctx context.Context) *List {
	l, _ := ctx.Value(key{}).(*List)
	return l
}

// Add adds an endpoint.
func (l *List) Add(id string) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.Contains(l.ids, id) {
		l.ids = append(l.ids, id)
	}
}

// Contains reports whether an endpoint was added.
func (l *List) Contains(id string) bool {
	return slices.Contains(l.IDs(), id)
}

// IDs returns the endpoints added so far. The slice must not be changed.
func (l *List) IDs() []string {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ids[:len(l.ids):len(l.ids)] // later Adds do not write where the reader reads
}
