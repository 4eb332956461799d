package meshgrpc

import (
	"net"
	"syscall"
	"time"
)

// tcpUserTimeout is TCP_USER_TIMEOUT, which package syscall has no name for.
const tcpUserTimeout = 0x12

// limitUnacknowledged bounds how long what was sent may stay unacknowledged before the connection is given up, as gRPC does for
// connections with keepalive. gRPC can do that only with connections that are not wrapped.
func limitUnacknowledged(nc net.Conn, limit time.Duration) {
	for nc != nil {
		if c, ok := nc.(syscall.Conn); ok {
			raw, err := c.SyscallConn()
			if err != nil {
				return
			}
			_ = raw.Control(func(fd uintptr) {
				// On what is no TCP connection it fails, and there is nothing to bound.
				_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(limit.Milliseconds()))
			})
			return
		}
		inner, ok := nc.(interface{ NetConn() net.Conn })
		if !ok {
			return
		}
		nc = inner.NetConn()
	}
}
