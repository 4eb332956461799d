package mesh

import (
	"context"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/policy/jwt"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/policy/telemetry"
	"github.com/nosidecar/mesh/retry"
	"github.com/nosidecar/mesh/tlsid"
)

// Observer is a set of functions that are told what the mesh does. Traces, metrics and logs attach through it.
// Functions that are nil are skipped; a mesh without observers pays nothing for them.
//
// The functions run on the goroutine of the call, or on one of the mesh's own for events outside calls, and may run on
// several at the same time. They must return quickly and must not keep what they are given: a [Call], [Attempt], [Inbound]
// or [Conn] is valid until its End function returns. They must not call [Mesh.Close], which waits for those goroutines, for
// 30 seconds at most.
//
// The mesh does not recover from a panic in a function. On the goroutine of a call, the panic passes through to the caller, for
// a request to this process to the http.Server, which recovers from it, and for a gRPC call to the server of gRPC, which does
// not. On a goroutine of the mesh's own, it ends the process. Whoever recovers finds nothing in flight that has ended, and a
// request body closed; but functions that would have been called after the one that panicked may not have been.
type Observer struct {
	// Started is called once, when the mesh is ready and before [New] returns it. From then on [Mesh.Status] may be called.
	Started func(m *Mesh)

	// CallStart is called when a request enters the mesh, before it is routed. The context that it returns, derived from
	// ctx, is used for the rest of the call; a tracer puts its span there.
	CallStart func(ctx context.Context, c *Call) context.Context

	// CallEnd is called exactly once for each CallStart: when the response body ends, or when the call fails. By then its
	// attempts have ended, too.
	CallEnd func(ctx context.Context, c *Call)

	// CallMessage is called for each message of a gRPC call that the program has sent or received, as it happens, and not
	// again when a retry resends the message. The messages of a stream may come from several goroutines.
	CallMessage func(ctx context.Context, c *Call, sent bool)

	// AttemptStart is called when an endpoint has been chosen, before the request is sent to it. It may change the header of
	// this attempt through Attempt.Sent.
	AttemptStart func(ctx context.Context, a *Attempt) context.Context

	// AttemptEnd is called exactly once for each AttemptStart.
	AttemptEnd func(ctx context.Context, a *Attempt)

	// InboundStart is called when a request reaches [Mesh.Handler], before anything is decided about it. The context that it
	// returns is used for the rest of the request.
	InboundStart func(ctx context.Context, in *Inbound) context.Context

	// InboundEnd is called exactly once for each InboundStart, when the handler has returned or the request was refused.
	InboundEnd func(ctx context.Context, in *Inbound)

	// InboundMessage is called for each message that the handler of a gRPC call has received or sent, as it happens.
	InboundMessage func(ctx context.Context, in *Inbound, sent bool)

	// ConnStart is called when [Mesh.DialContext] has made a connection, or has failed to, and when a listener of
	// [Mesh.ListenTCP] is about to return one.
	ConnStart func(c *Conn)

	// ConnEnd is called exactly once for each ConnStart: when the connection is closed, or at once if there is none.
	ConnEnd func(c *Conn)

	// Ejection is called when outlier detection, or the failure accrual of Linkerd, ejects an endpoint or readmits it.
	Ejection func(target route.Target, event breaker.Event)

	// EjectionWithheld is called when an endpoint fails often enough to be ejected and stays, because maxEjectionPercent, which is
	// 10 by default, allows no more ejections. It is called once until the endpoint was ejected or has recovered.
	EjectionWithheld func(target route.Target, event breaker.Event)

	// Circuit is called when the circuit of a destination opens, half-opens or closes.
	Circuit func(target route.Target, change breaker.Change)

	// Endpoints is called when discovery delivers a set of endpoints, with their number.
	Endpoints func(target route.Target, count int)

	// DiscoveryFailed is called when discovery fails. The last known endpoints stay.
	DiscoveryFailed func(service discovery.Service, err error)

	// MirrorDropped is called when a mirrored copy of a request is not sent.
	MirrorDropped func(target route.Target, err error)

	// Identity is called when a new identity is in force; err is nil then. With [WithIdentity], it is called for the first one
	// before [New] returns. It is called with a nil id when the source of the identity fails; the last identity stays in force
	// until it expires.
	Identity func(id *tlsid.Identity, err error)

	// Keys is called after every fetch of keys that tokens are verified with; see [jwt.State]. The last good ones stay in force.
	Keys func(state jwt.State)

	// ConnectionRefused is called when [Mesh.Listen] or [Mesh.ListenTCP] refuses a connection at the address local, and when
	// [Mesh.Handler] cuts off a request without mutual TLS that came to a STRICT port over another listener.
	ConnectionRefused func(local net.Addr, refusal tlsid.Refusal)

	// PolicyLoad is called after every attempt to load documents, and once, with the number 0 and a warning, if [Mesh.Handler] is
	// called in a process with an identity that no security document selects: a remark about the documents in force.
	PolicyLoad func(PolicyLoad)
}

// Call is one request through the mesh, with all its attempts.
type Call struct {
	// Request is the caller's request. It must not be changed.
	Request *http.Request

	// Start is when the request entered the mesh.
	Start time.Time

	// Telemetry is what documents said about traces, metrics and logs when the call began. It may be nil.
	Telemetry *telemetry.Settings

	// Mirror says that the call is a mirrored copy of another one. Nothing waits for its response.
	Mirror bool

	// Document and Route name what routed the call. Both may be empty. They are set when the first attempt starts.
	Document, Route string

	// Target is where the call goes. It is zero if the call was answered or refused before a destination was chosen. It is
	// set when the first attempt starts, and changes with a later one that fails over to another target.
	Target route.Target

	// Last is the latest attempt, nil if there was none. It may be read in CallMessage and CallEnd, too; for received
	// messages its response header is already set.
	Last *Attempt

	// The fields below are set when the call ends.

	// Outside says that the host is not part of the mesh. The call was sent there as it is, or refused: see [WithRegistryOnly].
	Outside bool

	// Status is the response's status code, 0 if there was no response.
	Status int

	// GRPCStatus is the status of a gRPC call that was answered; its HTTP status is 200 in any case. It is -1 for other
	// calls, and if there was no answer: Err says why.
	GRPCStatus int

	// ResponseHeader is the header of the response, nil without one. It is as the server sent it, except for changes that
	// the program made to the header of its response before it had read the body. For gRPC calls it is set only if the
	// caller or a document reads the header, or if the request carried x-envoy-peer-metadata.
	ResponseHeader http.Header

	// BytesSent and BytesReceived are the sizes of the bodies: the bytes that were read of the request and of the response.
	// A request body of known length counts if there was a response. The bodies of gRPC calls are their messages, before
	// compression, each with its 5-byte prefix. For an upgraded connection they are the bytes written and read.
	BytesSent, BytesReceived int64

	// Err is the error that the caller got, or the one that broke the response body.
	Err error

	// Flags say why the call ended as it did.
	Flags Flags

	// Attempts counts the requests that were sent; Stopped says why there were no more.
	Attempts int
	Stopped  retry.Reason

	// Duration is the time from Start to the end of the response body.
	Duration time.Duration
}

// Attempt is one try of a [Call].
type Attempt struct {
	Call *Call

	// Number is the number of the attempt, from 1.
	Number int

	// Endpoint is the address, with port, that the attempt goes to.
	Endpoint string

	// Peer is the endpoint as discovery describes it, with the port that is dialled. It must not be changed. The pointer
	// stays the same until the description or the documents about the destination change, so it can be the key of a cache.
	Peer *discovery.Endpoint

	// PeerID is the SPIFFE ID that the endpoint has to prove by TLS before anything is sent. It is "" without mTLS, or if
	// several IDs are allowed and the actual one is not known yet. When the attempt ends, it is the ID that was proved, and
	// "" if none was.
	PeerID string

	// Header is the header that is sent. It may be the caller's, and must be changed only through Sent.
	Header http.Header

	// Sent changes the header that is sent, for this attempt alone. It is for AttemptStart, and must not be used later.
	Sent interface {
		// SetHeader sets a header. An empty value removes it.
		SetHeader(name, value string)
	}

	// Start is when the endpoint was chosen. It changes if gRPC has another endpoint chosen before anything was sent.
	Start time.Time

	// The fields below are set when the attempt ends.

	// Status is the endpoint's status code, 0 if it sent none.
	Status int

	// GRPCStatus is the endpoint's gRPC status, -1 if it sent none.
	GRPCStatus int

	// ProtoMajor and ProtoMinor are the HTTP version of the endpoint's answer. They are 0 without an answer, and for calls
	// of meshgrpc, which always use HTTP/2.
	ProtoMajor, ProtoMinor int

	// ResponseHeader is the header of the endpoint's answer, nil without one; see [Call.ResponseHeader].
	ResponseHeader http.Header

	// Err is the error of a failed attempt.
	Err error

	// Duration is the time from Start to the end of the attempt's response body.
	Duration time.Duration
}

// Inbound is one request to this process.
type Inbound struct {
	// Request is the request as it arrived. It must not be changed.
	Request *http.Request

	// Start is when the request reached the mesh.
	Start time.Time

	// Telemetry is what documents said about traces, metrics and logs when the request arrived. It may be nil.
	Telemetry *telemetry.Settings

	// Peer is the SPIFFE ID of the sender, "" for a peer without an identity. PeerErr says what is wrong with the
	// certificate that the peer presented, if anything is.
	Peer    string
	PeerErr error

	// User is the user whom the verified token of the request names, as "issuer/subject"; "" without a token. It is set when the
	// request ends.
	User string

	// RestartTraces says that the trace headers of the request are not trusted and are hidden from the handler; see
	// [ServerConfig.RestartTraces].
	RestartTraces bool

	// ResponseHeader is the header of the answer. In InboundStart observers may set headers in it. For a gRPC call it holds
	// only what they have set. An answer that the mesh gives in place of the handler does not carry it, and an error of a gRPC
	// handler that has sent nothing before has it in its trailer.
	ResponseHeader http.Header

	// The fields below are set when the request ends.

	// BytesReceived and BytesSent are the sizes of the bodies. A request body of known length counts if the handler was
	// called. The bodies of gRPC calls are their messages, before compression, each with its 5-byte prefix. A connection
	// that the handler has taken over does not count.
	BytesReceived, BytesSent int64

	// Decision is the authorization decision, with the policy, the rule and the reason, which the peer is not told. It
	// includes the marks of AUDIT policies and the would-be decisions of dry-run policies. For a request that was ended
	// while its handler ran, because documents, bundles or the time no longer allow it, it is the decision that ended it.
	Decision authz.Decision

	// Status is the status of the answer, 0 if the request was cut off without one, or if its caller was gone before there
	// was one.
	Status int

	// GRPCStatus is the status of a gRPC call; its HTTP status is 200 in any case. It is -1 for other requests, and if there
	// was no answer.
	GRPCStatus int

	// Pattern is the pattern of http.ServeMux that the request matched, if the handler is one, and "" otherwise.
	Pattern string

	// Preflight says that the request was the preflight of a web page, and that a CORS policy answered it.
	Preflight bool

	// Flags say why a limit refused the request, or why it was not answered, or not to the end: with FlagCallerGone the caller was gone
	// before the handler returned, with FlagConnectionTerminated (HTTP/1) or FlagRemoteReset (HTTP/2) the handler panicked. A unary gRPC
	// call whose message gRPC itself refuses, because it is too large or cannot be decoded, looks as if its caller were gone.
	Flags Flags

	// Duration is the time from Start to the return of the handler.
	Duration time.Duration
}

// PolicyLoad is the result of loading documents.
type PolicyLoad struct {
	// Number counts the loads of the mesh from 1, including refused ones.
	Number int

	// Version identifies the content of the documents: the same documents have the same version in every process. It is ""
	// if they could not be read.
	Version string

	// Findings are the errors and warnings, in the order of the documents. The error of a document that stands alone says what is in
	// force in its place, and since when; see [policy.Finding].
	Findings policy.Findings

	// Err is nil if the documents are in force now. Otherwise the last good ones still are. A document that stands alone and is
	// refused does not make the load fail.
	Err error

	// remark says that nothing was loaded: the findings are about the documents in force.
	remark bool
}

// Conn is a raw connection from [Mesh.DialContext] or [Mesh.ListenTCP].
type Conn struct {
	// Inbound says that the connection was accepted.
	Inbound bool

	// Telemetry is what documents said about metrics and logs when the connection began. It may be nil.
	Telemetry *telemetry.Settings

	// Target is where an outbound connection goes. Outside says that it is not part of the mesh.
	Target  route.Target
	Outside bool

	// Endpoint is the endpoint of an outbound connection as discovery describes it, or the last one that was tried. It is
	// nil outside the mesh, and if none was found; see [Attempt.Peer].
	Endpoint *discovery.Endpoint

	// PeerID is the SPIFFE ID that the peer has proved, "" without mTLS.
	PeerID string

	// Local and Remote are the addresses. They are nil if the connection could not be made.
	Local, Remote net.Addr

	// Start is when the connection was asked for, or accepted.
	Start time.Time

	// The fields below are set when the connection ends.

	// Flags say why the connection could not be made, or broke.
	Flags Flags

	// Err is why the connection could not be made, how it broke, or why the mesh has closed it. It is nil if the program
	// closed it.
	Err error

	// Duration is the time from Start to the end.
	Duration time.Duration

	sent, received atomic.Int64
}

// Bytes returns the numbers of bytes written to and read from the connection so far. It may be called on any goroutine until
// ConnEnd has returned.
func (c *Conn) Bytes() (sent, received int64) {
	return c.sent.Load(), c.received.Load()
}
