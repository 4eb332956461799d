// Package peermeta encodes and decodes the header x-envoy-peer-metadata, in which workloads of a mesh describe themselves to each
// other: a protobuf Struct in base64, as Istio's sidecars exchange it.
package peermeta

import (
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// MaxSize is the maximum length of a value, in bytes.
const MaxSize = 8 << 10

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

// The numbers of the fields of google.protobuf.Struct, of the entries of its map, and of google.protobuf.Value.
const (
	structFields protowire.Number = 1
	entryKey     protowire.Number = 1
	entryValue   protowire.Number = 2
	valueNull    protowire.Number = 1
	valueNumber  protowire.Number = 2
	valueString  protowire.Number = 3
	valueBool    protowire.Number = 4
	valueStruct  protowire.Number = 5
	valueList    protowire.Number = 6
)

// Encode returns the value of the header. Equal metadata have equal values, since the keys are sorted.
func (m *Metadata) Encode() string {
	values := make(map[string][]byte)
	for name, field := range m.fields() {
		if *field != "" {
			values[name] = stringValue(*field)
		}
	}
	if len(m.Labels) > 0 {
		labels := make(map[string][]byte, len(m.Labels))
		for name, label := range m.Labels {
			labels[name] = stringValue(label)
		}
		values[labelsField] = appendBytes(nil, valueStruct, encodeStruct(labels))
	}
	return base64.StdEncoding.EncodeToString(encodeStruct(values))
}

func encodeStruct(values map[string][]byte) []byte {
	var out []byte
	for _, name := range slices.Sorted(maps.Keys(values)) {
		entry := appendBytes(nil, entryKey, []byte(name))
		entry = appendBytes(entry, entryValue, values[name])
		out = appendBytes(out, structFields, entry)
	}
	return out
}

func stringValue(text string) []byte { return appendBytes(nil, valueString, []byte(text)) }

func appendBytes(to []byte, number protowire.Number, data []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(to, number, protowire.BytesType), data)
}

var (
	errTooLong = fmt.Errorf("peermeta: longer than %d bytes", MaxSize)
	errText    = errors.New("peermeta: a string is not UTF-8")
	errNumber  = errors.New("peermeta: a field has a number above the maximum of protobuf")
	errNested  = errors.New("peermeta: nested too deeply")
)

// Decode decodes the value of the header. It skips unknown fields and fields of a wrong type. It returns an error if the value is not a
// Struct, or is too long.
func Decode(value string) (Metadata, error) {
	if len(value) > MaxSize {
		return Metadata{}, errTooLong
	}
	data, err := base64.StdEncoding.DecodeString(value)
	if err != nil {
		return Metadata{}, fmt.Errorf("peermeta: %w", err)
	}
	var m Metadata
	fields := m.fields()
	err = eachField(data, func(name string, v anyValue) error {
		if field := fields[name]; field != nil {
			*field = v.text // "" if it is not a string; of several values, the last one counts
		}
		if name != labelsField {
			return nil
		}
		m.Labels = nil
		if v.kind != valueStruct {
			return nil
		}
		m.Labels = make(map[string]string)
		return eachField(v.inner, func(name string, v anyValue) error {
			if delete(m.Labels, name); v.kind == valueString {
				m.Labels[name] = v.text
			}
			return nil
		})
	})
	if err != nil {
		return Metadata{}, err
	}
	return m, nil
}

// anyValue is a google.protobuf.Value.
type anyValue struct {
	kind  protowire.Number
	text  string
	inner []byte // the Struct, if kind is valueStruct
}

// eachField calls f for the fields of a Struct.
func eachField(data []byte, f func(name string, v anyValue) error) error {
	return eachBytes(data, func(number protowire.Number, entry []byte) error {
		if number != structFields {
			return nil
		}
		name, v, err := decodeEntry(entry, 0)
		if err != nil {
			return err
		}
		return f(name, v)
	}, nil)
}

func decodeEntry(entry []byte, depth int) (name string, v anyValue, err error) {
	err = eachBytes(entry, func(number protowire.Number, data []byte) error {
		switch number {
		case entryKey:
			if !utf8.Valid(data) {
				return errText
			}
			name = string(data)
		case entryValue:
			return v.decode(data, depth)
		}
		return nil
	}, nil)
	return name, v, err
}

// deepest is the maximum depth of nested values. Those of a mesh have two levels.
const deepest = 16

// decode decodes a Value into v, which may already have a value: in protobuf, the last of several values counts, and repeated messages
// are merged.
func (v *anyValue) decode(data []byte, depth int) error {
	if depth > deepest {
		return errNested
	}
	return eachBytes(data, func(number protowire.Number, data []byte) error {
		switch number {
		case valueString:
			if !utf8.Valid(data) {
				return errText
			}
			*v = anyValue{kind: valueString, text: string(data)}
		case valueStruct:
			if v.kind != valueStruct {
				*v = anyValue{kind: valueStruct}
			}
			v.inner = append(v.inner, data...)
			return eachBytes(data, func(number protowire.Number, entry []byte) error {
				if number != structFields {
					return nil
				}
				_, _, err := decodeEntry(entry, depth+1)
				return err
			}, nil)
		case valueList:
			*v = anyValue{kind: valueList}
			return eachBytes(data, func(number protowire.Number, data []byte) error {
				if number != 1 { // ListValue.values
					return nil
				}
				return new(anyValue).decode(data, depth+1)
			}, nil)
		}
		return nil
	}, func(number protowire.Number, kind protowire.Type) {
		if number == valueNull && kind == protowire.VarintType || number == valueNumber && kind == protowire.Fixed64Type ||
			number == valueBool && kind == protowire.VarintType {
			*v = anyValue{kind: number}
		}
	})
}

// eachBytes calls f for each length-delimited field of a message, and other, if not nil, for each other field.
func eachBytes(data []byte, f func(protowire.Number, []byte) error, other func(protowire.Number, protowire.Type)) error {
	for len(data) > 0 {
		number, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return fmt.Errorf("peermeta: %w", protowire.ParseError(n))
		}
		if number > protowire.MaxValidNumber { // ConsumeTag does not check it
			return errNumber
		}
		data = data[n:]
		if kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, kind, data); n < 0 {
				return fmt.Errorf("peermeta: %w", protowire.ParseError(n))
			}
			if data = data[n:]; other != nil {
				other(number, kind)
			}
			continue
		}
		value, n := protowire.ConsumeBytes(data)
		if n < 0 {
			return fmt.Errorf("peermeta: %w", protowire.ParseError(n))
		}
		data = data[n:]
		if err := f(number, value); err != nil {
			return err
		}
	}
	return nil
}
