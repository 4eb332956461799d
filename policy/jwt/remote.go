package jwt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nosidecar/mesh/internal/admission"
)

// Source is where a key set is fetched.
type Source struct {
	// URI is that of the key set or, with Discover, of an OpenID configuration that names it.
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
	Fetched time.Time // when they were; zero if they never were
	Err     error     // of the last fetch, nil if it was good
}

// Remotes fetches key sets: each ahead of need, by one request at a time, whatever asks for it. The last good set stays in force until
// there is a newer one, however long that takes: an issuer that cannot be reached refuses nobody, and keys that it has revoked
// meanwhile stay good as well. State.Fetched tells how old a set is. Its zero value is ready to use; its fields must not be changed after that. It is safe for concurrent
// use.
type Remotes struct {
	// Transport returns what carries a request; it is not guarded. If it is nil, or returns nil, that is a copy of
	// http.DefaultTransport that dials by itself and refuses to connect to link-local addresses and to those where clouds serve their
	// metadata. Through a proxy that the environment names (HTTP_PROXY), it refuses such addresses only where they stand in the URL: the
	// proxy resolves names, and must not let through what they should not reach.
	Transport func(*http.Request) http.RoundTripper

	// OnFetch, if not nil, is told of the outcome of every fetch, one at a time for each source.
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

	mu      sync.Mutex
	stop    context.CancelFunc // nil if it is not in use
	fetched time.Time
	tried   time.Time // the end of the last fetch
	err     error
	next    chan struct{} // closed at the end of the fetch that comes or is under way
	waiting int
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
		r = &remoteSet{source: source, wake: make(chan struct{}, 1), next: make(chan struct{})}
		s.all[source] = r
	}
	return r
}

// Use begins to fetch the sources of a, and ends fetching all others. nil has none. It does not wait: until the first keys are
// there, tokens are refused.
func (s *Remotes) Use(a *Authenticator) {
	var sources []Source
	if a != nil {
		sources = a.Sources()
	}
	used := make(map[*remoteSet]bool)
	for _, source := range sources {
		used[s.of(source)] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
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

// Close ends all fetching, and waits for it. The keys stay in force.
func (s *Remotes) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.Use(nil)
	s.done.Wait()
}

// States returns what is known about the sources in use, in no order.
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

// current returns the set in force, nil before the first.
func (r *remoteSet) current() *Keys { return r.keys.Load() }

// begin returns the context to fetch under, nil if that is under way already.
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

// used is false for a source that only rules have which were never put in force.
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
	}
}

func (r *remoteSet) state() State {
	r.mu.Lock()
	defer r.mu.Unlock()
	state := State{Source: r.source, Fetched: r.fetched, Err: r.err}
	if keys := r.current(); keys != nil {
		state.Keys = keys.Len()
	}
	return state
}

// How often a source is asked.
const (
	refresh     = 20 * time.Minute // at the latest
	minRefresh  = time.Minute      // at the earliest, after a good answer
	minRetry    = time.Second      // after an error; doubled by each
	maxRetry    = time.Minute
	betweenAsks = 10 * time.Second // for the sake of a token with an unknown key ID
	maxWaiting  = 64               // requests that wait for such a fetch
)

// newer returns the set after keys, if one can be had now: it asks for a fetch, unless there has just been one, and waits for the end of
// it. Where too many wait already, ctx ends, or ctx says that nobody may wait, it returns the set in force.
func (r *remoteSet) newer(ctx context.Context, keys *Keys) *Keys {
	r.mu.Lock()
	if r.current() != keys || r.stop == nil || r.waiting >= maxWaiting || time.Since(r.tried) < betweenAsks {
		r.mu.Unlock()
		return r.current()
	}
	next := r.next
	select {
	case r.wake <- struct{}{}:
	default: // it has been asked already
	}
	if later, _ := ctx.Value(admission.LaterKey{}).(*bool); later != nil {
		*later = true
		r.mu.Unlock()
		return keys
	}
	r.waiting++
	r.mu.Unlock()

	timeout := time.NewTimer(r.source.Timeout)
	defer timeout.Stop()
	select {
	case <-next:
	case <-timeout.C:
	case <-ctx.Done():
	}
	r.mu.Lock()
	r.waiting--
	r.mu.Unlock()
	return r.current()
}

// run fetches until ctx ends.
func (s *Remotes) run(ctx context.Context, r *remoteSet) {
	transport := &chosen{s.Transport, guarded()}
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

// finish takes the outcome of a fetch.
func (r *remoteSet) finish(keys *Keys, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err, r.tried = err, time.Now()
	if err == nil {
		r.fetched = r.tried
		if !keys.equal(r.current()) { // tokens that these keys verified stay so
			r.keys.Store(keys)
		}
	}
	close(r.next)
	r.next = make(chan struct{})
	select {
	case <-r.wake: // what asked meanwhile has its answer
	default:
	}
}

// fetch gets the keys, and how long they may be kept; refresh if that is not said.
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
	keys, _, err := ParseKeys(data)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", uri, err)
	}
	return keys, maxAge(header["Cache-Control"]), nil
}

// get returns a document of at most the length of a key set.
func get(ctx context.Context, client *http.Client, uri string) (string, http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, uri, nil)
	if err != nil {
		return "", nil, err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := client.Do(req)
	if err != nil {
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

// maxAge reads how long an answer may be kept (RFC 9111, section 5.2.2.1).
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

// checkRedirect follows few redirects, and none that leaves https.
func checkRedirect(req *http.Request, via []*http.Request) error {
	switch {
	case len(via) > 3:
		return errors.New("more than 3 redirects")
	case req.URL.Scheme != "https" || via[0].URL.Scheme != "https":
		return errors.New("a redirect from or to something else than https is not followed")
	}
	return nil
}

// chosen is the transport of each request.
type chosen struct {
	choose  func(*http.Request) http.RoundTripper
	guarded *http.Transport
}

// RoundTrip implements http.RoundTripper.
func (c *chosen) RoundTrip(r *http.Request) (*http.Response, error) {
	if c.choose != nil {
		if transport := c.choose(r); transport != nil {
			return transport.RoundTrip(r)
		}
	}
	return c.guarded.RoundTrip(r)
}

// guarded returns a transport that keeps a key set's URI from reaching what only this machine can: its link, and the metadata of its
// cloud, credentials included.
func guarded() *http.Transport {
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, IdleConnTimeout: 90 * time.Second}
	if standard, ok := http.DefaultTransport.(*http.Transport); ok { // programs put other things there
		transport = standard.Clone()
	}
	dialer := &net.Dialer{Timeout: 5 * time.Second, Control: func(_, address string, _ syscall.RawConn) error {
		addr, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		return checkAddress(addr.Addr())
	}}
	transport.DialContext = dialer.DialContext
	// What a program put into the transport of the standard library to dial in its own way is not asked: it would be a way past.
	transport.DialTLSContext = nil
	//lint:ignore SA1019 a program may still set it
	transport.DialTLS = nil
	if proxy := transport.Proxy; proxy != nil {
		transport.Proxy = func(r *http.Request) (*url.URL, error) {
			through, err := proxy(r)
			if through != nil && err == nil {
				err = checkProxied(r.URL.Hostname())
			}
			return through, err
		}
	}
	return transport
}

func checkAddress(ip netip.Addr) error {
	ip = ip.Unmap().WithZone("")
	if nat64.Contains(ip) {
		of := ip.As16()
		ip = netip.AddrFrom4([4]byte(of[12:]))
	}
	if ip.IsLinkLocalUnicast() || ip.IsMulticast() || slices.Contains(metadata, ip) {
		return fmt.Errorf("%s is a link-local or metadata address: keys are not fetched from there", ip)
	}
	return nil
}

// checkProxied judges a host that a proxy connects to. It resolves names by itself, so they cannot be judged here, but for those that are
// addresses in the spellings of C: 0xa9fea9fe, 2852039166.
func checkProxied(host string) error {
	if ip, err := netip.ParseAddr(host); err == nil {
		return checkAddress(ip)
	}
	host = strings.TrimSuffix(host, ".")
	last := strings.ToLower(host[strings.LastIndexByte(host, '.')+1:])
	if last == "" || '0' <= last[0] && last[0] <= '9' {
		return fmt.Errorf("the host %q is an address in a spelling of its own: keys are not fetched from there through a proxy", host)
	}
	if strings.EqualFold(host, "metadata.google.internal") {
		return fmt.Errorf("%s is a metadata service: keys are not fetched from there", host)
	}
	return nil
}

// metadata has the metadata services of clouds that are not at a link-local address.
var metadata = []netip.Addr{
	netip.MustParseAddr("fd00:ec2::254"),   // AWS
	netip.MustParseAddr("fd20:ce::254"),    // Google
	netip.MustParseAddr("168.63.129.16"),   // Azure
	netip.MustParseAddr("100.100.100.200"), // Alibaba
	netip.MustParseAddr("192.0.0.192"),     // Oracle
}

// nat64 has the IPv4 addresses as a NAT64 translates them (RFC 6052 section 2.1).
var nat64 = netip.MustParsePrefix("64:ff9b::/96")
