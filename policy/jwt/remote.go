package jwt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/internal/admission"
	"github.com/nosidecar/mesh/internal/places"
)

// Source is where a key set is fetched.
type Source struct {
	// URI is the URI of the key set or, with Discover, of an OpenID configuration that names the URI of the key set.
	URI      string
	Discover bool

	// Timeout bounds a fetch, body included.
	Timeout time.Duration
}

func (s Source) validate() error {
	u, err := url.Parse(s.URI)
	switch {
	case err != nil:
		return errors.New("the URI is not a URL")
	case len(s.URI) > 2048: // first: what an issuer names may have a megabyte
		return fmt.Errorf("the URI has %d bytes: want at most 2048", len(s.URI))
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return fmt.Errorf("the URI %q is not an http or https URL with a host", s.URI)
	case u.User != nil:
		return errors.New("the URI has a user in it")
	case s.Timeout < time.Millisecond:
		return fmt.Errorf("the timeout of %v is below 1 ms", s.Timeout)
	}
	return nil
}

// State is what is known about the keys of a source.
type State struct {
	Source  Source
	Keys    int       // how many are in force
	Fetched time.Time // when they were fetched; zero if they never were
	Err     error     // of the last fetch; nil if it succeeded
	Skipped []error   // why keys that were fetched with those in force are left out, one error for each
}

// Remotes fetches key sets before they are needed. It makes one request per set at a time, however many callers wait for it. The last good
// set stays in force until there is a newer one, however long that takes. So an issuer that cannot be reached locks nobody out, but keys
// that it has revoked in the meantime stay valid. State.Fetched says how old a set is.
//
// A set is fetched again after three quarters of the max-age of its response, but not before a minute and not after 15 minutes; without a
// max-age, after 15 minutes. After an error the wait is a second, and each further error doubles it, up to a minute. All these waits are
// shortened at random, by up to a quarter. A token with an unknown key ID triggers a fetch, unless the last one ended less than 10 seconds
// ago. A response may have at most 1 MiB. At most three redirects are followed, and only from https to https.
//
// The zero value is ready to use. The fields must not be changed after that. Remotes is safe for concurrent use.
type Remotes struct {
	// Transport returns the transport for a request, which may connect to any address. Its answer does not count for a request to which a server leads
	// (by a redirect or an OpenID configuration) if it returns nil for the URI of the source: a server outside must not lead to what only this
	// process reaches.
	//
	// If Transport is nil, or returns nil, the transport is a copy of http.DefaultTransport that dials by itself, and does not connect to
	// link-local addresses or to those at which clouds serve metadata. Behind a proxy from the environment (HTTP_PROXY), it refuses such
	// addresses only if they are in the URL: names are resolved by the proxy, which must refuse such addresses itself.
	Transport func(*http.Request) http.RoundTripper

	// OnFetch, if not nil, is called after every fetch, with one call at a time for each source.
	OnFetch func(State)

	mu     sync.Mutex
	all    map[Source]*remoteSet
	closed bool
	done   sync.WaitGroup
}

// remoteSet is the key set of one source.
type remoteSet struct {
	source Source
	keys   atomic.Pointer[Keys]
	wake   chan struct{} // asks for a fetch now

	waiting places.Places

	mu      sync.Mutex
	stop    context.CancelFunc // nil if it is not in use
	fetched time.Time
	tried   time.Time // the end of the last fetch
	err     error
	next    chan struct{} // closed at the end of the current or next fetch
}

// of returns the key set of a source. It is not fetched before Use.
func (s *Remotes) of(source Source) *remoteSet {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.all[source]
	if r == nil {
		if s.all == nil {
			s.all = make(map[Source]*remoteSet)
		}
		r = &remoteSet{source: source, wake: make(chan struct{}, 1), waiting: places.Places{Most: maxWaiting}, next: make(chan struct{})}
		s.all[source] = r
	}
	return r
}

// Use begins to fetch the sources of a, and stops fetching all others. A nil Authenticator has no sources. Use does not wait: tokens are
// refused until the first keys have been fetched.
func (s *Remotes) Use(a *Authenticator) {
	s.mu.Lock()
	defer s.mu.Unlock()
	used := make(map[*remoteSet]bool)
	for _, r := range a.remotes() {
		if other := s.all[r.source]; other != r { // a was out of use in the meantime
			if other != nil {
				other.end()
			}
			s.all[r.source] = r
		}
		used[r] = true
	}
	for source, r := range s.all {
		if !used[r] || s.closed {
			r.end()
			delete(s.all, source)
			continue
		}
		if ctx := r.begin(); ctx != nil {
			s.done.Go(func() { s.run(ctx, r) })
		}
	}
}

// Close stops all fetching, and waits until it has stopped. The keys stay in force.
func (s *Remotes) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.Use(nil)
	s.done.Wait()
}

// States returns what is known about the sources in use, in no particular order.
func (s *Remotes) States() []State {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]State, 0, len(s.all))
	for _, r := range s.all {
		if r.used() {
			all = append(all, r.state())
		}
	}
	return all
}

// current returns the set in force. It is nil until there is one.
func (r *remoteSet) current() *Keys { return r.keys.Load() }

// begin returns the context for fetching, or nil if the set is being fetched already.
func (r *remoteSet) begin() context.Context {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stop != nil {
		return nil
	}
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	return ctx
}

// used reports whether the rules in force use the source. Rules that were never put in force may have sources of their own.
func (r *remoteSet) used() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stop != nil
}

func (r *remoteSet) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stop != nil {
		r.stop()
		r.stop = nil
		r.endWaitLocked() // there will be no fetch
	}
}

// endWaitLocked ends the waits for a fetch.
func (r *remoteSet) endWaitLocked() {
	close(r.next)
	r.next = make(chan struct{})
}

func (r *remoteSet) state() State {
	r.mu.Lock()
	defer r.mu.Unlock()
	state := State{Source: r.source, Fetched: r.fetched, Err: r.err}
	if keys := r.current(); keys != nil {
		state.Keys, state.Skipped = keys.Len(), slices.Clone(keys.skipped)
	}
	return state
}

// How often a source is asked.
const (
	refresh     = 20 * time.Minute // the longest max-age that counts, and the one of a response without any
	minRefresh  = time.Minute      // the shortest wait after a success
	minRetry    = time.Second      // after an error; doubled by each further error
	maxRetry    = time.Minute
	betweenAsks = 10 * time.Second // after a fetch, before the next one because of an unknown key ID
	maxWaiting  = 128              // requests that may wait for such a fetch
)

// newer returns a set that is newer than keys, if there is one or one can be fetched now. Unless there has just been a fetch, it asks for
// one and waits for its end. It returns the set in force if too many requests wait already, if the context of the request ends, or if that
// context says not to wait.
func (r *remoteSet) newer(at arrival, keys *Keys) *Keys {
	r.mu.Lock()
	if r.current() != keys || r.stop == nil || time.Since(r.tried) < betweenAsks {
		r.mu.Unlock()
		return r.current()
	}
	next := r.next
	select {
	case r.wake <- struct{}{}:
	default: // it has been asked already
	}
	r.mu.Unlock()
	if later, _ := at.ctx.Value(admission.LaterKey{}).(*bool); later != nil {
		*later = true
		return keys
	}
	from := at.sender()
	if !r.waiting.Enter(from) {
		return r.current()
	}
	defer r.waiting.Leave(from)

	timeout := time.NewTimer(r.source.Timeout)
	defer timeout.Stop()
	select {
	case <-next:
	case <-timeout.C:
	case <-at.ctx.Done():
	}
	return r.current()
}

// run fetches until ctx ends.
func (s *Remotes) run(ctx context.Context, r *remoteSet) {
	transport := &chosen{s.Transport, r.source.URI, guarded()}
	defer transport.guarded.CloseIdleConnections()
	client := &http.Client{Transport: transport, CheckRedirect: checkRedirect}
	retry := minRetry
	for {
		keys, maxAge, err := r.source.fetch(ctx, client)
		if ctx.Err() != nil {
			return
		}
		pause := max(minRefresh, time.Duration(0.75*float64(min(maxAge, refresh))))
		if err != nil {
			pause, retry = retry, min(2*retry, maxRetry)
		} else {
			retry = minRetry
		}
		r.finish(keys, err)
		if s.OnFetch != nil {
			s.OnFetch(r.state())
		}
		timer := time.NewTimer(pause - time.Duration(rand.Int64N(int64(pause/4)))) // so that not all processes ask at once
		select {
		case <-timer.C:
		case <-r.wake:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// finish records the outcome of a fetch.
func (r *remoteSet) finish(keys *Keys, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err, r.tried = err, time.Now()
	if err == nil {
		r.fetched = r.tried
		if !keys.equal(r.current()) { // equal ones stay, since they remember refused tokens
			r.keys.Store(keys)
		}
	}
	r.endWaitLocked()
	select {
	case <-r.wake: // this fetch serves whoever asked in the meantime
	default:
	}
}

// fetch gets the keys and how long they may be kept, which is refresh if the response does not say.
func (s Source) fetch(ctx context.Context, client *http.Client) (*Keys, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()
	uri := s.URI
	if s.Discover {
		data, _, err := get(ctx, client, uri)
		if err != nil {
			return nil, 0, err
		}
		config, ok := parse(data, nil)
		named := find(config, "jwks_uri")
		if !ok || named.kind != text {
			return nil, 0, fmt.Errorf("%s: no OpenID configuration with a jwks_uri", uri)
		}
		if err := (Source{URI: named.text, Timeout: s.Timeout}).validate(); err != nil {
			return nil, 0, fmt.Errorf("%s: jwks_uri: %w", uri, err)
		}
		if strings.HasPrefix(uri, "https:") && !strings.HasPrefix(named.text, "https:") {
			return nil, 0, fmt.Errorf("%s: jwks_uri is not https", uri)
		}
		uri = named.text
	}
	data, header, err := get(ctx, client, uri)
	if err != nil {
		return nil, 0, err
	}
	keys, _, err := ParseKeys(data) // keys.skipped has what is left out
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", uri, err)
	}
	return keys, maxAge(header["Cache-Control"]), nil
}

// get fetches a document of at most maxKeySet bytes.
func get(ctx context.Context, client *http.Client, uri string) (string, http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, uri, nil)
	if err != nil {
		return "", nil, err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		if text := err.Error(); len(text) > maxError { // it may contain a long URL from the issuer
			err = errors.New(short(text, maxError))
		}
		return "", nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", nil, fmt.Errorf("%s: status %d", uri, resp.StatusCode)
	}
	var data strings.Builder
	n := resp.ContentLength // -1 if it is not known
	if n <= maxKeySet {
		n, err = io.Copy(&data, io.LimitReader(resp.Body, maxKeySet+1))
	}
	if err == nil && n > maxKeySet {
		err = fmt.Errorf("more than %d bytes", maxKeySet)
	}
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", uri, err)
	}
	return data.String(), resp.Header, nil
}

// maxAge returns how long a response may be kept (RFC 9111, section 5.2.2.1).
func maxAge(lines []string) time.Duration {
	for _, line := range lines {
		for directive := range strings.SplitSeq(line, ",") {
			name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
			if !strings.EqualFold(name, "max-age") {
				continue
			}
			if n, err := strconv.ParseUint(strings.Trim(value, `"`), 10, 32); err == nil {
				return time.Duration(n) * time.Second
			}
		}
	}
	return refresh
}
