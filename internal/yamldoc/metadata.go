package yamldoc

import (
	"cmp"
	"strings"
)

// Object has the fields that all kinds of documents have. Types of documents embed it.
type Object struct {
	APIVersion string   `yaml:"apiVersion,required"`
	Kind       string   `yaml:"kind,required"`
	Metadata   Metadata `yaml:"metadata,required"`
}

// Namespace returns the namespace of the document, which is "default" if it names none.
func (o *Object) Namespace() string { return cmp.Or(o.Metadata.Namespace, "default") }

// Metadata is the metadata of a Kubernetes object.
type Metadata struct {
	Name      string `yaml:"name,required"`
	Namespace string `yaml:"namespace"`

	Labels      map[string]string `yaml:"labels" mesh:"unused: labels of a document select nothing here"`
	Annotations map[string]string `yaml:"annotations" mesh:"unused: annotations have no meaning here"`

	GenerateName               string `yaml:"generateName" mesh:"refused: generateName needs an API server: give the document a name"`
	CreationTimestamp          Any    `yaml:"creationTimestamp" mesh:"unused: bookkeeping of Kubernetes"`
	DeletionTimestamp          Any    `yaml:"deletionTimestamp" mesh:"unused: bookkeeping of Kubernetes"`
	DeletionGracePeriodSeconds Any    `yaml:"deletionGracePeriodSeconds" mesh:"unused: bookkeeping of Kubernetes"`
	Finalizers                 Any    `yaml:"finalizers" mesh:"unused: bookkeeping of Kubernetes"`
	Generation                 Any    `yaml:"generation" mesh:"unused: bookkeeping of Kubernetes"`
	ManagedFields              Any    `yaml:"managedFields" mesh:"unused: bookkeeping of Kubernetes"`
	OwnerReferences            Any    `yaml:"ownerReferences" mesh:"unused: bookkeeping of Kubernetes"`
	ResourceVersion            Any    `yaml:"resourceVersion" mesh:"unused: bookkeeping of Kubernetes"`
	SelfLink                   Any    `yaml:"selfLink" mesh:"unused: bookkeeping of Kubernetes"`
	UID                        Any    `yaml:"uid" mesh:"unused: bookkeeping of Kubernetes"`
}

// Check reports an invalid name or namespace.
func (m *Metadata) Check(d *Document) {
	if !IsName(m.Name) {
		d.Errorf("metadata.name", "%q is not a name of Kubernetes: use lower-case letters, digits, hyphens and dots", m.Name)
	}
	if m.Namespace != "" && !IsLabel(m.Namespace) {
		d.Errorf("metadata.namespace", "%q is not a namespace: use lower-case letters, digits and hyphens", m.Namespace)
	}
}

// IsName reports whether s is a valid name of a Kubernetes object: labels joined by dots (an RFC 1123 subdomain).
func IsName(s string) bool {
	for label := range strings.SplitSeq(s, ".") {
		if !IsLabel(label) {
			return false
		}
	}
	return len(s) <= 253
}

// IsLabel reports whether s is a lower-case label of a DNS name (RFC 1123).
func IsLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
