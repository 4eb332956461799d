package meshgrpc

import (
	"context"
	"encoding/base64"
	"net/http"
	"net/textproto"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/nosidecar/mesh/internal/asserted"
	"github.com/nosidecar/mesh/internal/attempt"
	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/grpcwire"
)

// authority returns the host of the target of a ClientConn, with its port.
func authority(cc *grpc.ClientConn) string {
	target := cc.Target()
	if host, ok := strings.CutPrefix(target, scheme+":///"); ok {
		return host
	}
	if _, rest, ok := strings.Cut(target, "://"); ok { // another scheme, whose resolver is not used
		_, host, _ := strings.Cut(rest, "/")
		return host
	}
	return strings.TrimPrefix(target, scheme+":")
}

// checkTarget returns an error if target cannot name a host of the mesh.
func checkTarget(target string) error {
	if rest, ok := strings.CutPrefix(target, scheme+"://"); ok {
		if host, ok := strings.CutPrefix(rest, "/"); !ok || host == "" {
			return notTarget(target)
		}
		return nil
	}
	if strings.Contains(target, "://") || strings.HasPrefix(target, scheme+":") || strings.HasPrefix(target, "[") {
		return nil
	}
	// A colon without a port after it means a scheme with an opaque part, as in "dns:echo".
	if _, rest, ok := strings.Cut(target, ":"); ok {
		if _, err := strconv.ParseUint(rest, 10, 16); err != nil {
			return notTarget(target)
		}
	}
	return nil
}

const contentType = "application/grpc"

// usual is the header of a request without metadata. It is shared, since the header of a request is never changed.
var usual = http.Header{"Content-Type": {contentType}, "Te": trailers}

// trailers is the value of the te header of every gRPC request.
var trailers = []string{"trailers"}

// requestHeader returns the header of a call as the mesh sees it, which is its metadata.
func requestHeader(ctx context.Context, kind string) http.Header {
	md, ok := metadata.FromOutgoingContext(ctx)
	if !ok || len(md) == 0 {
		if kind == "" {
			return usual
		}
		return http.Header{"Content-Type": {kind}, "Te": trailers}
	}
	h := httpHeader(md)
	if kind == "" {
		kind = contentType
	}
	h["Content-Type"], h["Te"] = []string{kind}, trailers
	if values := md[grpcwire.PreviousAttempts]; len(values) > 0 && h[attempt.Header] == nil {
		if n, err := strconv.Atoi(values[0]); err == nil && n > 0 {
			h[attempt.Header] = []string{strconv.Itoa(n + 1)} // marks the call as a retry
		}
	}
	return h
}

// httpHeader returns metadata as an HTTP header, as it is on the wire. Values are shared, except those of binary metadata, which
// are encoded.
func httpHeader(md metadata.MD) http.Header {
	h := make(http.Header, len(md)+2)
	for key, values := range md {
		if strings.HasSuffix(key, binarySuffix) {
			values = wireOf(values)
		}
		h[headerName(key)] = values
	}
	return h
}

// ownHeader is the engine.HeaderSetter of an attempt that has its own header.
type ownHeader http.Header

// SetHeader implements engine.HeaderSetter.
func (h ownHeader) SetHeader(name, value string) {
	if name = field.Key(name); value == "" {
		delete(h, name)
	} else {
		h[name] = []string{value}
	}
}

// Header implements engine.HeaderSetter.
func (h ownHeader) Header() map[string][]string { return h }

// hide returns the metadata of a response without the metadata that peers exchange about themselves.
func hide(md metadata.MD) metadata.MD {
	for _, name := range [...]string{peerMetadata, peerMetadataID} {
		if md[name] != nil {
			md = md.Copy()
			delete(md, name)
		}
	}
	return md
}

// The names of the metadata that peers exchange, in lower case as in gRPC.
var peerMetadata, peerMetadataID = strings.ToLower(asserted.PeerMetadata), strings.ToLower(asserted.PeerMetadataID)

// receive adds the metadata of an inbound call, as an HTTP header, to h, which is empty. It returns the host of the call, and whether it is
// plain; see [admission.Facts].
func receive(h http.Header, md metadata.MD) (host string, plain bool) {
	plain = true
	for key, values := range md {
		switch key {
		case ":authority":
			if len(values) > 0 {
				host = values[0]
			}
			continue
		case "content-type", "user-agent", "grpc-accept-encoding", "authorization", "traceparent", "tracestate", "baggage", "b3", "x-request-id":
		default:
			plain = false
			if strings.HasSuffix(key, binarySuffix) {
				values = wireOf(values)
			}
		}
		h[headerName(key)] = values
	}
	h["Te"] = trailers // gRPC does not pass it on, but every client must send it
	if h["Content-Type"] == nil {
		h["Content-Type"] = usual["Content-Type"]
	}
	return host, plain
}

// binarySuffix is the suffix of the names of metadata that gRPC encodes.
const binarySuffix = "-bin"

func wireOf(values []string) []string {
	all := make([]string, len(values))
	for i, v := range values {
		all[i] = base64.RawStdEncoding.EncodeToString([]byte(v))
	}
	return all
}

// metadataOf returns the values of a header as metadata. A binary value that is not encoded, such as one from a document, stays as
// it is.
func metadataOf(key string, values []string) []string {
	if !strings.HasSuffix(key, binarySuffix) {
		return values
	}
	all := slices.Clone(values)
	for i, v := range all {
		if plain, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(v, "=")); err == nil {
			all[i] = string(plain)
		}
	}
	return all
}

// fromHTTP returns a request header as metadata, without the headers that gRPC or the connection sets.
func fromHTTP(h http.Header) metadata.MD {
	return grpcMetadata(h, "Content-Type", "Content-Length", "Connection", "Te", deadline.Header) // grpc-timeout has the deadline
}

// fromReply returns a response header as metadata, without the status.
func fromReply(h http.Header) metadata.MD {
	return grpcMetadata(h, "Content-Length", "Grpc-Status", "Grpc-Message")
}

// grpcMetadata is the reverse of httpHeader, without some headers.
func grpcMetadata(h http.Header, without ...string) metadata.MD {
	md := make(metadata.MD, len(h))
	for name, values := range h {
		if !slices.Contains(without, name) {
			key := metadataKey(name)
			md[key] = metadataOf(key, values)
		}
	}
	return md
}

// unchanged reports whether h has the same values as base, apart from the deadline, which gRPC sends in its own way.
func unchanged(h, base http.Header) bool {
	if reflect.ValueOf(h).UnsafePointer() == reflect.ValueOf(base).UnsafePointer() {
		return true
	}
	n := 0
	for name, values := range h {
		if name == deadline.Header {
			continue
		}
		before, ok := base[name]
		if !ok || !same(values, before) {
			return false
		}
		n++
	}
	if _, ok := base[deadline.Header]; ok {
		n++
	}
	return n == len(base)
}

// unsendableHeader returns what gRPC cannot send of h, as far as it differs from base, or "".
func unsendableHeader(h, base http.Header) string {
	for name, values := range h {
		if same(values, base[name]) {
			continue
		}
		key := metadataKey(name)
		if !field.IsMetadata(key) {
			return "the header " + strconv.Quote(key) + ", a name that gRPC cannot send: use letters, digits, hyphens, underscores and dots"
		}
		for _, v := range values {
			if !field.IsMetadataValue(key, v) {
				return "the header " + key + " to a value that gRPC cannot send, " + strconv.Quote(v) + ": use printable characters of ASCII"
			}
		}
	}
	return ""
}

// same reports whether a and b are the same slice, not just equal ones.
func same(a, b []string) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// outgoing returns the context of the n-th try of a call whose header was base and now is h.
func outgoing(ctx context.Context, h, base http.Header, n int) context.Context {
	if unchanged(h, base) {
		return ctx
	}
	md := fromHTTP(h)
	if n > 1 {
		md[grpcwire.PreviousAttempts] = []string{strconv.Itoa(n - 1)}
	}
	return metadata.NewOutgoingContext(ctx, md)
}

// names maps common keys of metadata to names of headers, and keys is its reverse. Converting a name would allocate.
var names, keys = make(map[string]string), make(map[string]string)

func init() {
	for _, key := range [...]string{
		"content-type", "user-agent", "grpc-accept-encoding", "grpc-encoding", "grpc-timeout", "authorization", grpcwire.PreviousAttempts,
		"traceparent", "tracestate", "baggage", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled",
		strings.ToLower(asserted.ClientCert), strings.ToLower(asserted.RequestID), peerMetadata, peerMetadataID,
		strings.ToLower(attempt.Header), strings.ToLower(deadline.Header), "x-forwarded-for", "x-forwarded-proto",
	} {
		name := textproto.CanonicalMIMEHeaderKey(key)
		names[key], keys[name] = name, key
	}
}

// headerName returns the name of a header for a key of metadata.
func headerName(key string) string {
	if name, ok := names[key]; ok {
		return name
	}
	return textproto.CanonicalMIMEHeaderKey(key)
}

// metadataKey is the reverse of headerName.
func metadataKey(name string) string {
	if key, ok := keys[name]; ok {
		return key
	}
	return strings.ToLower(name)
}
