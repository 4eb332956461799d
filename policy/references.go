package policy

// byName returns documents by "namespace/name".
func byName[T any](list []decoded[T]) map[string]decoded[T] {
	names := make(map[string]decoded[T], len(list))
	for _, d := range list {
		names[d.namespace+"/"+d.name] = d
	}
	return names
}

// found returns the content of a document, or nil if there is none or it has an error.
func found[T any](names map[string]decoded[T], namespace, name string) *T {
	if d, ok := names[namespace+"/"+name]; ok && !d.Failed() {
		return d.is
	}
	return nil
}

// unread reports whether a document with this name could not be read, or one whose name is unknown. A reference to it is then not another
// mistake. The kind of the document is ignored, since it may be what is wrong.
func (c *compiler) unread(namespace, name string) bool {
	if c.broken == nil {
		c.broken = make(map[identity]bool)
		for _, d := range c.documents {
			if d.Failed() {
				c.broken[identity{"", d.namespace, d.name}] = true
			}
		}
	}
	return c.broken[identity{}] || c.broken[identity{"", namespace, name}]
}

// absent says why a reference to a document leads to none: the document is refused, or there is none.
func (c *compiler) absent(kind, namespace, name string) string {
	if c.rejected == nil {
		c.rejected = make(map[identity]bool)
		for _, p := range c.pieces {
			if p.verdict != asWritten || p.Failed() {
				c.rejected[p.identity] = true
			}
		}
	}
	of := identity{kind, namespace, name}
	if c.rejected[of] {
		return of.String() + " is refused"
	}
	return "there is no " + of.String()
}
