// Package httpclone clones transports of net/http.
package httpclone

import (
	"net/http"
	"slices"
)

// Transport returns a clone of t that may be used at the same time as t and its other clones. After [http.Transport.Clone], their TLS
// configurations share one list of protocols, to which each transport appends at its first use.
func Transport(t *http.Transport) *http.Transport {
	t = t.Clone()
	if config := t.TLSClientConfig; config != nil {
		config.NextProtos = slices.Clip(config.NextProtos)
	}
	return t
}
