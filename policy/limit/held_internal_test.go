package limit

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

// TestHeld: the body of a request is closed, once, when it was read or will not be sent again, and stays open as long as it may be.
func TestHeld(t *testing.T) {
	const (
		read    = 'r'
		closes  = 'c'
		release = 'l'
		again   = 'a'
		fails   = 'f' // release, after an error
		repeat  = 'b' // GetBody of the request that is sent, whose body is read and closed from then on
	)
	for _, tt := range []struct {
		name, steps string
		getBody     bool
		closed      int
		err         error
		fresh       bool // another body is sent again
	}{
		{"sent", "rcl", true, 1, nil, false},
		{"answered before it is closed", "rlc", true, 1, nil, false},
		{"answered before it is read", "lc", true, 1, nil, false},
		{"closed before it is read", "cl", true, 1, nil, false},
		{"not yet answered", "c", true, 0, nil, false},
		{"to be sent again, not read", "ca", false, 0, nil, false},
		{"to be sent again, read", "ra", true, 1, nil, true},
		{"to be sent again, read and closed", "rca", true, 1, nil, true},
		{"closed before a read that comes late", "crl", true, 1, nil, false},
		{"closed and released before a read that comes late", "clr", true, 1, nil, false},
		{"closed twice", "rccl", true, 1, nil, false},
		{"repeated by net/http", "cbrcl", true, 1, nil, false},
		{"repeated by net/http, which gives up", "cbf", true, 1, nil, false},
		{"repeated by net/http, which gives up without closing anything", "bf", true, 1, nil, false},
		{"repeated by net/http, and to be sent again", "cba", true, 1, nil, true},
		{"repeated by net/http, read and to be sent again", "cbra", true, 1, nil, true},
		{"not to be sent again", "rca", false, 1, errNotAgain, false},
		{"not to be sent again, and open", "ra", false, 1, errNotAgain, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			source := &counting{Reader: strings.NewReader("said")}
			req, err := http.NewRequest(http.MethodPost, "http://orders", source)
			if err != nil {
				t.Fatal(err)
			}
			var others []*counting
			if tt.getBody {
				req.GetBody = func() (io.ReadCloser, error) {
					others = append(others, &counting{Reader: strings.NewReader("said")})
					return others[len(others)-1], nil
				}
			}
			out, b := hold(req)
			next, sent := req, out.Body
			for _, step := range tt.steps {
				switch step {
				case read:
					io.ReadAll(sent)
				case closes:
					sent.Close()
				case repeat:
					sent, _ = out.GetBody()
				case fails:
					b.release(io.ErrUnexpectedEOF)
				case release:
					b.release(nil)
				case again:
					next, err = b.again(req)
				}
			}
			for i, other := range others {
				open := err == nil && next.Body == other // which is sent next
				if (other.closed == 0) != open || other.closed > 1 {
					t.Errorf("body %d of GetBody was closed %d times", i, other.closed)
				}
			}
			if err == nil && next != req && next.Body != others[len(others)-1] {
				t.Errorf("the body to send is %T, and not the latest of GetBody", next.Body)
			}
			if source.closed != tt.closed || err != tt.err {
				t.Errorf("closed %d times, %v; want %d, %v", source.closed, err, tt.closed, tt.err)
			}
			if err == nil && (next.Body != source) != tt.fresh {
				t.Errorf("the body to send is %T, want another: %v", next.Body, tt.fresh)
			}
		})
	}
}

// counting is a body that counts how often it is closed.
type counting struct {
	io.Reader
	closed int
}

func (c *counting) Close() error {
	c.closed++
	return nil
}
