package meshgrpc

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/engine"
	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/internal/grpcstatus"
	"github.com/nosidecar/mesh/internal/grpcwire"
	"github.com/nosidecar/mesh/internal/refusal"
	"github.com/nosidecar/mesh/policy/limit"
)

var (
	errBalancer = refusal.New("the load balancer of the mesh is not in use: the ClientConn has another default service config " +
		"(grpc.WithDefaultServiceConfig must name \"" + BalancerName + "\" as its load balancer)")
	errCredentials = refusal.New("the credentials of the mesh are not in use: the ClientConn has others " +
		"(grpc.WithTransportCredentials or grpc.WithCredentialsBundle after meshgrpc.DialOptions)")
	errDialer = refusal.New("the dialer of the mesh is not in use: the ClientConn has another " +
		"(grpc.WithContextDialer or grpc.WithDialer after meshgrpc.DialOptions; mesh.WithTransport takes a dialer)")
	errInsecure = refusal.Because(status.Error(codes.Unauthenticated,
		"the per-RPC credentials of the ClientConn require transport security, and the mesh calls the endpoint in plaintext"))
	errStreamMirror = refusal.New("streams are not mirrored")
	errMirrored     = refusal.New("the call was mirrored already, before it waited for an endpoint")
	errEnded        = errors.New("the try is over")
)

// closing is the error of a call whose caller closed the ClientConn. It counts as if the caller had cancelled the call.
type closing struct{}

var errClosing error = closing{}

//lint:ignore SA1019 there is no other error for a ClientConn that the caller closed
func (closing) Error() string { return status.Convert(grpc.ErrClientConnClosing).Message() }

//lint:ignore SA1019 as above
func (closing) GRPCStatus() *status.Status { return status.Convert(grpc.ErrClientConnClosing) }

//lint:ignore SA1019 as above
func (closing) Unwrap() []error { return []error{grpc.ErrClientConnClosing, context.Canceled} }

// closed reports whether the call ended with err because its caller closed the ClientConn. A server may pass on such an error that it got
// from a server of its own.
func (c *call) closed(err error) bool {
	return grpcwire.Closed(err) && c.cc.GetState() == connectivity.Shutdown
}

// noHost is the error of a call whose target names no host.
type noHost struct{ target string }

func (e *noHost) Error() string   { return notTarget(e.target).Error() }
func (e *noHost) Unwrap() []error { return []error{errTarget, engine.ErrNotInMesh} }

// neverReady is the error of a wait-for-ready call that could not be sent before its context ended.
type neverReady struct {
	cause error // the cause of the context
	last  error // why the call could not be sent
}

func (e *neverReady) Error() string   { return e.cause.Error() + "; latest error: " + e.last.Error() }
func (e *neverReady) Unwrap() []error { return []error{e.cause, e.last} }

// unready reports whether a call failed because there was no endpoint, or none that could be connected to.
func unready(err error) bool {
	failed, ok := errors.AsType[*mesh.Error](err)
	if !ok {
		return false
	}
	switch failed.Layer {
	case "balancer", "discovery":
		return true
	}
	return failed.Flags&mesh.FlagConnectFailure != 0
}

// unsendable returns why gRPC, or an interceptor, does not send a try to which a connection was given. Mostly it is for what the caller wants to
// send: a message, credentials, metadata.
func unsendable(err error) error {
	if code := status.Code(err); code == codes.Unavailable || code == codes.Canceled {
		return refusal.Because(err) // not the caller's fault, nor that of the endpoint
	}
	return failure.Mark(failure.BadRequest, err)
}

// failed returns an error of the mesh as a status error for the caller.
func failed(ctx context.Context, err error) error {
	return grpcstatus.Wrap(codeOf(ctx, err), err)
}

func codeOf(ctx context.Context, err error) codes.Code {
	switch {
	case ctx.Err() == nil:
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return codes.DeadlineExceeded
	default:
		return codes.Canceled
	}
	if failed, ok := err.(*mesh.Error); ok && failed.Flags&mesh.FlagConnectFailure != 0 {
		return codes.Unavailable // even if connectTimeout has passed
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return codes.DeadlineExceeded
	}
	if s, ok := errors.AsType[interface {
		error
		GRPCStatus() *status.Status
	}](err); ok {
		return s.GRPCStatus().Code()
	}
	if errors.Is(err, context.Canceled) {
		return codes.Canceled
	}
	return codes.Unavailable
}

// answered returns the error for a response of the mesh itself: a fault, a limit, a redirect.
func answered(resp *http.Response) error {
	if code, err := strconv.ParseUint(resp.Header.Get("Grpc-Status"), 10, 32); err == nil {
		if codes.Code(code) == codes.OK { // to gRPC, that is a protocol error
			return status.Error(codes.Internal, "the mesh ended the call with status OK, but without a reply")
		}
		return status.Error(codes.Code(code), resp.Header.Get("Grpc-Message"))
	}
	code := grpcstatus.FromHTTP(resp.StatusCode)
	switch {
	case resp.Header["X-Envoy-Overloaded"] != nil:
		return grpcstatus.Wrap(code, limit.ErrOverflow)
	case resp.Header["X-Envoy-Ratelimited"] != nil:
		return grpcstatus.Wrap(code, limit.ErrRateLimited)
	}
	const enough = 1 << 10
	text, _ := io.ReadAll(io.LimitReader(resp.Body, enough))
	message := strings.TrimSpace(string(text))
	if message == "" {
		message = http.StatusText(resp.StatusCode)
	}
	return status.Error(code, "the mesh answered "+strconv.Itoa(resp.StatusCode)+": "+message)
}

// lost returns the error of a try whose stream was reset or whose connection broke, and nil for any other err.
func lost(err error) error {
	s := status.Convert(err)
	text := s.Message()
	if grpcwire.Unprocessed(err) {
		return failure.Mark(failure.RefusedStream, err)
	}
	if _, reset := grpcwire.ResetCode(err); reset {
		return failure.Mark(failure.StreamReset, err)
	}
	if s.Code() != codes.Unavailable {
		return nil
	}
	for _, sign := range [...]string{
		"error reading from server", "error reading server preface", "connection error", "closing transport",
		"keepalive ping failed",
	} {
		if strings.Contains(text, sign) {
			return err
		}
	}
	return nil
}
