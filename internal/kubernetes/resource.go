package kubernetes

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
)

// Resource is a kind in one version, and where it is read.
type Resource struct {
	Group   string // "discovery.k8s.io"; empty for the core group
	Version string // "v1"
	Plural  string // "endpointslices"
	Kind    string // "EndpointSlice"
}

// APIVersion returns what objects of the resource say in apiVersion.
func (r Resource) APIVersion() string {
	if r.Group == "" {
		return r.Version
	}
	return r.Group + "/" + r.Version
}

// String returns the resource as "endpointslices.v1.discovery.k8s.io".
func (r Resource) String() string {
	if r.Group == "" {
		return r.Plural + "." + r.Version
	}
	return r.Plural + "." + r.Version + "." + r.Group
}

// path returns the path at which the resource is read. An empty namespace stands for all.
func (r Resource) path(namespace string) string {
	path := groupPath(r.Group, r.Version)
	if namespace != "" {
		path += "/namespaces/" + url.PathEscape(namespace)
	}
	return path + "/" + url.PathEscape(r.Plural)
}

func groupPath(group, version string) string {
	if group == "" {
		return "/api/" + url.PathEscape(version)
	}
	return "/apis/" + url.PathEscape(group) + "/" + url.PathEscape(version)
}

// Key names an object among those of its kind. Namespace is empty for kinds without namespaces.
type Key struct{ Namespace, Name string }

// Object is one object as the server sent it.
type Object struct {
	Key
	UID, ResourceVersion string
	Raw                  json.RawMessage // may lack kind and apiVersion, as the items of lists do

	resource Resource
}

// Document returns the object with kind and apiVersion, and without metadata.managedFields.
func (o Object) Document() (json.RawMessage, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(o.Raw, &fields); err != nil {
		return nil, fmt.Errorf("kubernetes: %s %s/%s: %w", o.resource, o.Namespace, o.Name, err)
	}
	var metadata map[string]json.RawMessage
	if err := json.Unmarshal(fields["metadata"], &metadata); err != nil {
		return nil, fmt.Errorf("kubernetes: %s %s/%s: metadata: %w", o.resource, o.Namespace, o.Name, err)
	}
	delete(metadata, "managedFields")
	var text bytes.Buffer
	text.WriteString(`{"apiVersion":` + quote(o.resource.APIVersion()) + `,"kind":` + quote(o.resource.Kind) + `,"metadata":`)
	data, err := json.Marshal(metadata)
	if err != nil {
		return nil, err
	}
	text.Write(data)
	delete(fields, "apiVersion")
	delete(fields, "kind")
	delete(fields, "metadata")
	rest, err := json.Marshal(fields)
	if err != nil {
		return nil, err
	}
	if len(fields) > 0 {
		text.WriteByte(',')
		rest = rest[1:]
	} else {
		rest = []byte("}")
	}
	text.Write(rest)
	return text.Bytes(), nil
}

func quote(text string) string {
	data, _ := json.Marshal(text)
	return string(data)
}
