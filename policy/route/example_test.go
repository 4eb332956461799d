package route_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/nosidecar/mesh/policy/route"
)

func ExampleTable_Match() {
	table, err := route.NewTable([]route.Route{
		{
			Name: "beta",
			Matches: []route.Match{{
				URI:     route.StringMatch{Kind: route.Prefix, Value: "/users/"},
				Headers: []route.KeyMatch{{Key: "x-beta", Value: route.StringMatch{Kind: route.Present}}},
			}},
			Destinations: []route.Destination{{Target: route.Target{Host: "users", Subset: "v2"}}},
		},
		{
			Name:         "default",
			Destinations: []route.Destination{{Target: route.Target{Host: "users", Subset: "v1"}}},
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}

	req, _ := http.NewRequest("GET", "http://users/users/42", nil)
	for range 2 {
		view := route.NewRequest(req)
		if rule, _, ok := table.Match(&view); ok {
			fmt.Println(rule.Route.Name, rule.Pick(nil).Target.Subset)
		}
		req.Header.Set("X-Beta", "1")
	}
	// Output:
	// default v1
	// beta v2
}

func ExampleNewTable_errors() {
	_, err := route.NewTable([]route.Route{{
		Matches:      []route.Match{{URI: route.StringMatch{Kind: route.Regex, Value: "/v[0-9"}}},
		Destinations: []route.Destination{{Weight: 90}, {Weight: -10}},
	}})
	fmt.Println(err)
	// Output:
	// route: routes[0].Matches[0].URI: error parsing regexp: missing closing ]: `[0-9`
	// route: routes[0].Destinations[1].Weight: -10 is negative
}

func ExampleTransport() {
	table, err := route.NewTable([]route.Route{
		{
			Matches:  []route.Match{{URI: route.StringMatch{Kind: route.Prefix, Value: "/old/"}}},
			Redirect: &route.Redirect{PrefixRewrite: "/v1/"},
		},
		{
			Matches:      []route.Match{{URI: route.StringMatch{Kind: route.Prefix, Value: "/v1/"}}},
			Rewrite:      route.Rewrite{URI: "/"},
			Destinations: []route.Destination{{Target: route.Target{Host: "users", Port: 8080}}},
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	client := &http.Client{Transport: &route.Transport{
		Table:       table,
		Destination: func(route.Target) http.RoundTripper { return echo{} },
	}}

	for _, url := range []string{"http://users/old/42", "http://users/elsewhere"} {
		resp, err := client.Get(url)
		if err != nil {
			fmt.Println(err)
			return
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		fmt.Println(resp.StatusCode, resp.Request.URL, string(text))
	}
	// Output:
	// 200 http://users/v1/42 GET http://users:8080/42
	// 404 http://users/elsewhere
}

// echo stands in for the network.
type echo struct{}

func (echo) RoundTrip(req *http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode: http.StatusOK,
		Body:       io.NopCloser(strings.NewReader(req.Method + " " + req.URL.String())),
		Request:    req,
	}, nil
}
