package grpctest

import (
	"context"
	"io"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// EndedStreams tests with streams that are over for their caller while gRPC goes on with them, or has no part in them, because of an
// interceptor. For each kind it runs f in a bubble. stream makes such a stream, behind the options, and returns when it is over, with status OK
// or Aborted, or canceled.
func EndedStreams(t *testing.T, f func(t *testing.T, stream func(...grpc.DialOption))) {
	for _, kind := range []struct {
		name  string
		use   func(ctx context.Context, cancel func(), client Client) error // returns nil if the stream is over
		made  func(grpc.ClientStream) grpc.ClientStream                     // the argument is gRPC's, or one without gRPC if alone is set
		alone bool
	}{
		{"the end is received", func(ctx context.Context, _ func(), client Client) error {
			s, err := client.FullDuplexCall(ctx)
			if err == nil {
				_, err = s.Recv()
			}
			return expect(err, io.EOF)
		}, func(s grpc.ClientStream) grpc.ClientStream { return ended{s, nil} }, false},
		{"an error is received", func(ctx context.Context, _ func(), client Client) error {
			s, err := client.FullDuplexCall(ctx)
			if err == nil {
				_, err = s.Recv()
			}
			return expect(err, errEnded)
		}, func(s grpc.ClientStream) grpc.ClientStream { return ended{s, errEnded} }, false},
		{"a message cannot be sent", func(ctx context.Context, _ func(), client Client) error {
			s, err := client.FullDuplexCall(ctx)
			if err == nil {
				err = s.Send(&In{})
			}
			if err == io.EOF { // RecvMsg would return the error, as with gRPC
				return nil
			}
			return expect(err, errEnded)
		}, func(s grpc.ClientStream) grpc.ClientStream { return ended{s, errEnded} }, false},
		{"the header cannot be had", func(ctx context.Context, _ func(), client Client) error {
			s, err := client.FullDuplexCall(ctx)
			if err == nil {
				var md metadata.MD
				if md, err = s.Header(); md == nil && err == nil { // as above
					return nil
				}
			}
			return expect(err, errEnded)
		}, func(s grpc.ClientStream) grpc.ClientStream { return ended{s, errEnded} }, false},
		{"the only message is received", func(ctx context.Context, _ func(), client Client) error {
			s, err := client.StreamingInputCall(ctx)
			if err == nil {
				_, err = s.CloseAndRecv()
			}
			return err
		}, func(s grpc.ClientStream) grpc.ClientStream { return s }, true},
		{"the caller leaves", func(ctx context.Context, cancel func(), client Client) error {
			_, err := client.FullDuplexCall(ctx)
			cancel()
			return err
		}, func(s grpc.ClientStream) grpc.ClientStream { return s }, true},
	} {
		t.Run(kind.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				f(t, func(options ...grpc.DialOption) {
					inner := grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
						streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
						if kind.alone {
							return kind.made(alone{ctx}), nil
						}
						s, err := streamer(ctx, desc, cc, method, opts...)
						return kind.made(s), err
					})
					client, stop := Connect(t, &Service{Bidi: func(s BidiServer) error {
						<-s.Context().Done()
						return s.Context().Err()
					}}, append(options, inner)...)
					t.Cleanup(stop)
					if err := kind.use(ctx, cancel, client); err != nil {
						t.Fatal(err)
					}
					synctest.Wait()
				})
			})
		})
	}
}

var errEnded = status.Error(codes.Aborted, "an interceptor has ended the stream")

func expect(got, want error) error {
	if got == want || status.Code(want) == codes.Aborted && status.Code(got) == codes.Aborted {
		return nil
	}
	return status.Errorf(codes.Internal, "the stream ended with %v, want %v", got, want)
}

// ended is a stream of gRPC that an interceptor has ended with err, or with io.EOF if that is nil.
type ended struct {
	grpc.ClientStream
	err error
}

func (s ended) Header() (metadata.MD, error) { return nil, s.err }

func (s ended) SendMsg(any) error { return s.err }

func (s ended) RecvMsg(any) error {
	if s.err == nil {
		return io.EOF
	}
	return s.err
}

// alone is a stream without gRPC: an interceptor answers it, with one empty message.
type alone struct{ ctx context.Context }

func (s alone) Header() (metadata.MD, error) { return metadata.MD{}, nil }
func (s alone) Trailer() metadata.MD         { return nil }
func (s alone) CloseSend() error             { return nil }
func (s alone) Context() context.Context     { return s.ctx }
func (s alone) SendMsg(any) error            { return nil }
func (s alone) RecvMsg(any) error            { return nil }
