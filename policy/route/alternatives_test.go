package route_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// A large table finds a route under each alternative of its expression.
func TestAlternativesInALargeTable(t *testing.T) {
	const routes = 40
	var list []route.Route
	for i := range routes {
		list = append(list, route.Route{
			Matches:      []route.Match{{URI: route.StringMatch{Kind: route.Regex, Value: fmt.Sprintf(`/(alpha-%[1]d-end|omega-%[1]d-end|[0-9]+x%[1]dx)/.*`, i)}}},
			Destinations: []route.Destination{{Target: route.Target{Host: "web"}}},
		})
		list = append(list, route.Route{
			Matches:      []route.Match{{URI: route.StringMatch{Kind: route.Regex, Value: fmt.Sprintf(`/n%[1]d/(first-%[1]d|second-%[1]d)`, i)}}},
			Destinations: []route.Destination{{Target: route.Target{Host: "web"}}},
		}, route.Route{
			Matches:      []route.Match{{URI: route.StringMatch{Kind: route.Regex, Value: fmt.Sprintf(`(/eins-%[1]d-ende|/zwei-%[1]d-ende)`, i)}}},
			Destinations: []route.Destination{{Target: route.Target{Host: "web"}}},
		})
	}
	list = append(list, route.Route{ // one alternative has no text of its own
		Matches:      []route.Match{{URI: route.StringMatch{Kind: route.Regex, Value: `/(in-words|[0-9]+)`}}},
		Destinations: []route.Destination{{Target: route.Target{Host: "web"}}},
	})
	table, err := route.NewTable(list)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/in-words", "/2026"} {
		if rule, _, ok := table.Match(&route.Request{Method: "GET", Scheme: "http", Authority: "web", Path: path}); !ok || rule.Index != len(list)-1 {
			t.Errorf("%s: route %v, want the last", path, rule)
		}
	}
	for i := range routes {
		for path, want := range map[string]int{
			fmt.Sprintf("/alpha-%d-end/a", i): 3 * i, fmt.Sprintf("/omega-%d-end/a", i): 3 * i, fmt.Sprintf("/77x%dx/a", i): 3 * i,
			fmt.Sprintf("/n%[1]d/first-%[1]d", i): 3*i + 1, fmt.Sprintf("/n%[1]d/second-%[1]d", i): 3*i + 1,
			fmt.Sprintf("/eins-%d-ende", i): 3*i + 2, fmt.Sprintf("/zwei-%d-ende", i): 3*i + 2,
		} {
			rule, _, ok := table.Match(&route.Request{Method: "GET", Scheme: "http", Authority: "web", Path: path})
			if !ok || rule.Index != want {
				t.Errorf("%s: route %v, want %d", path, rule, want)
			}
		}
	}
}

// A subset that nothing can select is an error, with or without retries: its requests must not go to all of the host.
func TestSubsetWithoutADestination(t *testing.T) {
	for name, config := range map[string]retry.Config{"no retries": {}, "retries": {Retries: 1}} {
		table, err := route.NewTable([]route.Route{{
			Destinations: []route.Destination{{Target: route.Target{Host: "127.0.0.1", Port: 1, Subset: "v2"}}}, Retry: config,
		}})
		if err != nil {
			t.Fatal(err)
		}
		body := &closeCounter{Reader: strings.NewReader("hello")}
		req, err := http.NewRequest("POST", "http://web/", body)
		if err != nil {
			t.Fatal(err)
		}
		_, err = (&route.Transport{Table: table}).RoundTrip(req)
		if err == nil || !strings.Contains(err.Error(), `subset "v2"`) {
			t.Errorf("%s: %v, want an error that names the subset", name, err)
		}
		if body.closed == 0 {
			t.Errorf("%s: the body is still open", name)
		}
	}
}

type closeCounter struct {
	io.Reader
	closed int
}

func (c *closeCounter) Close() error {
	c.closed++
	return nil
}
