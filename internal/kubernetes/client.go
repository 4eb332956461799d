// Package kubernetes reads from a Kubernetes API server with net/http. It has the client that the packages for Kubernetes use by default,
// their common loop of lists and watches, and the discovery of the kinds that a server has.
package kubernetes

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

const (
	askFor    = 30 * time.Second // the timeout of a request other than a watch or list
	maxAnswer = 4 << 20          // the limit of the answer to such a request, in bytes
	idleFor   = 10 * time.Second // how long an unused connection stays open
	userAgent = "mesh"
)

// Config says where an API server is, and how this process authenticates.
type Config struct {
	Server    string // URL
	Namespace string // the namespace of this process, or of the kubeconfig's context; may be empty

	CA         []byte // PEM; empty means the roots of the system
	CAFile     string // a PEM file, read again when it changes; takes precedence over CA
	ServerName string // the name to verify instead of the host of Server
	Insecure   bool   // the server is not verified at all

	Token     string // sent with each request
	TokenFile string // read again when it changes; takes precedence over Token

	Certificate *tls.Certificate // the client's certificate, instead of a token

	Proxy *url.URL // nil means the proxy of the environment

	Transport http.RoundTripper // for tests: replaces the transport made from the fields above
}

// Client sends requests to one API server. All its watches share one transport, which needs few connections over HTTP/2. It is safe for
// concurrent use.
type Client struct {
	server    string // URL without a slash at the end
	namespace string
	token     *renewed // empty for none
	base      http.RoundTripper
	files     []*renewed // what requests depend on

	lists atomic.Bool  // the server cannot stream lists
	stuck atomic.Int64 // when a consistent read last timed out, in Unix nanoseconds; 0 if none did
}

// New returns a client. It sends nothing.
func New(config Config) (*Client, error) {
	server, err := url.Parse(config.Server)
	if err != nil {
		return nil, fmt.Errorf("kubernetes: server: %w", err)
	}
	if server.Scheme != "https" && server.Scheme != "http" || server.Host == "" || server.User != nil || server.RawQuery != "" || server.Fragment != "" {
		return nil, fmt.Errorf("kubernetes: server %q: must be a URL such as https://10.0.0.1:6443", server.Redacted())
	}
	c := &Client{server: strings.TrimRight(server.String(), "/"), namespace: config.Namespace}
	if c.token, err = newToken(config); err != nil {
		return nil, err
	}
	if server.Scheme == "http" && c.token.read() != "" && (!loopback(server.Hostname()) || config.Proxy != nil) {
		return nil, fmt.Errorf("kubernetes: server %q: a token is not sent in plain text: use https", config.Server)
	}
	c.files = append(c.files, c.token)
	switch {
	case config.Transport != nil:
		c.base = config.Transport
	case config.CAFile != "":
		trusting, err := newTrusting(config)
		if err != nil {
			return nil, err
		}
		c.base, c.files = trusting, append(c.files, trusting.file)
	default:
		if c.base, err = newTransport(config); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// newTransport returns the transport that all watches of a client share.
func newTransport(config Config) (*http.Transport, error) {
	verify := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: config.ServerName, InsecureSkipVerify: config.Insecure}
	if len(config.CA) > 0 {
		if config.Insecure {
			return nil, errors.New("kubernetes: a certificate authority has no meaning if the server is not verified: set one of the two")
		}
		verify.RootCAs = x509.NewCertPool()
		if !verify.RootCAs.AppendCertsFromPEM(config.CA) {
			return nil, errors.New("kubernetes: no certificate in the file of the certificate authority")
		}
	}
	if config.Certificate != nil {
		verify.Certificates = []tls.Certificate{*config.Certificate}
	}
	proxy := http.ProxyFromEnvironment
	if config.Proxy != nil {
		proxy = http.ProxyURL(config.Proxy)
	}
	return &http.Transport{
		Proxy:                 proxy,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSClientConfig:       verify,
		TLSHandshakeTimeout:   10 * time.Second,
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   4,
		IdleConnTimeout:       idleFor,
		ExpectContinueTimeout: time.Second,
		// A watch may be silent for long. The ping detects a server that has disappeared.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second},
	}, nil
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// Namespace returns the namespace of this process, or of the context of the kubeconfig. It is empty if neither is known.
func (c *Client) Namespace() string { return cmp.Or(c.namespace, c.Identity().Namespace) }

// Do sends one request with body as JSON, unless it is nil, and decodes the answer into into, unless that is nil. Errors are of type
// *Error.
func (c *Client) Do(ctx context.Context, method, path string, body, into any) error {
	what := method + " " + path
	ctx, cancel := context.WithTimeoutCause(ctx, askFor, fmt.Errorf("no answer within %v", askFor))
	defer cancel()
	var sent []byte
	if body != nil {
		var err error
		if sent, err = json.Marshal(body); err != nil {
			return &Error{What: what, Err: err}
		}
	}
	resp, err := c.send(ctx, what, method, path, sent)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return &Error{What: what, Err: explain(ctx, err)}
	case len(data) > maxAnswer:
		return &Error{What: what, Err: fmt.Errorf("%w: more than %d MiB", errTooLarge, maxAnswer>>20)}
	case into == nil:
		return nil
	}
	if err := json.Unmarshal(data, into); err != nil {
		return &Error{What: what, Err: fmt.Errorf("%w: %w", errNonsense, err)}
	}
	return nil
}

// send sends a request and returns a successful JSON answer or an *Error. The caller closes the body of the answer.
func (c *Client) send(ctx context.Context, what, method, path string, body []byte) (*http.Response, error) {
	for again := false; ; again = true {
		req, err := http.NewRequestWithContext(ctx, method, c.server+path, bytes.NewReader(body))
		if err != nil {
			return nil, &Error{What: what, Err: err}
		}
		if body == nil {
			req.Body, req.GetBody = nil, nil
		} else {
			req.Header.Set("Content-Type", "application/json")
		}
		req.Header.Set("Accept", "application/json")
		req.Header.Set("User-Agent", userAgent)
		sent := c.token.read()
		if sent != "" {
			req.Header.Set("Authorization", "Bearer "+sent)
		}
		resp, err := c.base.RoundTrip(req)
		if err != nil {
			return nil, &Error{What: what, Err: c.blame(explain(ctx, err))}
		}
		if resp.StatusCode/100 == 2 {
			if kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err != nil || kind != "application/json" {
				defer resp.Body.Close()
				text := resp.Header.Get("Content-Type") + ": " + string(beginning(resp, sent))
				return nil, &Error{What: what, Err: errNonsense, Message: clean(text)}
			}
			return resp, nil
		}
		refused := refusal(what, resp, sent)
		resp.Body.Close()
		if refused.Code == http.StatusUnauthorized {
			if !again && c.token.read() != sent {
				continue
			}
			refused.Err = c.blame(refused.Err)
		}
		return nil, refused
	}
}

// blame adds to the error of a request why a file cannot be read that may have caused it.
func (c *Client) blame(err error) error {
	for _, f := range c.files {
		if fault := f.fault(); fault != nil {
			err = fmt.Errorf("%w, perhaps because of this: %w", err, fault)
		}
	}
	return err
}

// explain replaces the transport's error by the cause of ctx, if ctx has ended.
func explain(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
