package admin

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh"
)

// Config has the settings of a [Page]. Its zero value is ready to use.
type Config struct {
	// Name is the name of the process on the page. Empty means the name of the program.
	Name string

	// Slow is the duration from which a call or a request is slow and is kept. A destination is slow if one of a hundred calls to it
	// takes that long. 0 means one second. A negative value means that nothing is slow.
	Slow time.Duration

	// Hosts are the host names under which the page may be requested, without ports: those that operators type, or that a proxy in
	// front of the page sends as Host. IP addresses and localhost are always allowed. Requests to any other name are refused, so that
	// a web site whose name resolves to this process cannot read the page through an operator's browser. "*" means any name.
	Hosts []string
}

// Page is a page about a process. It is an http.Handler, and has a [mesh.Observer] that collects its data. Use [New]. It is safe for
// concurrent use.
type Page struct {
	name  string
	hosts map[string]bool
	slow  time.Duration

	collector *collector
	mesh      atomic.Pointer[mesh.Mesh]
	watch     watch

	rendering sync.Mutex    // held while a report is made and rendered: that takes one processor at most
	answering chan struct{} // has an element for each answer that its client has not yet read
}

// New returns a page. It answers 503 until [mesh.New] has returned a mesh with its [Page.Observer].
func New(config Config) *Page {
	p := &Page{
		name:  cmp.Or(config.Name, filepath.Base(os.Args[0])),
		slow:  cmp.Or(config.Slow, time.Second),
		hosts: make(map[string]bool, len(config.Hosts)), answering: make(chan struct{}, mostAnswers),
	}
	if p.slow < 0 {
		p.slow = 1<<63 - 1
	}
	for _, host := range config.Hosts {
		p.hosts[strings.ToLower(strings.TrimSuffix(host, "."))] = true
	}
	p.collector = newCollector(p.slow, p.watch.kick)
	p.watch.init(p)
	return p
}

// Observer returns an observer for [mesh.WithObserver], which collects the data of the page. It costs two short locks and no allocation
// per call, unless the call fails or is slow. A page is about one mesh. If several meshes have the same observer, it shows the status of
// the last one.
func (p *Page) Observer() mesh.Observer {
	o := p.collector.observer()
	o.Started = p.started
	return o
}

// started sets the mesh whose status the page shows.
func (p *Page) started(m *mesh.Mesh) {
	p.mesh.Store(m)
	p.watch.kick()
}

// Close ends the event streams of open pages, and waits until no goroutine of the page is left, for 10 seconds at most: a client that
// does not read holds its stream if the ResponseWriter supports no write deadlines, as behind a middleware whose writer has no Unwrap
// method, until its server closes the connection. Later requests are still answered, but get no event streams. It may be called more
// than once, and before or after [mesh.Mesh.Close].
func (p *Page) Close() {
	p.watch.close()
}

var errNoMesh = errors.New("admin: the page knows no mesh yet: give Page.Observer to mesh.WithObserver, and wait until mesh.New has returned")

// report returns a report of the current state. The caller holds rendering.
func (p *Page) report() (*report, error) {
	m := p.mesh.Load()
	if m == nil {
		return nil, errNoMesh
	}
	s := m.Status()
	return p.collector.report(p.name, &s, time.Now()), nil
}

// admits returns an error for a request to a host name that is not allowed.
func (p *Page) admits(host string) error {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.ToLower(strings.TrimSuffix(strings.Trim(name, "[]"), "."))
	switch {
	case net.ParseIP(name) != nil, name == "localhost", strings.HasSuffix(name, ".localhost"), p.hosts["*"], p.hosts[name]:
		return nil
	}
	return fmt.Errorf("admin: the page is not known as %q: ask for it by IP address or as localhost, or add the name to admin.Config.Hosts", name)
}
