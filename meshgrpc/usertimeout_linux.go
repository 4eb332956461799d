package meshgrpc

import (
	"net"
	"syscall"
	"time"
)

// tcpUserTimeout is TCP_USER_TIMEOUT, which package syscall does not define.
const tcpUserTimeout = 0x12

// limitUnacknowledged bounds how long sent data may stay unacknowledged before the connection is closed. gRPC does the same for
// connections with keepalive, but not if they are wrapped.
func limitUnacknowledged(nc net.Conn, limit time.Duration) {
	for nc != nil {
		if c, ok := nc.(syscall.Conn); ok {
			raw, err := c.SyscallConn()
			if err != nil {
				return
			}
			_ = raw.Control(func(fd uintptr) {
				// This fails for a connection that is not TCP. Then there is nothing to bound.
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
