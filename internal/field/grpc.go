package field

import "strings"

// OwnedByGRPC reports whether gRPC sets a header, whose name is in lower case, itself: what others want it to be does not count.
func OwnedByGRPC(name string) bool {
	switch name {
	case "content-type", "te", "user-agent", "grpc-timeout", "grpc-encoding", "grpc-accept-encoding", "grpc-message-type", "grpc-status", "grpc-message":
		return true
	}
	return false
}

// IsMetadata reports whether gRPC can send a header with a name in lower case.
func IsMetadata(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.'
	})
}

// IsMetadataValue reports whether gRPC can send a value of a header with a name in lower case. It encodes values of binary headers.
func IsMetadataValue(name, value string) bool {
	return strings.HasSuffix(name, "-bin") || IsPrintable(value)
}
