package route_test

import (
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/nosidecar/mesh/policy/route"
)

// bigTable has n routes, of which the last one applies to /last/.
func bigTable(tb testing.TB, n int) *route.Table {
	var routes []route.Route
	for i := range n - 1 {
		m := route.Match{URI: prefix(fmt.Sprintf("/api/v%d/", i))}
		switch i % 4 {
		case 1:
			m = route.Match{Headers: keys("x-user", exact(fmt.Sprint(i)))}
		case 2:
			m = route.Match{URI: regex(fmt.Sprintf("/v%d/[a-z]+/.*", i))}
		case 3:
			m = route.Match{URI: prefix("/"), Query: keys("v", exact(fmt.Sprint(i)))}
		}
		routes = append(routes, to("other", m))
	}
	last := weighted(90, 10)
	last.Matches = []route.Match{{URI: regex("/last/[^/]+")}}
	return table(tb, append(routes, last)...)
}

func BenchmarkMatch(b *testing.B) {
	for _, n := range []int{1, 10, 100} {
		b.Run(fmt.Sprintf("routes=%d", n), func(b *testing.B) {
			routes := bigTable(b, n)
			req := get(b, "http://a/last/user?q=1", "X-User", "jo")
			b.ReportAllocs()
			for b.Loop() {
				view := route.NewRequest(req)
				if _, _, ok := routes.Match(&view); !ok {
					b.Fatal("no match")
				}
			}
		})
	}
}

func BenchmarkPick(b *testing.B) {
	e := table(b, weighted(90, 9, 1)).Rule(0)
	b.ReportAllocs()
	for b.Loop() {
		e.Pick(nil)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func BenchmarkTransport(b *testing.B) {
	resp := &http.Response{StatusCode: 200, Header: http.Header{}, Body: http.NoBody}
	base := roundTripper(func(*http.Request) (*http.Response, error) {
		r := *resp
		return &r, nil
	})
	for _, c := range []struct {
		name string
		edit func(*route.Route)
	}{
		{"plain", func(*route.Route) {}},
		{"rewrite", func(r *route.Route) { r.Rewrite = route.Rewrite{URI: "/v2/", Authority: "b"} }},
		{"headers", func(r *route.Route) {
			r.Headers.Request.Set = []route.Header{{Name: "x-a", Value: "1"}}
			r.Headers.Response.Remove = []string{"server"}
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			r := to("b", route.Match{URI: prefix("/v1/")})
			c.edit(&r)
			rt := &route.Transport{
				Table:       table(b, r),
				Destination: func(route.Target) http.RoundTripper { return base },
			}
			req := get(b, "http://a/v1/users")
			b.ReportAllocs()
			for b.Loop() {
				resp, err := rt.RoundTrip(req)
				if err != nil {
					b.Fatal(err)
				}
				io.Copy(io.Discard, resp.Body)
			}
		})
	}
}
