// Package smi reads the documents of the Service Mesh Interface: it declares them field by field, checks them as the
// specification and its CRDs ask, and translates them into what the layers of this library understand.
//
// What this library does with a field stands in its mesh tag; see [github.com/nosidecar/mesh/internal/yamldoc]. Fields
// without the tag are enforced.
//
// The specification leaves these to us: patterns for headers match the whole value; a service may be one of its own backends,
// and what goes there is not split again; if several splits name a service, the first one counts; if all weights are 0,
// the requests go to the service itself.
package smi

import "github.com/nosidecar/mesh/internal/yamldoc"

// The API groups of the documents.
const (
	SplitGroup = "split.smi-spec.io"
	SpecsGroup = "specs.smi-spec.io"
)

// TrafficSplit divides the requests to a service, called the root, between services.
type TrafficSplit struct {
	yamldoc.Object
	Spec TrafficSplitSpec `yaml:"spec,required"`
}

// TrafficSplitSpec is the spec of a [TrafficSplit].
type TrafficSplitSpec struct {
	Service  string     `yaml:"service,required"`
	Backends []Backend  `yaml:"backends,required"`
	Matches  []GroupRef `yaml:"matches"` // from v1alpha3 on
}

// Backend is a service with its share of the requests.
type Backend struct {
	Service string           `yaml:"service,required"`
	Weight  yamldoc.Quantity `yaml:"weight,required"`
}

// GroupRef names the [HTTPRouteGroup] of the requests that are split.
type GroupRef struct {
	APIGroup string `yaml:"apiGroup"`
	Kind     string `yaml:"kind,required" enum:"HTTPRouteGroup"`
	Name     string `yaml:"name,required"`
}

// HTTPRouteGroup is a set of matches, of which one has to hold.
type HTTPRouteGroup struct {
	yamldoc.Object
	Spec    *HTTPRouteGroupSpec `yaml:"spec"`    // from v1alpha3 on
	Matches []HTTPMatch         `yaml:"matches"` // before
}

// HTTPRouteGroupSpec is the spec of an [HTTPRouteGroup].
type HTTPRouteGroupSpec struct {
	Matches []HTTPMatch `yaml:"matches,required"`
}

// HTTPMatch is a condition on a request. All of its fields must hold.
type HTTPMatch struct {
	Name      string   `yaml:"name,required"`
	PathRegex string   `yaml:"pathRegex"`
	Methods   []string `yaml:"methods" enum:"*,GET,HEAD,PUT,POST,DELETE,CONNECT,OPTIONS,TRACE,PATCH"`

	// Headers maps names to regular expressions. The specification writes it as a list of objects up to v1alpha3, and as
	// one object in v1alpha4.
	Headers []map[string]string `yaml:"headers,single"`
}

// version returns the number of an alpha version: 4 for "split.smi-spec.io/v1alpha4".
func version(apiVersion string) byte {
	return apiVersion[len(apiVersion)-1] - '0'
}
