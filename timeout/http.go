package timeout

import (
	"net/http"

	"github.com/nosidecar/mesh/internal/attempt"
	"github.com/nosidecar/mesh/internal/body"
	"github.com/nosidecar/mesh/internal/caller"
	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/transports"
)

// Transport is an http.RoundTripper that bounds calls in time. The zero value only tells servers the callers' deadlines. A
// Transport is safe for concurrent use; its fields must not be changed after the first call. Put it around retry.Transport
// so that the limit covers all tries together.
type Transport struct {
	// Base makes the calls. nil: http.DefaultTransport.
	Base http.RoundTripper

	// Config holds the limits. If it is invalid, every call fails.
	Config Config
}

var _ http.RoundTripper = (*Transport)(nil)

// RoundTrip makes a call within the limits. The time in which the request body is sent does not count (see [Config]). If a
// limit is exceeded, the error, or the error from reading the response body, is one that [Exceeded] recognizes.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := t.Config.Validate(); err != nil {
		body.CloseRequest(req)
		return nil, err
	}
	limits := deadline.Limits{Request: t.Config.Request, BodyIdle: t.Config.BodyIdle}
	if limits == (deadline.Limits{}) {
		if _, bounded := req.Context().Deadline(); !bounded || t.Config.NoPropagation {
			return transports.Or(t.Base).RoundTrip(req)
		}
	}

	call := new(struct {
		deadline.Call
		body body.Reader
	})
	ctx := call.Begin(req.Context(), limits)
	at, bounded := ctx.Deadline()
	answered := false
	defer func() {
		if !answered { // also if Base has panicked
			call.Failed(nil)
		}
	}()
	out := req.WithContext(ctx)
	if limits.Request > 0 && caller.ToWatch(req) {
		caller.Watch(out, deadline.UploadOf(ctx))
	}
	if bounded && !t.Config.NoPropagation {
		out.Header = req.Header.Clone()
		if out.Header == nil {
			out.Header = make(http.Header)
		}
		deadline.SetHeader(out.Header, at)
	}
	resp, err := transports.Or(t.Base).RoundTrip(out)
	if err != nil {
		return nil, attempt.FailedAt(attempt.Endpoint(nil, err), call.Failed(err))
	}
	answered = true
	body.Until(out, resp)
	call.body.Attach(resp, &call.Call)
	call.Watch(resp)
	attempt.Restore(resp, req, 1)
	return resp, nil
}

// CloseIdleConnections closes the idle connections of Base, if it can.
func (t *Transport) CloseIdleConnections() {
	transports.CloseIdle(t.Base)
}
