package policy_test

import (
	"reflect"
	"testing"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
)

func TestClusterEqual_EveryField(t *testing.T) {
	base := func() *policy.Cluster {
		return &policy.Cluster{Subset: map[string]string{"version": "v1"}, TLS: policy.TLS{SubjectAltNames: []string{"a", "b"}}}
	}
	if !base().Equal(base()) {
		t.Fatal("a cluster does not equal its like")
	}
	var changes func(path string, v reflect.Value, check func(path string))
	changes = func(path string, v reflect.Value, check func(path string)) {
		if v.Kind() == reflect.Struct {
			for i := range v.NumField() {
				if v.Type().Field(i).IsExported() {
					changes(path+"."+v.Type().Field(i).Name, v.Field(i), check)
				}
			}
			return
		}
		if path == "Cluster.Filter.Match" {
			return // made anew with each plan; filters are told apart by their texts
		}
		before := reflect.ValueOf(v.Interface())
		switch v.Kind() {
		case reflect.Bool:
			v.SetBool(!v.Bool())
		case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
			v.SetInt(v.Int() + 1)
		case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
			v.SetUint(v.Uint() + 1)
		case reflect.Float32, reflect.Float64:
			v.SetFloat(v.Float() + 1)
		case reflect.String:
			v.SetString(v.String() + "x")
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), v.Len()+1, v.Len()+1))
		case reflect.Array:
			changes(path, v.Index(0), check)
			return
		case reflect.Map:
			v.Set(reflect.ValueOf(map[string]string{"version": "v2"}))
		default:
			t.Fatalf("%s: the test does not know how to change a %v", path, v.Type())
		}
		check(path)
		v.Set(before)
	}
	changed := base()
	changes("Cluster", reflect.ValueOf(changed).Elem(), func(path string) {
		if changed.Equal(base()) || base().Equal(changed) {
			t.Errorf("%s makes no difference", path)
		}
	})
}

// A plan that is compiled again has functions of its own.
func TestClusterEqual_FiltersOfTheSameText(t *testing.T) {
	one := policy.Cluster{Filter: policy.Filter{Text: "a", Match: func(*discovery.Endpoint) bool { return true }}}
	two := policy.Cluster{Filter: policy.Filter{Text: "a", Match: func(*discovery.Endpoint) bool { return false }}}
	if !one.Equal(&two) {
		t.Error("filters of the same text differ")
	}
}

// The names were once one text: a name with a comma was two.
func TestSubjectAltNames_CommaInURI(t *testing.T) {
	plan := compile(t, `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: api}
spec:
  host: api
  trafficPolicy: {tls: {mode: SIMPLE, subjectAltNames: ["https://example.com/b,c", "api.example.com"]}}
`)
	want := []string{"api.example.com", "https://example.com/b,c"}
	if got := plan.Cluster(route.Target{Host: "api"}).TLS.SubjectAltNames; !reflect.DeepEqual(got, want) {
		t.Errorf("SubjectAltNames = %q, want %q", got, want)
	}
}

// The labels were once one text, in which these two subsets were the same.
func TestClusterEqual_LabelsWithSeparators(t *testing.T) {
	one := policy.Cluster{Subset: map[string]string{"a": "1,b=2"}}
	two := policy.Cluster{Subset: map[string]string{"a": "1", "b": "2"}}
	if one.Equal(&two) {
		t.Error("one label whose value is 1,b=2 equals two labels")
	}
}
