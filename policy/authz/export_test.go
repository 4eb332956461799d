package authz

// RemoteAddr returns the address of the client by the values of x-forwarded-for.
var RemoteAddr = remoteAddr
