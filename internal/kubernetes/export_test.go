package kubernetes

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
)

// InClusterAt is InCluster with another folder.
var InClusterAt = inCluster

// SetMaxLine changes the bound of one event until restore is called.
func SetMaxLine(n int) (restore func()) {
	before := maxLine
	maxLine = n
	return func() { maxLine = before }
}

// ErrUnauthorized is what tells a 401.
var ErrUnauthorized = errUnauthorized

// ReadKubeconfig reads one file and returns the client of a context.
func ReadKubeconfig(data []byte, dir, context string) (Config, error) {
	var m merged
	if err := m.add(data, dir); err != nil {
		return Config{}, err
	}
	return m.config(context)
}

// ReadEvents reads a watch to its end, and returns the objects that are there then, and why it ended.
func ReadEvents(body io.Reader, r Resource, namespace string) (objects map[Key]string, events int, err error) {
	lines := newLines(body)
	c := newCollection[string]()
	for {
		line, err := lines.next()
		if err != nil {
			return c.objects, events, err
		}
		e, err := decodeEvent(line, "watch", r, namespace)
		if err != nil {
			return c.objects, events, err
		}
		if events++; e.bookmark == "" {
			c.apply(e.change, func(o Object) string { return o.UID })
		}
	}
}

// Churn adds and deletes n objects, and returns how many of them are remembered, and whether the last is brought back by what comes late.
func Churn(n int) (remembered int, back bool) {
	c := newCollection[string]()
	var last change
	for i := range n {
		name, added, deleted := fmt.Sprint("pod-", i), fmt.Sprint(2*i+1), fmt.Sprint(2*i+2)
		last = change{object: Object{Key: Key{"a", name}, UID: name, ResourceVersion: added}, version: newVersion(name, added)}
		c.apply(last, func(o Object) string { return o.UID })
		c.apply(change{object: Object{Key: Key{"a", name}, UID: name, ResourceVersion: deleted}, version: newVersion(name, deleted), deleted: true}, nil)
	}
	return len(c.gone), c.apply(last, func(o Object) string { return o.UID })
}

// ReadList reads one page.
func ReadList(body io.Reader, r Resource, namespace string) (objects map[Key]string, next string, err error) {
	c := newCollection[string]()
	_, next, err = decodeList(body, r, namespace, func(ch change) error {
		c.apply(ch, func(o Object) string { return o.UID })
		return nil
	})
	return c.objects, next, err
}

// SkimEvent walks over a line of a watch, and returns its object, and whether it is one object in JSON.
func SkimEvent(line []byte) (object []byte, ok bool) {
	s := Skim(line)
	_, object, ok = s.event(new(head))
	return object, ok
}

// CloseIdleConnections closes the connections that no watch uses. They close by themselves soon after.
func (c *Client) CloseIdleConnections() {
	base := c.base
	if t, ok := base.(*trusting); ok {
		base = t.now()
	}
	if t, ok := base.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

// Dial has a client dial through a network of the test.
func Dial(c *Client, dial func(ctx context.Context, network, address string) (net.Conn, error)) {
	through := func(t *http.Transport) { t.DialContext, t.Proxy = dial, nil }
	switch base := c.base.(type) {
	case *http.Transport:
		through(base)
	case *trusting:
		through(base.transport)
		make := base.make
		base.make = func(ca string) (*http.Transport, error) {
			t, err := make(ca)
			through(t)
			return t, err
		}
	}
}
