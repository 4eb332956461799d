// Package tlsid gives a process its SPIFFE identity and makes TLS configurations of it for both ends.
package tlsid
