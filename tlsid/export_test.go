package tlsid

import "time"

// NotBefore returns when the identity becomes valid.
func (i *Identity) NotBefore() time.Time { return i.notBefore }
