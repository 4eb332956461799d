package asserted_test

import (
	"testing"

	"github.com/nosidecar/mesh/internal/asserted"
)

func TestHeader(t *testing.T) {
	for name, want := range map[string]bool{
		"X-Forwarded-Client-Cert":   true,
		"X_forwarded_client_cert":   true,
		"X-Request-Id":              true,
		"X-Request_id":              true,
		"X-Envoy-Attempt-Count":     true,
		"X-Envoy-Peer-Metadata-Id":  true,
		"X_envoy_peer-Metadata":     true,
		"L5d-Client-Id":             true,
		"L5d_client-Id":             true,
		"X-Envoyer":                 false,
		"X-Forwarded-For":           false,
		"X-Request-Ids":             false,
		"Traceparent":               false,
		"Authorization":             false,
		"":                          false,
		"X-Forwarded-Client-Cert-X": false,
	} {
		if got := asserted.Header(name); got != want {
			t.Errorf("Header(%q) = %t, want %t", name, got, want)
		}
	}
}

func TestForged(t *testing.T) {
	for name, want := range map[string]bool{
		"X_forwarded_client_cert": true,
		"X-Forwarded_client-Cert": true,
		"X-Forwarded-Client-Cert": false, // what a peer with an identity forwards
		"L5d-Client-Id":           true,
		"L5d_client_id":           true,
		"X_request_id":            false,
		"L5d-Dst-Canonical":       false,
	} {
		if got := asserted.Forged(name); got != want {
			t.Errorf("Forged(%q) = %t, want %t", name, got, want)
		}
	}
}

func TestIdentity(t *testing.T) {
	for name, want := range map[string]bool{
		"x-forwarded-client-cert": true, "x_FORWARDED-client_cert": true, "l5d-client-id": true, "L5D_client_ID": true,
		"x-request-id": false, "x-envoy-peer-metadata": false, "": false,
	} {
		if got := asserted.Identity(name); got != want {
			t.Errorf("Identity(%q) = %t, want %t", name, got, want)
		}
	}
}
