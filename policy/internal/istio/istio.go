// Package istio reads Istio's documents: it declares them field by field, checks them as Istio's webhook and its
// Kubernetes schema do (istio.io/api v1.31), and translates them into what the layers of this library understand.
//
// Every field of the API is declared. What this library does with it stands in its mesh tag; see
// [github.com/nosidecar/mesh/internal/yamldoc]. Fields without the tag are enforced.
package istio

import "github.com/nosidecar/mesh/internal/yamldoc"

// Group is the API group of the documents about traffic.
const Group = "networking.istio.io"

// Metadata is what Kubernetes knows of a document.
type Metadata struct {
	Name      string `yaml:"name,required"`
	Namespace string `yaml:"namespace"`

	Labels      map[string]string `yaml:"labels" mesh:"unused: labels of a document select nothing here"`
	Annotations map[string]string `yaml:"annotations" mesh:"unused: annotations have no meaning here"`

	GenerateName               string      `yaml:"generateName" mesh:"refused: generateName needs an API server: give the document a name"`
	CreationTimestamp          yamldoc.Any `yaml:"creationTimestamp" mesh:"unused: bookkeeping of Kubernetes"`
	DeletionTimestamp          yamldoc.Any `yaml:"deletionTimestamp" mesh:"unused: bookkeeping of Kubernetes"`
	DeletionGracePeriodSeconds yamldoc.Any `yaml:"deletionGracePeriodSeconds" mesh:"unused: bookkeeping of Kubernetes"`
	Finalizers                 yamldoc.Any `yaml:"finalizers" mesh:"unused: bookkeeping of Kubernetes"`
	Generation                 yamldoc.Any `yaml:"generation" mesh:"unused: bookkeeping of Kubernetes"`
	ManagedFields              yamldoc.Any `yaml:"managedFields" mesh:"unused: bookkeeping of Kubernetes"`
	OwnerReferences            yamldoc.Any `yaml:"ownerReferences" mesh:"unused: bookkeeping of Kubernetes"`
	ResourceVersion            yamldoc.Any `yaml:"resourceVersion" mesh:"unused: bookkeeping of Kubernetes"`
	SelfLink                   yamldoc.Any `yaml:"selfLink" mesh:"unused: bookkeeping of Kubernetes"`
	UID                        yamldoc.Any `yaml:"uid" mesh:"unused: bookkeeping of Kubernetes"`
}
