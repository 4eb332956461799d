// Package orca reads and writes the load reports that servers add to their answers: Open Request Cost Aggregation, as Envoy and gRPC
// (gRFC A51) have them.
package orca

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"math"
	"strconv"
	"strings"
)

// The headers of a report. The second one is binary: base64 in HTTP, bytes in the metadata of gRPC.
const (
	Header       = "Endpoint-Load-Metrics"
	BinaryHeader = "Endpoint-Load-Metrics-Bin"
)

// longest is how long a report may be. What it says beyond this package's fields is skipped.
const longest = 4096

// Report is what a report says of a server as a whole.
type Report struct {
	Utilization float64 // of the application, or else of the processor; above 1 if a soft limit is exceeded
	Requests    float64 // a second
	Errors      float64 // a second
}

// fields are the fields of a report as they are sent.
type fields struct{ application, processor, requests, errors float64 }

// report returns what the fields say. Each must be finite and not negative.
func (f *fields) report() (Report, bool) {
	for _, v := range []float64{f.application, f.processor, f.requests, f.errors} {
		if !(v >= 0 && v <= math.MaxFloat32) {
			return Report{}, false
		}
	}
	r := Report{f.application, f.requests, f.errors}
	if r.Utilization == 0 {
		r.Utilization = f.processor
	}
	return r, true
}

// Take returns the report in the header of an answer, and removes it: it is meant for whoever made the call, and not for whoever that
// serves. It returns false if there is none that can be read.
func Take(h map[string][]string) (r Report, ok bool) {
	text, bin := h[Header], h[BinaryHeader]
	if text == nil && bin == nil {
		return Report{}, false
	}
	switch {
	case len(bin) == 1:
		r, ok = decode(bin[0])
	case len(bin) == 0 && len(text) == 1:
		r, ok = parse(text[0])
	}
	delete(h, Header)
	delete(h, BinaryHeader)
	return r, ok
}

// parse reads the text of a header, which begins with its format.
func parse(s string) (Report, bool) {
	if len(s) > longest {
		return Report{}, false
	}
	format, rest, _ := strings.Cut(s, " ")
	switch format {
	case "TEXT":
		return parseText(rest)
	case "JSON":
		return parseJSON(rest)
	case "BIN":
		return decode(rest)
	}
	return Report{}, false
}

func parseText(s string) (Report, bool) {
	var f fields
	for s != "" {
		var pair string
		pair, s, _ = strings.Cut(s, ",")
		name, value, ok := strings.Cut(pair, "=")
		if !ok {
			return Report{}, false
		}
		to := f.named(strings.TrimSpace(name))
		if to == nil {
			continue
		}
		var err error
		if *to, err = strconv.ParseFloat(strings.TrimSpace(value), 64); err != nil {
			return Report{}, false
		}
	}
	return f.report()
}

// named returns the field of a name, nil if it does not matter.
func (f *fields) named(name string) *float64 {
	switch name {
	case "application_utilization", "applicationUtilization":
		return &f.application
	case "cpu_utilization", "cpuUtilization":
		return &f.processor
	case "rps_fractional", "rpsFractional":
		return &f.requests
	case "eps":
		return &f.errors
	}
	return nil
}

func parseJSON(s string) (Report, bool) {
	var values map[string]json.RawMessage
	if json.Unmarshal([]byte(s), &values) != nil {
		return Report{}, false
	}
	var f fields
	for name, value := range values {
		if to := f.named(name); to != nil && json.Unmarshal(value, to) != nil {
			return Report{}, false
		}
	}
	return f.report()
}

func decode(s string) (Report, bool) {
	if len(s) > longest {
		return Report{}, false
	}
	message, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(s, "="))
	if err != nil {
		return Report{}, false
	}
	return Decode(string(message))
}

// Decode reads a binary report: the message xds.data.orca.v3.OrcaLoadReport.
func Decode(message string) (Report, bool) {
	if len(message) > longest {
		return Report{}, false
	}
	var f fields
	for b := []byte(message); len(b) > 0; {
		tag, n := binary.Uvarint(b)
		if n <= 0 {
			return Report{}, false
		}
		b = b[n:]
		size := 0
		switch tag & 7 {
		case 0: // a varint
			if _, size = binary.Uvarint(b); size <= 0 {
				return Report{}, false
			}
		case 1: // 64 bits
			size = 8
		case 2: // bytes
			length, n := binary.Uvarint(b)
			if n <= 0 || length > longest {
				return Report{}, false
			}
			size = n + int(length)
		case 5: // 32 bits
			size = 4
		default:
			return Report{}, false
		}
		if size > len(b) {
			return Report{}, false
		}
		if to := f.numbered(tag); to != nil {
			*to = math.Float64frombits(binary.LittleEndian.Uint64(b))
		}
		b = b[size:]
	}
	return f.report()
}

// numbered returns the field of a tag, nil if it does not matter.
func (f *fields) numbered(tag uint64) *float64 {
	switch tag {
	case 1<<3 | 1:
		return &f.processor
	case 6<<3 | 1:
		return &f.requests
	case 7<<3 | 1:
		return &f.errors
	case 9<<3 | 1:
		return &f.application
	}
	return nil
}

// String returns the report as the value of Header.
func (r Report) String() string {
	b := append(make([]byte, 0, 96), "TEXT application_utilization="...)
	b = strconv.AppendFloat(b, r.Utilization, 'g', 6, 64)
	b = append(b, ",rps_fractional="...)
	b = strconv.AppendFloat(b, r.Requests, 'g', 6, 64)
	if r.Errors > 0 {
		b = append(b, ",eps="...)
		b = strconv.AppendFloat(b, r.Errors, 'g', 6, 64)
	}
	return string(b)
}

// Message returns the report as a binary report.
func (r Report) Message() string {
	b := make([]byte, 0, 27)
	for _, f := range []struct {
		tag   byte
		value float64
	}{{9<<3 | 1, r.Utilization}, {6<<3 | 1, r.Requests}, {7<<3 | 1, r.Errors}} {
		if f.value > 0 {
			b = binary.LittleEndian.AppendUint64(append(b, f.tag), math.Float64bits(f.value))
		}
	}
	return string(b)
}

// MetadataKey is the key of a binary report in the trailer of gRPC.
const MetadataKey = "endpoint-load-metrics-bin"

// FromMetadata returns the report in the trailer of a gRPC call. It returns false if there is none that can be read.
func FromMetadata(trailer map[string][]string) (Report, bool) {
	if messages := trailer[MetadataKey]; len(messages) == 1 {
		return Decode(messages[0])
	}
	return Report{}, false
}
