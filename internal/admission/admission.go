// Package admission is the interface of the inbound side of a mesh for protocols whose handlers are not those of net/http, such as gRPC.
package admission

import (
	"context"
	"net/http"
)

// Gate is implemented by the handler of a mesh.
type Gate interface {
	// Admit takes a request through the inbound side, up to its handler. It returns the call, and a child of the context of the request
	// for whatever runs before the handler. If the request is refused, Admit answers it and returns no call.
	//
	// Admit waits for nothing if the context of the request has a value for LaterKey. If a decision needs a wait, as for the keys of a
	// token, the call is Pending.
	//
	// Admit does not change the request: it passes what is to be changed for the handler to the adapter. The request and its header may be
	// used again after Done, unless there are observers.
	Admit(Adapter, *http.Request) (context.Context, Call)

	// Origin returns what the requests over a connection have in common, for [Facts]. Its argument is a request with the addresses and the TLS
	// state of the connection.
	Origin(*http.Request) Origin

	// Observed reports whether there are observers.
	Observed() bool
}

// Origin is what a Gate keeps with a connection. It may be nil.
type Origin any

// Facts are what an adapter knows of a request. A request whose context has no value for FactsKey has none.
type Facts struct {
	Origin Origin // of its connection

	// Plain says that, if the peer has an identity, the header has nothing that the inbound side acts upon by itself, without documents.
	Plain bool
}

// FactsKey is the key of the *Facts in the context of a request.
type FactsKey struct{}

// Adapter does for a protocol what the inbound side cannot. A refusal is written to it.
type Adapter interface {
	http.ResponseWriter

	// Edit sets a header for the handler, or removes it if there are no values. The values are shared, and must not be changed. Only Admit
	// and Resume call it.
	Edit(name string, values []string)

	// End ends a request while its handler runs. It must not block.
	End()
}

// Call is a request that was admitted, or is Pending. Enter is called first, then Done, and nothing after Done.
type Call interface {
	// Pending reports that nothing was decided, because Admit may not wait. Await must then be called, and Resume before Enter. Held is true.
	Pending() bool

	// Await waits for what a decision about a call that is Pending needs, with the context that Admit returned. It reports false if the call
	// would be refused now, so that it can be ended even if Resume is never called. Resume and Done wait for the end of Await.
	Await(context.Context) bool

	// Resume is the rest of Admit for a call that is Pending, and may wait. Its argument is the context for what comes before the
	// handler, a child of the one that Admit returned. It returns a child of that, or nil if it has refused and answered the request: then
	// Done must not be called.
	Resume(context.Context) context.Context

	// PeerID returns the SPIFFE ID of the peer, "" for a peer without an identity.
	PeerID() string

	// Held reports whether Done must be called even if no handler runs.
	Held() bool

	// Enter must be called when the handler is about to begin, which may be long after Admit. Its argument is the context for the handler,
	// with the PeerID set. Enter reports whether the request is still allowed. If it is not, Enter has answered it, and Done must still be
	// called. If the request is no longer allowed at some time between Enter and Done, the context ends with a *Withdrawn as its cause,
	// and End of the adapter is called.
	Enter(*Context) bool

	// Observed reports whether Message should be called.
	Observed() bool

	// Message must be called between Enter and Done for each message that the handler received or sent, with its size.
	Message(sent bool, size int)

	// Answered must be called if the request was answered with a gRPC status before its handler has returned. It is not called concurrently
	// with Done.
	Answered(grpcStatus int)

	// Header returns headers to add to the response of the handler. It may be empty.
	Header() http.Header

	// Done must be called when the handler has returned, with the HTTP status of the response (0 for none) and the gRPC status (-1 for
	// none).
	Done(status, grpcStatus int)

	// Load returns the binary load report for the trailer of gRPC, or "" if the caller does not get one.
	Load() string
}

// Withdrawn is the cause of a request that was ended while its handler ran.
type Withdrawn struct {
	Reason string // for the program, not for the peer
}

// Error implements error.
func (w *Withdrawn) Error() string {
	return "mesh: access was withdrawn while the request was served: " + w.Reason
}

// LaterKey is the key of a *bool in the context of a request for which nobody may wait now. It is set if there was something to wait for.
type LaterKey struct{}

// SenderKey is the key of the netip.Addr that a request was sent from, in the context in which its tokens are verified.
type SenderKey struct{}

// RequestKey is the key of a value in the context of every inbound gRPC call. HTTP requests have the key of net/http instead.
type RequestKey struct{}
