// Package peermeta encodes and decodes the header x-envoy-peer-metadata, in which workloads of a mesh describe themselves to each
// other: a protobuf Struct in base64, as Istio's sidecars exchange it.
package peermeta

import (
	"encoding/base64"
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

// MaxSize is the maximum length of a value, in bytes.
const MaxSize = 8 << 10

// deepest bounds the nesting of messages. Those of a mesh have four levels.
const deepest = 50

// Metadata describes a workload. Empty fields are omitted from the header.
type Metadata struct {
	Name      string // the name of the pod
	Namespace string
	Workload  string
	Cluster   string
	Owner     string // such as "kubernetes://apis/apps/v1/namespaces/NS/deployments/NAME"
	Identity  string // SPIFFE ID
	Region    string
	Zone      string
	Labels    map[string]string
}

// fields returns the fields of m by their names in the Struct.
func (m *Metadata) fields() map[string]*string {
	return map[string]*string{
		"NAME": &m.Name, "NAMESPACE": &m.Namespace, "WORKLOAD_NAME": &m.Workload, "CLUSTER_ID": &m.Cluster, "OWNER": &m.Owner,
		"IDENTITY": &m.Identity, "REGION": &m.Region, "AVAILABILITY_ZONE": &m.Zone,
	}
}

const labelsField = "LABELS"

// ID returns the value of the header that names a workload: sidecar~IP~POD.NS~NS.svc.DOMAIN.
func (m *Metadata) ID(address, domain string) string {
	return "sidecar~" + address + "~" + m.Name + "." + m.Namespace + "~" + m.Namespace + ".svc." + domain
}

// Encode returns the value of the header. Equal metadata have equal values, since the keys are sorted.
func (m *Metadata) Encode() string {
	s := &structpb.Struct{Fields: make(map[string]*structpb.Value)}
	for name, field := range m.fields() {
		if *field != "" {
			s.Fields[name] = structpb.NewStringValue(*field)
		}
	}
	if len(m.Labels) > 0 {
		labels := make(map[string]*structpb.Value, len(m.Labels))
		for name, label := range m.Labels {
			labels[name] = structpb.NewStringValue(label)
		}
		s.Fields[labelsField] = structpb.NewStructValue(&structpb.Struct{Fields: labels})
	}
	data, _ := proto.MarshalOptions{Deterministic: true}.Marshal(s)
	return base64.StdEncoding.EncodeToString(data)
}

// Decode decodes the value of the header. It skips unknown fields and fields of a wrong type. It returns an error if the value is not a
// Struct, or is too long.
func Decode(value string) (Metadata, error) {
	if len(value) > MaxSize {
		return Metadata{}, fmt.Errorf("peermeta: longer than %d bytes", MaxSize)
	}
	data, err := base64.StdEncoding.DecodeString(value)
	if err != nil {
		return Metadata{}, fmt.Errorf("peermeta: %w", err)
	}
	var s structpb.Struct
	if err := (proto.UnmarshalOptions{DiscardUnknown: true, RecursionLimit: deepest}).Unmarshal(data, &s); err != nil {
		return Metadata{}, fmt.Errorf("peermeta: %w", err)
	}
	var m Metadata
	for name, field := range m.fields() {
		*field = s.Fields[name].GetStringValue()
	}
	for name, v := range s.Fields[labelsField].GetStructValue().GetFields() {
		if label, ok := v.GetKind().(*structpb.Value_StringValue); ok {
			if m.Labels == nil {
				m.Labels = make(map[string]string)
			}
			m.Labels[name] = label.StringValue
		}
	}
	return m, nil
}
