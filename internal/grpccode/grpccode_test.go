package grpccode_test

import (
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/nosidecar/mesh/internal/grpccode"
)

func TestCodesAreThoseOfGRPC(t *testing.T) {
	for code := codes.OK; code <= codes.Unauthenticated; code++ {
		name := grpccode.Name(uint32(code))
		var parsed codes.Code
		if err := parsed.UnmarshalJSON([]byte(`"` + name + `"`)); err != nil || parsed != code {
			t.Errorf("%v is named %q", code, name)
		}
		if of := grpccode.Of(name); of != int(code) {
			t.Errorf("Of(%q) = %d", name, of)
		}
	}
	if got := grpccode.Name(17); got != "CODE(17)" {
		t.Errorf("Name(17) = %q", got)
	}
	if grpccode.Of("unavailable") >= 0 {
		t.Error("names are compared without their case")
	}
}

func TestServerFault(t *testing.T) {
	faults := map[codes.Code]bool{
		codes.Unknown: true, codes.DeadlineExceeded: true, codes.Unimplemented: true, codes.Internal: true, codes.Unavailable: true,
		codes.DataLoss: true,
	}
	for code := codes.OK; code <= codes.Unauthenticated+1; code++ {
		if got := grpccode.ServerFault(uint32(code)); got != faults[code] {
			t.Errorf("ServerFault(%v) = %t", code, got)
		}
	}
}
