package limit

import (
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"time"
)

// countedCall is a call that counts on the connection it is sent over.
type countedCall struct {
	conns *Conns
	trace httptrace.ClientTrace
	req   *http.Request
}

// gotConn runs on the goroutine of RoundTrip, after the connection is chosen and before the request is written.
func (call *countedCall) gotConn(info httptrace.GotConnInfo) {
	nc := info.Conn
	for {
		if conn, ok := nc.(*conn); ok {
			if conn.last(time.Now()) && !call.req.Close {
				call.sayClose()
			}
			return
		}
		layer, ok := nc.(interface{ NetConn() net.Conn })
		if !ok {
			return
		}
		nc = layer.NetConn()
	}
}

// sayClose makes the call the last one on its connection.
func (call *countedCall) sayClose() {
	h := call.req.Header
	if h.Get("Upgrade") != "" {
		// If the peer agrees, the connection serves no further call anyway. If not, the next call is the last one.
		return
	}
	// HTTP/1 looks at the header, since it may have copied the request; HTTP/2 at either, and takes no further calls on the
	// connection. What the caller set in those headers stays.
	call.req.Close = true
	if options := strings.Join(h["Connection"], ", "); options != "" {
		h["Connection"] = []string{options + ", close"}
	} else {
		h["Connection"] = []string{"close"}
	}
}
