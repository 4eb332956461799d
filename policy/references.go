package policy

// documentOf returns the document of an identity, if there is one. It takes one look-up.
func documentOf[T any](c *compiler, group, kind, namespace, name string) (d decoded[T], found bool) {
	if first := c.first.find(groupIdentity{group, identity{kind, namespace, name}}); first != nil {
		if is, ok := first.is.(*T); ok {
			return decoded[T]{first, is}, true
		}
	}
	return decoded[T]{}, false
}

// found returns the content of the document of an identity, or nil if there is none or it has an error.
func found[T any](c *compiler, group, kind, namespace, name string) *T {
	if d, ok := documentOf[T](c, group, kind, namespace, name); ok && !d.Failed() {
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
