package meshgrpc

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"reflect"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/nosidecar/mesh/internal/body"
	"github.com/nosidecar/mesh/internal/engine/enginehttp"
	"github.com/nosidecar/mesh/internal/grpcreplay"
	"github.com/nosidecar/mesh/internal/grpcstatus"
)

// unary is a unary call. It is the one allocation that every call costs on our side, and holds the first try, which
// usually is the only one.
type unary struct {
	call
	message, reply any
	invoker        grpc.UnaryInvoker
	first          try
	last           *try
	copied         []byte // message, encoded for mirrors
	once           *once  // nil if the message may be encoded with each try
}

// once is a message that is encoded once, and the codec of all tries.
type once struct {
	message grpcreplay.Message
	codec   *grpcreplay.Codec
}

// Value implements context.Context.
func (u *unary) Value(key any) any {
	if _, ok := key.(senderKey); ok {
		return u
	}
	return u.Context.Value(key)
}

// unary is the grpc.UnaryClientInterceptor.
func (c *client) unary(ctx context.Context, method string, message, reply any, cc *grpc.ClientConn,
	invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if err := checkTarget(cc.Target()); err != nil {
		return grpcstatus.Wrap(codes.Unavailable, err)
	}
	u := &unary{
		call:    call{Context: ctx, client: c, method: method, cc: cc},
		message: message, reply: reply, invoker: invoker,
	}
	u.options.read(opts)
	if codec, tries := u.encoding.Codec(u.tries); codec != nil {
		u.once, u.tries = &once{message: grpcreplay.Message{Value: message}, codec: codec}, slices.Clip(tries)
		codec.Sends(&u.once.message)
		defer u.once.message.Free()
	}
	req := u.request(u)
	req.GetBody = u.body
	resp, err := u.roundTrip(req)
	if err != nil {
		err = failed(ctx, err)
		u.results.end(nil, nil, nil, err)
		return err
	}
	return u.finish(resp)
}

// finish ends the call with the response of the mesh.
func (u *unary) finish(resp *http.Response) error {
	t := u.last
	if t == nil || resp != &t.resp {
		err := answered(resp)
		resp.Body.Close()
		u.results.end(nil, fromReply(resp.Header), nil, err)
		return err
	}
	if resp.Body != http.NoBody {
		_, _ = resp.Body.Read(make([]byte, 1)) // it has no messages, only an end
		resp.Body.Close()
	}
	if u.results != nil {
		header, trailer := t.metadata()
		u.results.end(header, trailer, &t.peer, t.err)
	}
	return t.err
}

// metadata returns the header and trailer as the caller is to see them: with what documents changed.
func (t *try) metadata() (header, trailer metadata.MD) {
	header, trailer = t.header, t.trailer
	if t.reads {
		changed := fromReply(t.resp.Header)
		if t.header == nil && t.err != nil {
			trailer = changed // the reply is all trailers
		} else {
			header = changed
		}
	}
	return header, trailer
}

// attempt implements sender.
func (u *unary) attempt(req *http.Request, mt *enginehttp.Try) (*http.Response, error) {
	if mt.Mirror() {
		return u.mirror(req, mt)
	}
	body.CloseRequest(req)
	t := &u.first
	if mt.Number() > 1 {
		t = new(try)
		u.reset()
	}
	u.last = t
	t.begin(&u.call, req, mt)
	return t.invoke(u.message, u.reply, u.invoker, u.results.wantHeader())
}

// invoke makes a unary try.
func (t *try) invoke(message, reply any, invoker grpc.UnaryInvoker, header bool, more ...grpc.CallOption) (
	*http.Response, error) {
	c := t.call
	opts := append(t.options(), more...)
	if header || t.reads {
		opts = append(opts, grpc.Header(&t.header))
	}
	err := invoker(t, t.req.URL.Path, message, reply, c.cc, opts...)
	return t.outcome(err, false)
}

// options returns the options of the try, to which more may be appended.
func (t *try) options() []grpc.CallOption {
	c := t.call
	opts := c.tries
	if t.req.Host != c.authority {
		opts = append(opts, grpc.CallAuthority(t.req.Host))
	}
	if c.results.wantPeer() {
		opts = append(opts, grpc.Peer(&t.peer))
	}
	return opts
}

// reset removes from the reply what an earlier try may have put there. gRPC is done with the reply when a try returns.
func (u *unary) reset() {
	if !u.last.received {
		return
	}
	if m, ok := u.reply.(proto.Message); ok {
		proto.Reset(m)
	} else if v := reflect.ValueOf(u.reply); v.Kind() == reflect.Pointer && !v.IsNil() {
		v.Elem().SetZero()
	}
}

// body returns the message as the body of a request, for the copies that mirrors get: these may be sent when the message
// is the caller's again.
func (u *unary) body() (io.ReadCloser, error) {
	if u.copied == nil {
		message := &grpcreplay.Message{Value: u.message}
		if u.once != nil {
			message = &u.once.message
		}
		data, err := message.Encode(u.encoding)
		if err != nil {
			return nil, err
		}
		u.copied = append([]byte{}, data.Materialize()...)
		data.Free()
	}
	return io.NopCloser(bytes.NewReader(u.copied)), nil
}

// mirror sends a copy. Nothing of it reaches the caller.
func (u *unary) mirror(req *http.Request, mt *enginehttp.Try) (*http.Response, error) {
	message, err := io.ReadAll(req.Body)
	body.CloseRequest(req)
	if err != nil {
		return nil, err
	}
	copied := &call{Context: req.Context(), client: u.client, method: u.method, cc: u.cc, header: u.header, options: u.options}
	copied.results = nil
	copied.tries = slices.Clip(copied.tries) // the call itself appends to it meanwhile
	t := new(try)
	t.begin(copied, req, mt)
	var dropped []byte
	return t.invoke(message, &dropped, u.invoker, false, grpc.ForceCodecV2(encoded{u.encoding.Subtype()}))
}

// encoded is the codec of messages that are encoded already.
type encoded struct{ name string }

func (encoded) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}

func (encoded) Unmarshal(mem.BufferSlice, any) error { return nil }

func (c encoded) Name() string { return c.name }
