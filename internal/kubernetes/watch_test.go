package kubernetes_test

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/kubernetes"
	"github.com/nosidecar/mesh/internal/kubernetes/kubetest"
)

func TestAStateIsWholeAndFollowsChanges(t *testing.T) {
	for _, mode := range []string{"streamed", "refused", "ignored", "torn"} {
		t.Run(mode, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := kubetest.New(things)
				s.NoWatchList, s.IgnoreWatchList, s.Torn = mode == "refused", mode == "ignored", mode == "torn"
				s.Apply(thing("x", "1"), thing("y", "1"))
				w := watch(t, s.Memory(t))
				w.want("x=1 y=1 [x y]")
				s.Apply(thing("x", "2"), thing("z", "1"))
				w.want("x=2 y=1 z=1 [x z]")
				s.Delete("Thing", "a", "y")
				w.want("x=2 z=1 [y]")
				s.EndWatches()
				s.Delete("Thing", "a", "x")
				w.want("z=1 [x]")
				s.EndWatches()
				s.Expire()
				s.Apply(thing("z", "2"))
				w.want("z=2 [z]")
			})
		})
	}
}

func TestAnEmptyNamespaceIsAState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := kubetest.New(things)
		w := watch(t, s.Memory(t))
		w.want(" []")
	})
}

// run plays answers to one watch, and returns what was asked for after a time.
func run(t *testing.T, d time.Duration, s *kubetest.Server, answers []answer, want ...string) []ask {
	t.Helper()
	p := play(s, answers...)
	w := watch(t, s.Memory(t))
	w.want(want...)
	time.Sleep(d) // in a bubble
	synctest.Wait()
	w.nothing()
	return p.requests()
}

// TestWhatAStreamSays plays answers, and compares what is yielded and asked for. Requests that are not in the script end it.
func TestWhatAStreamSays(t *testing.T) {
	first := []string{added("x", "u1", 5, "1"), added("y", "u2", 7, "1"), marker(10)}
	later := append(first[:len(first):len(first)], "") // a second later
	with := func(events ...string) answer { return hold(append(later[:len(later):len(later)], events...)...) }
	ends := func(events ...string) answer { return send(append(later[:len(later):len(later)], events...)...) }
	for _, test := range []struct {
		name    string
		answers []answer
		want    []string
		asked   string
	}{
		{"nothing before the marker",
			[]answer{send(added("x", "u1", 5, "1")), with()},
			[]string{"x=1 y=1 [x y]"}, "initial, initial"},
		{"expired in the middle",
			[]answer{ends(failure(410, "Expired")), hold(added("x", "u1", 5, "1"), marker(20))},
			[]string{"x=1 y=1 [x y]", "x=1 [y]"}, "initial, initial"},
		{"expired by its reason",
			[]answer{ends(failure(500, "Expired")), with()},
			[]string{"x=1 y=1 [x y]"}, "initial, initial"},
		{"expired when resumed",
			[]answer{ends(), send(failure(410, "Expired")), hold(added("x", "u1", 25, "2"), marker(30))},
			[]string{"x=1 y=1 [x y]", "x=2 [x y]"}, "initial, from 10, initial"},
		{"expired by the code of HTTP",
			[]answer{ends(), raw(410, "application/json", string(kubetest.Status(410, "Gone", "old"))), with()},
			[]string{"x=1 y=1 [x y]"}, "initial, from 10, initial"},
		{"cut before the marker after expiry: what there was holds",
			[]answer{ends(failure(410, "Expired")), send(added("x", "u1", 5, "1")), hold(added("y", "u2", 7, "1"), marker(20))},
			[]string{"x=1 y=1 [x y]", "y=1 [x]"}, "initial, initial, initial"},
		{"an error that passes",
			[]answer{ends(failure(500, "InternalError")), send(failure(500, "InternalError")), hold(bookmark(11))},
			[]string{"x=1 y=1 [x y]", "(500 InternalError): message of InternalError)", "x=1 y=1 []"}, "initial, from 10, from 10"},
		{"a timeout that passes",
			[]answer{ends(failure(504, "Timeout")), hold(added("z", "u3", 11, "1"))},
			[]string{"x=1 y=1 [x y]", "(504 Timeout)", "x=1 y=1 z=1 [z]"}, "initial, from 10"},
		{"an error before the marker: list",
			[]answer{send(added("x", "u1", 5, "1"), failure(500, "InternalError")), pass, hold()},
			[]string{"(500 InternalError)", "s=1 [s]"}, "initial, list, from 3"},
		{"a server that does not know the marker, and has no version in its bookmarks: list",
			[]answer{send(added("x", "u1", 5, "1"), strings.Replace(bookmark(1), `"resourceVersion":"1",`, "", 1)), pass, hold()},
			[]string{"(a BOOKMARK without resourceVersion)", "s=1 [s]"}, "initial, list, from 3"},
		{"a bookmark is where it goes on",
			[]answer{ends(bookmark(40)), hold()},
			[]string{"x=1 y=1 [x y]"}, "initial, from 40"},
		{"a change is where it goes on",
			[]answer{ends(modified("x", "u1", 12, "2")), hold()},
			[]string{"x=1 y=1 [x y]", "x=2 y=1 [x]"}, "initial, from 12"},
		{"a deletion is where it goes on",
			[]answer{ends(deleted("x", "u1", 13)), hold()},
			[]string{"x=1 y=1 [x y]", "y=1 [x]"}, "initial, from 13"},
		{"a bookmark behind the state: the server lost its state",
			[]answer{with(bookmark(3)), hold(added("z", "u3", 2, "1"), marker(4))},
			[]string{"x=1 y=1 [x y]", "z=1 [x y z]"}, "initial, initial"},
		{"duplicates",
			[]answer{with(modified("x", "u1", 12, "2"), modified("x", "u1", 12, "2"), added("y", "u2", 7, "1"), modified("x", "u1", 5, "1"))},
			[]string{"x=1 y=1 [x y]", "x=2 y=1 [x]"}, "initial"},
		{"nothing but duplicates",
			[]answer{with(added("x", "u1", 5, "1"), added("y", "u2", 7, "1"))},
			[]string{"x=1 y=1 [x y]"}, "initial"},
		{"late changes of others count",
			[]answer{with(modified("x", "u1", 15, "3"), modified("y", "u2", 12, "2"))},
			[]string{"x=1 y=1 [x y]", "x=3 y=2 [x y]"}, "initial"},
		{"late changes of the same do not",
			[]answer{with(modified("x", "u1", 15, "3"), modified("x", "u1", 12, "2"))},
			[]string{"x=1 y=1 [x y]", "x=3 y=1 [x]"}, "initial"},
		{"a late change does not bring back what is gone",
			[]answer{with(deleted("x", "u1", 15), modified("x", "u1", 12, "2"))},
			[]string{"x=1 y=1 [x y]", "y=1 [x]"}, "initial"},
		{"nor does one that comes later",
			[]answer{with(deleted("x", "u1", 15), "", modified("x", "u1", 12, "2"))},
			[]string{"x=1 y=1 [x y]", "y=1 [x]"}, "initial"},
		{"a late deletion of the one before",
			[]answer{with(added("x", "u9", 16, "new"), deleted("x", "u1", 15))},
			[]string{"x=1 y=1 [x y]", "x=new y=1 [x]"}, "initial"},
		{"deleted and created",
			[]answer{with(deleted("x", "u1", 15), added("x", "u9", 16, "new"))},
			[]string{"x=1 y=1 [x y]", "x=new y=1 [x]"}, "initial"},
		{"created and deleted at once",
			[]answer{with(added("z", "u3", 15, "1"), deleted("z", "u3", 16))},
			[]string{"x=1 y=1 [x y]"}, "initial"},
		{"moved out of the selection and back",
			[]answer{with(deleted("x", "u1", 15), added("x", "u1", 16, "back"))},
			[]string{"x=1 y=1 [x y]", "x=back y=1 [x]"}, "initial"},
		{"a deletion with the version of the last state, as old servers send it",
			[]answer{with(deleted("x", "u1", 5))},
			[]string{"x=1 y=1 [x y]", "y=1 [x]"}, "initial"},
		{"events of the time of the initial ones",
			[]answer{hold(added("x", "u1", 5, "1"), modified("x", "u1", 8, "2"), added("y", "u2", 7, "1"), deleted("y", "u2", 9), marker(10))},
			[]string{"x=2 [x]"}, "initial"},
		{"HTML",
			[]answer{raw(200, "text/html", "<html>log in\nhere"), with()},
			[]string{"(text/html: <html>log in here)", "x=1 y=1 [x y]"}, "initial, initial"},
		{"HTML that says it is JSON",
			[]answer{raw(200, "application/json", "<html>log in</html>\n"), pass, hold()},
			[]string{"(not an API server's answer)", "s=1 [s]"}, "initial, list, from 3"},
		{"a redirection",
			[]answer{raw(302, "text/html", "", "Location", "http://elsewhere.example/"), with()},
			[]string{"(not an API server's answer (302))", "x=1 y=1 [x y]"}, "initial, initial"},
		{"garbage in the middle",
			[]answer{with("\x00\xff{{{"), hold(bookmark(11))},
			[]string{"x=1 y=1 [x y]", "(not an API server's answer)", "x=1 y=1 []"}, "initial, from 10"},
		{"an event of an unknown type",
			[]answer{with(`{"type":"RENAMED","object":{}}`), hold(bookmark(11))},
			[]string{"x=1 y=1 [x y]", "(an event of type \"RENAMED\")", "x=1 y=1 []"}, "initial, from 10"},
		{"an error without Status",
			[]answer{with(`{"type":"ERROR","object":{"kind":"Thing"}}`), hold(bookmark(11))},
			[]string{"x=1 y=1 [x y]", "(an ERROR without Status)", "x=1 y=1 []"}, "initial, from 10"},
		{"an object of another kind",
			[]answer{with(strings.Replace(added("z", "u3", 11, "1"), `"Thing"`, `"Thong"`, 1)), hold(bookmark(11))},
			[]string{"x=1 y=1 [x y]", "(a \"Thong\" among things.v1.example.com)", "x=1 y=1 []"}, "initial, from 10"},
		{"an object of another version",
			[]answer{with(strings.Replace(added("z", "u3", 11, "1"), `example.com/v1`, `example.com/v2`, 1)), hold(bookmark(11))},
			[]string{"x=1 y=1 [x y]", "(apiVersion \"example.com/v2\")", "x=1 y=1 []"}, "initial, from 10"},
		{"an object of another namespace",
			[]answer{with(strings.Replace(added("z", "u3", 11, "1"), `"namespace":"a"`, `"namespace":"b"`, 1)), hold(bookmark(11))},
			[]string{"x=1 y=1 [x y]", "(an object of namespace \"b\")", "x=1 y=1 []"}, "initial, from 10"},
		{"an object without uid",
			[]answer{with(added("z", "", 11, "1")), hold(bookmark(11))},
			[]string{"x=1 y=1 [x y]", "(an object without name, uid or resourceVersion)", "x=1 y=1 []"}, "initial, from 10"},
		{"an object with a name without end",
			[]answer{with(added(strings.Repeat("n", 300), "u", 11, "1")), hold(bookmark(11))},
			[]string{"x=1 y=1 [x y]", "(more than 253 bytes)", "x=1 y=1 []"}, "initial, from 10"},
		{"a bookmark without version",
			[]answer{with(strings.Replace(bookmark(1), `"resourceVersion":"1",`, "", 1)), hold(bookmark(11))},
			[]string{"x=1 y=1 [x y]", "(a BOOKMARK without resourceVersion)", "x=1 y=1 []"}, "initial, from 10"},
		{"denied later",
			[]answer{ends(), raw(403, "application/json", string(kubetest.Status(403, "Forbidden", "no"))), raw(403, "application/json", string(kubetest.Status(403, "Forbidden", "no"))), hold()},
			[]string{"x=1 y=1 [x y]", "(denied (403 Forbidden): no)", "x=1 y=1 []"}, "initial, from 10, from 10, from 10"},
		{"not found later",
			[]answer{ends(), raw(404, "text/plain", "404 page not found\n"), hold()},
			[]string{"x=1 y=1 [x y]", "(not found (404): 404 page not found)", "x=1 y=1 []"}, "initial, from 10, from 10"},
		{"unauthorized later",
			[]answer{ends(), raw(401, "application/json", string(kubetest.Status(401, "Unauthorized", "Unauthorized"))), hold()},
			[]string{"x=1 y=1 [x y]", "(not authorized (401 Unauthorized): Unauthorized)", "x=1 y=1 []"}, "initial, from 10, from 10"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := kubetest.New(things)
				s.Apply(thing("s", "1"))
				s.Bookmark()
				asked := run(t, 20*time.Second, s, test.answers, test.want...)
				if got := kinds(asked); got != test.asked {
					t.Errorf("asked for %s\nwant %s", got, test.asked)
				}
			})
		})
	}
}

// list is a page of things.
func list(version int, next string, items ...string) answer {
	return raw(200, "application/json", fmt.Sprintf(`{"kind":"ThingList","apiVersion":"example.com/v1","metadata":{"resourceVersion":"%d","continue":%q},"items":[%s]}`,
		version, next, strings.Join(items, ",")))
}

func TestWhatListsSay(t *testing.T) {
	x, y := object("x", "u1", 5, "1"), object("y", "u2", 7, "1")
	refused := raw(422, "application/json", string(kubetest.Status(422, "Invalid", "sendInitialEvents is forbidden")))
	for _, test := range []struct {
		name    string
		answers []answer
		want    []string
		asked   string
	}{
		{"pages", []answer{refused, list(10, "p2", x), list(10, "", y), hold()}, []string{"x=1 y=1 [x y]"}, "initial, list, more, from 10"},
		{"null items", []answer{refused, raw(200, "application/json", `{"kind":"ThingList","apiVersion":"example.com/v1","metadata":{"resourceVersion":"3"},"items":null}`), hold()},
			[]string{" []"}, "initial, list, from 3"},
		{"unknown fields, the kind at the end", []answer{refused, raw(200, "application/json", `{"items":[`+x+`],"more":{"a":[1]},"metadata":{"resourceVersion":"10"},"apiVersion":"example.com/v1","kind":"ThingList"}`), hold()},
			[]string{"x=1 [x]"}, "initial, list, from 10"},
		{"items without kind", []answer{refused, list(10, "", strings.Replace(x, `"apiVersion":"example.com/v1","kind":"Thing",`, "", 1)), hold()}, []string{"x=1 [x]"}, "initial, list, from 10"},
		{"a Status", []answer{refused, raw(200, "application/json", string(kubetest.Status(500, "InternalError", "no"))), list(10, "", x), hold()},
			[]string{`(a "Status" instead of a ThingList)`, "x=1 [x]"}, "initial, list, list, from 10"},
		{"another list", []answer{refused, raw(200, "application/json", `{"kind":"ThongList","apiVersion":"example.com/v1","metadata":{"resourceVersion":"3"},"items":[]}`), list(10, "", x), hold()},
			[]string{`(a "ThongList" instead of a ThingList)`, "x=1 [x]"}, "initial, list, list, from 10"},
		{"a list of another version", []answer{refused, raw(200, "application/json", `{"kind":"ThingList","apiVersion":"example.com/v2","metadata":{"resourceVersion":"3"},"items":[]}`), list(10, "", x), hold()},
			[]string{`(a list of apiVersion "example.com/v2")`, "x=1 [x]"}, "initial, list, list, from 10"},
		{"an empty object", []answer{refused, raw(200, "application/json", `{}`), list(10, "", x), hold()}, []string{`(a "" instead of a ThingList)`, "x=1 [x]"}, "initial, list, list, from 10"},
		{"a list without items", []answer{refused, list(10, "", x), send(failure(410, "Expired")), raw(200, "application/json", `{"kind":"ThingList","apiVersion":"example.com/v1","metadata":{"resourceVersion":"20"}}`), list(20, "", y), hold()},
			[]string{"x=1 [x]", "(a list without items)", "y=1 [x y]"}, "initial, list, from 10, list, list, from 20"},
		{"a list with items twice", []answer{refused, raw(200, "application/json", `{"kind":"ThingList","apiVersion":"example.com/v1","metadata":{"resourceVersion":"3"},"items":[`+x+`],"items":[]}`), list(10, "", x), hold()},
			[]string{"(items is there twice)", "x=1 [x]"}, "initial, list, list, from 10"},
		{"nothing", []answer{refused, raw(200, "application/json", ``), list(10, "", x), hold()}, []string{`(EOF)`, "x=1 [x]"}, "initial, list, list, from 10"},
		{"an array", []answer{refused, raw(200, "application/json", `[]`), list(10, "", x), hold()}, []string{`(it is not an object)`, "x=1 [x]"}, "initial, list, list, from 10"},
		{"items that are none", []answer{refused, raw(200, "application/json", `{"kind":"ThingList","items":{}}`), list(10, "", x), hold()}, []string{`(items is not an array)`, "x=1 [x]"}, "initial, list, list, from 10"},
		{"torn", []answer{refused, raw(200, "application/json", `{"kind":"ThingList","apiVersion":"example.com/v1","metadata":{"resourceVersion":"3"},"items":[`+x+`,`), list(10, "", x), hold()},
			[]string{`(unexpected EOF)`, "x=1 [x]"}, "initial, list, list, from 10"},
		{"without version", []answer{refused, raw(200, "application/json", `{"kind":"ThingList","apiVersion":"example.com/v1","metadata":{},"items":[]}`), list(10, "", x), hold()},
			[]string{`(a list without resourceVersion)`, "x=1 [x]"}, "initial, list, list, from 10"},
		{"without end", []answer{refused, list(10, "p", x), list(10, "p", x), list(10, "", x), hold()}, []string{`(a list without end)`, "x=1 [x]"}, "initial, list, more, list, from 10"},
		{"with a token that nobody needs", []answer{refused, list(10, strings.Repeat("p", 70_000), x), list(10, "", x), hold()}, []string{`(a list without end)`, "x=1 [x]"}, "initial, list, list, from 10"},
		{"a page that expired: from the beginning", []answer{refused, list(10, "p2", x), raw(410, "application/json", string(kubetest.Status(410, "Expired", "old"))), list(20, "", y), hold()},
			[]string{"y=1 [y]"}, "initial, list, more, list, from 20"},
		{"no answer of the newest at first: from the cache", []answer{refused, raw(500, "application/json", string(kubetest.Status(500, "InternalError", "etcd"))), list(10, "", x), hold()},
			[]string{"(500 InternalError)", "x=1 [x]"}, "initial, list, cached, from 10"},
		{"no answer of the newest later: what there was holds",
			[]answer{refused, list(10, "", x), send(failure(410, "Expired")), raw(500, "application/json", string(kubetest.Status(500, "InternalError", "etcd"))), list(20, "", y), hold()},
			[]string{"x=1 [x]", "(500 InternalError)", "y=1 [x y]"}, "initial, list, from 10, list, list, from 20"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				asked := run(t, 20*time.Second, kubetest.New(things), test.answers, test.want...)
				if got := kinds(asked); got != test.asked {
					t.Errorf("asked for %s\nwant %s", got, test.asked)
				}
			})
		})
	}
}

func TestListsAreReadInPages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := kubetest.New(things)
		s.NoWatchList = true
		for i := range 1200 {
			s.Apply(thing(fmt.Sprint("t", i), "1"))
		}
		p := play(s)
		w := watch(t, s.Memory(t))
		if got := w.next(); strings.Count(got, "=1") != 1200 {
			t.Errorf("got %s", got)
		}
		synctest.Wait()
		asked := p.requests()
		if got := kinds(asked[:4]); got != "initial, list, more, more" || asked[1].query.Get("limit") != "500" || asked[2].query.Get("limit") != "500" {
			t.Errorf("asked for %v", asked)
		}
	})
}

func TestTimeOfWatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := kubetest.New(things)
		p := play(s)
		w := watch(t, s.Memory(t))
		w.want(" []")
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		w.nothing()
		asked := p.requests()
		different := map[string]bool{}
		for i, a := range asked {
			seconds, _ := strconv.Atoi(a.query.Get("timeoutSeconds"))
			if seconds < 300 || seconds > 600 || a.query.Get("allowWatchBookmarks") != "true" {
				t.Errorf("asked for %v", a.query)
			}
			if different[a.query.Get("timeoutSeconds")] = true; i > 0 {
				before, _ := strconv.Atoi(asked[i-1].query.Get("timeoutSeconds"))
				if took := a.at - asked[i-1].at; took != time.Duration(before)*time.Second {
					t.Errorf("a watch of %d s was followed after %v", before, took)
				}
			}
		}
		if len(asked) < 12 || len(asked) > 25 || len(different) < 3 {
			t.Errorf("%d requests, %d different times", len(asked), len(different))
		}
	})
}

func TestAServerThatDoesNotEndAWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := kubetest.New(things)
		// Two watches take up to 21 minutes.
		asked := run(t, 22*time.Minute, s, []answer{hold(marker(10)), hold()}, " []")
		if got := kinds(asked); !strings.HasPrefix(got, "initial, from 10, from 10") {
			t.Fatalf("asked for %s", got)
		}
		seconds, _ := strconv.Atoi(asked[0].query.Get("timeoutSeconds"))
		if least := time.Duration(seconds+30) * time.Second; asked[1].at < least || asked[1].at > least+time.Second {
			t.Errorf("followed after %v, want %v", asked[1].at, least)
		}
	})
}

func TestAServerThatHangs(t *testing.T) {
	silent := func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	for _, test := range []struct {
		name    string
		answers []answer
		want    []string
		asked   string
		most    time.Duration // until the last request
	}{
		{"without headers", []answer{silent}, []string{" []"}, "initial, list, from 1", 13 * time.Second},
		{"without headers in lists too", []answer{silent, silent}, []string{"(no answer in time (12s))", " []"}, "initial, list, cached, from 1", 26 * time.Second},
		{"without headers, when something is known", []answer{send(marker(10), failure(410, "Expired")), silent}, []string{" []", "(no answer in time (1m0s))", " []"},
			"initial, initial, initial", 64 * time.Second},
		{"without the marker", []answer{hold(added("x", "u1", 5, "1"))}, []string{" []"}, "initial, list, from 1", 11 * time.Second},
		{"without anything", []answer{hold()}, []string{" []"}, "initial, list, from 1", 11 * time.Second},
		{"in lists too, until it is asked for its cache", []answer{hold(), silent}, []string{"(no answer in time (12s))", " []"}, "initial, list, cached, from 1", 24 * time.Second},
		{"in the middle of a list", []answer{hold(), hold(`{"kind":"ThingList","apiVersion":"example.com/v1",`)}, []string{"(no answer in time (12s))", " []"}, "initial, list, cached, from 1", 24 * time.Second},
		{"in its cache, too", []answer{hold(), silent, silent}, []string{"(no answer in time (12s))", "(no answer in time (30s))", " []"}, "initial, list, cached, list, from 1", 60 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				asked := run(t, time.Minute, kubetest.New(things), test.answers, test.want...)
				if got := kinds(asked); got != test.asked {
					t.Fatalf("asked for %s\nwant %s", got, test.asked)
				}
				if last := asked[len(asked)-1].at; last > test.most {
					t.Errorf("the last request came after %v", last)
				}
			})
		})
	}
}

// TestAServerWithoutItsStore knows only what is in its cache. It is found out once, not by each watch of a client.
func TestAServerWithoutItsStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := kubetest.New(things)
		s.Apply(thing("x", "1"))
		dead := true
		p := &script{}
		s.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
			p.mu.Lock()
			a := ask{at: time.Since(p.began), query: r.URL.Query()}
			p.asked = append(p.asked, a)
			hangs := dead && (a.kind() == "initial" || a.kind() == "list")
			p.mu.Unlock()
			if hangs {
				w.Header().Set("Content-Type", "application/json")
				http.NewResponseController(w).Flush()
				<-r.Context().Done()
			}
			return hangs
		})
		p.began = time.Now()
		c := s.Memory(t)
		watch(t, c).want("(no answer in time (12s))", "x=1 [x]")
		if took := time.Since(p.began); took > 24*time.Second {
			t.Errorf("the first state came after %v", took)
		}
		synctest.Wait()
		began := time.Now()
		second := watch(t, c)
		second.want("x=1 [x]")
		if took := time.Since(began); took > 0 {
			t.Errorf("that of the second watch came after %v, want no wait", took)
		}
		s.Apply(thing("x", "2"))
		second.want("x=2 [x]")
		synctest.Wait()
		p.mu.Lock()
		dead = false
		p.mu.Unlock()
		time.Sleep(2 * time.Minute)
		watch(t, c).want("x=2 [x]")
		if got := kinds(p.requests()); got != "initial, list, cached, from 2, cached, from 2, initial" {
			t.Errorf("asked for %s", got)
		}
	})
}

// TestAServerThatWasRestored has an older state than it had before, and says nothing about the versions up to the one that it has lost.
func TestAServerThatWasRestored(t *testing.T) {
	ended := func(w http.ResponseWriter, r *http.Request) { // as the server ends a watch
		send()(w, r)
		seconds, _ := strconv.Atoi(r.URL.Query().Get("timeoutSeconds"))
		time.Sleep(time.Duration(seconds) * time.Second) // in a bubble
	}
	cut := func(w http.ResponseWriter, r *http.Request) { // as a proxy ends one that says nothing
		send()(w, r)
		time.Sleep(50 * time.Second)
	}
	for _, test := range []struct {
		name   string
		answer answer
		times  int
	}{{"watches end", ended, 1}, {"watches are cut", cut, 7}} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := kubetest.New(things)
				s.Apply(thing("x", "1"))
				answers := []answer{send(added("x", "u1", 9000, "new"), added("y", "u2", 9001, "new"), marker(9001))}
				for range test.times {
					answers = append(answers, test.answer)
				}
				p := play(s, answers...)
				w := watch(t, s.Memory(t))
				w.want("x=new y=new [x y]")
				time.Sleep(15 * time.Minute)
				synctest.Wait()
				w.want("x=1 [x y]")
				if got := kinds(p.requests()); !strings.HasPrefix(got, "initial, from 9001") || !strings.Contains(got[1:], "initial") {
					t.Errorf("asked for %s", got)
				}
			})
		})
	}
}

// TestAServerWithoutBookmarks has objects come and go for long: not all of them are remembered.
func TestAServerWithoutBookmarks(t *testing.T) {
	remembered, back := kubernetes.Churn(100_000)
	if remembered > 1<<13 || remembered == 0 {
		t.Errorf("%d objects are remembered that were deleted, want a few thousand", remembered)
	}
	if back {
		t.Error("an event that came late brought an object back that was just deleted")
	}
}

// TestServersThatDoNotMarkTheEnd finds out about it once, for all watches of a client.
func TestServersThatDoNotMarkTheEnd(t *testing.T) {
	for _, does := range []string{"refuses", "ignores"} {
		t.Run(does, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := kubetest.New(things)
				s.NoWatchList, s.IgnoreWatchList = does == "refuses", does == "ignores"
				s.Apply(thing("x", "1"))
				p, c := play(s), s.Memory(t)
				for range 3 {
					watch(t, c).want("x=1 [x]")
				}
				synctest.Wait()
				if got := kinds(p.requests()); strings.Count(got, "initial") != 1 || strings.Count(got, "list") != 3 {
					t.Errorf("asked for %s", got)
				}
			})
		})
	}
}

func TestABookmarkWithoutMarker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := run(t, time.Second, kubetest.New(things), []answer{hold(added("x", "u1", 5, "1"), bookmark(9))}, " []")
		if got := kinds(asked); got != "initial, list, from 1" {
			t.Errorf("asked for %s", got)
		}
	})
}

func TestBookmarksAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := kubetest.New(things)
		s.Apply(thing("x", "1"))
		p := play(s)
		w := watch(t, s.Memory(t))
		w.want("x=1 [x]")
		for range 100 {
			s.Bookmark()
			time.Sleep(time.Minute)
		}
		w.nothing()
		s.EndWatches()
		time.Sleep(time.Minute)
		w.nothing()
		asked := p.requests()
		if last := asked[len(asked)-1]; last.kind() != fmt.Sprint("from ", s.Version()) {
			t.Errorf("resumed %s, want %d", last.kind(), s.Version())
		}
	})
}

func TestAServerThatWantsToBeLeftAlone(t *testing.T) {
	for _, test := range []struct {
		name  string
		busy  answer
		least time.Duration
	}{
		{"in plain text", raw(429, "text/plain", "Too many requests, please try again later.", "Retry-After", "7"), 7 * time.Second},
		{"in the body", raw(429, "application/json", `{"kind":"Status","code":429,"message":"storage is (re)initializing","reason":"TooManyRequests","details":{"retryAfterSeconds":9}}`), 9 * time.Second},
		{"until a date", func(w http.ResponseWriter, r *http.Request) {
			raw(503, "text/plain", "later", "Retry-After", time.Now().Add(20*time.Second).UTC().Format(http.TimeFormat))(w, r)
		}, 18 * time.Second},
		{"for too long", raw(429, "text/plain", "later", "Retry-After", "86400"), 5 * time.Minute},
		{"without saying for how long", raw(429, "text/plain", "later"), 800 * time.Millisecond},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				asked := run(t, time.Second, kubetest.New(things), []answer{test.busy}, "("+fmt.Sprint(map[bool]int{true: 503, false: 429}[test.name == "until a date"])+")", " []")
				if after := asked[1].at; after < test.least || after > 2*test.least+time.Second {
					t.Errorf("asked again after %v, want %v or a little more", after, test.least)
				}
			})
		})
	}
}

func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var answers []answer
		for range 9 {
			answers = append(answers, raw(500, "text/plain", "no"))
		}
		s := kubetest.New(things)
		p := play(s, append(answers, hold(marker(10)))...)
		w := watch(t, s.Memory(t))
		w.want("(500)", " []")
		asked := p.requests()
		step := 800 * time.Millisecond
		for i := range 9 {
			if waited := asked[i+1].at - asked[i].at; waited < step || waited > 2*step {
				t.Errorf("wait %d: %v, want %v to twice that", i, waited, step)
			}
			step = min(2*step, 30*time.Second)
		}
		// After a quiet time it begins anew.
		time.Sleep(5 * time.Minute)
		p = play(s, raw(500, "text/plain", "no"), hold())
		s.EndWatches()
		w.want("(500)", " []")
		asked = p.requests()
		if waited := asked[1].at - asked[0].at; waited > 1600*time.Millisecond {
			t.Errorf("after a quiet time: %v", waited)
		}
	})
}

// TestAServerThatCutsEveryWatch is told of after the third time; the first may be the end of its process.
func TestAServerThatCutsEveryWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := kubetest.New(things)
		var answers []answer
		for range 5 {
			answers = append(answers, send())
		}
		asked := run(t, time.Second, s, append([]answer{send(marker(10))}, append(answers, hold())...), " []", "(the stream ended early)", " []")
		if got := kinds(asked); got != "initial"+strings.Repeat(", from 10", 6) {
			t.Errorf("asked for %s", got)
		}
	})
}

// TestAnEditedDefinition is one under which all watches end, and what they hold has expired.
func TestAnEditedDefinition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := kubetest.New(things)
		s.Apply(thing("x", "1"))
		c := s.Memory(t)
		var all []*watched
		for range 20 {
			w := watch(t, c)
			w.want("x=1 [x]")
			all = append(all, w)
		}
		time.Sleep(time.Minute)
		p := play(s)
		s.Reestablish(things)
		time.Sleep(time.Minute)
		s.Apply(thing("x", "2"))
		for _, w := range all {
			w.want("x=2 [x]")
		}
		var resumed, reads []time.Duration
		for _, a := range p.requests() {
			if a.kind() == "initial" {
				reads = append(reads, a.at)
			} else {
				resumed = append(resumed, a.at)
			}
		}
		if len(resumed) != 20 || len(reads) != 20 {
			t.Fatalf("%d were resumed, %d read anew", len(resumed), len(reads))
		}
		for _, at := range [][]time.Duration{resumed, reads} {
			if spread := at[19] - at[0]; spread < 200*time.Millisecond || at[19] > 4*time.Second {
				t.Errorf("20 processes came back at %v", at)
			}
		}
	})
}

// TestWhatHasExpiredForAllAtOnce is read anew by each process at its own time.
func TestWhatHasExpiredForAllAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const many = 20
		s := kubetest.New(things)
		expired, began := make(chan struct{}), time.Now()
		var mu sync.Mutex
		var reads []time.Duration
		s.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
			select {
			case <-expired:
				mu.Lock()
				reads = append(reads, time.Since(began))
				mu.Unlock()
				hold(marker(20))(w, r)
			default:
				send(marker(10))(w, r)
				select {
				case <-expired:
					fmt.Fprintln(w, failure(410, "Expired"))
				case <-r.Context().Done():
				}
			}
			return true
		})
		c := s.Memory(t)
		for range many {
			watch(t, c).want(" []")
		}
		close(expired)
		time.Sleep(time.Minute)
		mu.Lock()
		defer mu.Unlock()
		if len(reads) != many {
			t.Fatalf("%d were read anew, want %d", len(reads), many)
		}
		if spread := reads[many-1] - reads[0]; spread < 200*time.Millisecond || reads[many-1] > 2*time.Second {
			t.Errorf("%d processes came back at %v, want some time within 2 s each", many, reads)
		}
	})
}

func TestADeletedDefinition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := kubetest.New(things)
		s.Apply(thing("x", "1"))
		w := watch(t, s.Memory(t))
		w.want("x=1 [x]")
		s.Uninstall(things)
		w.want(" [x]", "(not found (404): 404 page not found)")
		time.Sleep(10 * time.Minute)
		s.Install(things)
		s.Apply(thing("y", "1"))
		w.want("y=1 [y]")
	})
}

func TestRightsThatAreTakenAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := kubetest.New(things)
		s.Apply(thing("x", "1"))
		w := watch(t, s.Memory(t))
		w.want("x=1 [x]")
		s.Deny("things", "a")
		s.Apply(thing("x", "2"))
		w.want("x=2 [x]") // the open watch goes on
		time.Sleep(11 * time.Minute)
		w.want("(denied (403 Forbidden))")
		s.Apply(thing("x", "3"))
		time.Sleep(time.Hour)
		w.nothing()
		s.Allow("things", "a")
		w.want("x=3 [x]")
	})
}

func TestChangesAreCollected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := kubetest.New(things)
		decoded := 0
		w := watch(t, s.Memory(t), func(w *kubernetes.Watch[string]) {
			decode := w.Decode
			w.Decode = func(o kubernetes.Object) string { decoded++; return decode(o) }
		})
		w.want(" []")
		began := time.Now()
		for i := range 1000 {
			s.Apply(thing("x", fmt.Sprint(i)))
			time.Sleep(time.Millisecond)
		}
		time.Sleep(200 * time.Millisecond)
		states, last := 0, ""
		for len(w.states) > 0 {
			last = w.next()
			states++
		}
		if last != "x=999 [x]" || states < 9 || states > 21 || decoded != states {
			t.Errorf("%d states, %d decoded, in %v; the last is %s", states, decoded, time.Since(began), last)
		}
	})
}

// TestAStateThatTakesLong holds nothing up: what comes meanwhile is merged.
func TestAStateThatTakesLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := kubetest.New(things)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		states := 0
		of := kubernetes.Watch[string]{Client: s.Memory(t), Resource: things, Namespace: "a", Decode: valueOf}
		for state, err := range of.All(ctx) {
			if err != nil {
				t.Fatal(err)
			}
			if states++; state.Objects[kubernetes.Key{Namespace: "a", Name: "x"}] == "299" {
				break
			}
			for i := range 300 {
				s.Apply(thing("x", fmt.Sprint(i)), thing(fmt.Sprint("t", i), "1"))
				synctest.Wait() // the server has sent it
			}
			time.Sleep(10 * time.Second)
		}
		if states != 2 {
			t.Errorf("%d states", states)
		}
	})
}

func TestTheCallerStops(t *testing.T) {
	for _, when := range []string{"at a state", "at an error", "by panic"} {
		t.Run(when, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := kubetest.New(things)
				s.Apply(thing("x", "1"))
				if when == "at an error" {
					s.Deny("things", "")
				}
				of := kubernetes.Watch[string]{Client: s.Memory(t), Resource: things, Namespace: "a", Decode: valueOf}
				defer func() {
					recover()
					synctest.Wait()
					if n := s.Watches(); n != 0 {
						t.Errorf("%d watches are open", n)
					}
				}()
				for range of.All(t.Context()) {
					if when == "by panic" {
						panic("the caller's")
					}
					break
				}
			})
		})
	}
}

func TestSelections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := kubetest.New(things)
		s.Apply(thing("x", "1"), thing("y", "2"))
		w := watch(t, s.Memory(t), func(w *kubernetes.Watch[string]) { w.Labels = "value=1" })
		w.want("x=1 [x]")
		s.Apply(thing("x", "2"))
		w.want(" [x]")
		s.Apply(thing("x", "1"))
		w.want("x=1 [x]")
		all := watch(t, s.Memory(t), func(w *kubernetes.Watch[string]) { w.Namespace, w.Fields = "", "metadata.name=y" })
		all.want("y=2 [y]")
	})
}
