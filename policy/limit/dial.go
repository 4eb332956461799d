package limit

import (
	"cmp"
	"context"
	"errors"
	"net"
	"time"
)

func (c *Conns) dialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	return c.connect(ctx, network, addr, false)
}

// connect makes a connection. If first is set, it may exceed MaxConnections.
func (c *Conns) connect(ctx context.Context, network, addr string, first bool) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.connectTimeout())
	defer cancel()
	if c.isClosed() {
		return nil, &net.OpError{Op: "dial", Net: network, Err: net.ErrClosed}
	}
	if err := c.reserve(ctx, first); err != nil {
		return nil, err
	}
	opened := false
	defer func() {
		if !opened {
			c.unreserve() // the dial failed, or panicked
		}
	}()
	nc, err := c.dial(ctx, network, addr)
	if nc == nil && err == nil {
		err = errors.New("limit: the dialer of the template returned neither a connection nor an error")
	}
	if err != nil {
		// Mark any failure to connect as a dial error, whatever the dialer returned: such calls can always be retried.
		if op, ok := errors.AsType[*net.OpError](err); !ok || op.Op != "dial" {
			err = &net.OpError{Op: "dial", Net: network, Err: err}
		}
		return nil, err
	}
	err = c.setKeepalive(nc)
	if err == nil {
		var wrapped *conn
		if wrapped, err = c.add(ctx, nc); err == nil {
			opened = true
			return wrapped, nil
		}
	}
	nc.Close()
	return nil, &net.OpError{Op: "dial", Net: network, Addr: nc.RemoteAddr(), Err: err}
}

func (c *Conns) connectTimeout() time.Duration {
	return cmp.Or(c.pool.config.ConnectTimeout, defaultConnectTimeout)
}

func (c *Conns) isClosed() bool {
	c.pool.links.mu.Lock()
	defer c.pool.links.mu.Unlock()
	return c.closed
}

// add makes nc, which was dialled with ctx, one of the open connections.
func (c *Conns) add(ctx context.Context, nc net.Conn) (*conn, error) {
	wrapped := &conn{Conn: nc, born: time.Now()}
	wrapped.owner.Store(c)
	if d, ok := ctx.Value(diallingKey{}).(*dialling); ok {
		wrapped.below, d.conn = d.clientConn, wrapped
	}
	l := &c.pool.links
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.closed {
		return nil, net.ErrClosed
	}
	c.live[wrapped] = struct{}{}
	return wrapped, nil
}

// setKeepalive applies Keepalive to a TCP connection. Other connections have no keepalive.
func (c *Conns) setKeepalive(nc net.Conn) error {
	keepalive := c.pool.config.Keepalive
	if keepalive == (Keepalive{}) {
		return nil
	}
	tcp, ok := nc.(interface {
		SetKeepAliveConfig(net.KeepAliveConfig) error
	})
	if !ok {
		return nil
	}
	// In net.KeepAliveConfig, a negative value keeps the default of the system.
	return tcp.SetKeepAliveConfig(net.KeepAliveConfig{
		Enable: true, Count: cmp.Or(keepalive.Probes, -1), Idle: cmp.Or(keepalive.Time, -1), Interval: cmp.Or(keepalive.Interval, -1),
	})
}
