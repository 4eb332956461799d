package peermeta_test

import (
	"encoding/base64"
	"maps"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/nosidecar/mesh/metrics/internal/peermeta"
)

var whole = peermeta.Metadata{
	Name: "order-1", Namespace: "shop", Workload: "order-v1", Cluster: "Kubernetes",
	Owner:    "kubernetes://apis/apps/v1/namespaces/shop/deployments/order-v1",
	Identity: "spiffe://cluster.local/ns/shop/sa/order", Region: "eu", Zone: "eu-1",
	Labels: map[string]string{"app": "order", "version": "v1", "service.istio.io/canonical-name": "order"},
}

func asStruct(t *testing.T, m peermeta.Metadata) *structpb.Struct {
	t.Helper()
	fields := map[string]any{
		"NAME": m.Name, "NAMESPACE": m.Namespace, "WORKLOAD_NAME": m.Workload, "CLUSTER_ID": m.Cluster, "OWNER": m.Owner,
		"IDENTITY": m.Identity, "REGION": m.Region, "AVAILABILITY_ZONE": m.Zone,
	}
	maps.DeleteFunc(fields, func(_ string, v any) bool { return v == "" })
	if m.Labels != nil {
		labels := map[string]any{}
		for k, v := range m.Labels {
			labels[k] = v
		}
		fields["LABELS"] = labels
	}
	s, err := structpb.NewStruct(fields)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func encode(t testing.TB, s *structpb.Struct) string {
	t.Helper()
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(data)
}

// The bytes are those that protobuf makes of the same Struct when asked for deterministic ones.
func TestEncode(t *testing.T) {
	for _, m := range []peermeta.Metadata{{}, {Name: "a"}, {Labels: map[string]string{"b": "", "a": "x"}}, whole} {
		if got, want := m.Encode(), encode(t, asStruct(t, m)); got != want {
			t.Errorf("%+v is\n%s, want\n%s", m, got, want)
		}
	}
	if got, want := whole.ID("10.0.0.1", "cluster.local"), "sidecar~10.0.0.1~order-1.shop~shop.svc.cluster.local"; got != want {
		t.Errorf("the ID is %q, want %q", got, want)
	}
}

func same(a, b peermeta.Metadata) bool {
	la, lb := a.Labels, b.Labels
	a.Labels, b.Labels = nil, nil
	return a.Name == b.Name && a.Namespace == b.Namespace && a.Workload == b.Workload && a.Cluster == b.Cluster &&
		a.Owner == b.Owner && a.Identity == b.Identity && a.Region == b.Region && a.Zone == b.Zone && maps.Equal(la, lb)
}

func TestDecode(t *testing.T) {
	got, err := peermeta.Decode(whole.Encode())
	if err != nil || !same(got, whole) {
		t.Errorf("read back as %+v, %v", got, err)
	}
	// Other types than the ones meant are skipped, and so are fields that nobody knows.
	other, err := structpb.NewStruct(map[string]any{
		"NAME": 7, "NAMESPACE": "shop", "WORKLOAD_NAME": nil, "LABELS": []any{"a", map[string]any{"b": true}}, "X": map[string]any{"y": 1},
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err = peermeta.Decode(encode(t, other))
	if err != nil || !same(got, peermeta.Metadata{Namespace: "shop"}) {
		t.Errorf("read as %+v, %v", got, err)
	}
	for name, value := range map[string]string{
		"not base64":   "%%%",
		"not padded":   strings.TrimRight(encode(t, asStruct(t, peermeta.Metadata{Name: "ab"})), "="),
		"cut":          base64.StdEncoding.EncodeToString([]byte{10, 9, 10, 1}),
		"not UTF-8":    base64.StdEncoding.EncodeToString([]byte{10, 8, 10, 1, 'a', 18, 3, 26, 1, 0xff}),
		"number":       "1X0000000A00CA01000000A0CA210720K000000Z00000000000YA0A0",
		"too long":     strings.Repeat("A", peermeta.MaxSize+4),
		"much too far": nested(t, 40),
	} {
		if name == "not padded" && value == encode(t, asStruct(t, peermeta.Metadata{Name: "ab"})) {
			t.Fatal("needs a value with padding")
		}
		if got, err := peermeta.Decode(value); err == nil || !same(got, peermeta.Metadata{}) {
			t.Errorf("%s: read as %+v, %v", name, got, err)
		}
	}
}

func nested(t testing.TB, depth int) string {
	v := structpb.NewStringValue("x")
	for range depth {
		v = structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{"a": v}})
	}
	return encode(t, v.GetStructValue())
}

// What is read is what protobuf reads; what protobuf refuses is refused.
func FuzzDecode(f *testing.F) {
	f.Add(whole.Encode())
	f.Add(nested(f, 3))
	f.Add(nested(f, 30))
	f.Add("")
	f.Add("1X0000000A00CA01000000A0CA210720K000000Z00000000000YA0A0") // a field number of more than 29 bits
	f.Add(base64.StdEncoding.EncodeToString([]byte{10, 12, 10, 4, 'N', 'A', 'M', 'E', 18, 4, 26, 2, 'a', 'b'}))
	f.Fuzz(func(t *testing.T, value string) {
		got, err := peermeta.Decode(value)
		if err != nil {
			return
		}
		data, err := base64.StdEncoding.DecodeString(value)
		if err != nil {
			t.Fatalf("%q is no base64", value)
		}
		var s structpb.Struct
		if err := proto.Unmarshal(data, &s); err != nil {
			t.Fatalf("protobuf refuses %q: %v", value, err)
		}
		text := func(fields map[string]*structpb.Value, name string) string { return fields[name].GetStringValue() }
		want := peermeta.Metadata{
			Name: text(s.Fields, "NAME"), Namespace: text(s.Fields, "NAMESPACE"), Workload: text(s.Fields, "WORKLOAD_NAME"),
			Cluster: text(s.Fields, "CLUSTER_ID"), Owner: text(s.Fields, "OWNER"), Identity: text(s.Fields, "IDENTITY"),
			Region: text(s.Fields, "REGION"), Zone: text(s.Fields, "AVAILABILITY_ZONE"), Labels: map[string]string{},
		}
		for name, v := range s.Fields["LABELS"].GetStructValue().GetFields() {
			if _, ok := v.GetKind().(*structpb.Value_StringValue); ok {
				want.Labels[name] = v.GetStringValue()
			}
		}
		if !same(got, want) {
			t.Errorf("%q read as\n%+v, want\n%+v", value, got, want)
		}
	})
}
