package orca_test

import (
	"encoding/base64"
	"encoding/binary"
	"math"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/internal/orca"
)

// message returns a binary report with a field that nobody reads before and between the others.
func message(application, processor, requests, errors float64) string {
	b := []byte{4<<3 | 2, 3, 'a', 'b', 'c', 3 << 3, 0x80, 1}
	for tag, v := range map[byte]float64{9<<3 | 1: application, 1<<3 | 1: processor, 6<<3 | 1: requests, 7<<3 | 1: errors} {
		b = binary.LittleEndian.AppendUint64(append(b, tag), math.Float64bits(v))
	}
	return string(b)
}

func TestTake(t *testing.T) {
	bin := base64.StdEncoding.EncodeToString([]byte(message(0.5, 0.2, 30, 2)))
	for _, test := range []struct {
		name, header, value string
		want                orca.Report
		ok                  bool
	}{
		{"text", orca.Header, "TEXT application_utilization=0.5,cpu_utilization=0.2,rps_fractional=30,eps=2,named_metrics.x=7", orca.Report{Utilization: 0.5, Requests: 30, Errors: 2}, true},
		{"text with spaces", orca.Header, "TEXT cpu_utilization=0.2, rps_fractional=30", orca.Report{Utilization: 0.2, Requests: 30}, true},
		{"JSON", orca.Header, `JSON {"application_utilization":0.5,"rps_fractional":30,"eps":2,"named_metrics":{"x":7}}`, orca.Report{Utilization: 0.5, Requests: 30, Errors: 2}, true},
		{"JSON with the names of protobuf", orca.Header, `JSON {"cpuUtilization":0.2,"rpsFractional":30}`, orca.Report{Utilization: 0.2, Requests: 30}, true},
		{"binary", orca.BinaryHeader, bin, orca.Report{Utilization: 0.5, Requests: 30, Errors: 2}, true},
		{"binary without padding", orca.BinaryHeader, strings.TrimRight(bin, "="), orca.Report{Utilization: 0.5, Requests: 30, Errors: 2}, true},
		{"binary in the header of text", orca.Header, "BIN " + bin, orca.Report{Utilization: 0.5, Requests: 30, Errors: 2}, true},
		{"not a number", orca.Header, "TEXT cpu_utilization=NaN,rps_fractional=30", orca.Report{}, false},
		{"infinite", orca.Header, "TEXT cpu_utilization=0.5,rps_fractional=Inf", orca.Report{}, false},
		{"negative", orca.Header, "TEXT cpu_utilization=-1,rps_fractional=30", orca.Report{}, false},
		{"huge", orca.Header, "TEXT cpu_utilization=0.5,rps_fractional=1e300", orca.Report{}, false},
		{"not a number, binary", orca.BinaryHeader, base64.StdEncoding.EncodeToString([]byte(message(math.NaN(), 0, 1, 0))), orca.Report{}, false},
		{"cut off", orca.BinaryHeader, base64.StdEncoding.EncodeToString([]byte(message(1, 1, 1, 1)[:20])), orca.Report{}, false},
		{"without a format", orca.Header, "cpu_utilization=0.5", orca.Report{}, false},
		{"without a value", orca.Header, "TEXT cpu_utilization", orca.Report{}, false},
		{"too long", orca.Header, "TEXT cpu_utilization=0.5," + strings.Repeat("x=1,", 2000), orca.Report{}, false},
		{"text in JSON", orca.Header, `JSON {"eps":"many"}`, orca.Report{}, false},
	} {
		h := map[string][]string{test.header: {test.value}}
		got, ok := orca.Take(h)
		if got != test.want || ok != test.ok {
			t.Errorf("%s: Take = %v, %v, want %v, %v", test.name, got, ok, test.want, test.ok)
		}
		if len(h) > 0 {
			t.Errorf("%s: the header is still %v", test.name, h)
		}
	}
	if _, ok := orca.Take(map[string][]string{orca.Header: {"TEXT eps=1", "TEXT eps=2"}}); ok {
		t.Error("two reports in one header are read")
	}
}

func TestReportIsReadAsItWasWritten(t *testing.T) {
	for _, want := range []orca.Report{{}, {Utilization: 0.25, Requests: 1e6}, {Utilization: 37.5, Requests: 12.25, Errors: 0.5}} {
		if got, ok := orca.Take(map[string][]string{orca.Header: {want.String()}}); !ok || got != want {
			t.Errorf("%q was read as %v", want, got)
		}
		if got, ok := orca.FromMetadata(map[string][]string{orca.MetadataKey: {want.Message()}}); !ok || got != want {
			t.Errorf("the message of %q was read as %v", want, got)
		}
	}
}

func FuzzTake(f *testing.F) {
	f.Add("TEXT cpu_utilization=0.5,rps_fractional=1", "")
	f.Add(`JSON {"eps":1}`, "")
	f.Add("", base64.StdEncoding.EncodeToString([]byte(message(1, 2, 3, 4))))
	f.Fuzz(func(t *testing.T, text, bin string) {
		h := map[string][]string{orca.Header: {text}}
		if bin != "" {
			h[orca.BinaryHeader] = []string{bin}
		}
		r, _ := orca.Take(h)
		for _, v := range []float64{r.Utilization, r.Requests, r.Errors} {
			if !(v >= 0 && v <= math.MaxFloat32) {
				t.Errorf("%q and %q were read as %v", text, bin, r)
			}
		}
	})
}
