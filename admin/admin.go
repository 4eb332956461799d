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

// Config says what a [Page] is like. Its zero value is ready to use.
type Config struct {
	// Name is what the page calls the process. Empty means the name of the program.
	Name string

	// Slow is how long a call or a request takes from which on it is kept as a slow one, and a destination is slow if one of a hundred
	// calls to it takes so long. 0 means one second. Less than 0 means that nothing is slow.
	Slow time.Duration

	// Hosts are the names under which the page may be asked for, without ports: those that operators type, or that a proxy in front
	// of the page sends as Host. IP addresses and localhost need not be among them. Requests to any other name are refused, so that a
	// web site whose name leads to this process cannot read the page through the browser of an operator. "*" means any name.
	Hosts []string
}

// Page is what is to see of a process: an http.Handler, and the [mesh.Observer] that it learns from. Use [New]; it is safe for
// concurrent use.
type Page struct {
	name  string
	hosts map[string]bool
	slow  time.Duration

	collector *collector
	mesh      atomic.Pointer[mesh.Mesh]
	watch     watch

	building sync.Mutex // held while a report is made: one at a time is enough
}

// New returns a page. It answers 503 until a mesh that was given its [Page.Observer] is ready.
func New(config Config) *Page {
	p := &Page{
		name:  cmp.Or(config.Name, filepath.Base(os.Args[0])),
		slow:  cmp.Or(config.Slow, time.Second),
		hosts: make(map[string]bool, len(config.Hosts)),
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

// Observer returns what the mesh tells the page, for [mesh.WithObserver]. It costs a call two short locks and no allocation, unless the
// call fails or is slow. A page is about one mesh: of several with the same observer it shows what is in force in the last.
func (p *Page) Observer() mesh.Observer {
	o := p.collector.observer()
	o.Started = p.started
	return o
}

// started takes the mesh whose observer the page is.
func (p *Page) started(m *mesh.Mesh) {
	p.mesh.Store(m)
	p.watch.kick()
}

// Close ends the pages that are open, and waits until nothing of the page runs any more. Later requests are answered, but do not stay
// open. It may be called more than once, and before or after [mesh.Mesh.Close].
func (p *Page) Close() {
	p.watch.close()
}

var errNoMesh = errors.New("admin: the page knows no mesh yet: give Page.Observer to mesh.WithObserver, and wait until mesh.New has returned")

// report returns what there is to see now.
func (p *Page) report() (*report, error) {
	m := p.mesh.Load()
	if m == nil {
		return nil, errNoMesh
	}
	p.building.Lock()
	defer p.building.Unlock()
	s := m.Status()
	return p.collector.report(p.name, &s, time.Now()), nil
}

// admits returns an error for a request to a host name that is not known to be that of the page.
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
