package istio

import "github.com/nosidecar/mesh/internal/yamldoc"

// Check reports what is wrong with the document beyond its shape. It must have been decoded without errors. That the
// document is not enforced yet is for the caller to say.
func (pa *PeerAuthentication) Check(doc *yamldoc.Document) {
	c := check{doc}
	c.metadata(&pa.Metadata)
}

// Check reports what is wrong with the document beyond its shape. It must have been decoded without errors. That the
// document is not enforced yet is for the caller to say.
func (ap *AuthorizationPolicy) Check(doc *yamldoc.Document) {
	c := check{doc}
	c.metadata(&ap.Metadata)
}

// Check reports what is wrong with the document beyond its shape. It must have been decoded without errors. That the
// document is not enforced yet is for the caller to say.
func (ra *RequestAuthentication) Check(doc *yamldoc.Document) {
	c := check{doc}
	c.metadata(&ra.Metadata)
}
