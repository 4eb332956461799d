// Package admission is what the inbound side of a mesh is to protocols whose handlers are not those of net/http, such as gRPC.
package admission

import (
	"context"
	"net/http"
)

// Gate is what the handler of a mesh is besides.
type Gate interface {
	// Admit takes a request up to its handler. It returns the request to run the handler with and the call that this is, or
	// answers it and returns nil.
	Admit(http.ResponseWriter, *http.Request) (*http.Request, Call)
}

// Call is a request that was admitted. It is used in this order: Enter, then Done; nothing after Done.
type Call interface {
	// Held reports whether Done has to be called even if no handler is run.
	Held() bool

	// Enter is called when the handler is about to begin, which may be long after Admit. It returns the context for the handler,
	// a child of ctx, and whether the request is still allowed. If not, it was answered, and Done is called all the same. When
	// from Enter to Done the request is no longer allowed, that context ends with a *Withdrawn as its cause, and end is called.
	Enter(ctx context.Context, end Ender) (context.Context, bool)

	// Observed reports whether Message is to be called.
	Observed() bool

	// Message is called between Enter and Done for each message that the handler received or sent, with its size.
	Message(sent bool, size int)

	// Header returns what the answer of the handler is to begin with besides, which may be nothing.
	Header() http.Header

	// Done is called when the handler has returned, with the status that was answered in HTTP, 0 for none, and in gRPC, -1 for
	// none.
	Done(status, grpcStatus int)
}

// Ender ends a request while its handler runs.
type Ender interface {
	// End returns soon.
	End()
}

// Withdrawn is why a request was ended while its handler ran.
type Withdrawn struct {
	Reason string // for the program, not for the peer
}

// Error implements error.
func (w *Withdrawn) Error() string {
	return "mesh: access was withdrawn while the request was served: " + w.Reason
}

// RequestKey is the key of a value in the context of every gRPC call to this process. Requests of HTTP have that of net/http.
type RequestKey struct{}
