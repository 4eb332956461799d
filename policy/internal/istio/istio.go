// Package istio reads Istio's documents. It declares their fields, validates them as Istio's webhook and its Kubernetes schema do
// (istio.io/api v1.31), and translates them into the settings of the layers of this library.
//
// It declares every field of the API. The mesh tag of a field says what this library does with it; see
// [github.com/nosidecar/mesh/internal/yamldoc]. Fields without the tag are enforced.
package istio

import "github.com/nosidecar/mesh/internal/yamldoc"

// Document is a pointer to a document of one of the kinds, such as a *[VirtualService].
type Document interface {
	// Check reports the mistakes in the document other than those in its shape. It must have been decoded without errors.
	Check(*yamldoc.Document)
}

// New returns an empty document of a kind, or nil if the kind is none of Istio's.
func New(kind string) Document {
	switch kind {
	case "VirtualService":
		return new(VirtualService)
	case "DestinationRule":
		return new(DestinationRule)
	case "ServiceEntry":
		return new(ServiceEntry)
	case "Sidecar":
		return new(Sidecar)
	case "PeerAuthentication":
		return new(PeerAuthentication)
	case "AuthorizationPolicy":
		return new(AuthorizationPolicy)
	case "RequestAuthentication":
		return new(RequestAuthentication)
	case "Telemetry":
		return new(Telemetry)
	}
	return nil
}

// Group is the API group of the documents about traffic.
const Group = "networking.istio.io"
