package kubernetes_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/kubernetes"
	"github.com/nosidecar/mesh/internal/kubernetes/kubetest"
)

// known are the kinds of the tests: Thing in v2, v1 and v1beta1, Other in v1.
var known = []kubernetes.Kind{
	{Name: "Thing", Plural: "things", Versions: []string{"v2", "v1", "v1beta1"}},
	{Name: "Other", Plural: "others", Versions: []string{"v1"}},
}

func of(version, plural, kind string) kubernetes.Resource {
	return kubernetes.Resource{Group: "example.com", Version: version, Plural: plural, Kind: kind}
}

// served follows what a server has, as "things.v1 others.v1", or an error in parentheses.
func served(t *testing.T, c *kubernetes.Client, again <-chan struct{}) *watched {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w := &watched{t: t, states: make(chan string, 100)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for resources, err := range (kubernetes.Served{Client: c, Group: "example.com", Kinds: known, Again: again}).All(ctx) {
			if err != nil {
				w.states <- "(" + err.Error() + ")"
				continue
			}
			var all []string
			for _, r := range resources {
				all = append(all, r.Plural+"."+r.Version)
			}
			w.states <- strings.Join(all, " ")
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return w
}

func TestKindsThatAppearAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := kubetest.New()
		w := served(t, s.Memory(t), nil)
		w.want("")
		s.Install(of("v1beta1", "things", "Thing"))
		s.Install(of("v9", "things", "Thing")) // of which we know nothing
		w.want("things.v1beta1")
		s.Install(of("v1", "things", "Thing")) // better, but what is chosen stays
		time.Sleep(time.Hour)
		w.nothing()
		s.Install(of("v1", "others", "Other"))
		w.want("things.v1beta1 others.v1")
		s.Uninstall(of("v1beta1", "things", "Thing"))
		began := time.Now()
		w.want("things.v1 others.v1")
		if took := time.Since(began); took > time.Minute {
			t.Errorf("another version was chosen after %v", took)
		}
		s.Install(of("v2", "things", "Thing"))
		began = time.Now()
		s.Uninstall(of("v1", "others", "Other"))
		w.want("things.v1")
		if took := time.Since(began); took < time.Minute || took > 3*time.Minute {
			t.Errorf("a kind was left out after %v", took)
		}
	})
}

// TestAVersionThatNobodyKnows is better than none, and left for one that is known.
func TestAVersionThatNobodyKnows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := kubetest.New(of("v9", "things", "Thing"))
		w := served(t, s.Memory(t), nil)
		w.want("things.v9")
		time.Sleep(time.Hour)
		w.nothing()
		s.Install(of("v1", "things", "Thing"))
		w.want("things.v1")
	})
}

// TestAKindThatIsGoneForAMoment is one whose definition is replaced.
func TestAKindThatIsGoneForAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := kubetest.New(of("v1", "things", "Thing"))
		again := make(chan struct{}, 1)
		w := served(t, s.Memory(t), again)
		w.want("things.v1")
		s.Uninstall(of("v1", "things", "Thing"))
		again <- struct{}{}
		time.Sleep(20 * time.Second)
		s.Install(of("v1", "things", "Thing"))
		time.Sleep(time.Hour)
		w.nothing()
	})
}

func TestAVersionThatGoesIsNoticedSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := kubetest.New(of("v2", "things", "Thing"), of("v1", "things", "Thing"))
		again := make(chan struct{}, 1)
		w := served(t, s.Memory(t), again)
		w.want("things.v2")
		s.Uninstall(of("v2", "things", "Thing"))
		began := time.Now()
		again <- struct{}{}
		w.want("things.v1")
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

func TestPollingOfKinds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := kubetest.New()
		w := served(t, s.Memory(t), nil)
		w.want("")
		time.Sleep(time.Hour)
		w.nothing()
		requests := s.Requests()
		if n := len(requests); n < 60 || n > 121 {
			t.Errorf("%d requests in an hour", n)
		}
		for _, r := range requests {
			if r != "GET /apis/example.com" {
				t.Errorf("asked for %s", r)
			}
		}
	})
}

// TestDenialIsNotAbsence: nor is any other error, and what was known holds.
func TestDenialIsNotAbsence(t *testing.T) {
	forbidden := raw(403, "application/json", string(kubetest.Status(403, "Forbidden", "no")))
	for _, test := range []struct {
		name    string
		answers []answer
		want    string
	}{
		{"denied", []answer{forbidden}, "(denied (403 Forbidden))"},
		{"denied a version", []answer{pass, forbidden}, "(denied (403 Forbidden))"},
		{"HTML", []answer{raw(200, "text/html", "<html>")}, "(text/html: <html>)"},
		{"something else", []answer{raw(200, "application/json", `{"kind":"Status"}`)}, `(a "Status" instead of an APIGroup)`},
		{"nothing", []answer{raw(200, "application/json", `{}`)}, `(a "nothing" instead of an APIGroup)`},
		{"another list", []answer{pass, raw(200, "application/json", `{"kind":"APIGroup"}`)}, `(a "APIGroup" instead of an APIResourceList)`},
		{"unavailable", []answer{pass, raw(503, "text/plain", "no")}, "((503): no)"},
		{"busy", []answer{raw(429, "text/plain", "no", "Retry-After", "30")}, "((429): no)"},
		{"hangs", []answer{func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }}, "(no answer within 30s)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := kubetest.New(of("v1", "things", "Thing"))
				w := served(t, s.Memory(t), nil)
				w.want("things.v1")
				synctest.Wait()
				play(s, test.answers...)
				w.want(test.want, "things.v1")
				time.Sleep(time.Hour)
				w.nothing()
			})
		})
		t.Run(test.name+" at first", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := kubetest.New(of("v1", "things", "Thing"))
				p := play(s, test.answers...)
				w := served(t, s.Memory(t), nil)
				w.want(test.want, "things.v1")
				if asked := p.requests(); test.name == "busy" && asked[1].at < 30*time.Second {
					t.Errorf("asked again after %v", asked[1].at)
				}
			})
		})
	}
}

// TestAGroupWithoutEnd would have the server asked about each of its versions.
func TestAGroupWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := kubetest.New(things)
		s.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"kind":"APIGroup","versions":[{"version":"v1"}%s]}`, strings.Repeat(`,{"version":"v2"}`, 10_000))
			return true
		})
		for resources, err := range (kubernetes.Served{Client: s.Memory(t), Group: "example.com", Kinds: []kubernetes.Kind{{Name: "Thing"}}}).All(t.Context()) {
			if err == nil || !strings.Contains(err.Error(), "a group of 10001 versions") {
				t.Errorf("got %v, %v", resources, err)
			}
			break
		}
		if n := len(s.Requests()); n != 1 {
			t.Errorf("%d requests, want 1", n)
		}
	})
}
