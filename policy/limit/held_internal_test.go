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
		{"not to be sent again", "rca", false, 1, errNotAgain, false},
		{"not to be sent again, and open", "ra", false, 1, errNotAgain, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			source := &counting{Reader: strings.NewReader("said")}
			req, err := http.NewRequest(http.MethodPost, "http://orders", source)
			if err != nil {
				t.Fatal(err)
			}
			if tt.getBody {
				req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("said")), nil }
			}
			out, b := hold(req)
			next := req
			for _, step := range tt.steps {
				switch step {
				case read:
					io.ReadAll(out.Body)
				case closes:
					out.Body.Close()
				case release:
					b.release()
				case again:
					next, err = b.again(req)
				}
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
