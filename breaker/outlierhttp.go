package breaker

import (
	"context"
	"net/http"
	"time"

	"github.com/nosidecar/mesh/internal/failure"
)

// resultOf returns the result of an HTTP call that ended with resp and err: the error of RoundTrip, the error from reading
// the body of resp, or nil.
func resultOf(resp *http.Response, err error) Result {
	if err != nil {
		return resultOfError(err)
	}
	if resp == nil {
		return NoResult
	}
	return Result(resp.StatusCode)
}

func resultOfError(err error) Result {
	switch kind := failure.Of(context.Background(), nil, err); {
	case kind == failure.Refused, kind == failure.Canceled, kind == failure.BadRequest:
		return NoResult
	case kind == failure.RequestTimeout, kind == failure.TryTimeout, failure.IsTimeout(err):
		return Timeout
	case kind == failure.Connect:
		return ConnectFailure
	}
	return Reset
}

// Report records how an HTTP call to an endpoint ended. An endpoint that is not tracked yet is tracked from now on, until it has
// not been used for some minutes.
func (o *Outlier) Report(endpoint string, resp *http.Response, err error) {
	t := o.seen(endpoint)
	if o.compares {
		o.Sweep(time.Now())
	}
	t.Report(resultOf(resp, err))
}

// Ejected reports whether an endpoint is ejected now. An endpoint that is not tracked yet is tracked from now on, until it has
// not been used for some minutes.
func (o *Outlier) Ejected(endpoint string) bool {
	t := o.seen(endpoint)
	if o.ejected.Load() > 0 {
		o.Sweep(time.Now())
	}
	return t.Ejected()
}

// seen returns the tracker of an endpoint that is in use.
func (o *Outlier) seen(endpoint string) *Tracker {
	o.mu.RLock()
	t := o.trackers.Get(endpoint)
	o.mu.RUnlock()
	if t == nil {
		// Forget endpoints that are gone when new ones appear.
		o.Sweep(time.Now())
		o.mu.Lock()
		t = o.trackLocked(endpoint)
		o.mu.Unlock()
	}
	if !t.used.Load() {
		t.used.Store(true)
	}
	return t
}
