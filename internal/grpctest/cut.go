package grpctest

import (
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/grpcwire"
	"github.com/nosidecar/mesh/internal/rawtest"
)

// ServeCut is [Serve] with a server that closes each connection after it has received some bytes, whatever the state of its streams is. A
// stream takes as many bytes with every client, but not as many reads, since that depends on how frames are batched.
func ServeCut(t testing.TB, s *Service) string {
	t.Helper()
	listener := rawtest.Listen(t)
	const seed = 1
	ServeOn(t, &cutListener{Listener: listener, rand: rand.New(rand.NewPCG(seed, seed))}, s)
	return listener.Addr().String()
}

type cutListener struct {
	net.Listener
	rand *rand.Rand // used only by the goroutine that calls Accept
}

func (l *cutListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	const least, more = 300, 25000 // least is enough for a connection to become ready
	return &cutConn{Conn: conn, left: least + l.rand.IntN(more)}, nil
}

type cutConn struct {
	net.Conn
	left int // the number of bytes to read before it is closed; used only by the goroutine that reads
}

func (c *cutConn) Read(p []byte) (int, error) {
	if c.left <= 0 {
		c.Close()
	} else if len(p) > c.left {
		p = p[:c.left]
	}
	n, err := c.Conn.Read(p)
	c.left -= n
	return n, err
}

// Ends counts how streams ended.
type Ends struct {
	mu    sync.Mutex
	codes map[codes.Code]int

	// False counts the streams that ended without an error, but also without the message that the server sends first.
	False int

	// Unprocessed counts the streams that failed without having been processed, which any retry policy may retry.
	Unprocessed int
}

// Codes returns how many streams ended with each code.
func (e *Ends) Codes() map[codes.Code]int { return e.codes }

// Streams makes n streams over conn, several at a time, to a server that answers each message with a message. It returns how they ended.
func Streams(t testing.TB, conn grpc.ClientConnInterface, n int) *Ends {
	t.Helper()
	client := NewClient(conn)
	e := &Ends{codes: make(map[codes.Code]int)}
	one := func() error {
		stream, err := client.FullDuplexCall(t.Context())
		if err != nil {
			return err
		}
		if err := stream.Send(&In{}); err != nil && err != io.EOF {
			return err
		}
		if err := stream.CloseSend(); err != nil {
			return err
		}
		for got := 0; ; got++ {
			_, err := stream.Recv()
			if err == nil {
				continue
			}
			if err != io.EOF {
				return err
			}
			if got == 0 {
				e.mu.Lock()
				e.False++
				e.mu.Unlock()
			}
			return nil
		}
	}
	workers := min(n, 16)
	var running sync.WaitGroup
	for range workers {
		running.Go(func() {
			for range n / workers {
				err := one()
				e.mu.Lock()
				e.codes[status.Code(err)]++
				if grpcwire.Unprocessed(err) {
					e.Unprocessed++
				}
				e.mu.Unlock()
			}
		})
	}
	running.Wait()
	return e
}

// EchoStream answers each message of a stream with the same payload.
func EchoStream(s BidiServer) error {
	for {
		in, err := s.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.Send(&Out{Payload: in.Payload}); err != nil {
			return err
		}
	}
}
