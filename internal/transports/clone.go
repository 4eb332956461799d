package transports

import (
	"context"
	"net"
	"net/http"
	"slices"
)

// Clone returns a clone of t that may be used at the same time as t and its other clones. After [http.Transport.Clone], their TLS
// configurations share one list of protocols, to which each transport appends at its first use.
func Clone(t *http.Transport) *http.Transport {
	t = t.Clone()
	if config := t.TLSClientConfig; config != nil {
		config.NextProtos = slices.Clip(config.NextProtos)
	}
	return t
}

// Dial returns the function that t dials with: its DialContext, its Dial, or that of a net.Dialer.
func Dial(t *http.Transport) func(ctx context.Context, network, address string) (net.Conn, error) {
	//lint:ignore SA1019 Dial is deprecated, but still honoured by net/http
	dial := t.Dial
	switch {
	case t.DialContext != nil:
		return t.DialContext
	case dial != nil:
		return func(_ context.Context, network, address string) (net.Conn, error) { return dial(network, address) }
	}
	return new(net.Dialer).DialContext
}
