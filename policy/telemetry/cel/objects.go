package cel

import (
	"errors"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"

	"github.com/nosidecar/mesh/internal/attribute"
)

// objects has the types of the variables of expressions, such as request, and of their fields.
type objects struct {
	*types.Registry
	fields map[string]map[string]*types.FieldType // by type and name
	roots  []string
}

func newObjects() *objects {
	registry, err := types.NewRegistry()
	if err != nil {
		panic("cel: " + err.Error()) // cannot happen without protobuf messages
	}
	o := &objects{Registry: registry, fields: make(map[string]map[string]*types.FieldType)}
	for name, kind := range attribute.Variables() {
		parts := strings.Split(name, ".")
		if !slices.Contains(o.roots, parts[0]) {
			o.roots = append(o.roots, parts[0])
		}
		for i := 1; i < len(parts)-1; i++ {
			o.add(object(parts[:i]), parts[i], &types.FieldType{
				Type: cel.ObjectType(object(parts[:i+1])), IsSet: func(any) bool { return true }, GetFrom: func(of any) (any, error) { return of, nil },
			})
		}
		last := len(parts) - 1
		o.add(object(parts[:last]), parts[last], field(name, kind))
	}
	return o
}

// object returns the name of the type of the field that parts name. Expressions cannot contain that name.
func object(parts []string) string { return "@" + strings.Join(parts, ".") }

func (o *objects) add(to, name string, f *types.FieldType) {
	if o.fields[to] == nil {
		o.fields[to] = make(map[string]*types.FieldType)
	}
	o.fields[to][name] = f
}

func (o *objects) options() []cel.EnvOption {
	options := []cel.EnvOption{cel.CustomTypeProvider(o), cel.CustomTypeAdapter(o.Registry)}
	for _, root := range o.roots {
		options = append(options, cel.Variable(root, cel.ObjectType(object([]string{root}))))
	}
	return options
}

var errAbsent = errors.New("the call has no such attribute")

// field returns the field type of an attribute.
func field(name string, kind attribute.Kind) *types.FieldType {
	return &types.FieldType{
		Type: typeOf(kind),
		IsSet: func(of any) bool {
			_, ok := of.(*call).attributes.Attribute(name)
			return ok
		},
		GetFrom: func(of any) (any, error) {
			value, ok := of.(*call).attributes.Attribute(name)
			if !ok {
				return nil, errAbsent
			}
			return valueOf(value), nil
		},
	}
}

func typeOf(kind attribute.Kind) *cel.Type {
	switch kind {
	case attribute.Number:
		return cel.IntType
	case attribute.Bool:
		return cel.BoolType
	case attribute.Duration:
		return cel.DurationType
	case attribute.Header, attribute.Labels:
		return cel.MapType(cel.StringType, cel.StringType)
	}
	return cel.StringType
}

func valueOf(value any) any {
	switch v := value.(type) {
	case string:
		return types.String(v)
	case int64:
		return types.Int(v)
	case bool:
		return types.Bool(v)
	case time.Duration:
		return types.Duration{Duration: v}
	case http.Header:
		return header(v)
	}
	return value
}

// FindStructType implements types.Provider.
func (o *objects) FindStructType(name string) (*types.Type, bool) {
	if _, ok := o.fields[name]; ok {
		return types.NewTypeTypeWithParam(types.NewObjectType(name)), true
	}
	return o.Registry.FindStructType(name)
}

// FindStructFieldNames implements types.Provider.
func (o *objects) FindStructFieldNames(name string) (names []string, found bool) {
	fields, ok := o.fields[name]
	for name := range fields {
		names = append(names, name)
	}
	return names, ok
}

// FindStructFieldType implements types.Provider.
func (o *objects) FindStructFieldType(name, field string) (*types.FieldType, bool) {
	f, ok := o.fields[name][field]
	return f, ok
}

// NewValue implements types.Provider. Expressions cannot create objects.
func (o *objects) NewValue(name string, fields map[string]ref.Val) ref.Val {
	if _, ok := o.fields[name]; ok {
		return types.NewErr("%s cannot be created", name)
	}
	return o.Registry.NewValue(name, fields)
}

// header is the headers of a request as a CEL map. Names are looked up in any spelling, and several values of one header are joined by
// commas. It is converted to an ordinary map only if an operation needs more than one element.
type header http.Header

func (h header) get(name string) (string, bool) {
	values, ok := h[http.CanonicalHeaderKey(name)]
	switch {
	case !ok || len(values) == 0:
		return "", false
	case len(values) == 1:
		return values[0], true
	}
	return strings.Join(values, ","), true
}

// Find implements traits.Mapper.
func (h header) Find(key ref.Val) (ref.Val, bool) {
	name, ok := key.(types.String)
	if !ok {
		return nil, false
	}
	value, ok := h.get(string(name))
	if !ok {
		return nil, false
	}
	return types.String(value), true
}

// Get implements traits.Indexer.
func (h header) Get(key ref.Val) ref.Val {
	if value, ok := h.Find(key); ok {
		return value
	}
	return types.NewErr("no such key: %v", key)
}

// Contains implements traits.Container.
func (h header) Contains(key ref.Val) ref.Val {
	_, ok := h.Find(key)
	return types.Bool(ok)
}

// Size implements traits.Sizer.
func (h header) Size() ref.Val { return types.Int(len(h)) }

// Iterator implements traits.Iterable, over names in lower case.
func (h header) Iterator() traits.Iterator { return h.all().Iterator() }

func (h header) all() traits.Mapper {
	all := make(map[string]string, len(h))
	for name := range h {
		all[strings.ToLower(name)], _ = h.get(name)
	}
	return types.NewStringStringMap(types.DefaultTypeAdapter, all)
}

// ConvertToNative implements ref.Val.
func (h header) ConvertToNative(t reflect.Type) (any, error) { return h.all().ConvertToNative(t) }

// ConvertToType implements ref.Val.
func (h header) ConvertToType(t ref.Type) ref.Val { return h.all().ConvertToType(t) }

// Equal implements ref.Val.
func (h header) Equal(other ref.Val) ref.Val {
	if o, ok := other.(header); ok {
		other = o.all()
	}
	return h.all().Equal(other)
}

// Type implements ref.Val.
func (h header) Type() ref.Type { return types.MapType }

// Value implements ref.Val.
func (h header) Value() any { return http.Header(h) }
