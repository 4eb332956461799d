// Package bench measures what mesh costs, in one run with what others cost.
//
// The benchmarks of this package report single figures. The program in compare runs all sides in turn, several times
// over, and prints the ratios. What the whole mesh costs around a RoundTripper that does nothing is measured by the
// benchmarks of the root package, which can do without connections.
package bench

import (
	"io"
	"net/http"
)

// Noop answers every request at once, so that what is measured is what is around it. Its response has a body, since the
// end of the body is the end of the call.
type Noop struct{}

// RoundTrip implements http.RoundTripper.
func (Noop) RoundTrip(req *http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: noopHeader, Body: emptyBody{}, ContentLength: -1, Request: req,
	}, nil
}

var noopHeader = http.Header{"Content-Type": {"application/json"}}

type emptyBody struct{}

func (emptyBody) Read([]byte) (int, error) { return 0, io.EOF }
func (emptyBody) Close() error             { return nil }

// Call makes one call and reads the response to its end, with the help of buf.
func Call(rt http.RoundTripper, req *http.Request, buf []byte) error {
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return err
	}
	for err == nil {
		_, err = resp.Body.Read(buf)
	}
	if closed := resp.Body.Close(); err == io.EOF {
		err = closed
	}
	return err
}
