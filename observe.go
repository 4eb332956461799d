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
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/policy/telemetry"
	"github.com/nosidecar/mesh/retry"
	"github.com/nosidecar/mesh/tlsid"
)

// Observer is the seam through which traces, metrics and logs attach: a set of functions that are told what the mesh
// does. Functions that are nil are skipped; a mesh without observers pays nothing for them.
//
// The functions run on the goroutine of the call, or on one of the mesh's own for what is not part of a call, and may run
// on several at the same time. They must return quickly and must not keep what they are given: a [Call], [Attempt],
// [Inbound] or [Conn] is valid until its End function returns. They must not call [Mesh.Close], which waits for those goroutines,
// for 30 seconds at most.
type Observer struct {
	// Started is called once, when the mesh is ready and before [New] returns it. It may be asked for its [Mesh.Status] from then on.
	Started func(m *Mesh)

	// CallStart is called when a request enters the mesh, before it is routed. The context it returns, derived from ctx,
	// is the one the call goes on with; a tracer puts its span there.
	CallStart func(ctx context.Context, c *Call) context.Context

	// CallEnd is called exactly once for each CallStart: when the response body ends, or when the call fails. By then the
	// attempts have ended, too.
	CallEnd func(ctx context.Context, c *Call)

	// CallMessage is called for each message of a gRPC call that the program has sent or received, when it is so far, and not
	// again where the mesh sends it once more. The messages of a stream may come from several goroutines.
	CallMessage func(ctx context.Context, c *Call, sent bool)

	// AttemptStart is called when an endpoint has been chosen, before the request is sent to it. It may change the header of
	// this attempt through Attempt.Sent.
	AttemptStart func(ctx context.Context, a *Attempt) context.Context

	// AttemptEnd is called exactly once for each AttemptStart.
	AttemptEnd func(ctx context.Context, a *Attempt)

	// InboundStart is called when a request reaches [Mesh.Handler], before anything is decided about it. The context it
	// returns is the one the request goes on with.
	InboundStart func(ctx context.Context, in *Inbound) context.Context

	// InboundEnd is called exactly once for each InboundStart, when the handler has returned or the request was refused.
	InboundEnd func(ctx context.Context, in *Inbound)

	// InboundMessage is called for each message that the handler of a gRPC call has received or sent, when it is so far.
	InboundMessage func(ctx context.Context, in *Inbound, sent bool)

	// ConnStart is called when [Mesh.DialContext] has made a connection, or has failed to, and when a listener of
	// [Mesh.ListenTCP] is about to return one.
	ConnStart func(c *Conn)

	// ConnEnd is called exactly once for each ConnStart: when the connection is closed, or at once if there is none.
	ConnEnd func(c *Conn)

	// Ejection is called when outlier detection takes an endpoint out, or gives it another chance.
	Ejection func(target route.Target, event breaker.Event)

	// Circuit is called when the circuit of a destination opens, half-opens or closes.
	Circuit func(target route.Target, change breaker.Change)

	// Endpoints is called when discovery delivers a set of endpoints, with their number.
	Endpoints func(target route.Target, count int)

	// DiscoveryFailed is called when discovery fails. The last known endpoints stay.
	DiscoveryFailed func(service discovery.Service, err error)

	// MirrorDropped is called when a copy of a request is not sent.
	MirrorDropped func(target route.Target, err error)

	// Identity is called when a new identity is in force; err is nil then. It is called with a nil id when the source of the
	// identity fails: the last one stays until it expires.
	Identity func(id *tlsid.Identity, err error)

	// ConnectionRefused is called when [Mesh.Listen] or [Mesh.ListenTCP] refuses a connection at the address local.
	ConnectionRefused func(local net.Addr, refusal tlsid.Refusal)

	// PolicyLoad is called after every attempt to load documents, and once, with a warning, if [Mesh.Handler] is called in a
	// process with an identity while no security document is about it.
	PolicyLoad func(PolicyLoad)
}

// Call is one request through the mesh, with all its attempts.
type Call struct {
	// Request is the caller's. It must not be changed.
	Request *http.Request

	// Start is when the request entered the mesh.
	Start time.Time

	// Telemetry is what documents said about traces, metrics and logs when the call began. It may be nil.
	Telemetry *telemetry.Settings

	// Mirror says that the call is a copy of another one, whose response is not waited for.
	Mirror bool

	// Document and Route say what routed the call. Both may be empty. They are known when the first attempt starts.
	Document, Route string

	// Target is where the call goes. It is zero if the call was answered or refused before a destination was chosen. It is
	// known when the first attempt starts.
	Target route.Target

	// Last is the latest attempt, nil if there was none. It may be looked at in CallMessage and CallEnd, too; the header of the
	// answer is there for the messages that were received.
	Last *Attempt

	// The fields below are set when the call ends.

	// Outside says that the host is not part of the mesh. The call was sent there as it is, or refused: see [WithRegistryOnly].
	Outside bool

	// Status is the response's status code, 0 if there was no response.
	Status int

	// GRPCStatus is the status of a gRPC call that was answered, whose HTTP status is 200 whatever became of it. It is -1 for other
	// calls, and where there was no answer: Err says why.
	GRPCStatus int

	// ResponseHeader is the header of the response, nil without one. It is as the server sent it, but for what the program
	// itself changed in the header of its response before it had read the body. Of gRPC calls it is known only if the caller or a
	// document wants the header, or if the request carried x-envoy-peer-metadata.
	ResponseHeader http.Header

	// BytesSent and BytesReceived are the sizes of the bodies: what was read of the response, and what was read of the
	// request. A request body of known length counts if there was a response. The bodies of gRPC calls are their messages,
	// before compression, each with the 5 bytes before it. For an upgraded connection it is what was written and read.
	BytesSent, BytesReceived int64

	// Err is what the caller was given, or what broke the response body.
	Err error

	// Flags say why the call ended as it did.
	Flags Flags

	// Attempts counts the requests that were sent, Stopped says why there were no more.
	Attempts int
	Stopped  retry.Reason

	// Duration is the time from Start to the end of the response body.
	Duration time.Duration
}

// Attempt is one try of a [Call].
type Attempt struct {
	Call *Call

	// Number counts from 1.
	Number int

	// Endpoint is the address, with port, that the attempt goes to.
	Endpoint string

	// Peer is what discovery says of the endpoint, with the port that is dialled. It must not be changed. The pointer stays the same
	// as long as neither that nor the documents about the destination change, so it can be the key of a cache.
	Peer *discovery.Endpoint

	// PeerID is the SPIFFE ID that the endpoint has to prove by TLS before anything is sent, "" without mTLS, or if it is one
	// of several and not known yet. When the attempt ends it is what was proved, and "" if nothing was.
	PeerID string

	// Header is what is sent. It may be the caller's, and must not be changed but through Sent.
	Header http.Header

	// Sent changes what is sent, for this attempt alone. It is for AttemptStart, and must not be used later.
	Sent interface {
		// SetHeader sets a header. An empty value removes it.
		SetHeader(name, value string)
	}

	// Start is when the endpoint had been chosen.
	Start time.Time

	// The fields below are set when the attempt ends.

	// Status is the endpoint's status code, 0 if it sent none.
	Status int

	// GRPCStatus is the endpoint's status of gRPC, -1 if it sent none.
	GRPCStatus int

	// ProtoMajor and ProtoMinor are the version of HTTP in which the endpoint answered. They are 0 without an answer, and for calls
	// of meshgrpc, which always are HTTP/2.
	ProtoMajor, ProtoMinor int

	// ResponseHeader is the header of the endpoint's answer, nil without one: see [Call.ResponseHeader].
	ResponseHeader http.Header

	// Err is how the attempt failed.
	Err error

	// Duration is the time from Start to the end of the attempt's response body.
	Duration time.Duration
}

// Inbound is one request to this process.
type Inbound struct {
	// Request is the one that arrived. It must not be changed.
	Request *http.Request

	// Start is when it reached the mesh.
	Start time.Time

	// Telemetry is what documents said about traces, metrics and logs when it arrived. It may be nil.
	Telemetry *telemetry.Settings

	// Peer is the SPIFFE ID of who sent it, "" for a peer without an identity. PeerErr says what is wrong with the
	// certificate of a peer that has presented one.
	Peer    string
	PeerErr error

	// RestartTraces says that the trace headers of the request are not believed, nor shown to the handler: see
	// [ServerConfig.RestartTraces].
	RestartTraces bool

	// ResponseHeader is the header of the answer. In InboundStart observers may set headers in it. Of a gRPC call it has what
	// they have set and no more, and an answer in the place of the handler's does not carry it.
	ResponseHeader http.Header

	// The fields below are set when the request ends.

	// BytesReceived and BytesSent are the sizes of the bodies. That of a request of known length counts if the handler was
	// called. The bodies of gRPC calls are their messages, before compression, each with the 5 bytes before it. A connection that the
	// handler has taken over does not count.
	BytesReceived, BytesSent int64

	// Decision is what was decided about it, with the policy, the rule and the reason, which the peer is not told; what
	// AUDIT policies mark and what policies with a dry run would have decided is in it too. For a request that was ended while
	// its handler ran, because documents, bundles or the time do not allow it any more, it is that decision.
	Decision authz.Decision

	// Status is the status that was answered, 0 if the request was cut off without an answer, or its caller has gone before there
	// was one.
	Status int

	// GRPCStatus is the status of a gRPC call, whose HTTP status is 200 whatever became of it. It is -1 for other requests, and
	// where there was no answer.
	GRPCStatus int

	// Pattern is the pattern of http.ServeMux that the request matched, if the handler is one, and "" otherwise.
	Pattern string

	// Flags say why the request was refused by a limit, or not answered.
	Flags Flags

	// Duration is the time from Start to the return of the handler.
	Duration time.Duration
}

// PolicyLoad is the result of loading documents.
type PolicyLoad struct {
	// Number counts the loads of the mesh from 1, those that are refused included.
	Number int

	// Version stands for the content of the documents: it is the same for the same ones, in every process. It is "" if they could
	// not be read.
	Version string

	// Findings are the errors and warnings, in the order of the documents.
	Findings policy.Findings

	// Err is nil if the documents are in force now. Otherwise the last good ones still are.
	Err error

	// remark says that nothing was loaded: the findings are about the documents in force.
	remark bool
}

// Conn is a raw connection, of [Mesh.DialContext] or [Mesh.ListenTCP].
type Conn struct {
	// Inbound says that the connection was accepted.
	Inbound bool

	// Telemetry is what documents said about metrics and logs when it began. It may be nil.
	Telemetry *telemetry.Settings

	// Target is where an outbound connection goes. Outside says that it is not part of the mesh.
	Target  route.Target
	Outside bool

	// Endpoint is what discovery says of the endpoint of an outbound connection, or of the last one that was tried. It is nil
	// outside the mesh, and if none was found: see [Attempt.Peer].
	Endpoint *discovery.Endpoint

	// PeerID is the SPIFFE ID that the peer has proved, "" without mTLS.
	PeerID string

	// Local and Remote are the addresses. They are nil if the connection could not be made.
	Local, Remote net.Addr

	// Start is when the connection was asked for, or accepted.
	Start time.Time

	// The fields below are set when the connection ends.

	// Flags say why it could not be made, or broke.
	Flags Flags

	// Err is why it could not be made, how it broke, or why the mesh has closed it. It is nil for one that the program closed.
	Err error

	// Duration is the time from Start to the end.
	Duration time.Duration

	sent, received atomic.Int64
}

// Bytes returns how much was written to the connection and read from it so far. It may be called until ConnEnd has returned, on
// any goroutine.
func (c *Conn) Bytes() (sent, received int64) {
	return c.sent.Load(), c.received.Load()
}
