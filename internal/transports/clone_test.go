package transports_test

import (
	"net/http"
	"testing"

	"github.com/nosidecar/mesh/internal/transports"
)

// What one clone appends must not be seen by another, nor race with it.
func TestClonesShareNoProtocols(t *testing.T) {
	template := &http.Transport{Protocols: new(http.Protocols)}
	template.Protocols.SetHTTP2(true)
	template.CloseIdleConnections() // sets the TLS configuration up, as the first call does
	one, other := transports.Clone(template), transports.Clone(template)
	first := append(one.TLSClientConfig.NextProtos, "one")
	_ = append(other.TLSClientConfig.NextProtos, "other")
	if got := first[len(first)-1]; got != "one" {
		t.Errorf("a clone that appended %q to its protocols finds %q", "one", got)
	}
}
