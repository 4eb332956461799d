package spiffe_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/workloadapi"
	"github.com/nosidecar/mesh/tlsid"
	"github.com/nosidecar/mesh/tlsid/spiffe"
)

func TestMain(m *testing.M) {
	os.Unsetenv("KUBERNETES_SERVICE_HOST") // of the pod in which the tests may run
	os.Exit(m.Run())
}

func newCA(t testing.TB, trustDomain string, ttl, every time.Duration) *tlsid.DevCA {
	t.Helper()
	ca, err := tlsid.NewDevCA(trustDomain)
	if err != nil {
		t.Fatal(err)
	}
	ca.TTL, ca.RotateEvery = ttl, every
	return ca
}

// follow watches in the background and returns what comes; the channel is closed when the sequence ends.
func follow(t testing.TB, s spiffe.Source) <-chan update {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	updates, done := make(chan update), make(chan struct{})
	go func() {
		defer close(done)
		defer close(updates)
		for identity, err := range s.Watch(ctx) {
			select {
			case updates <- update{identity, err}:
			case <-ctx.Done():
				return
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return updates
}

type update struct {
	identity *tlsid.Identity
	err      error
}

func next(t testing.TB, updates <-chan update) update {
	t.Helper()
	u := await.Receive(t, "an update", updates)
	if u == (update{}) {
		t.Fatal("the sequence ended")
	}
	return u
}

func identityNext(t testing.TB, updates <-chan update) *tlsid.Identity {
	t.Helper()
	u := next(t, updates)
	if u.err != nil {
		t.Fatal(u.err)
	}
	return u.identity
}

func serial(i *tlsid.Identity) string { return i.Certificate().Leaf.SerialNumber.String() }

func TestSource_Rotates(t *testing.T) {
	leak.Check(t)
	ca := newCA(t, "example.org", time.Hour, 0)
	api := workloadapi.Start(t, ca.Source("default", "web"))
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", api.Addr())
	updates := follow(t, spiffe.Source{})
	first := identityNext(t, updates)
	if got := first.ID().String(); got != "spiffe://example.org/ns/default/sa/web" {
		t.Errorf("identity %s", got)
	}
	if first.Certificate().PrivateKey == nil || len(first.Bundles()) != 1 || !first.Bundles()[0].Equal(ca.Bundle()) {
		t.Errorf("the identity lacks its key or has other bundles: %v", first.Bundles())
	}
	for range 3 {
		ca.Rotate()
		if second := identityNext(t, updates); serial(second) == serial(first) {
			t.Error("the identity is the same after a rotation")
		}
	}
}

// Trust domains that the own one is federated with keep their own bundles.
func TestFederatedBundlesStayApart(t *testing.T) {
	leak.Check(t)
	ca, other := newCA(t, "example.org", time.Hour, 0), newCA(t, "example.com", time.Hour, 0)
	api := workloadapi.Start(t, ca.Source("default", "web"))
	updates := follow(t, spiffe.Source{Addr: api.Addr()})
	if bundles := identityNext(t, updates).Bundles(); len(bundles) != 1 {
		t.Errorf("bundles %v, want one", bundles)
	}
	if err := ca.Federate(other.Bundle()); err != nil {
		t.Fatal(err)
	}
	bundles := identityNext(t, updates).Bundles()
	if len(bundles) != 2 || !bundles[0].Equal(other.Bundle()) || !bundles[1].Equal(ca.Bundle()) {
		t.Errorf("bundles %v, want those of example.com and example.org", bundles)
	}
}

func TestSource_Chooses(t *testing.T) {
	leak.Check(t)
	ca := newCA(t, "example.org", time.Hour, 0)
	api := workloadapi.Start(t, ca.Source("default", "web"), ca.Source("default", "admin"), ca.Source("other", "web"))
	api.Edit(func(r *workload.X509SVIDResponse) {
		r.Svids[1].Hint, r.Svids[2].Hint = "internal", "external"
	})
	id := func(path string) spiffeid.ID { return spiffeid.RequireFromString("spiffe://example.org" + path) }
	for _, tt := range []struct {
		name   string
		source spiffe.Source
		want   string // the identity's path
		err    string
	}{
		{"default", spiffe.Source{}, "/ns/default/sa/web", ""},
		{"hint", spiffe.Source{Hint: "external"}, "/ns/other/sa/web", ""},
		{"ID", spiffe.Source{ID: id("/ns/default/sa/admin")}, "/ns/default/sa/admin", ""},
		{"both", spiffe.Source{ID: id("/ns/default/sa/admin"), Hint: "internal"}, "/ns/default/sa/admin", ""},
		{"one of both", spiffe.Source{ID: id("/ns/default/sa/admin"), Hint: "external"}, "",
			`no identity has ID spiffe://example.org/ns/default/sa/admin and hint "external", there is ` +
				`spiffe://example.org/ns/default/sa/web (hint ""), spiffe://example.org/ns/default/sa/admin (hint "internal"), ` +
				`spiffe://example.org/ns/other/sa/web (hint "external")`},
		{"no such ID", spiffe.Source{ID: id("/nobody")}, "", "no identity has ID spiffe://example.org/nobody, there is "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.source.Addr = api.Addr()
			u := next(t, follow(t, tt.source))
			if tt.err != "" {
				if u.err == nil || !strings.Contains(u.err.Error(), tt.err) {
					t.Errorf("error %v, want %s", u.err, tt.err)
				}
			} else if u.err != nil || u.identity.ID().Path() != tt.want {
				t.Errorf("%v, %v; want %s", u.identity, u.err, tt.want)
			}
		})
	}
}

// What the API should not send is an error; the next good response is an identity again.
func TestSource_BadResponses(t *testing.T) {
	leak.Check(t)
	ca := newCA(t, "example.org", time.Hour, 0)
	api := workloadapi.Start(t, ca.Source("default", "web"))
	updates := follow(t, spiffe.Source{Addr: api.Addr()})
	identityNext(t, updates)
	for _, tt := range []struct {
		name string
		edit func(*workload.X509SVIDResponse)
		want string
	}{
		{"no identities", func(r *workload.X509SVIDResponse) { r.Svids = nil }, "no SVIDs"},
		{"no certificate", func(r *workload.X509SVIDResponse) { r.Svids[0].X509Svid = nil }, "certificate"},
		{"a certificate that is none", func(r *workload.X509SVIDResponse) { r.Svids[0].X509Svid = []byte("x") }, "certificate"},
		{"no key", func(r *workload.X509SVIDResponse) { r.Svids[0].X509SvidKey = nil }, "key"},
		{"no bundle", func(r *workload.X509SVIDResponse) { r.Svids[0].Bundle = nil }, `bundle of trust domain "example.org" is empty`},
		{"another's bundle", func(r *workload.X509SVIDResponse) {
			r.Svids[0].Bundle = newCA(t, "example.org", time.Hour, 0).Bundle().X509Authorities()[0].Raw
		}, `the bundle of trust domain "example.org" does not vouch for it`},
		{"a federated bundle that is none", func(r *workload.X509SVIDResponse) {
			r.FederatedBundles["spiffe://example.com"] = []byte("x")
		}, "malformed certificate"},
		{"a federated bundle without authorities", func(r *workload.X509SVIDResponse) {
			r.FederatedBundles["spiffe://example.com"] = nil
		}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			api.Edit(tt.edit)
			if u := next(t, updates); (u.err == nil) != (tt.want == "") || u.err != nil && !strings.Contains(u.err.Error(), tt.want) {
				t.Errorf("%v, %v; want error %q", u.identity, u.err, tt.want)
			}
			api.Edit(nil)
			identityNext(t, updates)
		})
	}
}

// waitShortly is what a program does at its start: it waits, but not for ever.
func waitShortly(t testing.TB, k *tlsid.Keeper, limit time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return k.Wait(ctx)
}

func TestWaitSaysWhyThereIsNoIdentity(t *testing.T) {
	leak.Check(t)
	ca := newCA(t, "example.org", time.Hour, 0)
	denying := workloadapi.Start(t, ca.Source("default", "web"))
	denying.Deny()
	failing := workloadapi.Start(t, ca.Source("default", "web"))
	failing.Fail(status.Error(codes.Internal, "database is locked"))
	useless := workloadapi.Start(t, newCA(t, "example.org", 48*time.Hour, 0).Source("default", "web")) // refuses its TTL
	for _, tt := range []struct {
		name, addr string
		code       codes.Code
		want       string
	}{
		{"denied", denying.Addr(), codes.PermissionDenied, "no identity issued"},
		{"failing", failing.Addr(), codes.Internal, "database is locked"},
		{"useless", useless.Addr(), codes.Unknown, "TTL"},
		{"no socket", "unix:///nowhere/api.sock", codes.Unavailable, "/nowhere/api.sock: connect: no such file or directory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			failed := make(chan error, 100)
			k := tlsid.Keep(spiffe.Source{Addr: tt.addr}, tlsid.Hooks{Failed: func(err error) { failed <- err }})
			defer k.Close()
			<-failed
			err := waitShortly(t, k, time.Millisecond)
			if !errors.Is(err, tlsid.ErrNoIdentity) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Wait: %v, want ErrNoIdentity and the deadline", err)
			}
			if _, last := k.Latest(); status.Code(last) != tt.code || !strings.Contains(last.Error(), tt.want) ||
				!strings.Contains(last.Error(), tt.addr) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Wait: %v, want code %v with %q and the address", err, tt.code, tt.want)
			}
		})
	}
}

// Not being known yet is not the end: agents learn of new processes late.
func TestSource_DeniedAtFirst(t *testing.T) {
	leak.Check(t)
	ca := newCA(t, "example.org", time.Hour, 0)
	api := workloadapi.Start(t, ca.Source("default", "web"))
	api.Deny()
	updates := follow(t, spiffe.Source{Addr: api.Addr()})
	for range 2 {
		if u := next(t, updates); status.Code(u.err) != codes.PermissionDenied {
			t.Errorf("%v, want PermissionDenied", u.err)
		}
	}
	api.Fail(nil)
	for {
		if u := next(t, updates); u.err == nil {
			break
		}
	}
}

func TestSource_Ends(t *testing.T) {
	leak.Check(t)
	ca := newCA(t, "example.org", time.Hour, 0)
	wrong := workloadapi.Start(t, ca.Source("default", "web"))
	wrong.Fail(status.Error(codes.InvalidArgument, "security header missing from request"))
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", "")
	for _, tt := range []struct{ name, addr, want string }{
		{"InvalidArgument", wrong.Addr(), "security header missing"},
		{"no address", "", "SPIFFE_ENDPOINT_SOCKET is not set"},
		{"unknown scheme", "http://localhost/", `address "http://localhost/" of the Workload API`},
		{"no scheme", "/run/api.sock", `address "/run/api.sock" of the Workload API`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := tlsid.Keep(spiffe.Source{Addr: tt.addr}, tlsid.Hooks{})
			defer k.Close()
			err := waitShortly(t, k, time.Minute)
			if err == nil || !strings.Contains(err.Error(), tt.want) || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Wait: %v, want %q before the deadline", err, tt.want)
			}
		})
	}
}

// A server that cancels the stream is not a caller that does.
func TestSource_CanceledByTheAPI(t *testing.T) {
	leak.Check(t)
	api := workloadapi.Start(t, newCA(t, "example.org", time.Hour, 0).Source("default", "web"))
	api.Fail(status.Error(codes.Canceled, "going away"))
	updates := follow(t, spiffe.Source{Addr: api.Addr()})
	if u := next(t, updates); status.Code(u.err) != codes.Canceled {
		t.Errorf("%v, want Canceled", u.err)
	}
	api.Fail(nil)
	for {
		if u := next(t, updates); u.err == nil {
			break
		}
	}
}

// Whoever stops iterating gets nothing more, and leaves nothing running.
func TestSource_Break(t *testing.T) {
	leak.Check(t)
	api := workloadapi.Start(t, newCA(t, "example.org", time.Hour, 10*time.Millisecond).Source("default", "web"))
	for range 3 {
		seen := 0
		for _, err := range (spiffe.Source{Addr: api.Addr()}).Watch(context.Background()) {
			if err != nil {
				t.Fatal(err)
			}
			if seen++; seen == 2 {
				break
			}
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	for range (spiffe.Source{Addr: api.Addr()}).Watch(ctx) {
		cancel()
	}
	cancel()
	for u, err := range (spiffe.Source{Addr: api.Addr()}).Watch(ctx) {
		t.Errorf("a context that is over yields %v, %v", u, err)
	}
}

// An API that died leaves the last identity, and only until it expires. When it is back all goes on.
func TestTheIdentityOutlivesTheAPIUntilItExpires(t *testing.T) {
	leak.Check(t)
	ca := newCA(t, "example.org", 2*time.Second, 500*time.Millisecond)
	api := workloadapi.Start(t, ca.Source("default", "web"))
	failed := make(chan error, 1000)
	k := tlsid.Keep(spiffe.Source{Addr: api.Addr()}, tlsid.Hooks{Failed: func(err error) { failed <- err }})
	defer k.Close()
	if err := waitShortly(t, k, time.Minute); err != nil {
		t.Fatal(err)
	}
	api.Stop()
	if err := <-failed; status.Code(err) != codes.Unavailable {
		t.Errorf("failed with %v, want Unavailable", err)
	}
	last, err := k.Latest()
	if _, err := k.Identity(); err != nil && time.Now().Before(last.NotAfter()) {
		t.Fatalf("right after the API died: %v", err)
	}

	var expired *tlsid.ExpiredError
	for !errors.As(err, &expired) {
		err = <-failed // one is the expiry
	}
	if _, err := k.Identity(); !errors.As(err, &expired) || time.Now().Before(last.NotAfter()) {
		t.Errorf("Identity: %v, want that it expired at %v", err, last.NotAfter())
	}
	api.Restart()
	if err := waitShortly(t, k, time.Minute); err != nil {
		t.Fatalf("after the API is back: %v", err)
	}
	if now, _ := k.Latest(); serial(now) == serial(last) {
		t.Error("the identity is the old one")
	}
}

// The API of these tests refuses who does not send the security header, as a real one does: the Source sends it.
func TestWorkloadAPI_SecurityHeader(t *testing.T) {
	leak.Check(t)
	api := workloadapi.Start(t, newCA(t, "example.org", time.Hour, 0).Source("default", "web"))
	conn, err := grpc.NewClient(api.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(t.Context(), &workload.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("%v, want InvalidArgument", err)
	}
}
