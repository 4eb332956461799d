package mesh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/nosidecar/mesh/internal/engine"
	"github.com/nosidecar/mesh/internal/engine/enginehttp"
	"github.com/nosidecar/mesh/internal/engine/enginehttp/http2"
	"github.com/nosidecar/mesh/internal/engine/sockets"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/jwt"
	"github.com/nosidecar/mesh/tlsid"
)

// Mesh enforces a set of documents on the calls of a process. [New] makes one; it is safe for concurrent use.
type Mesh struct {
	observers     Observer        // all of them, as one
	calls         callFuncs       // of the observers
	connsObserved bool            // some observer follows raw connections
	workload      policy.Workload // documents are compiled for it
	identity      *tlsid.Keeper   // nil without one
	engine        *engine.Engine  // takes calls to their destinations
	transport     *http2.Transport
	server        server
	keys          jwt.Remotes // for verifying tokens
	documents     documents

	closing context.Context // ends when Close begins
	cancel  context.CancelFunc
	running sync.WaitGroup // goroutines that follow feeds
}

// New builds a mesh and loads its documents. ctx bounds the building only; the mesh lives until [Mesh.Close].
//
// An error in any document is an error here: it lists every finding, each with its file, line, field and remedy.
func New(ctx context.Context, opts ...Option) (*Mesh, error) {
	if ctx == nil {
		return nil, errors.New("mesh: New: the context is nil")
	}
	if ctx.Err() != nil {
		return nil, interrupted(ctx)
	}
	o, err := newOptions(opts)
	if err != nil {
		return nil, err
	}
	log := &journal{logger: o.logger}
	all := append(o.observers, log.observer())
	m := &Mesh{observers: inOrder(all), calls: callFuncsOf(all), connsObserved: watchConns(all), workload: o.workload}
	if m.workload.Files == nil {
		m.workload.Files = sockets.Files{}
	}
	m.server.observed = watchInbound(all)
	if err := m.server.init(o.inbound, m); err != nil {
		return nil, err
	}
	template, err := sockets.NewTemplate(o.template)
	if err != nil {
		return nil, err
	}
	if m.engine, err = engine.New(engine.Config{
		Resolver: o.resolver, Template: template, RegistryOnly: o.registryOnly,
		Protections: o.protections, Hooks: m.hooks(),
	}); err != nil {
		return nil, err
	}
	m.transport = &http2.Transport{Transport: enginehttp.New(m.engine)}
	m.initKeys()
	m.closing, m.cancel = context.WithCancel(context.Background())
	if err := m.begin(ctx, o); err != nil {
		m.Close()
		return nil, err
	}
	log.begin()
	m.observers.Started(m)
	return m, nil
}

// begin waits for what the mesh needs before its first call: an identity and documents.
func (m *Mesh) begin(ctx context.Context, o *options) error {
	if err := m.identify(ctx, o.source, o.sourceLate); err != nil {
		return err
	}
	m.engine.Identify(m.identity, m.trustDomain())
	m.documents.mayBeEmpty = o.mayBeEmpty
	if err := m.follow(ctx, o.sources, o.feeds); err != nil {
		return err
	}
	return m.load(func(*documents) {}, func(*documents) {}, -1)
}

// interrupted says that New ended because its context did.
func interrupted(ctx context.Context) error {
	return fmt.Errorf("mesh: New: %w", context.Cause(ctx))
}

// Client returns an http.Client whose calls go through the mesh. Each call returns a new client, whose Jar, CheckRedirect and
// Timeout may be set. To send the calls of an existing client through the mesh, set its Transport to [Mesh.Transport]. To
// keep the settings of its *http.Transport, pass that to [WithTransport].
func (m *Mesh) Client() *http.Client {
	return &http.Client{Transport: m.Transport()}
}

// Transport returns the mesh as an http.RoundTripper. All calls return the same one. It is safe for concurrent use, and has
// the method CloseIdleConnections, which [http.Client.CloseIdleConnections] calls.
//
// Like every http.RoundTripper it does not change a request and closes its body. It fails with an [*Error], or with the
// context's error if the caller gave up. The package documentation describes the stages of a request. The response's Request
// is the caller's or, after retries, a copy of it that carries the number of attempts (see [retry.Attempts]).
func (m *Mesh) Transport() http.RoundTripper {
	return m.transport
}

// DialContext connects to a service for protocols other than HTTP, such as database protocols: it finds the endpoints, picks
// one, and secures the connection as the documents require. A failure to connect counts against the endpoint in outlier
// detection, and another endpoint is tried, up to three in all. The DestinationRule's tcp settings apply (maxConnections,
// connectTimeout, tcpKeepalive); settings that need requests, such as retries and HTTP routes, do not.
//
// network is "tcp", "tcp4" or "tcp6"; address is "host:port", with a number. A host outside the mesh is dialled as it is,
// unless [WithRegistryOnly] refuses it. The error is an [*Error], the error of ctx, or one of package net if network or
// address is none of these. An mTLS connection is closed when the first of its certificates expires.
func (m *Mesh) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	start := time.Now()
	conn, dialled, err := m.engine.DialContext(ctx, network, address)
	if m.connsObserved {
		conn = m.observeDialled(conn, start, &dialled, err)
	}
	return conn, err
}

// Close ends the mesh: new calls fail with [ErrClosed], mirrored copies and discovery stop, and idle connections close. It
// waits for everything the mesh itself runs. Calls in flight belong to the caller: they may end in their own time, and their
// connections close after them. Shut servers down first: what [Mesh.Handler] still serves is judged by the last documents, keys
// and identity. Close may be called more than once.
//
// Close waits at most 30 seconds for an [Observer], [Feed], [discovery.Resolver] or [tlsid.Source] that does not return.
// Then it leaves it running and returns an error.
func (m *Mesh) Close() error {
	m.cancel()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		var ending sync.WaitGroup // one that waits does not keep the others from ending
		ending.Go(m.keys.Close)
		ending.Go(m.engine.Close)
		if m.identity != nil {
			ending.Go(m.identity.Close)
		}
		ending.Go(m.server.running.close)
		ending.Go(m.running.Wait)
		ending.Wait()
	}()
	patience := time.NewTimer(closePatience)
	defer patience.Stop()
	select {
	case <-closed:
		return nil
	case <-patience.C:
		return errStillRunning
	}
}

// closePatience is how long Close waits for the program's own code: observers, feeds, resolvers and identity sources.
const closePatience = 30 * time.Second

var errStillRunning = fmt.Errorf("mesh: Close: an observer, a feed, discovery or the source of the identity has not returned for %v, "+
	"and is left running: an observer must not block", closePatience)
