package accesslog

import (
	"context"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/asserted"
	"github.com/nosidecar/mesh/internal/engine"
	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/policy/route"
)

// record has the data of the line of a call. The call fills it; anything that costs more than copying a word is left to the goroutine
// that writes. Strings of a request may be kept, but not its header and URL.
type record struct {
	side     side
	start    time.Time
	duration time.Duration

	method     string
	uri        string // of an inbound request, as it was received; "" for the parts below
	path       string
	rawPath    string
	query      string
	forceQuery bool
	opaque     string
	secret     []string // query parameters that have tokens
	major      int      // of the version of HTTP
	minor      int

	status   int // of the response; 0 if there was none
	code     int // response_code: status, or the code that stands for the failure
	flags    mesh.Flags
	failed   bool  // there was an error
	err      error // the error, if no connection could be made
	attempts int
	denied   bool
	answered bool // by a CORS policy
	badPath  bool
	badToken bool
	policy   string // the policy that denied the request
	rule     int
	reason   string // why it was denied

	received, sent int64 // received from the caller, sent to the caller

	serviceTime  string
	forwardedFor string
	userAgent    string
	requestID    string
	authority    string
	serverName   string
	endpoint     string
	target       route.Target
	outside      bool
	routed       bool // by a document
	route        string
	local        net.Addr // the local end of the connection of an inbound request, or of a raw connection
	remote       net.Addr
	remoteText   string // used if remote is nil

	// For filters only. headers and peer are not kept.
	grpcStatus int // -1 if there is none
	headers    http.Header
	peerID     string
	peer       *discovery.Endpoint
}

// side is the kind of a record.
type side uint8

const (
	outbound side = iota
	inbound
	outboundConn
	inboundConn
)

func (l *Log) callEnd(_ context.Context, c *mesh.Call) {
	documents := &c.Telemetry.Client().Log
	code := engine.Flags(c.Flags).Code(c.Status)
	failed := c.Err != nil && c.Flags&mesh.FlagCallerGone == 0
	if c.Mirror || documents.Disabled || !l.keeps(filterCode(code, c.GRPCStatus, failed), c.Duration, c.Flags) {
		return
	}
	r := l.records.Get().(*record)
	r.side, r.start, r.duration = outbound, c.Start, c.Duration
	r.request(c.Request, "") // a proxy leaves the RequestURI of its own caller in the request, next to another URL
	r.secret = c.Telemetry.Client().SecretParams
	r.status, r.code, r.grpcStatus, r.flags, r.attempts = c.Status, code, c.GRPCStatus, c.Flags, c.Attempts
	r.fail(c.Err)
	r.target, r.routed, r.route, r.outside = c.Target, c.Document != "", c.Route, c.Outside
	r.received, r.sent = c.BytesSent, c.BytesReceived
	r.serviceTime = field.First(c.ResponseHeader, "X-Envoy-Upstream-Service-Time")
	if a := c.Last; a != nil {
		r.endpoint, r.peerID, r.peer = a.Endpoint, a.PeerID, a.Peer
		r.header(a.Header) // with what observers have set
	}
	l.put(r, documents)
}

func (l *Log) inboundEnd(ctx context.Context, in *mesh.Inbound) {
	documents := &in.Telemetry.Server().Log
	failed := in.Flags&mesh.FlagCallerGone == 0 // if there was no response
	if documents.Disabled || !l.keeps(filterCode(in.Status, in.GRPCStatus, failed), in.Duration, in.Flags) {
		return
	}
	r := l.records.Get().(*record)
	r.side, r.start, r.duration = inbound, in.Start, in.Duration
	r.request(in.Request, in.Request.RequestURI)
	if id, _ := ctx.Value(asserted.RequestIDKey{}).(string); id != "" { // the handler and its calls have this one, whatever the peer sent
		r.requestID = id
	}
	r.secret = in.Telemetry.Server().SecretParams
	r.status, r.code, r.grpcStatus, r.flags, r.answered = in.Status, in.Status, in.GRPCStatus, in.Flags, in.Preflight
	if r.denied = !in.Decision.Allowed; r.denied {
		d := &in.Decision
		r.badPath, r.badToken, r.policy, r.rule, r.reason = d.BadRequest, d.BadToken, d.Policy, d.Rule, d.Reason
	}
	r.received, r.sent, r.peerID = in.BytesReceived, in.BytesSent, in.Peer
	r.local, _ = in.Request.Context().Value(http.LocalAddrContextKey).(net.Addr)
	r.remoteText = in.Request.RemoteAddr
	if in.Request.TLS != nil {
		r.serverName = in.Request.TLS.ServerName
	}
	l.put(r, documents)
}

func (l *Log) connEnd(c *mesh.Conn) {
	side, said := outboundConn, c.Telemetry.Client()
	if c.Inbound {
		side, said = inboundConn, c.Telemetry.Server()
	}
	code := 0
	if c.Err != nil {
		code = engine.Flags(c.Flags).Code(0) // for the filter only
	}
	if said.Log.Disabled || !l.keeps(code, c.Duration, c.Flags) {
		return
	}
	r := l.records.Get().(*record)
	r.side, r.start, r.duration = side, c.Start, c.Duration
	r.grpcStatus, r.flags, r.target, r.outside = -1, c.Flags, c.Target, c.Outside
	r.fail(c.Err)
	r.local, r.remote, r.peerID, r.peer = c.Local, c.Remote, c.PeerID, c.Endpoint
	sent, received := c.Bytes()
	if r.received, r.sent = sent, received; c.Inbound {
		r.received, r.sent = received, sent
	}
	l.put(r, &said.Log)
}

// fail records that a call failed. The flags must be set before. The error is kept only if the line shows it, since its text may be long.
func (r *record) fail(err error) {
	if r.failed = err != nil; r.flags&mesh.FlagConnectFailure != 0 {
		r.err = err
	}
}

// request copies the data of a request.
func (r *record) request(req *http.Request, uri string) {
	r.method, r.major, r.minor = req.Method, req.ProtoMajor, req.ProtoMinor
	if r.uri = uri; uri == "" && req.URL != nil {
		u := req.URL
		r.path, r.rawPath, r.query, r.forceQuery, r.opaque = u.Path, u.RawPath, u.RawQuery, u.ForceQuery, u.Opaque
	}
	if r.authority = req.Host; r.authority == "" && req.URL != nil {
		r.authority = req.URL.Host
	}
	r.header(req.Header)
}

func (r *record) header(h http.Header) {
	r.headers = h
	r.forwardedFor, r.userAgent, r.requestID = field.First(h, "X-Forwarded-For"), field.First(h, "User-Agent"), field.First(h, "X-Request-Id")
}

// bound cuts long texts, whose length callers choose, so that the part that no line shows does not stay in memory while the record waits.
func (r *record) bound() {
	if len(r.path)+len(r.query)+len(r.opaque) > longest {
		r.uri = r.requestURI()
		r.path, r.rawPath, r.query, r.opaque = "", "", "", ""
	}
	if len(r.uri) > longest {
		r.method = strings.Clone(r.method) // in net/http, it shares the memory of the whole request line
	}
	for _, s := range [...]*string{
		&r.method, &r.uri, &r.serviceTime, &r.forwardedFor, &r.userAgent, &r.requestID, &r.authority, &r.serverName, &r.target.Host,
	} {
		if len(*s) > longest {
			*s = strings.Clone((*s)[:longest+1]) // one byte more, so that shorten knows that it was cut
		}
	}
}

// filterCode returns the status that Filter.Code is compared with. failed says whether a call without a response failed, rather than that
// its caller gave up.
func filterCode(code, grpcStatus int, failed bool) int {
	if grpcStatus > 0 {
		code = max(code, failure.GRPCStatus(uint32(grpcStatus)))
	}
	if code == 0 && failed {
		return http.StatusInternalServerError
	}
	return code
}
