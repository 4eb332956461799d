// Package spiffe gets the identity of this process from the SPIFFE Workload API, such as that of a SPIRE agent.
//
// It is the only identity package that links gRPC.
package spiffe

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/pause"
	"github.com/nosidecar/mesh/tlsid"
)

// Source is a [tlsid.Source] that follows a Workload API. The zero value takes the default identity from the API that
// SPIFFE_ENDPOINT_SOCKET names.
//
// All authorities that the API hands out are trusted, each for its own trust domain: the identity's own, and those it is
// federated with.
type Source struct {
	// Addr is the address of the API, such as "unix:///run/spire/agent/public/api.sock" or "tcp://127.0.0.1:8000".
	// Empty: the value of SPIFFE_ENDPOINT_SOCKET.
	Addr string

	// ID and Hint choose one of several identities, by its SPIFFE ID, by the hint that its operator gave it, or by both.
	// Zero: the first, which is the default (SPIFFE Workload API, section 5.3). If none matches, that is an error; no other
	// is taken.
	ID   spiffeid.ID
	Hint string
}

var _ tlsid.Source = Source{}

// Watch yields the identity now and after each rotation. An API that cannot be reached, that has no identity for this
// process (yet), or that sends an invalid one, is an error each time, and is asked again, after 0.25 s at first and 10 s at
// most. Two errors end the sequence, since they do not go away: an invalid address, and InvalidArgument from the API (SPIFFE
// Workload Endpoint, section 6).
//
// An API that denies an identity it has issued before (PermissionDenied) is an error like others: a restarted agent does so
// for a while too. To revoke an identity before it expires, remove it from what its peers trust.
func (s Source) Watch(ctx context.Context) iter.Seq2[*tlsid.Identity, error] {
	return func(yield func(*tlsid.Identity, error) bool) {
		addr := s.Addr
		if addr == "" {
			addr, _ = workloadapi.GetDefaultAddress()
		}
		if addr == "" {
			yield(nil, fmt.Errorf("spiffe: no address of the Workload API: %s is not set", workloadapi.SocketEnv))
			return
		}
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		pace := new(backoff)
		options := []grpc.DialOption{
			grpc.WithNoProxy(), // keys do not go through a proxy
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: 5 * time.Second}),
		}
		if len(addr) > 4 && strings.EqualFold(addr[:4], "tcp:") {
			options = append(options, grpc.WithContextDialer(dialTCP))
		}
		client, err := workloadapi.New(ctx, workloadapi.WithAddr(addr), workloadapi.WithBackoffStrategy(pace), workloadapi.WithDialOptions(options...))
		if err != nil {
			yield(nil, fmt.Errorf("spiffe: address %q of the Workload API: %w", addr, err))
			return
		}
		defer client.Close()

		w := &watcher{source: s, addr: addr, yield: yield, ctx: ctx, stop: stop}
		for {
			// It calls w from this goroutine, and tries again by itself except when the API says InvalidArgument or Canceled.
			err := client.WatchX509Context(ctx, w)
			if ctx.Err() != nil || status.Code(err) == codes.InvalidArgument {
				return
			}
			if pause.For(ctx, pace.Next()) != nil {
				return
			}
		}
	}
}

// dialTCP dials with the keep-alive of package net, which finds within three minutes that the other machine is gone: nothing is sent over the
// connection that would, and the identity would not be renewed. gRPC leaves the pace to the system, which usually begins after two hours.
// Its own keep-alive would end connections: by default, servers allow a ping every five minutes.
func dialTCP(ctx context.Context, address string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", address)
}

// watcher hands on what comes from the API.
type watcher struct {
	source Source
	addr   string
	yield  func(*tlsid.Identity, error) bool
	ctx    context.Context // once it has ended, nothing is handed on
	stop   context.CancelFunc
}

// OnX509ContextUpdate implements workloadapi.X509ContextWatcher.
func (w *watcher) OnX509ContextUpdate(x *workloadapi.X509Context) {
	w.hand(w.source.identity(x))
}

// OnX509ContextWatchError implements workloadapi.X509ContextWatcher.
func (w *watcher) OnX509ContextWatchError(err error) {
	w.hand(nil, err)
}

func (w *watcher) hand(identity *tlsid.Identity, err error) {
	if w.ctx.Err() != nil {
		return
	}
	if err != nil {
		err = fmt.Errorf("spiffe: Workload API at %s: %w", w.addr, err)
	}
	if !w.yield(identity, err) {
		w.stop()
	}
}

// identity returns the requested identity.
func (s Source) identity(x *workloadapi.X509Context) (*tlsid.Identity, error) {
	svid, err := s.choose(x.SVIDs)
	if err != nil {
		return nil, err
	}
	var bundles []*x509bundle.Bundle
	for _, b := range x.Bundles.Bundles() {
		// A federated trust domain without authorities is not trusted; that is no reason to go without an identity.
		if !b.Empty() || b.TrustDomain() == svid.ID.TrustDomain() {
			bundles = append(bundles, b)
		}
	}
	return tlsid.NewIdentity(svid, bundles...)
}

func (s Source) choose(svids []*x509svid.SVID) (*x509svid.SVID, error) {
	var others []string
	for _, svid := range svids {
		if (s.ID.IsZero() || svid.ID == s.ID) && (s.Hint == "" || svid.Hint == s.Hint) {
			return svid, nil
		}
		others = append(others, fmt.Sprintf("%s (hint %q)", svid.ID, svid.Hint))
	}
	if len(others) == 0 {
		return nil, errors.New("it has no identity")
	}
	var wanted []string
	if !s.ID.IsZero() {
		wanted = append(wanted, "ID "+s.ID.String())
	}
	if s.Hint != "" {
		wanted = append(wanted, fmt.Sprintf("hint %q", s.Hint))
	}
	return nil, fmt.Errorf("no identity has %s, there is %s", strings.Join(wanted, " and "), strings.Join(others, ", "))
}

const (
	firstDelay = 250 * time.Millisecond
	maxDelay   = 10 * time.Second
)

// reconnect is the pace of gRPC below that of the watch. Its default, 2 minutes at most, would leave a process without the
// API long after it is back; the API is on the same machine.
var reconnect = grpcbackoff.Config{BaseDelay: firstDelay, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}

// backoff doubles the delay up to maxDelay; a quarter of each is random, so that the processes of a machine do not all
// return at once after its agent restarts. It is its own strategy: a watch has only one.
type backoff struct{ delay time.Duration }

func (b *backoff) NewBackoff() workloadapi.Backoff { return b }

func (b *backoff) Reset() { b.delay = 0 }

func (b *backoff) Next() time.Duration {
	b.delay = min(max(2*b.delay, firstDelay), maxDelay)
	return b.delay*3/4 + rand.N(b.delay/4)
}
