// Package timeoutgrpc limits how long a gRPC call may take as a whole, and how long a stream may be silent. The server of a
// bounded call knows how long its caller will wait, because gRPC tells it.
//
// The limit on a single try is part of package retrygrpc.
package timeoutgrpc

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/grpcend"
	"github.com/nosidecar/mesh/internal/grpcreplay"
	"github.com/nosidecar/mesh/internal/grpcstatus"
	"github.com/nosidecar/mesh/timeout"
)

// Client bounds the calls of a grpc.ClientConn. A call that exceeds a limit fails with status DeadlineExceeded and an error
// that [timeout.Exceeded] recognizes. The zero Client sets no limit. It is safe for concurrent use; its fields must not be
// changed after the first call. Where it is used with retries, its options come before theirs, for the limit to hold for all
// tries together.
type Client struct {
	// Config holds the limits. If it is invalid, every call fails. Request bounds a stream from its beginning to its end.
	// BodyIdle bounds each wait for a message of a stream that has begun; time in which the caller does not receive does not
	// count. Such a stream takes a goroutine until it is answered. NoPropagation is an error: gRPC always tells servers of the deadline.
	Config timeout.Config
}

// DialOptions returns the interceptors.
func (c *Client) DialOptions() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(c.unary), grpc.WithChainStreamInterceptor(c.stream)}
}

func (c *Client) check() error {
	err := c.Config.Validate()
	if err == nil && c.Config.NoPropagation {
		err = errors.New("timeoutgrpc: NoPropagation cannot be honoured")
	}
	if err != nil {
		return grpcstatus.Wrap(codes.Internal, err)
	}
	return nil
}

// unary is a grpc.UnaryClientInterceptor.
func (c *Client) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn,
	invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if err := c.check(); err != nil {
		return err
	}
	limit := deadline.Within(ctx, c.Config.Request)
	if limit == 0 {
		return invoker(ctx, method, req, reply, cc, opts...)
	}
	bounded := new(deadline.Context)
	bounded.Start(ctx, deadline.Request, limit, true)
	defer bounded.Cancel()
	at, _ := bounded.Deadline()
	err := invoker(bounded, method, req, reply, cc, opts...)
	return explain(bounded, limit, at, err)
}

// explain returns the error for the caller: the limit, which ends at a time, if it caused err. The server knows the limit and may notice
// a moment before us that it is over. Then bounded may have been cancelled, and no longer knows its end.
func explain(bounded *deadline.Context, limit time.Duration, at time.Time, err error) error {
	if err == nil || err == io.EOF || limit == 0 {
		return err
	}
	if bounded.Exceeded() != nil || status.Code(err) == codes.DeadlineExceeded && time.Until(at) <= limit/10 {
		return grpcstatus.Wrap(codes.DeadlineExceeded, &deadline.Error{Kind: deadline.Request, Limit: limit})
	}
	return err
}

// stream is a grpc.StreamClientInterceptor.
func (c *Client) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
	streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	limit := deadline.Within(ctx, c.Config.Request)
	if limit == 0 && c.Config.BodyIdle == 0 {
		return streamer(ctx, desc, cc, method, opts...)
	}
	s := &stream{limit: limit, idle: c.Config.BodyIdle}
	ctx, s.cancel = context.WithCancelCause(ctx)
	s.call.Start(ctx, deadline.Request, limit, true)
	s.at, _ = s.call.Deadline()
	if s.idle > 0 {
		s.silent = deadline.Error{Kind: deadline.BodyIdle, Limit: s.idle}
		s.timer = time.AfterFunc(s.idle, func() { s.cancel(&s.silent) })
		s.timer.Stop()
	}
	var err error
	if s.idle > 0 {
		s.ClientStream, err = grpcreplay.Open(&s.call, desc, cc, method, streamer, opts, nil, s.end)
	} else {
		s.ClientStream, err = grpcend.Open(&s.call, desc, cc, method, streamer, opts, s.end)
	}
	if err != nil {
		return nil, s.explain(err)
	}
	return s, nil
}

// stream is a stream with limits.
type stream struct {
	grpc.ClientStream
	call    deadline.Context
	limit   time.Duration
	at      time.Time               // the end of the limit
	cancel  context.CancelCauseFunc // of the parent of call
	idle    time.Duration
	timer   *time.Timer // runs only inside RecvMsg; nil without idle
	silent  deadline.Error
	headers sync.Once
}

func (s *stream) end(error) {
	s.call.Cancel()
	s.cancel(nil)
}

// explain returns the error for the caller: the limit, if one caused err.
func (s *stream) explain(err error) error {
	if err != nil && err != io.EOF && context.Cause(&s.call) == error(&s.silent) {
		return grpcstatus.Wrap(codes.DeadlineExceeded, &s.silent)
	}
	return explain(&s.call, s.limit, s.at, err)
}

// Header implements grpc.ClientStream.
func (s *stream) Header() (metadata.MD, error) {
	md, err := s.ClientStream.Header()
	return md, s.explain(err)
}

// SendMsg implements grpc.ClientStream.
func (s *stream) SendMsg(m any) error {
	return s.explain(s.ClientStream.SendMsg(m))
}

// RecvMsg implements grpc.ClientStream.
func (s *stream) RecvMsg(m any) error {
	return s.explain(s.receive(m))
}

func (s *stream) receive(m any) error {
	if s.timer == nil {
		return s.ClientStream.RecvMsg(m)
	}
	s.headers.Do(func() { _, _ = s.ClientStream.Header() }) // the wait for them is not silence
	s.timer.Reset(s.idle)
	defer s.timer.Stop()
	return s.ClientStream.RecvMsg(m)
}
