package retrygrpc

import (
	"context"
	"strconv"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/attempt"
	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/internal/grpcreplay"
	"github.com/nosidecar/mesh/internal/grpcstatus"
	"github.com/nosidecar/mesh/internal/grpcwire"
	"github.com/nosidecar/mesh/internal/refusal"
	"github.com/nosidecar/mesh/retry"
)

// outcome is how a try ended.
type outcome struct {
	err     error       // nil on success
	begun   bool        // there was a stream, so that the server may have seen something
	header  metadata.MD // that came
	late    bool        // the try exceeded its limit
	trailer metadata.MD // the whole reply, if it consists of trailers only
}

// decisive returns the part of the outcome that decides whether there is another try.
func (o *outcome) decisive(ctx context.Context) (known grpcreplay.Outcome) {
	answered := o.header != nil
	if o.err == nil || answered && !o.late {
		return known
	}
	if failure.Over(ctx) || answered {
		known.Kind = failure.Refused // whatever it was
		return known
	}
	if code, ok := grpcwire.HTTPStatus(o.err); grpcstatus.TrailersOnly(o.trailer) && !o.late {
		known.Code, known.Reply, known.Limited = status.Code(o.err), o.trailer, grpcwire.LimitedBy(o.err)
	} else if ok {
		known.HTTP = code
	} else {
		known.Kind, known.Unsent = o.kind(), o.begun && grpcwire.Unsent(o.err)
	}
	return known
}

// kind returns how a try failed that got no reply from the server.
func (o *outcome) kind() failure.Kind {
	if refusal.Is(o.err) {
		return failure.Refused
	}
	if o.late {
		return failure.TryTimeout
	}
	s := status.Convert(o.err)
	_, reset := grpcwire.ResetCode(o.err)
	switch {
	case s.Code() == codes.Unavailable && !o.begun:
		return failure.Connect // no connection to be picked, or none that took the stream
	case o.begun && grpcwire.Unprocessed(o.err):
		return failure.RefusedStream
	case reset && o.begun:
		return failure.StreamReset
	case s.Code() == codes.Unavailable:
		return failure.Reset
	}
	// The failure is on our side: a message that cannot be encoded, credentials, the caller's own cancel.
	return failure.Refused
}

// idle reports whether there is nothing to do but make the call.
func idle(l *retry.Loop) bool {
	config := l.Policy.Config()
	return config.Retries == 0 && config.PerTryTimeout == 0
}

// once returns the summary of a call that was made without further ado.
func once(ctx context.Context, err error) retry.Summary {
	reason := retry.Succeeded
	if err != nil {
		reason = retry.NotRetriable
		if failure.Over(ctx) {
			reason = grpcreplay.Ended(ctx)
		}
	}
	return retry.Summary{Attempts: 1, Stopped: reason}
}

// result returns the error of a call after its n-th and last try, which ended with err, or after which its context ended. It
// mentions the tries if there were several and we gave up. The server's answer to the last one is passed on as it is.
func result(ctx context.Context, n int, reason retry.Reason, gone bool, err error) error {
	if gone {
		code := codes.DeadlineExceeded
		if reason == retry.CallerGone {
			code = codes.Canceled
		}
		err = grpcstatus.Wrap(code, context.Cause(ctx))
	}
	if n == 1 || err == nil || reason == retry.Succeeded || reason == retry.BodyCommitted {
		return err
	}
	return &retry.Error{Attempts: n, Last: err}
}

func tooLate(limit *deadline.Context) error {
	return grpcstatus.Wrap(codes.DeadlineExceeded, limit.Limit())
}

// mark returns the context of the n-th try.
func mark(ctx context.Context, n int) context.Context {
	if n == 1 {
		return ctx
	}
	ctx = attempt.Mark(ctx, n)
	value := strconv.Itoa(n - 1)
	if len(metadata.ValueFromOutgoingContext(ctx, grpcwire.PreviousAttempts)) == 0 {
		return metadata.AppendToOutgoingContext(ctx, grpcwire.PreviousAttempts, value)
	}
	md, _ := metadata.FromOutgoingContext(ctx)
	md.Set(grpcwire.PreviousAttempts, value)
	return metadata.NewOutgoingContext(ctx, md)
}
