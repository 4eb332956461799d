package retry

import (
	"cmp"
	"fmt"
	"net/http"
	"reflect"
	"time"

	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/statusset"
)

// Config says what is retried, how often and how fast. The zero Config retries nothing.
type Config struct {
	// Retries is how many times a call is tried again after the first try. 0: never. With 2, a server sees a call at most three
	// times.
	Retries int

	// On says what is retried. The zero value means GatewayError|ConnectFailure|RefusedStream: the server, or something on
	// the way to it, was unavailable. Any other value stands alone: with only a Status, nothing else is retried.
	On On

	// AnyMethod retries every method alike, as Envoy does. Without it a request that is neither idempotent by its method
	// nor has an Idempotency-Key is retried only when the server provably did not process it: the connection could
	// not be made, or the stream was refused.
	AnyMethod bool

	// NestedRetries also retries a request that is itself a retry, by its x-envoy-attempt-count or because it is made within
	// one. Without it, three layers of three tries make at most 7 calls; with it, 27.
	NestedRetries bool

	// RetriableHeaders names the response headers that the condition RetriableHeaders looks for.
	RetriableHeaders []string

	// PerTryTimeout bounds how long each try waits for response headers; a body may take longer. The clock is stopped while
	// the request body is sent. 0: no limit. It is ignored if the context's deadline comes first.
	PerTryTimeout time.Duration

	// Backoff is the base of the wait before a retry: the n-th wait is between 0 and min((2^n-1)*Backoff, MaxBackoff),
	// chosen at random. 0: 25 ms. Negative: no wait.
	Backoff time.Duration

	// MaxBackoff is the longest wait. 0: ten times Backoff.
	MaxBackoff time.Duration

	// MaxRetryAfter is the longest Retry-After that is honoured; a response that asks for a longer wait is returned at once. A value
	// that is malformed, or beyond 292 years, is ignored. 0: 10 s. Negative: the header is ignored.
	MaxRetryAfter time.Duration

	// BodyLimit is how many bytes of a request body without GetBody are kept for a replay. A request that has sent more
	// is not retried. 0: 64 KiB. Negative: nothing is kept, so that only an untouched body is sent again.
	BodyLimit int
}

// Equal reports whether the settings are the same.
func (c Config) Equal(other Config) bool {
	return reflect.DeepEqual(c, other) // on reloads, not on calls
}

// Policy is a Config ready for use. It is immutable and safe for concurrent use.
type Policy struct {
	least   int    // a response with a status below is not retried, whatever else it says
	trace   bool   // whether to find out if writing the request began
	untimed bool   // a try has neither a limit nor a trace
	config  Config // defaults filled in
	headers []string
}

// Validate returns an error that names the field if the settings cannot be honoured.
func (c Config) Validate() error {
	_, err := NewPolicy(c)
	return err
}

// NewPolicy fills in the defaults of config. The error is that of [Config.Validate].
func NewPolicy(config Config) (*Policy, error) {
	p := &Policy{config: config}
	c := &p.config
	switch {
	case c.Retries < 0:
		return nil, fmt.Errorf("retry: Config.Retries is %d, want 0 or more", c.Retries)
	case c.PerTryTimeout < 0:
		return nil, fmt.Errorf("retry: Config.PerTryTimeout is %v, want 0 or more", c.PerTryTimeout)
	case c.MaxBackoff < 0:
		return nil, fmt.Errorf("retry: Config.MaxBackoff is %v, want 0 or more", c.MaxBackoff)
	case c.On.Conditions&^allConditions != 0:
		return nil, fmt.Errorf("retry: Config.On has the unknown conditions %#x", uint32(c.On.Conditions&^allConditions))
	case !c.On.Status.set.Valid():
		return nil, fmt.Errorf("retry: Config.On.Status has a code that is not within %d to %d", statusset.Min, statusset.Max)
	}
	if c.On == (On{}) {
		c.On.Conditions = GatewayError | ConnectFailure | RefusedStream
	}
	c.Backoff = cmp.Or(c.Backoff, 25*time.Millisecond)
	switch {
	case c.MaxBackoff > 0 && c.MaxBackoff < c.Backoff:
		return nil, fmt.Errorf("retry: Config.MaxBackoff is %v, want at least Backoff (%v)", c.MaxBackoff, c.Backoff)
	case c.MaxBackoff == 0 && c.Backoff > 0:
		c.MaxBackoff = 10 * c.Backoff
		if c.MaxBackoff/10 != c.Backoff {
			c.MaxBackoff = 1<<63 - 1
		}
	}
	c.MaxRetryAfter = cmp.Or(c.MaxRetryAfter, 10*time.Second)
	c.BodyLimit = cmp.Or(c.BodyLimit, 64<<10)
	if len(c.RetriableHeaders) > 0 && c.On.Conditions&RetriableHeaders == 0 {
		return nil, fmt.Errorf("retry: Config.RetriableHeaders is %q, want the condition RetriableHeaders in On with it", c.RetriableHeaders)
	}
	for _, name := range c.RetriableHeaders {
		if !field.IsToken(name) {
			return nil, fmt.Errorf("retry: Config.RetriableHeaders has %q, want names of headers", name)
		}
		p.headers = append(p.headers, http.CanonicalHeaderKey(name))
	}
	p.least = c.On.least()
	// Only where it makes a difference: it costs a context and a callback per try.
	p.trace = c.On.Conditions&ResetBeforeRequest != 0 && c.On.Conditions&anyFailure == 0
	p.untimed = c.PerTryTimeout == 0 && !p.trace
	return p, nil
}

// retries reports whether a response is to be retried, if that is possible.
func (p *Policy) retries(resp *http.Response) bool {
	return p.config.Retries > 0 && resp.StatusCode >= p.least && p.config.On.response(resp, p.headers)
}

// Config returns the configuration with its defaults filled in.
func (p *Policy) Config() Config {
	return p.config
}
