package attempt

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"slices"
)

// A balancer says where a failed try was sent, and the layer above that makes another try says so to the balancer, which then takes another
// endpoint. It works through whatever is in between, and costs nothing while calls go well.

type triedKey struct{}

// WithTried returns a context for a try of a call whose earlier tries went to the endpoints.
func WithTried(ctx context.Context, endpoints []string) context.Context {
	if len(endpoints) == 0 {
		return ctx
	}
	return context.WithValue(ctx, triedKey{}, slices.Concat(Tried(ctx), endpoints)) // retries may be nested
}

// Tried returns the endpoints of [WithTried].
func Tried(ctx context.Context) []string {
	endpoints, _ := ctx.Value(triedKey{}).([]string)
	return endpoints
}

// SentTo says that resp, which may be a reason to try again, comes from the endpoint.
func SentTo(resp *http.Response, endpoint string) {
	if resp.Request != nil {
		restore(resp, resp.Request, outcome{endpoint: endpoint})
	}
}

// FailedAt returns err as the error of a try that was sent to the endpoint. It does nothing if the endpoint is not known.
func FailedAt(endpoint string, err error) error {
	switch err.(type) {
	case *failed: // it says so
		return err
	case tls.RecordHeaderError: // http.Client asks for this type
		return err
	}
	if endpoint == "" || err == context.Canceled { // then there is no next try
		return err
	}
	return &failed{endpoint, err}
}

// Endpoint returns the endpoint to which a try was sent that ended with resp or err, or "" if it is not known.
func Endpoint(resp *http.Response, err error) string {
	if f, ok := errors.AsType[*failed](err); ok {
		return f.endpoint
	}
	if o := outcomeOf(resp); o != nil {
		return o.endpoint
	}
	return ""
}

// Cause returns the error that FailedAt was given, or err.
func Cause(err error) error {
	if f, ok := err.(*failed); ok {
		return f.err
	}
	return err
}

// failed is the error of a try that was sent to an endpoint.
type failed struct {
	endpoint string
	err      error
}

func (f *failed) Error() string { return f.err.Error() }

func (f *failed) Unwrap() error { return f.err }

// Timeout reports whether the try ended in a timeout: *url.Error asks for it by assertion.
func (f *failed) Timeout() bool {
	t, ok := f.err.(interface{ Timeout() bool })
	return ok && t.Timeout()
}

// Temporary is the same for what net.Error still has.
func (f *failed) Temporary() bool {
	t, ok := f.err.(interface{ Temporary() bool })
	return ok && t.Temporary()
}
