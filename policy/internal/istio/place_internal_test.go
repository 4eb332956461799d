package istio

import (
	"errors"
	"fmt"
	"testing"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/route"
)

// TestPlaceOfErrors has messages that look like paths and prefixes: what an error says never decides where it is.
func TestPlaceOfErrors(t *testing.T) {
	const text = `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a}
spec:
  hosts: [a]
  http:
  - match:
    - headers:
        x-a: {exact: a}
        x-b: {exact: b}
    route:
    - destination: {host: a}
    retries:
      attempts: 1
`
	doc := yamldoc.Parse([]byte(text))[0][0]
	vs := new(VirtualService)
	if !new(yamldoc.Decoder).Decode(doc, vs) {
		t.Fatal(doc.Problems)
	}
	own := func(i int) (int, bool) { return i, true }
	for _, message := range []string{"is wrong", "route: routes[0].Retry: is wrong", "a: b: c", ": ", "", "Matches[0]: \"x\": y"} {
		errs := errors.Join(
			&route.FieldError{Route: 0, Field: "Matches[0].Headers[1]", Err: errors.New(message)},
			fmt.Errorf("in between: %w", &route.FieldError{Route: 0, Field: "Retry", Err: errors.New(message)}),
		)
		doc.Problems = nil
		vs.report(doc, errs, own)
		want := []yamldoc.Problem{
			{Line: 10, Path: "spec.http[0].match[0].headers.x-b", Message: message},
			{Line: 13, Path: "spec.http[0].retries", Message: message},
		}
		if len(doc.Problems) != 2 || doc.Problems[0] != want[0] || doc.Problems[1] != want[1] {
			t.Errorf("with the message %q the problems are %+v, want %+v", message, doc.Problems, want)
		}
	}
}
