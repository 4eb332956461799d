package engine

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/internal/body"
	"github.com/nosidecar/mesh/policy/limit"
)

// Link is the connections to one endpoint, all made under the same certificates. When these rotate another link takes its
// place: the calls on it may end, new ones go over the other. It is safe for concurrent use.
type Link struct {
	lane    *lane
	calls   atomic.Int64 // under way, with the bits below
	expires atomic.Int64 // shortly before the first certificate expires, in Unix nanoseconds; 0 if there is none

	// The connections of net/http come about with the first call: most of ten thousand endpoints may never get one.
	opening sync.Once
	conns   atomic.Pointer[limit.Conns]
	err     error // why there are none

	mu      sync.Mutex
	onClose []func()
	closed  bool
}

const (
	linkRetired = 1 << 61 // takes no new calls
	linkClosed  = 1 << 62 // has no calls any more either
)

// Address is what is dialled, as "host:port".
func (l *Link) Address() string {
	return l.lane.key.address
}

// TLS returns the configuration for the handshake with the endpoint, and nil if it is spoken to without TLS. It checks the
// identity of the endpoint, whatever server name it is used with. It must not be changed.
func (l *Link) TLS() *tls.Config {
	return l.tls(l.expireBefore)
}

// tls is TLS for who wants to know when the certificates of a handshake expire: the peer's, and ours if it is presented.
func (l *Link) tls(expires func(notAfter time.Time)) *tls.Config {
	config := l.lane.config
	if config == nil {
		return nil
	}
	config = config.Clone()
	verify, present := config.VerifyConnection, config.GetClientCertificate
	config.VerifyConnection = func(state tls.ConnectionState) error {
		if err := verify(state); err != nil {
			// Nothing was sent yet, and this type says so to all that read it.
			return &tls.CertificateVerificationError{UnverifiedCertificates: state.PeerCertificates, Err: err}
		}
		expires(state.PeerCertificates[0].NotAfter)
		return nil
	}
	if present != nil {
		config.GetClientCertificate = func(asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			own, err := present(asked)
			if err == nil {
				expires(own.Leaf.NotAfter)
			}
			return own, err
		}
	}
	return config
}

// expireBefore has the link replaced somewhat before a certificate expires, for calls under way then: the peer cuts them when
// it does.
func (l *Link) expireBefore(notAfter time.Time) {
	at := notAfter.Add(-min(time.Until(notAfter)/4, time.Minute)).UnixNano()
	for {
		old := l.expires.Load()
		if old != 0 && old <= at || l.expires.CompareAndSwap(old, at) {
			return
		}
	}
}

// OnClose has f called once the link takes no new calls and the last one on it has ended: then its connections are to be
// closed. If that is the case already, f is called at once.
func (l *Link) OnClose(f func()) {
	l.mu.Lock()
	closed := l.closed
	if !closed {
		l.onClose = append(l.onClose, f)
	}
	l.mu.Unlock()
	if closed {
		f()
	}
}

// enter counts a call in. It reports false if the link is retired.
func (l *Link) enter() bool {
	if l.calls.Add(1)&linkRetired != 0 {
		l.leave()
		return false
	}
	return true
}

// leave counts a call out. The last one of a retired link closes it.
func (l *Link) leave() {
	if l.calls.Add(-1) == linkRetired {
		l.close()
	}
}

func (l *Link) retire() {
	l.closeIdle()
	if l.calls.Or(linkRetired) == 0 {
		l.close()
	}
}

// close closes the connections of a retired link without calls, once.
func (l *Link) close() {
	if !l.calls.CompareAndSwap(linkRetired, linkRetired|linkClosed) {
		return
	}
	l.mu.Lock()
	l.closed = true
	told := l.onClose
	l.onClose = nil
	l.mu.Unlock()
	if conns := l.conns.Load(); conns != nil {
		conns.Close()
	}
	for _, f := range told {
		f()
	}
}

func (l *Link) closeIdle() {
	if conns := l.conns.Load(); conns != nil {
		conns.CloseIdleConnections()
	}
}

// open returns the connections of net/http, which the first call makes.
func (l *Link) open() (*limit.Conns, error) {
	l.opening.Do(func() {
		t := dialling(l.lane.owner.template, l.Address())
		if config := l.TLS(); config != nil {
			config.NextProtos = nil // net/http asks for what the template speaks: maybe HTTP/1.1 only
			t.TLSClientConfig = config
		}
		conns, err := l.lane.owner.pool.Conns(t)
		if l.err = err; err == nil {
			l.conns.Store(conns)
		}
	})
	return l.conns.Load(), l.err
}

// roundTrip sends a request with net/http.
func (l *Link) roundTrip(req *http.Request) (*http.Response, error) {
	conns, err := l.open()
	if err != nil {
		body.CloseRequest(req)
		return nil, err
	}
	if l.lane.config != nil && req.URL.Scheme == "http" {
		req = overTLS(req)
	}
	return conns.RoundTrip(req)
}

// overTLS returns the request as net/http sends it over TLS. Nobody else sees this copy.
func overTLS(req *http.Request) *http.Request {
	copied := &struct { // at once, since it is made for each try
		req http.Request
		url url.URL
	}{*req, *req.URL}
	copied.url.Scheme = "https"
	copied.req.URL = &copied.url
	return &copied.req
}

var errLinkClosed = errors.New("the endpoint was removed meanwhile")

// dialling returns a copy of template that dials address, whatever the URL says. Host header and TLS server name thus
// stay the service's, and the request stays the caller's.
func dialling(template *http.Transport, address string) *http.Transport {
	t := template.Clone()
	dial := contextDialer(t)
	t.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return dial(ctx, network, address)
	}
	return t
}

func contextDialer(t *http.Transport) func(ctx context.Context, network, address string) (net.Conn, error) {
	if t.DialContext != nil {
		return t.DialContext
	}
	return new(net.Dialer).DialContext
}
