package kubernetes

import (
	"io"
	"net/http"
)

// InClusterAt is InCluster with another folder.
var InClusterAt = inCluster

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

// ReadList reads one page.
func ReadList(body io.Reader, r Resource, namespace string) (objects map[Key]string, next string, err error) {
	c := newCollection[string]()
	_, next, err = decodeList(body, r, namespace, func(ch change) error {
		c.apply(ch, func(o Object) string { return o.UID })
		return nil
	})
	return c.objects, next, err
}

// Skim walks over a line of a watch, and returns its object, and whether it is one object in JSON.
func Skim(line []byte) (object []byte, ok bool) {
	s := skimmer{data: line}
	_, object, ok = s.event(new(head))
	return object, ok
}

// TransportOf returns the transport that a client has made.
func TransportOf(c *Client) *http.Transport { return c.base.(*http.Transport) }
