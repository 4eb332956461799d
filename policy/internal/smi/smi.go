// Package smi reads the documents of the Service Mesh Interface. It declares their fields, validates them as the specification and its CRDs
// require, and translates them into the settings of the layers of this library.
//
// The mesh tag of a field says what this library does with it; see [github.com/nosidecar/mesh/internal/yamldoc]. Fields without the
// tag are enforced.
//
// The specification leaves some choices open. Here, patterns for headers match the whole value. A service may be one of its own backends,
// whose requests are not split again. If several splits name a service, the first one counts. If all weights are 0, the requests go to
// the service itself.
package smi

import "github.com/nosidecar/mesh/internal/yamldoc"

// The API groups of the documents.
const (
	SplitGroup  = "split.smi-spec.io"
	SpecsGroup  = "specs.smi-spec.io"
	AccessGroup = "access.smi-spec.io"
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
	Matches  []GroupRef `yaml:"matches"` // since v1alpha3
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

// HTTPRouteGroup is a set of alternative matches, for TrafficSplits and TrafficTargets.
type HTTPRouteGroup struct {
	yamldoc.Object
	Spec    *HTTPRouteGroupSpec `yaml:"spec"`    // since v1alpha3
	Matches []HTTPMatch         `yaml:"matches"` // before v1alpha3
}

// HTTPRouteGroupSpec is the spec of an [HTTPRouteGroup].
type HTTPRouteGroupSpec struct {
	Matches []HTTPMatch `yaml:"matches,required"`
}

// HTTPMatch is a condition on a request. All of its fields must match.
type HTTPMatch struct {
	Name      string   `yaml:"name,required"`
	PathRegex string   `yaml:"pathRegex"`
	Methods   []string `yaml:"methods" enum:"*,GET,HEAD,PUT,POST,DELETE,CONNECT,OPTIONS,TRACE,PATCH"`

	// Headers maps names to regular expressions. In the specification, it is a list of objects up to v1alpha3, and one object in
	// v1alpha4.
	Headers []map[string]string `yaml:"headers,single"`
}

// version returns the number of an alpha version: 4 for "split.smi-spec.io/v1alpha4".
func version(apiVersion string) byte {
	return apiVersion[len(apiVersion)-1] - '0'
}
