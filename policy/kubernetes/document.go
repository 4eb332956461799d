package kubernetes

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/internal/gateway"
)

// document is an object of the API server in the form of a document.
type document struct {
	created         time.Time
	namespace, name string
	source          policy.Source
}

// newDocument returns the document of an object of a kind. It leaves out the fields that only the API server uses, so that the text
// changes only if its meaning does.
func newDocument(kind kind, version string, object json.RawMessage) (document, error) {
	var fields map[string]json.RawMessage
	var metadata map[string]json.RawMessage
	if err := json.Unmarshal(object, &fields); err != nil {
		return document{}, err
	}
	if err := json.Unmarshal(fields["metadata"], &metadata); err != nil {
		return document{}, fmt.Errorf("metadata: %w", err)
	}
	var d document
	var is string
	for name, into := range map[string]any{"name": &d.name, "namespace": &d.namespace, "creationTimestamp": &d.created} {
		if err := json.Unmarshal(metadata[name], into); err != nil {
			return document{}, fmt.Errorf("metadata.%s: %w", name, err)
		}
	}
	// Items in lists of Kubernetes' own kinds have no kind and apiVersion.
	if text := fields["kind"]; text != nil {
		if err := json.Unmarshal(text, &is); err != nil || is != kind.Name {
			return document{}, fmt.Errorf("an object of the kind %s, want %s", text, kind.Name)
		}
	}
	fields["kind"] = quoted(kind.Name)
	fields["apiVersion"] = quoted(version)
	if kind.Group != "" {
		fields["apiVersion"] = quoted(kind.Group + "/" + version)
	}
	for _, name := range []string{"managedFields", "resourceVersion", "selfLink", "ownerReferences", "finalizers"} {
		delete(metadata, name)
	}
	delete(fields, "status")
	if kind.Group == "" && kind.Name == "Service" {
		if err := onlyUsed(fields, metadata); err != nil {
			return document{}, err
		}
	}
	var err error
	if fields["metadata"], err = json.Marshal(metadata); err != nil {
		return document{}, err
	}
	text, err := json.Marshal(fields)
	if err != nil {
		return document{}, err
	}
	d.source = policy.Source{Name: sourceName(kind, d.namespace, d.name), Data: text, Alone: true}
	return d, nil
}

// sourceName names a document in findings.
func sourceName(kind kind, namespace, name string) string {
	return namespace + "/" + kind.title + "/" + name
}

// onlyUsed removes what package policy does not use of a Service. Otherwise any change of it would be a change of the documents.
func onlyUsed(fields, metadata map[string]json.RawMessage) error {
	var spec map[string]json.RawMessage
	if err := json.Unmarshal(fields["spec"], &spec); err != nil {
		return fmt.Errorf("spec: %w", err)
	}
	for name := range spec {
		if name != "ports" {
			delete(spec, name)
		}
	}
	for _, name := range []string{"labels", "generation"} {
		delete(metadata, name)
	}
	var annotations map[string]json.RawMessage
	if text := metadata["annotations"]; text != nil {
		if err := json.Unmarshal(text, &annotations); err != nil {
			return fmt.Errorf("metadata.annotations: %w", err)
		}
	}
	maps.DeleteFunc(annotations, func(name string, _ json.RawMessage) bool { return !gateway.IsSetting(name) })
	var err error
	if delete(metadata, "annotations"); len(annotations) > 0 {
		if metadata["annotations"], err = json.Marshal(annotations); err != nil {
			return err
		}
	}
	fields["spec"], err = json.Marshal(spec)
	return err
}

func quoted(s string) json.RawMessage {
	text, _ := json.Marshal(s) // strings can be marshalled
	return text
}

// byAge orders documents from old to new: where two documents claim the same, the older one wins.
func byAge(a, b document) int {
	return cmp.Or(a.created.Compare(b.created), cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.name, b.name), cmp.Compare(a.source.Name, b.source.Name))
}
