package istio

import "github.com/nosidecar/mesh/internal/yamldoc"

// Check reports what is wrong with the document beyond its shape. It must have been decoded without errors.
func (se *ServiceEntry) Check(doc *yamldoc.Document) {
	c := check{doc}
	c.metadata(&se.Metadata)
}
