// Package grpccode has the status codes of gRPC for packages that do not link it.
package grpccode

import (
	"slices"
	"strconv"
)

// names are those of google.rpc.Code, by code.
var names = []string{
	"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED",
	"RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS",
	"UNAUTHENTICATED",
}

// Name returns the name of a code, such as "UNAVAILABLE", and "CODE(42)" for a code that gRPC does not define.
func Name(code uint32) string {
	if uint64(code) < uint64(len(names)) {
		return names[code]
	}
	return "CODE(" + strconv.FormatUint(uint64(code), 10) + ")"
}

// Of returns the code that has a name, or -1.
func Of(name string) int { return slices.Index(names, name) }

// ServerFault reports whether a code blames the server rather than the request, as a status of 500 or higher does in HTTP: Unknown,
// DeadlineExceeded, Unimplemented, Internal, Unavailable and DataLoss. These are the errors of a server span in the semantic
// conventions of OpenTelemetry for gRPC.
func ServerFault(code uint32) bool {
	switch code {
	case 2, 4, 12, 13, 14, 15:
		return true
	}
	return false
}
