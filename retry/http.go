package retry

import (
	"net/http"
	"sync"

	"github.com/nosidecar/mesh/internal/attempt"
	"github.com/nosidecar/mesh/internal/body"
	"github.com/nosidecar/mesh/internal/transports"
)

// Transport is an http.RoundTripper that retries calls. It is used as a literal:
//
//	client := &http.Client{Transport: &retry.Transport{Config: retry.Config{Retries: 2}}}
//
// The zero Transport retries nothing. A Transport is safe for concurrent use; its fields must not be changed after the
// first call, and it must not be copied. One Transport has one budget: give each destination its own.
type Transport struct {
	// Base makes the tries. nil: http.DefaultTransport.
	Base http.RoundTripper

	// Config says what is retried, how often and how fast. If it is invalid, every call fails.
	Config Config

	// Budget limits the retries to a share of the calls: by default 20%, and 10 per second on top.
	Budget BudgetConfig

	// Limiter bounds the number of retries in flight. Off by default.
	Limiter LimiterConfig

	// Rand returns random numbers in [0, 1) for the backoff. It must be safe for concurrent use. nil: the global source.
	Rand func() float64

	// Observe, if set, is called with a summary of each call, on the caller's goroutine before RoundTrip returns.
	Observe func(*http.Request, Summary)

	once sync.Once
	loop Loop
	err  error
}

var _ http.RoundTripper = (*Transport)(nil)

// RoundTrip makes a call and retries it as the Config says. If the tries are used up, it returns the response or the error
// of the last one; the error is then an *Error.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	t.once.Do(t.compile)
	if t.err != nil {
		body.CloseRequest(req)
		return nil, t.err
	}
	resp, summary, err := t.loop.Do(req, (*attempter)(t))
	if t.Observe != nil {
		t.Observe(req, summary)
	}
	return resp, err
}

func (t *Transport) compile() {
	t.loop.Rand = t.Rand
	if t.loop.Policy, t.err = NewPolicy(t.Config); t.err != nil {
		return
	}
	if t.loop.Budget, t.err = NewBudget(t.Budget); t.err != nil {
		return
	}
	t.loop.Limiter, t.err = NewLimiter(t.Limiter, nil)
}

// CloseIdleConnections closes the idle connections of Base, if it can.
func (t *Transport) CloseIdleConnections() {
	transports.CloseIdle(t.Base)
}

type attempter Transport

func (a *attempter) Attempt(req *http.Request, _ int) (*http.Response, error) {
	return transports.Or(a.Base).RoundTrip(req)
}

// Attempts returns how many tries led to resp: 1 if it was not retried. It works through whatever wraps the transport.
func Attempts(resp *http.Response) int {
	return attempt.Total(resp)
}
