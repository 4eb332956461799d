package limit

import (
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"time"
)

// countedCall is a call that is counted on its connection.
type countedCall struct {
	conns *Conns
	trace httptrace.ClientTrace
	req   *http.Request
}

// gotConn runs on the goroutine of RoundTrip, after the connection was chosen and before the request is written.
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
		// If the peer accepts the upgrade, the connection serves no other call anyway. If not, the next call is the last one.
		return
	}
	// HTTP/1 reads the header, since it may have copied the request. HTTP/2 reads either, and then accepts no further calls on the
	// connection. Options that the caller set remain.
	call.req.Close = true
	if options := strings.Join(h["Connection"], ", "); options != "" {
		h["Connection"] = []string{options + ", close"}
	} else {
		h["Connection"] = []string{"close"}
	}
}
