package balancer

import (
	"context"
	"slices"
	"sync"
)

// WithTried returns a context in which a [Transport] remembers the endpoints that requests were sent to, and avoids them while
// another is available. It is for callers that make several attempts and do not know the endpoints: if all attempts of a call share
// such a context, they go to different endpoints. A retry.Transport around a Transport does not need it.
func WithTried(ctx context.Context) context.Context {
	return context.WithValue(ctx, triedKey{}, new(triedList))
}

type triedKey struct{}

// triedList holds endpoint IDs. A nil list is empty and stays so.
type triedList struct {
	mu  sync.Mutex
	ids []string
}

func triedOf(ctx context.Context) *triedList {
	l, _ := ctx.Value(triedKey{}).(*triedList)
	return l
}

func (l *triedList) add(id string) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.Contains(l.ids, id) {
		l.ids = append(l.ids, id)
	}
}

// all returns the IDs so far. The slice must not be changed.
func (l *triedList) all() []string {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ids[:len(l.ids):len(l.ids)] // later additions do not write to what the reader reads
}
