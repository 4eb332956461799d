package mesh_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/policy"
)

// cluster is a feed of documents that stand alone. Documents are in force when apply returns.
type cluster struct {
	first   []policy.Source
	changes chan []policy.Source
	taken   chan struct{}
}

func newCluster(first ...policy.Source) *cluster {
	return &cluster{first: first, changes: make(chan []policy.Source), taken: make(chan struct{})}
}

func (c *cluster) Watch(ctx context.Context) iter.Seq2[[]policy.Source, error] {
	return func(yield func([]policy.Source, error) bool) {
		for sources := c.first; ; {
			if !yield(sources, nil) {
				return
			}
			if sources = nil; ctx.Err() != nil {
				return
			}
			select { // the first set is not waited for
			case c.taken <- struct{}{}:
			case sources = <-c.changes:
			case <-ctx.Done():
				return
			}
			if sources == nil {
				select {
				case sources = <-c.changes:
				case <-ctx.Done():
					return
				}
			}
		}
	}
}

func (c *cluster) apply(t *testing.T, sources ...policy.Source) {
	t.Helper()
	select {
	case c.changes <- sources:
	case <-t.Context().Done():
		t.Fatal("the feed has ended")
	}
	select {
	case <-c.taken:
	case <-t.Context().Done():
		t.Fatal("the feed has ended")
	}
}

// objectOf returns a document of the cluster.
func objectOf(api, kind, name, spec string) policy.Source {
	return policy.Source{Name: "default/" + kind + "/" + name, Alone: true, Data: fmt.Appendf(nil,
		"{apiVersion: %s, kind: %s, metadata: {name: %s, namespace: default, uid: %[3]s-1}, spec: %s}", api, kind, name, spec)}
}

func routeOf(name, spec string) policy.Source {
	return objectOf("networking.istio.io/v1", "VirtualService", name, spec)
}

func accessOf(name, spec string) policy.Source {
	return objectOf("security.istio.io/v1", "AuthorizationPolicy", name, spec)
}

const (
	answersWith   = "{hosts: [%s], http: [{directResponse: {status: %d}}]}"
	misspeltRoute = "{hosts: [api], http: [{rout: []}]}"
	misspeltRules = "{rules: [{form: []}]}"
)

// TestAlone_EverybodyIsTold: a refused document is named in the status, in the log and to observers, with what is in force in its
// place and since when, and its end is told too. It is told once, however often it is rewritten.
func TestAlone_EverybodyIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		var loads []mesh.PolicyLoad
		feed := newCluster(routeOf("api", fmt.Sprintf(answersWith, "api", 201)), accessOf("x", misspeltRules))
		m := newMesh(t, "", mesh.WithPolicyFeed(feed), mesh.WithDiscovery(new(discovery.Memory)),
			mesh.WithLogger(slog.New(slog.NewTextHandler(&log, nil))),
			mesh.WithObserver(mesh.Observer{PolicyLoad: func(l mesh.PolicyLoad) { loads = append(loads, l) }}))
		began := time.Now()
		d := m.Status().Documents
		if len(d.Alone) != 1 || d.Alone[0].Document != "AuthorizationPolicy default/x" || d.Alone[0].InForce != "denial" || !d.Alone[0].Since.Equal(began) ||
			!strings.Contains(d.Alone[0].Error, "spec.rules[0].form") || d.Refused.Number != 0 {
			t.Errorf("the status is %+v, want the refused document with its denial", d)
		}
		for i := range 10 {
			advance(time.Second)
			feed.apply(t, routeOf("api", fmt.Sprintf("{hosts: [api], http: [{rout%d: []}]}", i)), accessOf("x", misspeltRules))
		}
		d = m.Status().Documents
		if len(d.Alone) != 2 || d.Alone[0].InForce != "denial" || d.Alone[1].Document != "VirtualService default/api" || d.Alone[1].InForce != "last good" ||
			!d.Alone[1].Since.Equal(began.Add(time.Second)) || d.Number != 11 {
			t.Errorf("the status is %+v, want both documents, the latter refused for 9 s", d)
		}
		if n := strings.Count(log.String(), `document="VirtualService default/api"`); n != 1 {
			t.Errorf("the log tells %d times of a document that is rewritten, want once:\n%s", n, log.String())
		}
		if !strings.Contains(log.String(), `level=ERROR msg="mesh: a document is refused, the others take effect" document="AuthorizationPolicy default/x" inForce=denial`) {
			t.Errorf("the log does not tell of the denial:\n%s", log.String())
		}
		last := loads[len(loads)-1]
		if last.Err != nil || len(last.Findings) == 0 || last.Findings[0].InForce == "" || last.Findings[0].Since.IsZero() {
			t.Errorf("observers are told %+v, want a good load with what is refused", last)
		}
		if r := get(t, m.Client(), "http://api/"); r.status != 201 {
			t.Errorf("the last good version answers %d, want 201", r.status)
		}
		feed.apply(t, routeOf("api", fmt.Sprintf(answersWith, "api", 202)))
		if d = m.Status().Documents; len(d.Alone) > 0 || d.AloneOmitted != 0 {
			t.Errorf("after all were mended or deleted, the status is %+v", d)
		}
		for _, name := range []string{"VirtualService default/api", "AuthorizationPolicy default/x"} {
			if !strings.Contains(log.String(), `msg="mesh: a document is no longer refused" document="`+name) {
				t.Errorf("the log does not tell that %s is no longer refused:\n%s", name, log.String())
			}
		}
	})
}

// TestAlone_DenialsEndWithTheDocument: an AuthorizationPolicy that cannot be read denies all requests, also those under way, until it is
// mended or deleted.
func TestAlone_DenialsEndWithTheDocument(t *testing.T) {
	feed := newCluster(accessOf("all", "{rules: [{}]}"))
	m := newMesh(t, "", mesh.WithPolicyFeed(feed))
	server := serve(t, m.Handler(says("in")).ServeHTTP)
	url := fmt.Sprintf("http://%s:%d/", server.Address, server.Port)
	status := func() int { return get(t, http.DefaultClient, url).status }
	if got := status(); got != 200 {
		t.Fatalf("the status is %d, want 200", got)
	}
	feed.apply(t, accessOf("all", "{rules: [{}]}"), accessOf("x", misspeltRules))
	if got := status(); got != 403 {
		t.Errorf("with a refused policy the status is %d, want 403", got)
	}
	feed.apply(t, accessOf("all", "{rules: [{}]}"), accessOf("x", "{action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}"))
	if got := status(); got != 200 {
		t.Errorf("with the mended policy the status is %d, want 200", got)
	}
	feed.apply(t, accessOf("all", "{rules: [{}]}"), accessOf("y", misspeltRules))
	if got := status(); got != 403 {
		t.Errorf("with another refused policy the status is %d, want 403", got)
	}
	feed.apply(t, accessOf("all", "{rules: [{}]}"))
	if got := status(); got != 200 {
		t.Errorf("without it the status is %d, want 200", got)
	}
}

// TestAlone_CallsThatWouldNotBeSecuredFail: a DestinationRule with tls that cannot be read fails the calls to its host, and names itself.
func TestAlone_CallsThatWouldNotBeSecuredFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		f.Registry.Set("api", f.Add(t, says("plaintext")))
		f.Registry.Set("other", f.Add(t, says("other")))
		rule := func(spec string) policy.Source {
			return objectOf("networking.istio.io/v1", "DestinationRule", "api", spec)
		}
		feed := newCluster(rule("{host: api, trafficPolicy: {tls: {mode: SIMPLE, snii: x}}}"))
		m := f.Mesh(t, "", mesh.WithPolicyFeed(feed))
		c := m.Client()
		_, err := try(c, "http://api/")
		var failed *mesh.Error
		if !errors.As(err, &failed) || !strings.Contains(err.Error(), "DestinationRule default/api") || failed.Attempts != 0 {
			t.Errorf("a call gives %v, want a refusal that names the document", err)
		}
		if _, err := m.DialContext(t.Context(), "tcp", "api:80"); err == nil || !strings.Contains(err.Error(), "DestinationRule default/api") {
			t.Errorf("a connection gives %v, want a refusal that names the document", err)
		}
		if got := get(t, c, "http://other/").body; got != "other" {
			t.Errorf("another host answers %q", got)
		}
		feed.apply(t, rule("{host: api, trafficPolicy: {connectionPool: {tcp: {maxConnections: 7}}}}"))
		if got := get(t, c, "http://api/").body; got != "plaintext" {
			t.Errorf("after it was mended the host answers %q", got)
		}
	})
}

// TestAlone_MissingCertificateIsOfItsDocument: a document that is good by itself, but names a file that is not there, is refused when it is to
// be put into force. The others take effect.
func TestAlone_MissingCertificateIsOfItsDocument(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		f.Registry.Set("api", f.Add(t, says("plaintext")))
		rule := func(spec string) policy.Source {
			return objectOf("networking.istio.io/v1", "DestinationRule", "api", spec)
		}
		const missing = "{host: api, trafficPolicy: {tls: {mode: SIMPLE, caCertificates: /nowhere/ca.pem}}}"
		feed := newCluster(rule("{host: api, trafficPolicy: {connectionPool: {tcp: {maxConnections: 7}}}}"))
		m := f.Mesh(t, "", mesh.WithPolicyFeed(feed), mesh.WithEmptyPolicy())
		c := m.Client()
		get(t, c, "http://api/") // so that there is state to replace
		feed.apply(t, rule(missing), routeOf("other", fmt.Sprintf(answersWith, "other", 202)))
		if d := m.Status().Documents; len(d.Alone) != 1 || d.Alone[0].InForce != "last good" || !strings.Contains(d.Alone[0].Error, "/nowhere/ca.pem") {
			t.Errorf("the status is %+v, want the rule refused for the missing file, and its last good version", d)
		}
		if got := get(t, c, "http://api/").body; got != "plaintext" {
			t.Errorf("with the last good version the host answers %q", got)
		}
		if got := get(t, c, "http://other/").status; got != 202 {
			t.Errorf("the other document answers %d, want 202", got)
		}
		feed.apply(t) // deleted
		get(t, c, "http://api/")
		feed.apply(t, rule(missing))
		if _, err := try(c, "http://api/"); err == nil || !strings.Contains(err.Error(), "DestinationRule default/api") {
			t.Errorf("without a last good version a call gives %v, want a refusal that names the document", err)
		}
	})
}

// TestAlone_CertificateThatVanishesStopsNoFeed: a file that a document in force names was read. If it vanishes, other documents still take
// effect, also those about the same host.
func TestAlone_CertificateThatVanishesStopsNoFeed(t *testing.T) {
	authority := httptest.NewTLSServer(nil)
	authority.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	writePEM(t, ca, "CERTIFICATE", authority.Certificate().Raw)
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		f.Registry.Set("api", f.Add(t, says("plaintext")))
		rule := objectOf("networking.istio.io/v1", "DestinationRule", "api", "{host: api, trafficPolicy: {tls: {mode: SIMPLE, caCertificates: "+ca+"}}}")
		feed := newCluster(rule)
		m := f.Mesh(t, "", mesh.WithPolicyFeed(feed), mesh.WithEmptyPolicy())
		c := m.Client()
		if _, err := try(c, "http://api/"); err == nil { // and there is state to replace
			t.Error("an endpoint without TLS is called")
		}
		if err := os.Remove(ca); err != nil {
			t.Fatal(err)
		}
		feed.apply(t, rule, objectOf("v1", "Service", "api", "{ports: [{name: http2, port: 80}]}"), routeOf("other", fmt.Sprintf(answersWith, "other", 202)))
		if got := get(t, c, "http://other/").status; got != 202 {
			t.Errorf("the other document answers %d, want 202: %+v", got, m.Status().Documents)
		}
		if _, err := try(c, "http://api/"); err == nil {
			t.Error("without the file, an endpoint without TLS is called")
		}
	})
}

// TestAlone_OtherNamesForAVanishedCertificate: the names that are expected of a host change with another document while a file of its
// DestinationRule is not there. What was read stays in use, under the new names; a file that was never read fails the calls to that host alone.
func TestAlone_OtherNamesForAVanishedCertificate(t *testing.T) {
	authority := httptest.NewTLSServer(nil)
	authority.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	writePEM(t, ca, "CERTIFICATE", authority.Certificate().Raw)
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		api := f.Add(t, says("plaintext"))
		rule := func(name, tls string) policy.Source {
			return objectOf("networking.istio.io/v1", "DestinationRule", name, "{host: api.example.com, trafficPolicy: {tls: {mode: "+tls+"}}}")
		}
		entry := func(names string) policy.Source {
			return objectOf("networking.istio.io/v1", "ServiceEntry", "api",
				fmt.Sprintf("{hosts: [api.example.com], ports: [{number: %d, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: %s}], subjectAltNames: [%s]}",
					api.Port, api.Address, names))
		}
		first, second := rule("api", "DISABLE"), rule("later", "SIMPLE, caCertificates: "+ca)
		feed := newCluster(second, entry("a.example.com"))
		url := fmt.Sprintf("http://api.example.com:%d/", api.Port)
		m := f.Mesh(t, "", mesh.WithPolicyFeed(feed), mesh.WithEmptyPolicy())
		c := m.Client()
		try(c, url) // so that there is state to replace
		if err := os.Remove(ca); err != nil {
			t.Fatal(err)
		}
		other := func(status int) policy.Source { return routeOf("other", fmt.Sprintf(answersWith, "other", status)) }
		feed.apply(t, second, entry("b.example.com"), other(201))
		if got := get(t, c, "http://other/").status; got != 201 {
			t.Errorf("other names: the other document answers %d, want 201", got)
		}
		if _, err := try(c, url); err == nil || strings.Contains(err.Error(), ca) {
			t.Errorf("other names: a call gives %v, want the handshake to fail, and not the file", err)
		}

		// The rule without effect, whose file is gone, takes effect when the first one is deleted.
		writePEM(t, ca, "CERTIFICATE", authority.Certificate().Raw)
		feed.apply(t, first, second, entry("b.example.com"), other(202))
		if got := get(t, c, url).body; got != "plaintext" {
			t.Fatalf("without TLS the host answers %q: %+v", got, m.Status().Documents)
		}
		if err := os.Remove(ca); err != nil {
			t.Fatal(err)
		}
		feed.apply(t, second, entry("b.example.com"), other(203))
		if got := get(t, c, "http://other/").status; got != 203 {
			t.Errorf("a file that is gone: the other document answers %d, want 203", got)
		}
		if _, err := try(c, url); err == nil || !strings.Contains(err.Error(), ca) {
			t.Errorf("a file that is gone: a call gives %v, want an error that names the file", err)
		}
	})
}

// TestAlone_OwnDocumentsAndFeedsAreApart: bad documents of Apply fail as a whole and leave a feed as it is, and the reverse.
func TestAlone_OwnDocumentsAndFeedsAreApart(t *testing.T) {
	feed := newCluster(routeOf("fed", fmt.Sprintf(answersWith, "fed", 201)))
	own := func(spec string) policy.Source {
		s := routeOf("own", spec)
		s.Name, s.Alone = "own.yaml", false
		return s
	}
	m := newMesh(t, "", mesh.WithPolicy(own(fmt.Sprintf(answersWith, "own", 202))), mesh.WithPolicyFeed(feed))
	status := func(host string) int { return get(t, m.Client(), "http://"+host+"/").status }
	if err := m.Apply(own(misspeltRoute)); err == nil {
		t.Error("Apply takes a bad document")
	}
	if status("own") != 202 || status("fed") != 201 {
		t.Error("after Apply has failed, other documents are in force than before")
	}
	feed.apply(t, routeOf("fed", misspeltRoute), routeOf("more", fmt.Sprintf(answersWith, "more", 203)))
	if status("own") != 202 || status("fed") != 201 || status("more") != 203 {
		t.Error("a bad document of a feed affects others")
	}
	if err := m.Apply(own(fmt.Sprintf(answersWith, "own", 204))); err != nil {
		t.Errorf("while a document of a feed is refused, Apply fails: %v", err)
	}
	if status("own") != 204 || status("fed") != 201 {
		t.Error("Apply has no effect while a document of a feed is refused")
	}
	_, err := mesh.New(t.Context(), mesh.WithPolicy(own(misspeltRoute)), mesh.WithPolicyFeed(newCluster(routeOf("x", misspeltRoute))))
	if err == nil {
		t.Error("New takes a bad document of the program itself")
	}
}

// TestFeeds_InvalidSetBlocksNoOtherFeed: while a feed that is judged as a whole has yielded an invalid set, other feeds and Apply go on.
func TestFeeds_InvalidSetBlocksNoOtherFeed(t *testing.T) {
	whole := func(name, spec string) policy.Source {
		s := routeOf(name, spec)
		s.Alone = false
		return s
	}
	answering := func(name string, status int) policy.Source {
		return whole(name, fmt.Sprintf(answersWith, name, status))
	}
	first, second := newCluster(answering("first", 201)), newCluster(answering("second", 201))
	m := newMesh(t, "", mesh.WithPolicyFeed(first), mesh.WithPolicyFeed(second), mesh.WithEmptyPolicy())
	want := func(when string, statuses map[string]int, refused bool) {
		t.Helper()
		for host, want := range statuses {
			if got := get(t, m.Client(), "http://"+host+"/").status; got != want {
				t.Errorf("%s, %s answers %d, want %d", when, host, got, want)
			}
		}
		if d := m.Status().Documents; (d.Refused.Number > d.Number) != refused {
			t.Errorf("%s, load %d is in force and %d is refused, want a later one that is refused: %t", when, d.Number, d.Refused.Number, refused)
		}
	}
	first.apply(t, whole("first", misspeltRoute))
	want("when one is invalid", map[string]int{"first": 201, "second": 201}, true)
	second.apply(t, answering("second", 202))
	want("while it is", map[string]int{"first": 201, "second": 202}, true)
	if err := m.Apply(answering("own", 203)); err != nil {
		t.Errorf("Apply fails because of a feed: %v", err)
	}
	want("after Apply", map[string]int{"first": 201, "second": 202, "own": 203}, true)
	if err := m.Apply(whole("own", misspeltRoute)); err == nil {
		t.Error("Apply takes an invalid document")
	}
	second.apply(t, whole("second", misspeltRoute))
	want("when both are invalid", map[string]int{"first": 201, "second": 202, "own": 203}, true)
	first.apply(t, answering("first", 204))
	want("when the first is mended", map[string]int{"first": 204, "second": 202, "own": 203}, true)
	second.apply(t, answering("second", 205))
	want("when the second is, too", map[string]int{"first": 204, "second": 205, "own": 203}, false)
}

// TestFeeds_FileThatIsEmptied: a file that somebody overwrites is often empty for a while, and its documents stay in force.
func TestFeeds_FileThatIsEmptied(t *testing.T) {
	for _, alone := range []bool{false, true} {
		source := func(name, text string) policy.Source {
			return policy.Source{Name: name, Data: []byte(text), Alone: alone}
		}
		file := func(name string, status int) policy.Source {
			return source(name, string(routeOf(name, fmt.Sprintf(answersWith, name, status)).Data))
		}
		feed := newCluster(file("a", 201), file("b", 201), source("c", ""))
		m := newMesh(t, "", mesh.WithPolicyFeed(feed), mesh.WithRegistryOnly())
		want := func(when string, a, b int, refused string) {
			t.Helper()
			for host, want := range map[string]int{"a": a, "b": b} {
				if got, _ := try(m.Client(), "http://"+host+"/"); got.status != want {
					t.Errorf("alone %t, %s: %s answers %d, want %d", alone, when, host, got.status, want)
				}
			}
			d := m.Status().Documents
			if d.Refused.Number > d.Number != (refused != "") || refused != "" && !strings.Contains(d.Refused.Error, refused) {
				t.Errorf("alone %t, %s: load %d is in force, %d is refused for %q, want %q", alone, when, d.Number, d.Refused.Number, d.Refused.Error, refused)
			}
		}
		want("at first", 201, 201, "")
		for _, blank := range []string{"", " \n\n"} {
			feed.apply(t, source("a", blank), file("b", 202), source("c", ""))
			b := 201
			if alone {
				b = 202
			}
			want("when one is empty", 201, b, "a is empty, but had documents")
		}
		feed.apply(t, file("a", 203), file("b", 203), source("c", ""))
		want("when it is written", 203, 203, "")
		feed.apply(t, source("a", "# "), file("b", 204), source("c", ""))
		want("when a comment is left", 0, 204, "")
		feed.apply(t, file("a", 205), file("b", 205))
		want("when it is back", 205, 205, "")
		feed.apply(t, file("b", 206))
		want("when it is removed", 0, 206, "")
	}
}

// An invalid set blocks no other feed either if it differs from the one in force only in that its documents do not stand alone.
func TestFeeds_SetThatNoLongerStandsAlone(t *testing.T) {
	noLeaks(t)
	route := func(name string, status int) policy.Source {
		return routeOf(name, fmt.Sprintf(answersWith, name, status))
	}
	alone := []policy.Source{route("first", 201), routeOf("broken", misspeltRoute)}
	whole := slices.Clone(alone)
	for i := range whole {
		whole[i].Alone = false
	}
	first, second := newCluster(alone...), newCluster(route("second", 201))
	m := newMesh(t, "", mesh.WithPolicyFeed(first), mesh.WithPolicyFeed(second))
	first.apply(t, whole...)
	if d := m.Status().Documents; d.Refused.Number <= d.Number {
		t.Error("an invalid set is not refused")
	}
	second.apply(t, route("second", 202))
	for host, want := range map[string]int{"first": 201, "second": 202} {
		if got := get(t, m.Client(), "http://"+host+"/").status; got != want {
			t.Errorf("%s answers %d, want %d", host, got, want)
		}
	}
}

// passing is an error that may pass.
type passing struct{ text string }

func (p passing) Error() string { return p.text }
func (passing) Temporary() bool { return true }

// lateFeed yields errors, one a second, before its documents.
type lateFeed struct {
	errs    []error
	sources []policy.Source
}

func (f lateFeed) Watch(ctx context.Context) iter.Seq2[[]policy.Source, error] {
	return func(yield func([]policy.Source, error) bool) {
		for _, err := range f.errs {
			if !yield(nil, err) {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
			}
		}
		if f.sources == nil || yield(f.sources, nil) {
			<-ctx.Done()
		}
	}
}

// TestNew_WaitsForAFeedWhoseErrorMayPass: an API server that is down when a process starts is waited for, until New's context ends.
func TestNew_WaitsForAFeedWhoseErrorMayPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := []error{passing{"connection refused"}, passing{"still down"}}
		began := time.Now()
		m := newMesh(t, "", mesh.WithPolicyFeed(lateFeed{down, []policy.Source{routeOf("api", fmt.Sprintf(answersWith, "api", 201))}}))
		if waited := time.Since(began); waited != 2*time.Second {
			t.Errorf("New returned after %v, want 2 s", waited)
		}
		if got := get(t, m.Client(), "http://api/").status; got != 201 {
			t.Errorf("the documents answer %d, want 201", got)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := mesh.New(ctx, mesh.WithPolicyFeed(lateFeed{errs: down}))
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, passing{"still down"}) {
			t.Errorf("New returns %v, want that its context ended and the last error", err)
		}
		_, err = mesh.New(t.Context(), mesh.WithPolicyFeed(lateFeed{errs: []error{errors.New("forbidden")}}))
		if err == nil || !strings.Contains(err.Error(), "forbidden") {
			t.Errorf("New returns %v, want the error that does not pass", err)
		}
	})
}

// needing is a resolver that tells a feed which services are called, and answers when the documents about them are in force.
type needing struct {
	discovery.Resolver
	need func()
}

func (n needing) Watch(ctx context.Context, service discovery.Service) iter.Seq2[[]discovery.Endpoint, error] {
	return func(yield func([]discovery.Endpoint, error) bool) {
		n.need()
		for endpoints, err := range n.Resolver.Watch(ctx, service) {
			if !yield(endpoints, err) {
				return
			}
		}
	}
}

// TestFirstCall_TakesDocumentsThatComeWithDiscovery: documents that are put into force while the first call waits for endpoints apply to
// that call, whether or not earlier documents name its host.
func TestFirstCall_TakesDocumentsThatComeWithDiscovery(t *testing.T) {
	for _, before := range []string{"{hosts: [else], http: [{directResponse: {status: 200}}]}", "{hosts: [api], http: [{route: [{destination: {host: api}}], timeout: 5s}]}"} {
		synctest.Test(t, func(t *testing.T) {
			f := new(meshtest.Fleet)
			var stamped atomic.Value
			f.Registry.Set("api", f.Add(t, func(w http.ResponseWriter, r *http.Request) { stamped.Store(r.Header.Get("x-stamp")) }))
			feed := newCluster(routeOf("before", before))
			var once sync.Once
			m := f.Mesh(t, "", mesh.WithPolicyFeed(feed), mesh.WithDiscovery(needing{&f.Registry, func() {
				once.Do(func() {
					feed.apply(t, routeOf("z", "{hosts: [api], http: [{route: [{destination: {host: api}}], headers: {request: {set: {x-stamp: new}}}}]}"))
				})
			}}))
			if r := get(t, m.Client(), "http://api/"); r.status != 200 || stamped.Load() != "new" {
				t.Errorf("the first call is answered %d, stamped %q: want that of the documents which came with the endpoints", r.status, stamped.Load())
			}
		})
	}
}

// TestAlone_UnderLoad breaks ten of a hundred documents in turn, and mends them, under load: only what the broken ones say is affected.
func TestAlone_UnderLoad(t *testing.T) {
	const documents, rounds = 100, 10
	host := func(i int) string { return fmt.Sprintf("h%02d", i) }
	version := func(i, n int) policy.Source {
		return routeOf(host(i), fmt.Sprintf("{hosts: [%s], http: [{directResponse: {status: 200, body: {string: \"%d\"}}}]}", host(i), n))
	}
	set := make([]policy.Source, documents)
	for i := range set {
		set[i] = version(i, 0)
	}
	feed := newCluster(set...)
	m := newMesh(t, "", mesh.WithPolicyFeed(feed), mesh.WithLogger(slog.New(slog.DiscardHandler)))
	client := m.Client()

	// Callers see nothing but versions of the host's document, and never an older one again.
	var calls sync.WaitGroup
	stop := make(chan struct{})
	var made atomic.Int64
	for w := range 4 {
		calls.Go(func() {
			seen := make([]int, documents)
			for i := w; ; i = (i + 7) % documents {
				select {
				case <-stop:
					return
				default:
				}
				var n int
				a, err := try(client, "http://"+host(i)+"/")
				if _, scanned := fmt.Sscan(a.body, &n); err != nil || a.status != 200 || scanned != nil || n < seen[i] {
					t.Errorf("%s answers %d %q (%v), after version %d", host(i), a.status, a.body, err, seen[i])
					return
				}
				seen[i] = n
				made.Add(1)
			}
		})
	}
	for round := range rounds {
		next := slices.Clone(set)
		for i := range next {
			if i%rounds == round {
				next[i] = routeOf(host(i), fmt.Sprintf("{hosts: [%s], http: [{rout: []}]}", host(i)))
			} else {
				next[i] = version(i, round+1)
			}
		}
		feed.apply(t, next...)
		if d := m.Status().Documents; len(d.Alone) != documents/rounds || d.Count != documents {
			t.Errorf("%d documents are refused and %d in force, want %d and %d", len(d.Alone), d.Count, documents/rounds, documents)
		}
		for i := range next {
			want := round + 1
			if i%rounds == round {
				want = round // the last good one
			}
			if got := get(t, client, "http://"+host(i)+"/").body; got != fmt.Sprint(want) {
				t.Errorf("in round %d %s answers %s, want %d", round, host(i), got, want)
			}
		}
	}
	close(stop)
	calls.Wait()
	if made.Load() == 0 {
		t.Error("there were no calls")
	}
}
