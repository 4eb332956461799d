package failure

import (
	"net/http"
	"strconv"

	"github.com/nosidecar/mesh/internal/field"
)

// GRPCStatus returns the HTTP status to which Envoy maps a gRPC status, in outlier detection for example.
func GRPCStatus(code uint32) int {
	switch code {
	case 0: // OK
		return http.StatusOK
	case 1: // CANCELLED
		return 499 // client closed request
	case 3, 9, 11: // INVALID_ARGUMENT, FAILED_PRECONDITION, OUT_OF_RANGE
		return http.StatusBadRequest
	case 4: // DEADLINE_EXCEEDED
		return http.StatusGatewayTimeout
	case 5: // NOT_FOUND
		return http.StatusNotFound
	case 6, 10: // ALREADY_EXISTS, ABORTED
		return http.StatusConflict
	case 7: // PERMISSION_DENIED
		return http.StatusForbidden
	case 8: // RESOURCE_EXHAUSTED
		return http.StatusTooManyRequests
	case 12: // UNIMPLEMENTED
		return http.StatusNotImplemented
	case 14: // UNAVAILABLE
		return http.StatusServiceUnavailable
	case 16: // UNAUTHENTICATED
		return http.StatusUnauthorized
	}
	return http.StatusInternalServerError // UNKNOWN, INTERNAL, DATA_LOSS and unassigned codes
}

// GRPCCode returns the code of a gRPC call whose response has an HTTP status, by gRPC's "HTTP to gRPC Status Code Mapping".
func GRPCCode(status int) uint32 {
	switch status {
	case http.StatusBadRequest:
		return 13 // INTERNAL
	case http.StatusUnauthorized:
		return 16 // UNAUTHENTICATED
	case http.StatusForbidden:
		return 7 // PERMISSION_DENIED
	case http.StatusNotFound:
		return 12 // UNIMPLEMENTED
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return 14 // UNAVAILABLE
	}
	return 2 // UNKNOWN
}

// GRPCAnswered returns the code of a gRPC call whose response had an HTTP status, a header and trailers. It returns -1 if there was no
// response, or one without a code.
func GRPCAnswered(status int, answer ...http.Header) int {
	if status == 0 {
		return -1
	}
	for _, h := range answer {
		for _, name := range [...]string{"Grpc-Status", http.TrailerPrefix + "Grpc-Status"} {
			if code, err := strconv.ParseUint(field.First(h, name), 10, 31); err == nil {
				return int(code)
			}
		}
	}
	if status == http.StatusOK {
		return -1
	}
	return int(GRPCCode(status))
}

// GRPCAnswer is GRPCAnswered for a server. There, a response without a code counts as UNKNOWN.
func GRPCAnswer(status int, answer http.Header) int {
	code := GRPCAnswered(status, answer)
	if code < 0 && status != 0 {
		return int(GRPCCode(status))
	}
	return code
}
