// Package oracle compares the schema of Istio's documents with the API itself, the descriptors of istio.io/api.
package oracle

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
	telemetry "istio.io/api/telemetry/v1alpha1"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/istio"
)

// kinds pairs our document of each kind with the message that is its spec.
var kinds = []struct {
	name string
	ours reflect.Type
	spec protoreflect.ProtoMessage
}{
	{"VirtualService", reflect.TypeFor[istio.VirtualService](), &networking.VirtualService{}},
	{"DestinationRule", reflect.TypeFor[istio.DestinationRule](), &networking.DestinationRule{}},
	{"ServiceEntry", reflect.TypeFor[istio.ServiceEntry](), &networking.ServiceEntry{}},
	{"Sidecar", reflect.TypeFor[istio.Sidecar](), &networking.Sidecar{}},
	{"PeerAuthentication", reflect.TypeFor[istio.PeerAuthentication](), &security.PeerAuthentication{}},
	{"AuthorizationPolicy", reflect.TypeFor[istio.AuthorizationPolicy](), &security.AuthorizationPolicy{}},
	{"RequestAuthentication", reflect.TypeFor[istio.RequestAuthentication](), &security.RequestAuthentication{}},
	{"Telemetry", reflect.TypeFor[istio.Telemetry](), &telemetry.Telemetry{}},
}

// extensions are the fields of ours that the descriptors do not have, with the reason.
var extensions = map[string]string{
	"VirtualService spec.http[].mirror_percent":      "Istio's Kubernetes schema takes the old spelling too (altName)",
	"RequestAuthentication spec.jwtRules[].jwks_uri": "Istio's Kubernetes schema takes the old spelling too (altName)",
}

// schema is what a document may say: fields by path, as "http[].match[].headers{}".
type schema map[string]shape

// shape is what a field takes.
type shape struct {
	scalar string   // in YAML, of each element of a list or map: "object", "string", "integer", ...
	enum   []string // of a string: the values allowed, sorted; nil means any
	oneof  string   // the fields that exclude it and each other, by a name for them
}

// TestEveryFieldIsAnswered compares each kind with the API: a field of the API must be enforced, or be declared with a
// reason why not; a field of ours must be in the API or among the extensions.
func TestEveryFieldIsAnswered(t *testing.T) {
	unused := maps.Clone(extensions)
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			theirs := make(schema)
			theirs.describe("spec", kind.spec.ProtoReflect().Descriptor(), nil)
			if len(theirs) < 5 {
				t.Fatalf("the API has only the fields %v", theirs)
			}
			extends := make(map[string]bool)
			for name := range extensions {
				if path, ok := strings.CutPrefix(name, kind.name+" "); ok && theirs[path].scalar == "" {
					extends[path] = true
					delete(unused, name)
				}
			}
			for _, difference := range compare(kind.ours, theirs, extends) {
				t.Error(difference)
			}
		})
	}
	for name := range unused {
		t.Errorf("the extension %s is in the API: take it off the list", name)
	}
}

// TestDifferencesAreSeen has the comparison look at schemas that differ.
func TestDifferencesAreSeen(t *testing.T) {
	theirs := make(schema)
	theirs.describe("spec", (&security.PeerAuthentication{}).ProtoReflect().Descriptor(), nil)
	type mutualTLS struct {
		Mode string `yaml:"mode" enum:"UNSET,DISABLE,PERMISSIVE,STRICT"`
	}
	type selector struct {
		MatchLabels map[string]string `yaml:"matchLabels"`
	}
	type complete struct {
		Selector      selector             `yaml:"selector"`
		MTLS          mutualTLS            `yaml:"mtls"`
		PortLevelMTLS map[string]mutualTLS `yaml:"portLevelMtls"`
	}
	tests := []struct {
		name string
		ours reflect.Type
		want []string
	}{
		{"none", reflect.TypeFor[struct {
			Spec complete `yaml:"spec"`
		}](), nil},
		{"missing, invented, unexplained", reflect.TypeFor[struct {
			Spec struct {
				Selector      selector             `yaml:"selector"`
				MTLS          mutualTLS            `yaml:"mtls" mesh:"refused: "`
				PortLevelMTLS map[string]mutualTLS `yaml:"portLevelMTLS"`
			} `yaml:"spec"`
		}](), []string{
			"spec.mtls is refused without a reason",
			"spec.portLevelMtls is in the API, but neither enforced nor declared with a reason why not",
			"spec.portLevelMtls{}.mode is in the API, but neither enforced nor declared with a reason why not",
			"spec.portLevelMTLS is not in the API",
			"spec.portLevelMTLS{}.mode is not in the API",
		}},
		{"of another type", reflect.TypeFor[struct {
			Spec struct {
				Selector selector `yaml:"selector"`
				MTLS     struct {
					Mode string `yaml:"mode" enum:"UNSET,DISABLE,STRICT"`
				} `yaml:"mtls"`
				PortLevelMTLS map[string]struct {
					Mode bool `yaml:"mode"`
				} `yaml:"portLevelMtls"`
			} `yaml:"spec"`
		}](), []string{
			"spec.mtls.mode takes string [DISABLE STRICT UNSET], in the API string [DISABLE PERMISSIVE STRICT UNSET]",
			"spec.portLevelMtls{}.mode takes bool, in the API string [DISABLE PERMISSIVE STRICT UNSET]",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := compare(tt.ours, theirs, nil); !slices.Equal(got, tt.want) {
				t.Errorf("compare = %q, want %q", got, tt.want)
			}
		})
	}
}

// compare returns how the spec of a type of ours differs from the API.
func compare(t reflect.Type, theirs schema, extends map[string]bool) []string {
	var differences []string
	report := func(format string, args ...any) {
		differences = append(differences, fmt.Sprintf(format, args...))
	}
	ours := make(schema)
	ours.declare("", t)
	answers := make(map[string]yamldoc.Field)
	for _, f := range yamldoc.Fields(t) {
		if strings.HasPrefix(f.Path, "spec.") {
			answers[f.Path] = f
		}
	}
	groups := make(map[string]string) // our name of each oneof of the API
	for _, path := range slices.Sorted(maps.Keys(theirs)) {
		f, answered := answers[path]
		if !answered {
			report("%s is in the API, but neither enforced nor declared with a reason why not", path)
			continue
		}
		switch f.State {
		case yamldoc.Enforced:
		case yamldoc.Refused, yamldoc.Meaningless, yamldoc.Unused:
			if f.Reason == "" {
				report("%s is %s without a reason", path, f.State)
			}
		default:
			report("%s is %q, which means nothing", path, f.State)
		}
		has, want := ours[path], theirs[path]
		if has.String() != want.String() {
			report("%s takes %v, in the API %v", path, has, want)
		}
		if want.oneof == "" {
			continue
		}
		if first, known := groups[want.oneof]; !known {
			groups[want.oneof] = has.oneof
		} else if has.oneof == "" || has.oneof != first {
			report("%s may be set beside others of %s", path, want.oneof)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(answers)) {
		if _, known := theirs[path]; !known && !extends[path] {
			report("%s is not in the API", path)
		}
	}
	return differences
}

func (s shape) String() string {
	if s.enum != nil {
		return fmt.Sprint(s.scalar, " ", s.enum)
	}
	return s.scalar
}

// describe adds the fields of a message and those inside of them. around are the messages it is part of.
func (fields schema) describe(path string, m protoreflect.MessageDescriptor, around []protoreflect.FullName) {
	if slices.Contains(around, m.FullName()) {
		return // within itself
	}
	around = append(slices.Clip(around), m.FullName())
	for i := range m.Fields().Len() {
		fd := m.Fields().Get(i)
		at, value := path+"."+fd.JSONName(), fd
		inside := at
		switch {
		case fd.IsMap():
			inside, value = at+"{}", fd.MapValue()
		case fd.IsList():
			inside += "[]"
		}
		s := shape{scalar: scalar(value)}
		if o := fd.ContainingOneof(); o != nil && !o.IsSynthetic() {
			s.oneof = path + "." + string(o.Name())
		}
		if e := value.Enum(); e != nil && s.scalar == "string" {
			for j := range e.Values().Len() {
				s.enum = append(s.enum, string(e.Values().Get(j).Name()))
			}
			slices.Sort(s.enum)
		}
		fields[at] = s
		if s.scalar == "object" {
			fields.describe(inside, value.Message(), around)
		}
	}
}

// scalar names what a field takes in YAML.
func scalar(fd protoreflect.FieldDescriptor) string {
	switch fd.Kind() {
	case protoreflect.StringKind, protoreflect.EnumKind:
		return "string"
	case protoreflect.BoolKind:
		return "bool"
	case protoreflect.BytesKind:
		return "bytes"
	case protoreflect.DoubleKind, protoreflect.FloatKind:
		return "float"
	case protoreflect.MessageKind:
		switch m := fd.Message(); m.FullName() {
		case "google.protobuf.Duration":
			return "duration"
		case "google.protobuf.Struct", "google.protobuf.Value":
			return "any"
		default:
			if m.ParentFile().Path() == "google/protobuf/wrappers.proto" {
				return scalar(m.Fields().ByName("value"))
			}
		}
		return "object"
	default:
		return "integer"
	}
}

// declare adds the fields of a struct of ours, by the same paths as [yamldoc.Fields].
func (fields schema) declare(path string, t reflect.Type) {
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if name == "" {
			continue
		}
		at, of := strings.TrimPrefix(path+"."+name, "."), f.Type
		inside := at
		for ; ; of = of.Elem() {
			if of.Kind() == reflect.Map {
				inside += "{}"
			} else if of.Kind() == reflect.Slice && of.Elem().Kind() != reflect.Uint8 {
				inside += "[]"
			} else if of.Kind() != reflect.Pointer {
				break
			}
		}
		s := shape{scalar: goScalar(of)}
		if enum := f.Tag.Get("enum"); enum != "" {
			s.enum = slices.Sorted(slices.Values(strings.Split(enum, ",")))
		}
		if group := f.Tag.Get("oneof"); group != "" {
			s.oneof = path + "." + group
		}
		fields[at] = s
		if s.scalar == "object" {
			fields.declare(inside, of)
		}
	}
}

func goScalar(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[yamldoc.Duration]():
		return "duration"
	case t == reflect.TypeFor[yamldoc.Any]():
		return "any"
	case t.Kind() == reflect.Struct:
		return "object"
	case t.Kind() == reflect.Slice:
		return "bytes"
	case t.Kind() == reflect.String:
		return "string"
	case t.Kind() == reflect.Bool:
		return "bool"
	case t.Kind() == reflect.Float64:
		return "float"
	}
	return "integer"
}
