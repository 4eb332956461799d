package consul

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"
)

// NewClient returns a client that many watches may share. NewClient of discovery/consul describes it.
func NewClient(config *api.Config) (*api.Client, error) {
	if config == nil {
		config = api.DefaultConfig()
	}
	c := *config
	switch {
	case c.HttpClient != nil:
		own := *c.HttpClient
		c.HttpClient = &own
	case c.Transport != nil:
		given := c.Transport.TLSClientConfig
		if c.Transport = c.Transport.Clone(); given == nil {
			c.Transport.TLSClientConfig = nil // Clone makes one, and the client would leave its own out
		}
	}
	client, err := api.NewClient(&c) // which fills in c, and keeps its HttpClient
	if err != nil {
		return nil, fmt.Errorf("consul: %w", err)
	}
	if c.HttpClient.CheckRedirect == nil {
		c.HttpClient.CheckRedirect = noRedirect
	}
	t := &transport{base: c.HttpClient.Transport, first: make(chan struct{}, 1)}
	if t.base == nil {
		t.base = http.DefaultTransport
	}
	if h, ok := t.base.(*http.Transport); ok && config.HttpClient == nil {
		tune(h)
		h.Proxy = noSecrets(h.Proxy)
		if c.Scheme != "https" {
			h.MaxConnsPerHost = mostBlocked + mostShort // a slot may be free a moment before its connection is
			h.DialContext = patient(h.DialContext)
		}
	}
	t.turns.idle = t.CloseIdleConnections
	if c.TokenFile != "" {
		if t.token, err = follow(c.TokenFile, c.Token); err != nil {
			return nil, err
		}
	}
	c.HttpClient.Transport = t
	return client, nil
}

// tune adapts a transport of the official client to blocking queries.
func tune(h *http.Transport) {
	h.DisableKeepAlives = false // it is true for unix sockets
	h.MaxIdleConns, h.MaxIdleConnsPerHost = 0, mostBlocked+mostShort
	h.IdleConnTimeout = 10 * time.Second
	h.ForceAttemptHTTP2 = true
	// Blocked queries are silent for a minute. The ping detects an agent that has disappeared.
	h.HTTP2 = &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second}
}

// transport sends the requests of a client with the current token, over one HTTP/2 connection or a bounded number of HTTP/1 connections.
type transport struct {
	base  http.RoundTripper
	token *tokenFile // nil: the client's own
	turns turns

	first    chan struct{} // held by the request that opens the connection
	open     atomic.Bool   // the last request was answered
	parallel atomic.Bool   // the connection carries many requests at a time
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	req = t.token.authorize(req)
	if req.URL.Scheme == "https" {
		connected, err := t.wait(req.Context())
		switch {
		case err != nil:
			return nil, refuse(req, err)
		case !connected:
			defer t.pass()
			return t.send(waiting(req, shortWait))
		case t.parallel.Load():
			return t.send(req)
		}
	}
	req, done, err := t.turns.wait(req)
	if err != nil {
		return nil, refuse(req, err)
	}
	var fresh atomic.Bool
	trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) { fresh.Store(!info.Reused) }}
	began := time.Now()
	resp, err := t.send(req.WithContext(httptrace.WithClientTrace(req.Context(), trace)))
	if err != nil {
		// A request that was blocked for longer had its connection, and lost it when the agent went away.
		refused := fresh.Load() && time.Since(began) < time.Second && req.Context().Err() == nil
		if done(refused); refused {
			err = fmt.Errorf("the agent closed a new connection, as it does when it has too many from this host (http_max_conns_per_client): %w", err)
		}
		return nil, err
	}
	// An agent answers an excess connection with 429 and closes it. A 429 on an open connection is about the rate of requests.
	refused := resp.StatusCode == http.StatusTooManyRequests && resp.Close
	resp.Body = &body{ReadCloser: resp.Body, done: func() { done(refused) }}
	return resp, nil
}

// wait returns true when there is a connection. It returns false if the caller should open one; the caller then calls pass. Meanwhile the
// other requests wait, since each would open a connection of its own.
func (t *transport) wait(ctx context.Context) (connected bool, err error) {
	if t.open.Load() {
		return true, nil
	}
	select {
	case t.first <- struct{}{}:
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
	if t.open.Load() {
		t.pass()
		return true, nil
	}
	return false, nil
}

func (t *transport) pass() { <-t.first }

func (t *transport) send(req *http.Request) (*http.Response, error) {
	resp, err := t.base.RoundTrip(req)
	switch {
	case err == nil:
		check(req, resp)
		t.parallel.Store(resp.ProtoMajor >= 2)
		t.open.Store(true)
	case req.Context().Err() == nil:
		t.open.Store(false)
	}
	return resp, err
}

// CloseIdleConnections is what http.Client.CloseIdleConnections calls.
func (t *transport) CloseIdleConnections() {
	if c, ok := t.base.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// refuse closes the body of a request that is not sent.
func refuse(req *http.Request, err error) error {
	if req.Body != nil {
		_ = req.Body.Close()
	}
	return err
}

// tokenFile is a file that contains the token. The official client reads it only once.
type tokenFile struct {
	path    string
	initial string                 // the token that the client sends
	last    atomic.Pointer[string] // the last token that was read
}

// follow returns the file if the client took its token from it, and nil if another token was set. It also returns nil for a pipe, which the
// client has read to its end: nobody may write to it again.
func follow(path, token string) (*tokenFile, error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("consul: token file: %w", err)
	}
	f := &tokenFile{path: path, initial: token}
	if now := strings.TrimSpace(string(data)); now != "" && now != token {
		return nil, nil
	}
	f.last.Store(&token)
	return f, nil
}

const tokenHeader = "X-Consul-Token"

// authorize sets the current token of a request, unless the request has its own. If the file cannot be read, or is empty because it is being
// written, the last token stays in use.
func (f *tokenFile) authorize(req *http.Request) *http.Request {
	if f == nil || req.Header.Get(tokenHeader) != f.initial {
		return req
	}
	if data, err := os.ReadFile(f.path); err == nil {
		if now := strings.TrimSpace(string(data)); now != "" && now != *f.last.Load() {
			f.last.Store(&now)
		}
	}
	now := *f.last.Load()
	if now == f.initial {
		return req
	}
	sent := *req
	sent.Header = req.Header.Clone()
	sent.Header.Set(tokenHeader, now)
	return &sent
}
