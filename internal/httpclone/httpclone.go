// Package httpclone clones transports of net/http.
package httpclone

import (
	"net/http"
	"slices"
)

// Transport returns a clone of t that may be used beside t and its other clones. [http.Transport.Clone] leaves them one list
// of protocols in their TLS configurations, to which each appends when it is used first.
func Transport(t *http.Transport) *http.Transport {
	t = t.Clone()
	if config := t.TLSClientConfig; config != nil {
		config.NextProtos = slices.Clip(config.NextProtos)
	}
	return t
}
