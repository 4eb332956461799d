// Package istio reads Istio's documents: it declares them field by field, checks them as Istio's webhook and its
// Kubernetes schema do (istio.io/api v1.31), and translates them into what the layers of this library understand.
//
// Every field of the API is declared. What this library does with it stands in its mesh tag; see
// [github.com/nosidecar/mesh/internal/yamldoc]. Fields without the tag are enforced.
package istio

// Group is the API group of the documents about traffic.
const Group = "networking.istio.io"
