package limit_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/memnet"
	"github.com/nosidecar/mesh/policy/limit"
)

// authority makes a certificate for the servers of tests. It is valid in bubbles, where it is the year 2000.
var authority = sync.OnceValues(func() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"orders", "other", "proxy"}, IPAddresses: []net.IP{net.IPv6loopback, net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, err
})

// certificates returns the settings of a server and of a client that trusts it.
func certificates(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	certificate, err := authority()
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(certificate.Leaf)
	return &tls.Config{Certificates: []tls.Certificate{certificate}}, &tls.Config{RootCAs: roots}
}

// summary is what the state of a connection says, except for what differs with each.
func summary(state *tls.ConnectionState) string {
	if state == nil {
		return " no TLS"
	}
	return fmt.Sprint(" ", tls.VersionName(state.Version), " ", state.HandshakeComplete, state.DidResume, " ", state.NegotiatedProtocol,
		" ", state.ServerName, " ", len(state.PeerCertificates), len(state.VerifiedChains))
}

// behindTLS returns a template that leads to a server with such settings, whatever the host.
func behindTLS(t *testing.T, change func(server, client *tls.Config), handler http.HandlerFunc) (*memnet.Network, *http.Transport) {
	server, client := certificates(t)
	if change != nil {
		change(server, client)
	}
	network := new(memnet.Network)
	s := &http.Server{Handler: handler, ErrorLog: log.New(io.Discard, "", 0)}
	go s.Serve(tls.NewListener(bufferedListener{network.Listen("")}, server))
	t.Cleanup(func() { s.Close() })
	return network, &http.Transport{DialContext: network.DialContext, TLSClientConfig: client, TLSHandshakeTimeout: 3 * time.Second}
}

// anatomy is what programs can find in an error.
func anatomy(err error) string {
	var timeout net.Error
	kind := strings.Replace(fmt.Sprintf("%T", err), "limit.handshakeTimeout", "http.tlsHandshakeTimeoutError", 1)
	has := fmt.Sprintf("%s %v: timeout %t, deadline %t", kind, err, errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded))
	if e, ok := errors.AsType[x509.HostnameError](err); ok {
		has += " for host " + e.Host
	}
	if e, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		has += fmt.Sprint(" by ", e.Cert.Issuer)
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		has += fmt.Sprint(" reason ", e.Reason)
	}
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		has += fmt.Sprint(" certificates ", len(e.UnverifiedCertificates))
	}
	return has
}

var errUnwanted = errors.New("unwanted by the test")

// Handshakes that succeed and fail look as with http.Transport, to callers, traces and servers.
func TestConns_HandshakesAsNetHTTP(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(server, client *tls.Config)
		calls  []string
	}{
		{name: "a certificate", calls: []string{"https://orders", "https://orders:8443/", "https://other", "https://127.0.0.1", "https://[::1]"}},
		{name: "a certificate for another host", calls: []string{"https://strange", "https://127.0.0.2"}},
		{name: "a certificate by nobody", change: func(_, client *tls.Config) { client.RootCAs = x509.NewCertPool() }, calls: []string{"https://orders"}},
		{name: "a certificate that has expired", change: func(_, client *tls.Config) {
			client.Time = func() time.Time { return time.Date(2101, 1, 1, 0, 0, 0, 0, time.UTC) }
		}, calls: []string{"https://orders"}},
		{name: "any certificate", change: func(_, client *tls.Config) { client.InsecureSkipVerify = true }, calls: []string{"https://strange"}},
		{name: "a server name", change: func(_, client *tls.Config) { client.ServerName = "orders" }, calls: []string{"https://strange"}},
		{name: "a connection that is refused", change: func(_, client *tls.Config) {
			client.VerifyConnection = func(tls.ConnectionState) error { return errUnwanted }
		}, calls: []string{"https://orders", "https://orders"}},
		{name: "old and new versions", change: func(server, client *tls.Config) {
			server.MaxVersion, client.MinVersion = tls.VersionTLS12, tls.VersionTLS13
		}, calls: []string{"https://orders"}},
		{name: "an old version", change: func(server, _ *tls.Config) { server.MaxVersion = tls.VersionTLS12 }, calls: []string{"https://orders", "https://orders"}},
		{name: "no protocol in common", change: func(server, _ *tls.Config) { server.NextProtos = []string{"spdy"} }, calls: []string{"https://orders"}},
		{name: "HTTP/2", change: func(server, _ *tls.Config) { server.NextProtos = []string{"h2"} }, calls: []string{"https://orders"}},
		{name: "a certificate of the client", change: func(server, client *tls.Config) {
			server.ClientAuth = tls.RequireAnyClientCert
			client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &server.Certificates[0], nil }
		}, calls: []string{"https://orders"}},
		{name: "a certificate of the client that it has not", change: func(server, client *tls.Config) {
			server.ClientAuth = tls.RequireAnyClientCert
			client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return nil, errUnwanted }
		}, calls: []string{"https://orders"}},
		{name: "a certificate of the client that it does not send", change: func(server, _ *tls.Config) {
			server.ClientAuth, server.MaxVersion = tls.RequireAnyClientCert, tls.VersionTLS12
		}, calls: []string{"https://orders"}},
		{name: "sessions", change: func(_, client *tls.Config) { client.ClientSessionCache = tls.NewLRUClientSessionCache(0) },
			calls: []string{"https://orders?close", "https://orders?close", "https://other?close", "https://orders"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			asNetHTTP(t, func(t *testing.T, through func(*http.Transport) http.RoundTripper) string {
				var keys bytes.Buffer
				network, template := behindTLS(t, func(server, client *tls.Config) {
					client.KeyLogWriter = &keys
					if tt.change != nil {
						tt.change(server, client)
					}
				}, func(w http.ResponseWriter, req *http.Request) {
					fmt.Fprint(w, req.Proto, summary(req.TLS))
				})
				rt, seen := through(template), new(notes)
				for _, target := range tt.calls {
					req := httptest.NewRequest(http.MethodGet, target, nil)
					req.Close = req.URL.RawQuery == "close"
					trace := seen.trace()
					got := trace.GotConn
					trace.GotConn = func(info httptrace.GotConnInfo) {
						got(info)
						_, secure := info.Conn.(*tls.Conn)
						seen.add("  secure %t", secure)
					}
					seen.add("%s", target)
					resp, err := rt.RoundTrip(req.WithContext(httptrace.WithClientTrace(t.Context(), trace)))
					if err != nil {
						seen.add("%s", anatomy(err))
						continue
					}
					text, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					_, unbound := resp.TLS.ExportKeyingMaterial("EXPERIMENTAL", nil, 32)
					seen.add("%s %v%s %v", text, err, summary(resp.TLS), unbound)
					synctest.Wait()
				}
				for line := range strings.Lines(keys.String()) {
					label, _, _ := strings.Cut(line, " ")
					seen.add("%s", label)
				}
				return seen.String() + fmt.Sprint(network.Dials(), " dials")
			})
		})
	}
}

// A peer that speaks no TLS, or nothing, is told as with http.Transport.
func TestConns_PeersWithoutTLSAsNetHTTP(t *testing.T) {
	for _, tt := range []struct {
		name string
		says string // "" is silence
	}{
		{"HTTP", "HTTP/1.1 400 Bad Request\r\n\r\n"},
		{"SSH", "SSH-2.0\r\n"},
		{"nothing", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			seen := asNetHTTP(t, func(t *testing.T, through func(*http.Transport) http.RoundTripper) string {
				network := new(memnet.Network)
				ln := network.Listen("")
				t.Cleanup(func() { ln.Close() })
				go func() {
					for {
						nc, err := ln.Accept()
						if err != nil {
							return
						}
						go func() {
							defer nc.Close()
							nc.Read(make([]byte, 4096))
							io.WriteString(nc, tt.says)
							if tt.says == "" {
								io.Copy(io.Discard, nc)
							}
						}()
					}
				}()
				_, client := certificates(t)
				rt, seen := through(&http.Transport{DialContext: network.DialContext, TLSClientConfig: client, TLSHandshakeTimeout: 3 * time.Second}), new(notes)
				began := time.Now()
				for range 2 {
					_, err := (&http.Client{Transport: rt}).Get("https://orders")
					seen.add("%s", anatomy(err))
					seen.add("%s", anatomy(errors.Unwrap(err)))
					seen.add("after %v", time.Since(began))
				}
				return seen.String() + fmt.Sprint(network.Dials(), " dials")
			})
			if tt.name == "HTTP" && !strings.Contains(seen, "http: server gave HTTP response to HTTPS client") {
				t.Error(seen)
			}
		})
	}
}

// A call that gives up during a handshake ends as with http.Transport, and another one goes on.
func TestConns_CanceledDuringAHandshakeAsNetHTTP(t *testing.T) {
	for _, protocol := range []string{"h2", "http/1.1"} {
		t.Run(protocol, func(t *testing.T) {
			asNetHTTP(t, func(t *testing.T, through func(*http.Transport) http.RoundTripper) string {
				_, template := behindTLS(t, func(server, _ *tls.Config) {
					server.NextProtos = []string{protocol}
					server.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
						time.Sleep(2 * time.Second)
						return nil, nil
					}
				}, hello)
				rt, seen := through(template), new(notes)
				ctx, cancel := context.WithCancelCause(t.Context())
				var callers sync.WaitGroup
				callers.Go(func() {
					_, err := rt.RoundTrip(httptest.NewRequestWithContext(ctx, http.MethodGet, "https://orders", nil))
					seen.add("%s", anatomy(err))
				})
				time.Sleep(time.Second / 2)
				callers.Go(func() {
					time.Sleep(time.Second)
					seen.add("%s", get(t, rt, "https://orders"))
				})
				cancel(errUnwanted)
				callers.Wait()
				time.Sleep(time.Minute) // the server may be busy with another handshake
				return seen.String()
			})
		})
	}
}

// What a template says of connections and calls is honoured.
func TestConns_SettingsAsNetHTTP(t *testing.T) {
	for _, tt := range []struct {
		name    string
		set     func(*http.Transport)
		method  string
		expects bool
		at      string
		times   int
		at1     int // calls at once
	}{
		{name: "nothing", times: 3, at1: 3},
		{name: "a small body", method: http.MethodPost, times: 2},
		{name: "DisableKeepAlives", set: func(template *http.Transport) { template.DisableKeepAlives = true }, times: 3},
		{name: "MaxIdleConnsPerHost", set: func(template *http.Transport) { template.MaxIdleConnsPerHost = 2 }, times: 3, at1: 5},
		{name: "no MaxIdleConnsPerHost", set: func(template *http.Transport) { template.MaxIdleConnsPerHost = -1 }, times: 3},
		{name: "ResponseHeaderTimeout", set: func(template *http.Transport) { template.ResponseHeaderTimeout = 2 * time.Second }, at: "stall", times: 2},
		{name: "ExpectContinueTimeout", set: func(template *http.Transport) { template.ExpectContinueTimeout = 2 * time.Second }, method: http.MethodPost, expects: true, at: "late", times: 2},
		{name: "no ExpectContinueTimeout", method: http.MethodPost, expects: true, at: "late", times: 2},
		{name: "MaxResponseHeaderBytes", set: func(template *http.Transport) { template.MaxResponseHeaderBytes = 500 }, at: "long", times: 2},
		{name: "enough MaxResponseHeaderBytes", set: func(template *http.Transport) { template.MaxResponseHeaderBytes = 5000 }, at: "long", times: 2},
		{name: "compression", at: "gzip", times: 2},
		{name: "DisableCompression", set: func(template *http.Transport) { template.DisableCompression = true }, at: "gzip", times: 2},
		{name: "WriteBufferSize", set: func(template *http.Transport) { template.WriteBufferSize = 20 }, method: http.MethodPost, times: 2},
		{name: "ReadBufferSize", set: func(template *http.Transport) { template.ReadBufferSize = 20 }, at: "long", times: 2},
	} {
		for _, scheme := range []string{"http", "https"} {
			t.Run(tt.name+"/"+scheme, func(t *testing.T) {
				asNetHTTP(t, func(t *testing.T, through func(*http.Transport) http.RoundTripper) string {
					network, template := behindTLS(t, nil, variously)
					var clear memnet.Network
					clear.Serve(t, "", http.HandlerFunc(variously))
					seen := new(notes)
					if scheme == "http" {
						network = &clear
					}
					template.MaxIdleConnsPerHost = 100 // as for connections of a pool
					template.DialContext = func(ctx context.Context, n, address string) (net.Conn, error) {
						nc, err := network.DialContext(ctx, n, address)
						return &noted{Conn: nc, notes: seen, clear: scheme == "http"}, err
					}
					if tt.set != nil {
						tt.set(template)
					}
					rt, began := through(template), time.Now()
					visit := func() {
						var sent io.Reader
						if tt.method != "" {
							sent = strings.NewReader("a body")
						}
						req, err := http.NewRequest(tt.method, scheme+"://orders/"+tt.at, sent)
						if err != nil {
							t.Fatal(err)
						}
						if tt.expects {
							req.Header.Set("Expect", "100-continue")
						}
						resp, err := rt.RoundTrip(req)
						if err != nil {
							seen.add("%s after %v", anatomy(err), time.Since(began))
							return
						}
						text, err := io.ReadAll(resp.Body)
						resp.Body.Close()
						seen.add("%s %q %v %v %v after %v", resp.Status, text, resp.Uncompressed, resp.Header["Content-Encoding"], err, time.Since(began))
					}
					for range tt.times {
						var callers sync.WaitGroup
						for range tt.at1 {
							callers.Go(visit)
						}
						callers.Wait()
						visit()
						synctest.Wait()
					}
					return seen.String() + fmt.Sprint(network.Dials(), " dials")
				})
			})
		}
	}
}

// noted is a connection that notes the sizes of what is written in the clear.
type noted struct {
	net.Conn
	notes *notes
	clear bool
}

func (n *noted) Write(p []byte) (int, error) {
	if n.clear {
		n.notes.add("  %d bytes", len(p))
	}
	return n.Conn.Write(p)
}

// variously answers as a path asks.
func variously(w http.ResponseWriter, req *http.Request) {
	text := "encoding " + req.Header.Get("Accept-Encoding") + ", closes " + fmt.Sprint(req.Close)
	switch req.URL.Path {
	case "/stall":
		select {
		case <-time.After(time.Minute):
		case <-req.Context().Done():
			return
		}
	case "/late":
		time.Sleep(5 * time.Second)
		sent, err := io.ReadAll(req.Body)
		text = fmt.Sprintf("%s %v", sent, err)
	case "/long":
		w.Header().Set("A", strings.Repeat("a", 1000))
	case "/gzip":
		if strings.Contains(req.Header.Get("Accept-Encoding"), "gzip") {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			defer z.Close()
			io.WriteString(z, text)
			return
		}
	default:
		time.Sleep(time.Second)
	}
	io.WriteString(w, text)
}

// TestConns_WithoutHTTP2 runs a process in which net/http does not speak HTTP/2.
func TestConns_WithoutHTTP2(t *testing.T) {
	if os.Getenv("LIMIT_WITHOUT_HTTP2") == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestConns_WithoutHTTP2$", "-test.v")
		cmd.Env = append(os.Environ(), "LIMIT_WITHOUT_HTTP2=1", "GODEBUG=http2client=0")
		if text, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(text), "--- PASS") {
			t.Errorf("%v\n%s", err, text)
		}
		return
	}
	for _, via := range []string{"", "http://proxy", "https://proxy", "socks5://user:secret@proxy"} {
		asNetHTTP(t, func(t *testing.T, through func(*http.Transport) http.RoundTripper) string {
			p, template := behindProxies(t, via, "h2", "http/1.1")
			if via == "" {
				template.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil }
			}
			rt, seen := through(template), new(notes)
			for range 2 {
				if got := get(t, rt, "https://orders"); got != "HTTP/1.1" {
					t.Errorf("the server saw %s", got)
				}
				seen.visit(rt, "https://orders")
				seen.visit(rt, "http://orders")
			}
			return seen.String() + p.notes.String() + fmt.Sprint(p.network.Dials(), " dials")
		})
	}
}

// An observer that panics in the goroutine of the caller leaves nothing locked and no connection behind.
func TestConns_TracesThatPanic(t *testing.T) {
	for name, trace := range map[string]*httptrace.ClientTrace{
		"GetConn": {GetConn: func(string) { panic(errUnwanted) }},
		"GotConn": {GotConn: func(httptrace.GotConnInfo) { panic(errUnwanted) }},
	} {
		for _, target := range []string{"http://orders", "https://orders", "https://other:8443"} {
			t.Run(name+" "+target, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					protocols := []string{"http/1.1"}
					if strings.Contains(target, "8443") {
						protocols = []string{"h2"}
					}
					network, template := behindTLS(t, func(server, _ *tls.Config) { server.NextProtos = protocols }, hello)
					network.Serve(t, "orders:80", http.HandlerFunc(hello))
					c := conns(t, newPool(t, limit.PoolConfig{MaxConnections: 1}), template)
					for range 3 {
						func() {
							defer func() {
								if recover() != errUnwanted {
									t.Error("no panic")
								}
							}()
							call(httptrace.WithClientTrace(t.Context(), trace), c, target)
						}()
						get(t, c, target)
						if n := network.Dials(); n != 1 || c.Open() != 1 {
							t.Errorf("%d dials, %d open", n, c.Open())
						}
					}
					time.Sleep(2 * time.Hour)
					if c.Open() != 0 {
						t.Error("the connection is not idle")
					}
				})
			})
		}
	}
}

// Traces are told of look-ups, dials and calls as by http.Transport.
func TestConns_TracesOfDialsAsNetHTTP(t *testing.T) {
	for _, protocol := range []string{plain, overTLS1, overTLS} {
		t.Run(protocol, func(t *testing.T) {
			s := serve(t, protocol, hello)
			s.template.ForceAttemptHTTP2 = true // as for connections of a pool
			s.template.DialContext = func(ctx context.Context, _, address string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "tcp4", address)
			}
			if config := s.template.TLSClientConfig; config != nil {
				config.ServerName = "example.com"
			}
			_, port, err := net.SplitHostPort(s.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			scheme, _, _ := strings.Cut(s.URL, ":")
			defer s.template.CloseIdleConnections()
			var seen [2]notes
			for i, rt := range []http.RoundTripper{s.template, conns(t, newPool(t, limit.PoolConfig{}), s.template)} {
				n := &seen[i]
				trace := n.trace()
				trace.DNSStart = func(info httptrace.DNSStartInfo) { n.add("  DNSStart %s", info.Host) }
				trace.DNSDone = func(info httptrace.DNSDoneInfo) { n.add("  DNSDone %v %v", info.Addrs, info.Err) }
				trace.ConnectStart = func(network, address string) { n.add("  ConnectStart %s %s", network, address) }
				trace.ConnectDone = func(network, address string, err error) { n.add("  ConnectDone %s %s %v", network, address, err) }
				trace.GotConn = func(info httptrace.GotConnInfo) {
					_, secure := info.Conn.(*tls.Conn)
					n.add("  GotConn %t %t %t", info.Reused, info.WasIdle, secure)
				}
				for range 2 {
					req := httptest.NewRequest(http.MethodGet, scheme+"://localhost:"+port, nil)
					resp, err := rt.RoundTrip(req.WithContext(httptrace.WithClientTrace(t.Context(), trace)))
					if err != nil {
						t.Fatal(err)
					}
					text, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					n.add("%s %v", text, err)
				}
			}
			if seen[1].String() != seen[0].String() {
				t.Errorf("got\n%s\nwith http.Transport\n%s", &seen[1], &seen[0])
			}
		})
	}
}

// Connections that become idle after CloseIdleConnections are closed, until there is another call.
func TestConns_CloseIdleConnectionsAsNetHTTP(t *testing.T) {
	for _, scheme := range []string{"http", "https"} {
		t.Run(scheme, func(t *testing.T) {
			asNetHTTP(t, func(t *testing.T, through func(*http.Transport) http.RoundTripper) string {
				network, template := behindTLS(t, nil, variously)
				network.Serve(t, "orders:80", http.HandlerFunc(variously))
				rt, seen := through(template), new(notes)
				for range 2 {
					for _, again := range []bool{false, true} {
						var callers sync.WaitGroup
						callers.Go(func() { get(t, rt, scheme+"://orders") }) // takes a second
						synctest.Wait()
						rt.(interface{ CloseIdleConnections() }).CloseIdleConnections()
						if again {
							callers.Go(func() { get(t, rt, scheme+"://orders") })
						}
						callers.Wait()
						synctest.Wait()
						seen.add("%d dials", network.Dials())
					}
				}
				return seen.String()
			})
		})
	}
}
