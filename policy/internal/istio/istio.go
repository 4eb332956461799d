// Package istio reads Istio's documents. It declares their fields, validates them as Istio's webhook and its Kubernetes schema do
// (istio.io/api v1.31), and translates them into the settings of the layers of this library.
//
// It declares every field of the API. The mesh tag of a field says what this library does with it; see
// [github.com/nosidecar/mesh/internal/yamldoc]. Fields without the tag are enforced.
package istio

// Group is the API group of the documents about traffic.
const Group = "networking.istio.io"
