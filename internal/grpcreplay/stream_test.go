package grpcreplay_test

import (
	"context"
	"runtime"
	"testing"
	"testing/synctest"
	"weak"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/nosidecar/mesh/internal/grpcreplay"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
)

// answered is a stream that was answered and stays silent.
type answered struct {
	grpc.ClientStream
	ctx context.Context
}

func (s answered) Header() (metadata.MD, error) { return metadata.MD{}, nil }
func (s answered) Context() context.Context     { return s.ctx }
func (s answered) SendMsg(any) error            { return nil }

// twice would make another try after one that was answered.
type twice struct {
	stream   grpcreplay.Stream
	ctx      context.Context
	answered chan struct{}
	decide   chan struct{}
	dropped  bool
}

func (d *twice) Make() grpcreplay.Answer {
	d.stream.Open(d.ctx, "/a/b", nil)
	return grpcreplay.Answer{Err: grpcreplay.ErrPrompt}
}

func (d *twice) Resume() grpcreplay.Answer {
	d.stream.Reply(true)
	close(d.answered)
	<-d.decide
	d.dropped = d.stream.Drop()
	return grpcreplay.Answer{}
}

func (d *twice) Tell(grpcreplay.Answer) {}
func (d *twice) End(error) error        { return nil }

// A caller may ask for the Context of a try during the decision whether another try follows. The try whose context it got is the last.
func TestNoTryFollowsWhoseContextTheCallerHas(t *testing.T) {
	for _, asks := range []bool{true, false} {
		leak.Check(t)
		d := &twice{ctx: t.Context(), answered: make(chan struct{}), decide: make(chan struct{})}
		stream, err := d.stream.Begin(grpcreplay.Config{
			Context: d.ctx, Desc: &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, Room: 1 << 10, Encoding: grpcreplay.EncodingOf(nil),
			Streamer: func(ctx context.Context, _ *grpc.StreamDesc, _ *grpc.ClientConn, _ string, _ ...grpc.CallOption) (
				grpc.ClientStream, error) {
				return answered{ctx: ctx}, nil
			},
		}, d)
		if err != nil {
			t.Fatal(err)
		}
		<-d.answered
		if asks {
			stream.Context()
		}
		close(d.decide)
		if _, err := stream.Header(); err != nil { // waits for the decision
			t.Fatal(err)
		}
		if d.dropped == asks {
			t.Errorf("the caller asked: %v; the try was given up: %v", asks, d.dropped)
		}
	}
}

// stuck is a stream that was answered. SendMsg blocks until the stream is cancelled.
type stuck struct{ answered }

func (s stuck) SendMsg(any) error {
	<-s.ctx.Done()
	return s.ctx.Err()
}

// counting is a stream that counts the messages that it takes.
type counting struct {
	answered
	messages *int
}

func (s counting) SendMsg(any) error {
	*s.messages++
	return nil
}

// thrice makes three tries, each when next says so.
type thrice struct {
	stream  grpcreplay.Stream
	ctx     context.Context
	next    chan struct{}
	tries   int
	dropped int
}

func (d *thrice) Make() grpcreplay.Answer {
	d.tries++
	d.stream.Open(d.ctx, "/a/b", nil)
	return grpcreplay.Answer{Err: grpcreplay.ErrPrompt}
}

func (d *thrice) Resume() grpcreplay.Answer {
	d.stream.Reply(true)
	if d.tries == 3 {
		return grpcreplay.Answer{}
	}
	<-d.next
	if d.stream.Drop() {
		d.dropped++
	}
	<-d.next
	return d.Make()
}

func (d *thrice) Tell(grpcreplay.Answer) {}
func (d *thrice) End(error) error        { return nil }

// TestTryThatIsDroppedWhileItIsSentAgain: the dropped try does not become the current one, so the caller cannot commit it. The next try
// gets all messages.
func TestTryThatIsDroppedWhileItIsSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const messages = 100
		d := &thrice{ctx: t.Context(), next: make(chan struct{})}
		tries, got := 0, 0
		stream, err := d.stream.Begin(grpcreplay.Config{
			Context: d.ctx, Desc: &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, Room: 1 << 20, Encoding: grpcreplay.EncodingOf(nil),
			Streamer: func(ctx context.Context, _ *grpc.StreamDesc, _ *grpc.ClientConn, _ string, _ ...grpc.CallOption) (
				grpc.ClientStream, error) {
				switch tries++; tries {
				case 2:
					return stuck{answered{ctx: ctx}}, nil
				case 3:
					return counting{answered{ctx: ctx}, &got}, nil
				}
				return answered{ctx: ctx}, nil
			},
		}, d)
		if err != nil {
			t.Fatal(err)
		}
		for range messages {
			if err := stream.SendMsg(wrapperspb.Bytes(make([]byte, 1<<10))); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 {
			d.next <- struct{}{}
			synctest.Wait()
		}
		// The second try was dropped, and the third has not begun.
		var given context.Context
		go func() { given = stream.Context() }()
		synctest.Wait()
		d.next <- struct{}{}
		synctest.Wait()
		if d.dropped != 2 || tries != 3 || got != messages {
			t.Errorf("%d tries were dropped, and the last of %d got %d messages; want 2, 3, %d", d.dropped, tries, got, messages)
		}
		if given == nil || given.Err() != nil {
			t.Error("the caller has the context of a try that was dropped")
		}
	})
}

// once drops one try, and continues with the next.
type once struct {
	stream grpcreplay.Stream
	ctx    context.Context
	drop   chan struct{} // nil once a try was dropped
}

func (d *once) Make() grpcreplay.Answer {
	d.stream.Open(d.ctx, "/a/b", nil)
	return grpcreplay.Answer{Err: grpcreplay.ErrPrompt}
}

func (d *once) Resume() grpcreplay.Answer {
	d.stream.Reply(true)
	if d.drop == nil {
		return grpcreplay.Answer{}
	}
	<-d.drop
	d.drop = nil
	d.stream.Drop()
	return d.Make()
}

func (d *once) Tell(grpcreplay.Answer) {}
func (d *once) End(error) error        { return nil }

// TestContextOfAStreamThatIsBeingSentAgain: a server may answer before it reads. The caller gets the context of such a stream at once.
func TestContextOfAStreamThatIsBeingSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		drop := make(chan struct{})
		d := &once{ctx: ctx, drop: drop}
		tries := 0
		stream, err := d.stream.Begin(grpcreplay.Config{
			Context: d.ctx, Desc: &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, Room: 1 << 20, Encoding: grpcreplay.EncodingOf(nil),
			Streamer: func(ctx context.Context, _ *grpc.StreamDesc, _ *grpc.ClientConn, _ string, _ ...grpc.CallOption) (
				grpc.ClientStream, error) {
				if tries++; tries > 1 {
					return stuck{answered{ctx: ctx}}, nil
				}
				return answered{ctx: ctx}, nil
			},
		}, d)
		if err != nil {
			t.Fatal(err)
		}
		for range 100 {
			if err := stream.SendMsg(wrapperspb.Bytes(make([]byte, 1<<10))); err != nil {
				t.Fatal(err)
			}
		}
		drop <- struct{}{}
		if _, err := stream.Header(); err != nil {
			t.Fatal(err)
		}
		var given context.Context
		go func() { given = stream.Context() }()
		synctest.Wait()
		if given == nil || given.Err() != nil {
			t.Errorf("the context is %v, want that of the second try", given)
		}
		cancel()
	})
}

// orphan is a stream whose connection was lost before it was sent. As gRPC's own, it is said to have ended well when its header is asked for.
type orphan struct {
	answered
	end func(error)
}

func (s orphan) Header() (metadata.MD, error) {
	s.end(nil)
	return nil, nil
}
func (s orphan) Trailer() metadata.MD { return nil }
func (s orphan) RecvMsg(any) error    { return status.Error(codes.Unavailable, "transport is closing") }

// single makes one try.
type single struct {
	stream grpcreplay.Stream
	ctx    context.Context
}

func (d *single) Make() grpcreplay.Answer {
	d.stream.Open(d.ctx, "/a/b", nil)
	return grpcreplay.Answer{Err: grpcreplay.ErrPrompt}
}

func (d *single) Resume() grpcreplay.Answer {
	r := d.stream.Reply(true)
	if d.stream.Lost(r) {
		return d.Make()
	}
	return grpcreplay.Answer{Header: r.Header, Err: r.Err}
}

func (d *single) Tell(grpcreplay.Answer) {}
func (d *single) End(error) error        { return nil }

// A try that was not sent starts over once, with the messages that the caller has sent, unless the caller has the context of the lost stream.
func TestTryThatWasNotSentStartsOver(t *testing.T) {
	for _, test := range []struct {
		name    string
		orphans int
		asks    bool // for the context
		tries   int
		code    codes.Code
	}{
		{"one is lost", 1, false, 2, codes.OK},
		{"two are lost", 2, false, 2, codes.Unavailable},
		{"the caller has its context", 1, true, 1, codes.Unavailable},
	} {
		t.Run(test.name, func(t *testing.T) {
			conn := grpctest.Dial(t, "127.0.0.1:1")
			synctest.Test(t, func(t *testing.T) {
				tries, got := 0, 0
				lost := make(chan struct{})
				d := &single{ctx: t.Context()}
				stream, err := d.stream.Begin(grpcreplay.Config{
					Context: d.ctx, Desc: &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, Conn: conn,
					Room: 1 << 10, Encoding: grpcreplay.EncodingOf(nil),
					Streamer: func(ctx context.Context, _ *grpc.StreamDesc, _ *grpc.ClientConn, _ string, opts ...grpc.CallOption) (
						grpc.ClientStream, error) {
						if tries++; tries > test.orphans {
							return counting{answered{ctx: ctx}, &got}, nil
						}
						end := opts[len(opts)-1].(grpc.OnFinishCallOption).OnFinish
						return orphan{answered{ctx: ctx}, func(err error) {
							<-lost
							end(err)
						}}, nil
					},
				}, d)
				if err != nil {
					t.Fatal(err)
				}
				const messages = 3
				for range messages {
					if err := stream.SendMsg(wrapperspb.String("x")); err != nil {
						t.Fatal(err)
					}
				}
				if test.asks {
					stream.Context()
				}
				close(lost)
				if _, err := stream.Header(); err != nil {
					t.Fatal(err)
				}
				if test.code != codes.OK {
					err = stream.RecvMsg(wrapperspb.String(""))
				} else if got != messages {
					t.Errorf("the second stream got %d messages, want %d", got, messages)
				}
				if status.Code(err) != test.code || tries != test.tries {
					t.Errorf("%v after %d tries, want %v after %d", err, tries, test.code, test.tries)
				}
			})
		})
	}
}

// overtaken has a try that is over before it is known that it was answered.
type overtaken struct {
	stream   grpcreplay.Stream
	ctx      context.Context
	finished func(error)
	ends     []error
}

func (d *overtaken) Make() grpcreplay.Answer {
	d.stream.Open(d.ctx, "/a/b", nil)
	return grpcreplay.Answer{Err: grpcreplay.ErrPending}
}

func (d *overtaken) Resume() grpcreplay.Answer {
	d.stream.Reply(true)
	d.finished(context.Canceled)
	return grpcreplay.Answer{}
}

func (d *overtaken) Tell(grpcreplay.Answer) {}

func (d *overtaken) End(err error) error {
	d.ends = append(d.ends, err)
	return nil
}

// A stream that is over when its answer becomes known ends then: its caller may not ask for more.
func TestStreamThatIsOverBeforeItsAnswerIsKnown(t *testing.T) {
	d := &overtaken{ctx: t.Context()}
	stream, err := d.stream.Begin(grpcreplay.Config{
		Context: d.ctx, Desc: &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, Encoding: grpcreplay.EncodingOf(nil),
		Streamer: func(ctx context.Context, _ *grpc.StreamDesc, _ *grpc.ClientConn, _ string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			for _, opt := range opts {
				if o, ok := opt.(grpc.OnFinishCallOption); ok {
					d.finished = o.OnFinish
				}
			}
			return answered{ctx: ctx}, nil
		},
	}, d)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil {
		t.Fatal(err)
	}
	if len(d.ends) != 1 || d.ends[0] != context.Canceled {
		t.Errorf("the stream ended with %v, want one end, with %v", d.ends, context.Canceled)
	}
}

// waiting drops its first try, and waits before the second one.
type waiting struct {
	stream grpcreplay.Stream
	ctx    context.Context
	next   chan struct{}
	tries  int
}

func (d *waiting) Make() grpcreplay.Answer {
	d.tries++
	d.stream.Open(d.ctx, "/a/b", nil)
	return grpcreplay.Answer{Err: grpcreplay.ErrPrompt}
}

func (d *waiting) Resume() grpcreplay.Answer {
	d.stream.Reply(true)
	if d.tries == 1 && d.stream.Drop() {
		<-d.next
		return d.Make()
	}
	return grpcreplay.Answer{}
}

func (d *waiting) Tell(grpcreplay.Answer) {}
func (d *waiting) End(error) error        { return nil }

// A caller that asks for the Context of a stream between two tries gets that of the second one.
func TestContextBetweenTries(t *testing.T) {
	type key struct{}
	synctest.Test(t, func(t *testing.T) {
		d := &waiting{ctx: t.Context(), next: make(chan struct{})}
		stream, err := d.stream.Begin(grpcreplay.Config{
			Context: d.ctx, Desc: &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, Room: 1 << 10, Encoding: grpcreplay.EncodingOf(nil),
			Streamer: func(ctx context.Context, _ *grpc.StreamDesc, _ *grpc.ClientConn, _ string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
				return answered{ctx: context.WithValue(ctx, key{}, d.tries)}, nil
			},
		}, d)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // until the first try is dropped
		got := make(chan any, 1)
		go func() { got <- stream.Context().Value(key{}) }()
		synctest.Wait()
		close(d.next)
		if n := <-got; n != 2 {
			t.Errorf("the caller got the context of try %v, want 2", n)
		}
		if _, err := stream.Header(); err != nil {
			t.Fatal(err)
		}
	})
}

// A stream that was answered keeps no messages, however long it goes on.
func TestAnsweredStreamKeepsNoMessages(t *testing.T) {
	d := &waiting{ctx: t.Context(), tries: 1} // this is the second try
	answer := make(chan struct{})
	stream, err := d.stream.Begin(grpcreplay.Config{
		Context: d.ctx, Desc: &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, Room: 1 << 10, Encoding: grpcreplay.EncodingOf(nil),
		Streamer: func(ctx context.Context, _ *grpc.StreamDesc, _ *grpc.ClientConn, _ string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
			return slow{answered{ctx: ctx}, answer}, nil
		},
	}, d)
	if err != nil {
		t.Fatal(err)
	}
	message := wrapperspb.String("a")
	kept := weak.Make(message)
	if err := stream.SendMsg(message); err != nil {
		t.Fatal(err)
	}
	message = nil
	if runtime.GC(); kept.Value() == nil {
		t.Error("the message is not kept before the stream is answered")
	}
	close(answer)
	if _, err := stream.Header(); err != nil {
		t.Fatal(err)
	}
	if runtime.GC(); kept.Value() != nil {
		t.Error("the message is still kept after the stream was answered")
	}
	runtime.KeepAlive(stream)
}

// slow is a stream that is answered once answer is closed.
type slow struct {
	answered
	answer chan struct{}
}

func (s slow) Header() (metadata.MD, error) {
	<-s.answer
	return metadata.MD{}, nil
}
